"""The options of the losses: their types, defaults and ranges."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict, get_args, get_type_hints

import torch

from .backends import FUSED_OPTIONS, BackendName, KernelOptions

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Reduction = Literal["mean", "sum", "none"]
Normalizer = Literal["count", "weight_sum"]

CHOICES = {"reduction": get_args(Reduction), "normalizer": get_args(Normalizer), "backend": get_args(BackendName)}


class LossKeywords(TypedDict, total=False):
    """The keyword arguments of all losses and their modules, except for ignore_index."""

    reduction: Reduction
    label_smoothing: float
    z_loss: float
    softcap: float | None
    normalizer: Normalizer
    backend: BackendName
    process_group: ProcessGroup | None


class CallKeywords(LossKeywords, total=False):
    """The keyword arguments of both functions, except for ignore_index and return_stats."""

    domain_ids: torch.Tensor | None
    domain_weights: torch.Tensor | None
    token_weights: torch.Tensor | None


class LossOptions(NamedTuple):
    """The options of a call; see `pycooldown.losses.cross_entropy` for what each does."""

    ignore_index: int = -100
    reduction: Reduction = "mean"
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    softcap: float | None = None
    normalizer: Normalizer = "count"
    backend: BackendName = "auto"
    process_group: ProcessGroup | None = None

    def check(self) -> None:
        """Raise for an option whose value or type is not accepted."""
        for name, accepted in CHOICES.items():
            if getattr(self, name) not in accepted:
                raise ValueError(f"{name} must be one of {', '.join(accepted)}, got {getattr(self, name)!r}")
        for name in ("ignore_index", "label_smoothing", "z_loss", "softcap"):
            if isinstance(getattr(self, name), torch.Tensor):
                raise TypeError(
                    f"{name} must be a number, got a tensor: no gradient would flow into it; pass {name}.item()"
                )
        given: object = self.ignore_index
        if not isinstance(given, int | torch.SymInt) and not hasattr(given, "__index__"):
            raise TypeError(f"ignore_index must be an integer, got {self.ignore_index!r}")
        if not -(2**63) <= self.ignore_index < 2**63:
            raise ValueError(f"ignore_index must be in [-2^63, 2^63), as targets are, got {self.ignore_index}")
        if not 0.0 <= self.label_smoothing <= 1.0:
            raise ValueError(f"label_smoothing must be in [0, 1], got {self.label_smoothing}")
        if not 0.0 <= self.z_loss < float("inf"):
            raise ValueError(f"z_loss must be finite and not negative, got {self.z_loss}")
        if self.softcap is not None and not 0.0 < self.softcap < float("inf"):
            raise ValueError(f"softcap must be finite and positive, or None for no cap, got {self.softcap}")


# The options that kernels have too, and whether these are numbers for which None means 0.
_SHARED = {name: hint is float for name, hint in get_type_hints(KernelOptions).items() if name in LossOptions._fields}
# The options that only the reference backend serves, with the values that any backend serves.
_BEYOND_FUSED = {name: LossOptions._field_defaults[name] for name in _SHARED if name not in (*FUSED_OPTIONS, "backend")}


def kernel_options(options: LossOptions) -> KernelOptions:
    """Return the options for kernels. Their backend is still the requested one."""
    values: dict[str, Any] = {}
    for name, is_number in _SHARED.items():
        value = getattr(options, name)
        values[name] = float(value or 0) if is_number else value
    return KernelOptions(**values)


def beyond_fused(options: LossOptions) -> str | None:
    """Return the first option that only the reference backend serves, or None."""
    for name, default in _BEYOND_FUSED.items():
        if (value := getattr(options, name)) != default:
            return f"{name}={value!r}"
    return None


class Weights(NamedTuple):
    """The tensors of a call that weigh its losses; see `pycooldown.losses.cross_entropy`.

    Attributes:
        weight: (V,), of classes, or None.
        domain_ids: Of the shape of target or of its leading dimension, or None.
        domain_weights: (K,) or None.
        token_weights: Of the shape of target or of its leading dimension, or None.
    """

    weight: torch.Tensor | None
    domain_ids: torch.Tensor | None
    domain_weights: torch.Tensor | None
    token_weights: torch.Tensor | None


class Layer(NamedTuple):
    """The layer whose outputs are the logits.

    Attributes:
        weight: (V, D), or (V, d1, ..., dK, D) for logits (N, V, d1, ..., dK).
        bias: Of the shape of weight without its last dimension, or None.
        chunk_size: Rows whose logits are formed at a time, or None to choose.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    chunk_size: int | None
