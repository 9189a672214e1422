"""What the losses accept: checks that name the argument, and its translation into one weight per row.

Shapes, dtypes and devices are always checked. Values are checked where that takes no synchronization with a device, so
on the CPU and outside torch.compile.
"""

from __future__ import annotations

import sys

import torch

REDUCTIONS = ("mean", "sum", "none")
NORMALIZERS = ("count", "weight_sum")
BACKENDS = ("auto", "reference", "cpp", "triton")
FUSED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # of the logits that the fused kernels take


def check_options(
    reduction: str, label_smoothing: float, z_loss: float, softcap: float | None, normalizer: str, backend: str
) -> None:
    """Raise ValueError for an option that is not among, or not in the range of, the accepted values."""
    for name, value, accepted in (
        ("reduction", reduction, REDUCTIONS),
        ("normalizer", normalizer, NORMALIZERS),
        ("backend", backend, BACKENDS),
    ):
        if value not in accepted:
            raise ValueError(f"{name} must be one of {', '.join(accepted)}, got {value!r}")
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing must be in [0, 1], got {label_smoothing}")
    if not 0.0 <= z_loss < float("inf"):
        raise ValueError(f"z_loss must be finite and not negative, got {z_loss}")
    if softcap is not None and not 0.0 < softcap < float("inf"):
        raise ValueError(f"softcap must be finite and positive, or None for no cap, got {softcap}")


def check_whole(name: str, tensor: torch.Tensor) -> None:
    """Raise for a DTensor, of which a rank may have but a part."""
    distributed = sys.modules.get("torch.distributed.tensor")  # there is a DTensor only if this is
    if distributed is not None and isinstance(tensor, distributed.DTensor):
        raise ValueError(
            f"{name} is a DTensor with placements {tensor.placements}; pass {name}.to_local(), with "
            f"process_group=mesh.get_group() if it is split by classes, or the whole, {name}.full_tensor()"
        )


def check_logits(input: torch.Tensor) -> None:
    """Raise unless input is floating point and has a class dimension."""
    check_whole("input", input)
    if not input.is_floating_point():
        raise TypeError(f"input must be floating point logits, got {input.dtype}")
    if input.dim() == 0:
        raise ValueError("input must have a class dimension: (V,), (N, V) or (N, V, ...), got a scalar")


def check_target(
    input: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None,
    ignore_index: int,
    *,
    shape: torch.Size,
    class_dim: int,
    num_classes: int,
) -> None:
    """Raise unless target has the rows' shape, or that with num_classes at class_dim, and weight is (num_classes,)."""
    for name, tensor in (("target", target), ("weight", weight)):
        if tensor is not None and tensor.device != input.device:
            raise ValueError(f"{name} is on {tensor.device}, but input on {input.device}; move it there")
    same_dtype = weight is None or weight.dtype == input.dtype or torch.is_autocast_enabled(input.device.type)
    if weight is not None and (weight.shape != (num_classes,) or not same_dtype):
        raise ValueError(
            f"weight must be ({num_classes},) {input.dtype}, one weight per class in the dtype of input, "
            f"got {tuple(weight.shape)} {weight.dtype}"
        )
    if target.is_floating_point():
        logits_shape = (*shape[:class_dim], num_classes, *shape[class_dim:])
        if target.shape != logits_shape:
            raise ValueError(
                f"target of class probabilities must have the shape of the logits {logits_shape}, "
                f"got {tuple(target.shape)}; class indices must be int64"
            )
        return
    if target.dtype not in (torch.int64, torch.uint8):
        raise TypeError(f"target must be int64 classes or floating point probabilities, got {target.dtype}")
    if target.shape != shape:
        raise ValueError(
            f"target must have shape {tuple(shape)} for input {tuple(input.shape)}, got {tuple(target.shape)}"
        )
    if _checkable(target):
        wrong = ((target < 0) | (target >= num_classes)) & (target != ignore_index)
        if wrong.any():
            row = int(wrong.flatten().nonzero()[0])
            raise IndexError(
                f"target {int(target.flatten()[row])} at row {row} is not in [0, {num_classes}) and not "
                f"ignore_index={ignore_index}"
            )


def check_inplace(input: torch.Tensor) -> None:
    """Check that the gradient may overwrite input."""
    owner = input if input._base is None else input._base
    if input.is_leaf or (owner.is_leaf and owner.requires_grad):
        raise ValueError("inplace=True would overwrite input, a leaf that requires grad; use inplace=False")
    if any(stride == 0 and size > 1 for stride, size in zip(input.stride(), input.shape, strict=True)):
        raise ValueError(
            "inplace=True needs an input whose elements do not share memory, got an expanded one; clone it"
        )


def flatten_logits(input: torch.Tensor) -> torch.Tensor:
    """Input (N, V, ...) as (rows, V), a view where strides allow."""
    num_classes = input.shape[0 if input.dim() == 1 else 1]
    if input.dim() == 2:
        return input
    if input.dim() == 1:
        return input.unsqueeze(0)
    return input.movedim(1, -1).reshape(-1, num_classes)


def row_weights(
    input: torch.Tensor,
    shape: torch.Size,
    domain_ids: torch.Tensor | None,
    domain_weights: torch.Tensor | None,
    token_weights: torch.Tensor | None,
) -> tuple[torch.Tensor | None, torch.Tensor | None, int]:
    """Check the domains and weights of rows of this shape, whose logits are input or are computed from it.

    Returns:
        weights (rows,) float32 (float64 if input is) or None for ones, domain_ids (rows,) int64 or None, and the number
        of domains. No gradient flows into weights.
    """
    dtype = torch.promote_types(input.dtype, torch.float32)
    weights = None
    num_domains = 1
    if (domain_ids is None) != (domain_weights is None):
        given, missing = ("domain_weights", "domain_ids") if domain_ids is None else ("domain_ids", "domain_weights")
        hint = "" if domain_ids is None else "; for statistics alone, pass domain_weights=torch.ones(num_domains)"
        raise ValueError(f"{given} needs {missing}{hint}")
    if domain_ids is not None and domain_weights is not None:
        if domain_ids.dtype not in (torch.int64, torch.int32, torch.int16, torch.uint8):
            raise TypeError(f"domain_ids must be integers, got {domain_ids.dtype}")
        _check_weights("domain_weights", domain_weights, input)
        if domain_weights.dim() != 1 or len(domain_weights) == 0:
            raise ValueError(f"domain_weights must be (K,), one weight per domain, got {tuple(domain_weights.shape)}")
        num_domains = len(domain_weights)
        domain_ids = _per_row("domain_ids", domain_ids, input, shape).long()
        if _checkable(domain_ids) and domain_ids.numel():
            low, high = (int(bound) for bound in torch.aminmax(domain_ids))
            if low < 0 or high >= num_domains:
                row = int(((domain_ids < 0) | (domain_ids >= num_domains)).nonzero()[0])
                raise IndexError(
                    f"domain_ids holds {int(domain_ids[row])} at row {row}, but there are {num_domains} domain_weights"
                )
        weights = domain_weights.detach().to(dtype).take(domain_ids)
    if token_weights is not None:
        _check_weights("token_weights", token_weights, input)
        token_weights = _per_row("token_weights", token_weights.detach(), input, shape).to(dtype)
        weights = token_weights if weights is None else weights * token_weights
    return weights, domain_ids, num_domains


def _check_weights(name: str, weights: torch.Tensor, input: torch.Tensor) -> None:
    if not weights.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {weights.dtype}; use {name}.float()")
    if weights.device != input.device:
        raise ValueError(f"{name} is on {weights.device}, but input on {input.device}; move it there")
    if _checkable(weights) and weights.numel():
        low, high = (float(bound) for bound in torch.aminmax(weights.detach()))  # NaN if any is
        if not (low >= 0 and high < float("inf")):
            raise ValueError(f"{name} must be finite and not negative, got values from {low} to {high}")


def _per_row(name: str, tensor: torch.Tensor, input: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """`tensor` of one value per row, or per entry of the leading dimension, as one value per row."""
    if tensor.device != input.device:
        raise ValueError(f"{name} is on {tensor.device}, but input on {input.device}; move it there")
    if tensor.shape == shape:
        return tensor.reshape(-1)
    if tensor.shape != shape[:1]:
        raise ValueError(
            f"{name} must have the shape of target {tuple(shape)} (per token) or {tuple(shape[:1])} (per sequence), "
            f"got {tuple(tensor.shape)}"
        )
    return tensor.reshape(-1, *(1 for _ in shape[1:])).expand(shape).reshape(-1)


def _checkable(tensor: torch.Tensor) -> bool:
    if torch.compiler.is_compiling() or tensor.device.type != "cpu":
        return False
    return not torch._C._are_functorch_transforms_active()
