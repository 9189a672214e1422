"""`fuse_loss`: has a Hugging Face model compute its loss from its last hidden states, weighted by domain."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.utils import ModelOutput

from pycooldown.huggingface.output_layer import examine, next_tokens, without_labels
from pycooldown.losses import DomainStats, cross_entropy, linear_cross_entropy


def fuse_loss(
    model: torch.nn.Module,
    *,
    domain_weights: Sequence[float] | torch.Tensor | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> FusedLoss:
    """Has this model compute its loss by `pycooldown.losses.linear_cross_entropy`, without forming logits.

    Its forward then also takes

        domain_ids: (N,) or of the shape of labels, the domain of each sequence or label.
        domain_weights: (K,) in place of those given here.
        reduction: "mean" or "sum" over the labels that are not ignored, or "none" for (N, T) losses.
        return_stats: whether the output is a `LossOutput`, which has statistics by domain.
        skip_logits: whether to do without logits; by default while the model is in training mode. In evaluation mode
            the output has both, for the metrics of `transformers.Trainer`.

    and, from Trainer, num_items_in_batch, which the sum of losses is divided by. Without weights the loss is the
    model's own. Calls without labels are as before. Do it before the model is given to Trainer, compiled or wrapped.

    A few tokens are sent through the model to see that its loss is what is computed in its place. If only its logits
    are not (say, its output layer is an adapter's), there is a warning, and they are formed.

    Args:
        model: a causal or encoder-decoder model; a module that is not a `transformers.PreTrainedModel` must give an
            output with logits (N, T, V) of the next tokens.
        domain_weights: (K,), for calls with domain_ids alone; the returned object's may be set anew between steps.
        label_smoothing: share of the uniform distribution in the target, in training mode.
        z_loss: coefficient of the squared log-sum-exp, in training mode.

    Returns:
        What undoes it: by ``undo()``, or at the end of a ``with`` block.

    Raises:
        ValueError: if the model's loss is not the mean cross-entropy of its logits.
    """
    return FusedLoss(model, domain_weights, label_smoothing, z_loss)


@dataclass
class LossOutput(ModelOutput):  # type: ignore[misc]
    """What a model with a fused loss gives if it is asked for statistics.

    Attributes:
        loss: () or, unreduced, (N, T).
        logits: (N, T, V), or None if they were not formed.
        domain_stats: sums by domain.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    domain_stats: DomainStats | None = None


class FusedLoss:
    """The forward of a model whose loss is fused: what `fuse_loss` returns.

    Attributes:
        model: the model.
        domain_weights: (K,) or None.
        label_smoothing: in training mode.
        z_loss: in training mode.
        obstacle: why logits are formed in training, or None if they are not.
        shifts: whether labels are those of the inputs, each to be predicted one position before.
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
        # What the modules have of their own, not by their class, if another has wrapped their forward before.
        self._forward_before = model.__dict__.get("forward")
        signature = inspect.signature(model.forward)
        self._names = tuple(signature.parameters)
        self._layer, self.obstacle, self.shifts = examine(model, self._forward)
        if self.obstacle is not None:
            warnings.warn(
                f"logits will be formed for the loss of {type(model).__name__}: {self.obstacle}", stacklevel=3
            )
        self._options: dict[str, Any] | None = None
        self._result: Any = None
        self._undone = False
        # Trainer looks here for the columns of a dataset that the model takes.
        self.__signature__ = _with_parameters_of_call(signature)
        self._replaced: list[tuple[torch.nn.Module, str, Any, Any]] = []
        self._replace(model, "forward", self)
        self._replace(model, "accepts_loss_kwargs", True)  # Trainer: the loss is divided by num_items_in_batch
        if self._layer is not None:
            self._linear_forward_before = self._layer.linear.__dict__.get("forward")
            self._replace(self._layer.linear, "forward", self._output_layer)

    def undo(self) -> None:
        """Gives the model its own loss again."""
        self._undone = True  # for the case that another has wrapped this forward, which then has to stay
        for module, name, ours, before in self._replaced:
            if module.__dict__.get(name) is ours:
                del module.__dict__[name]
                if before is not None:
                    module.__dict__[name] = before
        self._replaced.clear()

    def __enter__(self) -> FusedLoss:
        return self

    def __exit__(self, *error: object) -> None:
        self.undo()

    def targets(self, labels: torch.Tensor) -> torch.Tensor:
        """What the logits at each position have to predict, (N, T), from labels (N, T)."""
        return next_tokens(labels) if self.shifts else labels

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
        **inputs: Any,
    ) -> Any:
        """The model's outputs and loss; `fuse_loss` has the meaning of the arguments that are not the model's."""
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
        options |= {
            "return_stats": return_stats,
            "label_smoothing": self.label_smoothing if training else 0.0,
            "z_loss": self.z_loss if training else 0.0,
        }
        skip_logits = training if skip_logits is None else skip_logits
        inputs = without_labels(self.model, labels, inputs)
        if skip_logits and self._layer is not None:
            result, outputs = self._fused(options, inputs)
        else:
            outputs = self._forward(**inputs)
            logits = outputs[0] if isinstance(outputs, tuple) else outputs.logits
            result = cross_entropy(logits.transpose(1, 2), **options)
        if isinstance(outputs, tuple):
            loss, *stats = result if return_stats else (result,)
            return (loss, *(outputs[1:] if skip_logits else outputs), *stats)
        if return_stats:
            return LossOutput(result[0], None if skip_logits else outputs.logits, result[1])
        kept = {name: value for name, value in outputs.items() if name != "logits" or not skip_logits}
        return type(outputs)(loss=result, **kept)

    def _weighted(
        self,
        labels: torch.Tensor,
        domain_ids: torch.Tensor | None,
        domain_weights: Sequence[float] | torch.Tensor | None,
        num_items: torch.Tensor | int | None,
        reduction: str,
    ) -> dict[str, Any]:
        """Weights and reduction for cross_entropy. The divisor goes into the weights: the gradient is formed once."""
        if domain_ids is None and domain_weights is not None:
            if self.model.training:
                raise ValueError(
                    "there are domain_weights but no domain_ids; pass domain_ids (N,) beside the labels, from a column "
                    "of that name and a data_collator that keeps it"
                )
            domain_weights = None
        options: dict[str, Any] = {"reduction": reduction}
        if domain_ids is not None:
            if domain_ids.shape == labels.shape and self.shifts:
                domain_ids = next_tokens(domain_ids, last=0)
            options["domain_ids"] = domain_ids
        if domain_weights is not None:
            options["domain_weights"] = torch.as_tensor(domain_weights, dtype=torch.float32, device=labels.device)
        if num_items is not None and reduction == "mean":
            options["reduction"] = "sum"
            share = 1 / torch.as_tensor(num_items, dtype=torch.float32, device=labels.device).clamp(min=1)
            options["token_weights"] = share.expand(labels.shape[0])
        return options

    def _fused(self, options: dict[str, Any], inputs: dict[str, Any]) -> tuple[Any, Any]:
        self._options = options
        try:
            outputs = self._forward(**inputs)
            return self._result, outputs
        finally:
            self._options = self._result = None

    def _output_layer(self, hidden: torch.Tensor) -> torch.Tensor:
        """The forward of the output layer, where its parameters are whole even if they are sharded outside of it."""
        assert self._layer is not None
        linear, options = self._layer.linear, self._options
        if options is None:
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
        """The model's own."""
        if self._forward_before is not None:
            return self._forward_before(**inputs)
        return type(self.model).forward(self.model, **inputs)

    def _replace(self, module: torch.nn.Module, name: str, ours: Any) -> None:
        self._replaced.append((module, name, ours, module.__dict__.get(name)))
        module.__dict__[name] = ours


def _with_parameters_of_call(signature: inspect.Signature) -> inspect.Signature:
    """A forward's signature with the parameters of `FusedLoss.__call__` that it lacks."""
    parameters = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    names = {p.name for p in parameters}
    own = inspect.signature(FusedLoss.__call__).parameters.values()
    more = [p for p in own if p.kind in (p.KEYWORD_ONLY, p.VAR_KEYWORD) and p.name not in names]
    return signature.replace(parameters=[*parameters, *more])
