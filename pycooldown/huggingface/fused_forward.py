"""`FusedLoss`: the forward of a model whose loss is computed in its output layer, weighted by domain."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from pycooldown.huggingface.output_layer import (
    OutputLayer,
    auxiliary_loss,
    examine,
    next_tokens,
    output_module,
    without_labels,
)
from pycooldown.losses import DomainStats, cross_entropy, linear_cross_entropy

ATTRIBUTE = "_pycooldown_fused_loss"  # a model keeps its FusedLoss here, also if its forward is wrapped later


@dataclass
class LossOutput(ModelOutput):  # type: ignore[misc]
    """The output of a model with a fused loss that is asked for statistics.

    Attributes:
        loss: () or, without reduction, (N, T).
        logits: (N, T, V), or None if they were not formed.
        domain_stats: Sums by domain.
        aux_loss: The part of the loss that balances experts, or None. Without reduction, add it to the mean of the
            loss.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    domain_stats: DomainStats | None = None
    aux_loss: torch.Tensor | None = None


class FusedLoss:
    """The forward pass that `fuse_loss` gives a model.

    Attributes:
        model: The model itself, without wrappers.
        domain_weights: (K,) or None.
        label_smoothing: Label smoothing in training mode.
        z_loss: Coefficient of the z-loss in training mode.
        obstacle: Why logits are formed in training, or None if they are not.
        shifts: Whether labels are those of the inputs, so that each is predicted one position earlier.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        domain_weights: Sequence[float] | torch.Tensor | None,
        label_smoothing: float,
        z_loss: float,
    ) -> None:
        self.model = model
        self.domain_weights = domain_weights
        self.label_smoothing = label_smoothing
        self.z_loss = z_loss
        # A forward of the model instance, not of its class, if something wrapped it before.
        self._forward_before = model.__dict__.get("forward")
        signature = inspect.signature(model.forward)
        self._names = tuple(signature.parameters)
        self._layer: OutputLayer | None = None
        self._options: dict[str, Any] | None = None
        self._result: Any = None
        self._undone = False
        self._replaced: list[tuple[torch.nn.Module, str, Any, Any]] = []
        self._examine()
        # Trainer reads here which columns of a dataset the model takes.
        self.__signature__ = _with_parameters_of_call(signature)
        self._replace(model, "forward", self)
        self._replace(model, "accepts_loss_kwargs", True)  # tells Trainer that the divisor is num_items_in_batch
        self._replace(model, ATTRIBUTE, self)

    def undo(self) -> None:
        """Give the model its original loss again."""
        self._undone = True  # this forward has to stay if something else has wrapped it
        self._restore()

    def __enter__(self) -> FusedLoss:
        return self

    def __exit__(self, *error: object) -> None:
        self.undo()

    def targets(self, labels: torch.Tensor) -> torch.Tensor:
        """Return the labels (N, T) that the logits at each position predict, from labels (N, T)."""
        return next_tokens(labels) if self.shifts else labels

    def domains_of_targets(self, labels: torch.Tensor, domain_ids: torch.Tensor) -> torch.Tensor:
        """Return the domain of each target, (N, T), from the domain ids of sequences (N,) or of labels (N, T)."""
        if domain_ids.shape != labels.shape:
            return domain_ids.unsqueeze(1).expand(labels.shape)
        return next_tokens(domain_ids, last=0) if self.shifts else domain_ids

    def __call__(
        self,
        *args: Any,
        labels: torch.Tensor | None = None,
        domain_ids: torch.Tensor | None = None,
        domain_weights: Sequence[float] | torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        reduction: str = "mean",
        return_stats: bool = False,
        skip_logits: bool | None = None,
        label_smoothing: float | None = None,
        **inputs: Any,
    ) -> Any:
        """Return the model's outputs and loss; see `fuse_loss` for the arguments that the model itself lacks."""
        inputs |= dict(zip(self._names, args, strict=False))
        labels = inputs.pop("labels", labels)
        if self._undone or labels is None:
            return self._forward(**inputs) if labels is None else self._forward(**inputs, labels=labels)

        training = self.model.training
        weights = self.domain_weights if domain_weights is None else domain_weights
        options = self._weighted(labels, domain_ids, weights, num_items_in_batch, reduction)
        options["target"] = inputs.pop("shift_labels", None) if self.shifts else None
        if options["target"] is None:
            options["target"] = self.targets(labels)
        smoothing = self.label_smoothing if label_smoothing is None else label_smoothing
        options |= {
            "return_stats": return_stats,
            "label_smoothing": smoothing if training else 0.0,
            "z_loss": self.z_loss if training else 0.0,
        }
        skip_logits = training if skip_logits is None else skip_logits
        inputs = self._checked(without_labels(self.model, labels, inputs))
        as_tuple = self._returns_tuple(inputs)
        if skip_logits and self._layer is not None:
            result, outputs = self._fused(options, inputs)
        else:
            outputs = self._forward(**inputs)
            logits = outputs[0] if isinstance(outputs, tuple) else outputs.logits
            result = cross_entropy(logits.transpose(1, 2), **options)
        loss, *stats = result if return_stats else (result,)
        further = auxiliary_loss(self.model, outputs) if self._auxiliary else None
        if further is not None and reduction != "none":
            loss = loss + further
        if isinstance(outputs, tuple):  # from a module that is no PreTrainedModel
            return (loss, *(outputs[1:] if skip_logits else outputs), *stats)
        if return_stats:
            output = LossOutput(loss, None if skip_logits else outputs.logits, stats[0], further)
        else:
            kept = {name: value for name, value in outputs.items() if name != "logits" or not skip_logits}
            output = type(outputs)(loss=loss, **kept)
        return output.to_tuple() if as_tuple else output

    def _weighted(
        self,
        labels: torch.Tensor,
        domain_ids: torch.Tensor | None,
        domain_weights: Sequence[float] | torch.Tensor | None,
        num_items: torch.Tensor | int | None,
        reduction: str,
    ) -> dict[str, Any]:
        """Return weights (divisor included) and reduction for cross_entropy, so that only one gradient is formed."""
        if domain_ids is None and domain_weights is not None:
            if self.model.training:
                raise ValueError(
                    "domain_weights are set but domain_ids are missing; pass domain_ids (N,) beside the labels, for "
                    "example from a column of that name and a data_collator that keeps it"
                )
            domain_weights = None
        options: dict[str, Any] = {"reduction": reduction}
        if domain_ids is not None:
            if domain_ids.shape == labels.shape:
                domain_ids = self.domains_of_targets(labels, domain_ids)
            options["domain_ids"] = domain_ids
        if domain_weights is not None:
            options["domain_weights"] = torch.as_tensor(domain_weights, dtype=torch.float32, device=labels.device)
        if num_items is not None and reduction == "mean":
            options["reduction"] = "sum"
            share = 1 / torch.as_tensor(num_items, dtype=torch.float32, device=labels.device).clamp(min=1)
            options["token_weights"] = share.expand(labels.shape[0])
        return options

    def _checked(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Return the inputs, and check that they and the model are as they were when the model was examined."""
        if inputs.get("output_router_logits") and not self._auxiliary:
            problem = f"without labels it is not known what {type(self.model).__name__} then adds to its loss"
            raise ValueError(f"output_router_logits=True: {problem}; leave it out")
        if output_module(self.model, _LayerForward) != self._output_module:
            self._examine_again()
        return inputs

    def _returns_tuple(self, inputs: dict[str, Any]) -> bool:
        """Return whether the caller wants a tuple; the model itself is asked for a `ModelOutput`."""
        if not isinstance(self.model, PreTrainedModel):
            return False
        wanted = inputs.pop("return_dict", None)
        if (self.model.config.return_dict if wanted is None else wanted) is not False:
            return False
        inputs["return_dict"] = True
        return True

    def _fused(self, options: dict[str, Any], inputs: dict[str, Any]) -> tuple[Any, Any]:
        self._options = options
        try:
            outputs = self._forward(**inputs)
            result = self._result
        finally:
            self._options = self._result = None
        if result is None or outputs.logits.shape[:-1] != (1, 1):
            raise RuntimeError(
                f"the output layer of {type(self.model).__name__} has changed since fuse_loss: something else now "
                "computes or changes the logits, and the loss would ignore it; call undo() and fuse_loss() again"
            )
        return result, outputs

    def _output_layer(self, linear: torch.nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
        """Compute the loss in the output layer, where its parameters are complete even if they are sharded outside."""
        options = self._options
        if options is None or self._layer is None:
            before = self._linear_forward_before
            return type(linear).forward(linear, hidden) if before is None else before(hidden)
        self._result = linear_cross_entropy(
            hidden if self._layer.scale == 1 else self._layer.scale * hidden,
            linear.weight,
            linear_bias=self._layer.bias(hidden.dtype),
            softcap=self._layer.softcap,
            **options,
        )
        return self._layer.stand_in(hidden)

    def _forward(self, **inputs: Any) -> Any:
        """Call the model's own forward."""
        before = self._forward_before
        return type(self.model).forward(self.model, **inputs) if before is None else before(**inputs)

    def _examine(self) -> None:
        """Find the output layer and replace its forward."""
        self._output_module = output_module(self.model, _LayerForward)
        self._layer, self.obstacle, self.shifts, self._auxiliary = examine(self.model, self._forward)
        if self.obstacle is not None:
            name = type(self.model).__name__
            warnings.warn(f"logits will be formed for the loss of {name}: {self.obstacle}", stacklevel=5)
        if self._layer is not None:
            self._linear_forward_before = self._layer.linear.__dict__.get("forward")
            self._replace(self._layer.linear, "forward", _LayerForward(self, self._layer.linear))

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _examine_again(self) -> None:
        """Examine a model again whose output layer was replaced, wrapped or resized."""
        if self._layer is not None:
            self._restore(self._layer.linear)
        self._examine()

    def _replace(self, module: torch.nn.Module, name: str, ours: Any) -> None:
        self._replaced.append((module, name, ours, module.__dict__.get(name)))
        module.__dict__[name] = ours

    def _restore(self, only: torch.nn.Module | None = None) -> None:
        """Undo `_replace`, for all modules or for one."""
        for entry in list(self._replaced):
            module, name, ours, before = entry
            if only is not None and module is not only:
                continue
            if module.__dict__.get(name) is ours:
                del module.__dict__[name]
                if before is not None:
                    module.__dict__[name] = before
            self._replaced.remove(entry)


class _LayerForward:
    """The forward of an output layer. A copy of this layer alone, as peft makes it for training, is a plain layer."""

    def __init__(self, fused: FusedLoss, linear: torch.nn.Linear) -> None:
        self.fused = fused
        self.linear = linear

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.fused._output_layer(self.linear, hidden)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self.fused.model) in memo:  # the whole model is copied
            return _LayerForward(copy.deepcopy(self.fused, memo), copy.deepcopy(self.linear, memo))
        return MethodType(type(self.linear).forward, copy.deepcopy(self.linear, memo))


def _with_parameters_of_call(signature: inspect.Signature) -> inspect.Signature:
    """Return a forward's signature, extended by the missing parameters of `FusedLoss.__call__`."""
    parameters = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    names = {p.name for p in parameters}
    own = inspect.signature(FusedLoss.__call__).parameters.values()
    more = [p for p in own if p.kind in (p.KEYWORD_ONLY, p.VAR_KEYWORD) and p.name not in names]
    return signature.replace(parameters=[*parameters, *more])
