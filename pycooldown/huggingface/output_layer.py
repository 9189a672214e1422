"""The output layer of a Hugging Face model, and the check that the model's loss is the one computed in its place.

The check sends a few tokens through the model and replaces the outputs of its output layer by known numbers. So it
detects a factor, a cap or an additional loss in a new model too, whose own logits are all near 0.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel


class OutputLayer:
    """The linear layer whose outputs x a model turns into logits: scale * x + bias, capped if the model has a cap."""

    def __init__(self, model: PreTrainedModel, linear: torch.nn.Linear) -> None:
        config = model.config.get_text_config(decoder=True)
        self.linear = linear
        self.softcap: float | None = getattr(config, "final_logit_softcapping", None)
        multiplier = getattr(config, "logit_scale", None) or getattr(config, "lm_head_multiplier", None) or 1.0
        self.scale: float = multiplier / (getattr(config, "logits_scaling", None) or 1.0)
        self._model = model

    def bias(self, dtype: torch.dtype) -> torch.Tensor | None:
        """Return the term that is added to scale * weight @ hidden, (V,) or None."""
        bias: torch.Tensor | None = self.linear.bias
        if bias is not None and self.scale != 1:
            bias = self.scale * bias
        final: torch.Tensor | None = getattr(self._model, "final_logits_bias", None)  # of BART and related models
        if final is None:
            return bias
        row = final[0].to(dtype)
        return row if bias is None else bias + row

    def logits(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return the logits that the model should compute from the layer's outputs."""
        logits = self.scale * outputs + getattr(self._model, "final_logits_bias", 0.0)
        return self.softcap * torch.tanh(logits / self.softcap) if self.softcap else logits

    def stand_in(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return zeros (1, 1, V) in place of the layer's outputs, so that the model's later operations cost nothing."""
        return hidden.new_zeros(1, 1, len(self.linear.weight))


def output_module(model: torch.nn.Module, ours: type) -> tuple[Any, ...]:
    """Return a model's output embeddings and everything that may change their outputs, to detect later changes.

    These are a forward that replaces its class's, unless it is of the class `ours`, and hooks. Hooks of torch's own
    sharding only gather and free parameters, so they do not count.
    """
    if not isinstance(model, PreTrainedModel):
        return (None,)
    module = _active(model.get_output_embeddings())
    hooks = () if module is None else module._forward_hooks.values()
    others = (hook for hook in hooks if not str(getattr(hook, "__module__", "")).startswith("torch.distributed"))
    forward = None if module is None else _own_forward(module)
    return (module, None if isinstance(forward, ours) else forward, *others)


def _own_forward(module: torch.nn.Module) -> Any:
    """Return a module's instance-level forward, as set by Accelerate's hooks, or None."""
    forward = module.__dict__.get("forward")
    return None if getattr(forward, "__func__", None) is type(module).forward else forward


def _active(module: Any) -> Any:
    """Return the copy that peft trains in a module's place (``modules_to_save``), or the module if there is none."""
    copies = getattr(module, "modules_to_save", None)
    if not isinstance(copies, torch.nn.ModuleDict) or not hasattr(module, "original_module"):
        return module
    active = [] if module.disable_adapters else [name for name in module.active_adapters if name in copies]
    return copies[active[0]] if active else module.original_module


# Entries of a model's output that it may add to its loss, and their coefficients: as in Mixtral, then as in Switch
# Transformers, whose z-loss keeps the routers' logits small.
ROUTER_LOSSES = {
    "aux_loss": "router_aux_loss_coef",
    "encoder_aux_loss": "router_aux_loss_coef",
    "decoder_aux_loss": "router_aux_loss_coef",
    "encoder_z_loss": "router_z_loss_coef",
    "decoder_z_loss": "router_z_loss_coef",
}
_COEFFICIENTS = set(ROUTER_LOSSES.values())


class Findings(NamedTuple):
    """The result of examining a model.

    Attributes:
        layer: Its output layer, or None if logits have to be formed.
        obstacle: Why logits have to be formed, or None.
        shifts: Whether labels are those of the inputs, so that each is predicted one position earlier.
        auxiliary: Whether the model can add the loss of its routers as `auxiliary_loss` computes it.
    """

    layer: OutputLayer | None
    obstacle: str | None
    shifts: bool
    auxiliary: bool = False


@torch.no_grad()
def examine(model: torch.nn.Module, forward: Callable[..., Any]) -> Findings:
    """Find out how a model computes its loss, with a few forward passes of a few tokens.

    Args:
        model: The model. It and the random generators are left unchanged.
        forward: Its forward, which takes inputs by name.

    Raises:
        ValueError: If the loss is not the mean cross-entropy of logits that do not depend on the labels, or if this
            cannot be tested because the model has no dummy inputs.
    """
    if not isinstance(model, PreTrainedModel):
        shifts = not getattr(getattr(model, "config", None), "is_encoder_decoder", False)
        return Findings(None, "it is not a transformers.PreTrainedModel", shifts)
    obstacle, layer, linear = None, None, _active(model.get_output_embeddings())
    if not isinstance(linear, torch.nn.Linear) or type(linear).forward is not torch.nn.Linear.forward:
        obstacle = f"its output embeddings are {type(linear).__name__}, not torch.nn.Linear"
    elif _own_forward(linear) is not None:
        obstacle = "the forward of its output layer was replaced"
    else:
        layer = OutputLayer(model, linear)
    inputs, labels = few_tokens(model)
    bare = without_labels(model, labels, inputs)

    with torch.autocast(model.device.type, enabled=False):
        theirs, states = _observe(model, layer, _numbers, lambda: forward(**inputs, labels=labels))
        mine, my_states = _observe(model, layer, _numbers, lambda: forward(**bare))
        same = [(theirs.logits, mine.logits), *zip(states, my_states, strict=False)]
        if len(states) != len(my_states) or not all(_close(*pair) for pair in same):
            raise ValueError(
                f"labels change the logits of {type(model).__name__}, so its loss cannot be computed from them"
            )
        logits = theirs.logits.float().transpose(1, 2)
        losses = [F.cross_entropy(logits, targets) for targets in (labels, next_tokens(labels))]
        further = auxiliary_loss(model, theirs)
        fits = [_close(theirs.loss, loss if further is None else loss + further, 1e-6) for loss in losses]
        if not any(fits):
            raise ValueError(
                f"the loss of {type(model).__name__} is not the mean cross-entropy of its logits. That is "
                f"{losses[0]:.6g}, or {losses[1]:.6g} for the next tokens, but the model's loss is {theirs.loss:.6g}. "
                f"It may only add the losses of routers in its output ({', '.join(ROUTER_LOSSES)}) times "
                "router_aux_loss_coef or router_z_loss_coef. Leave other losses of experts out with "
                "output_router_logits=False"
            )
        if further is not None and not _is_same(further, auxiliary_loss(model, mine)):
            raise ValueError(
                f"{type(model).__name__} returns the losses of its routers only if it is given labels, so they cannot "
                "be added to another loss; leave them out with output_router_logits=False"
            )
        auxiliary = further is not None
        if further is None and any(hasattr(model.config, name) for name in ("output_router_logits", *_COEFFICIENTS)):
            targets = next_tokens(labels) if fits[1] else labels
            auxiliary = _adds_auxiliary_loss(model, forward, bare, {**inputs, "labels": labels}, targets)
        if layer is not None:
            if len(states) != 1:
                obstacle = f"it calls its output layer {len(states)} times"
            elif not _close(theirs.logits, layer.logits(_numbers(layer, states[0]))):
                obstacle = "it changes the outputs of its output layer in a way that is not known here"
            else:
                try:
                    _observe(model, layer, OutputLayer.stand_in, lambda: forward(**bare))
                except RuntimeError as error:
                    obstacle = f"it needs logits in their full shape: {error}"
    return Findings(None if obstacle else layer, obstacle, fits[1], auxiliary)


def auxiliary_loss(model: Any, outputs: Any) -> torch.Tensor | None:
    """Return the losses of routers that a model adds to the cross-entropy, or None if it adds none.

    This is the sum of the losses in `ROUTER_LOSSES` that the model's output has, each times the model's own
    coefficient.
    """
    config = model.config.get_text_config(decoder=True)
    total: torch.Tensor | None = None
    for name, coefficient in ROUTER_LOSSES.items():
        if (loss := getattr(outputs, name, None)) is not None:
            weight: float = getattr(model, coefficient, getattr(config, coefficient, 0.0))
            part = weight * torch.as_tensor(loss, device=model.device)
            total = part if total is None else total + part
    return total


def _adds_auxiliary_loss(
    model: PreTrainedModel,
    forward: Callable[..., Any],
    bare: dict[str, Any],
    labelled: dict[str, Any],
    targets: torch.Tensor,
) -> bool:
    """Return whether calls with output_router_logits=True add `auxiliary_loss` to the cross-entropy, by trial.

    It must be the same without labels, because the model is called without them when another loss is computed.
    """
    try:
        outputs, _ = _observe(model, None, _numbers, lambda: forward(**labelled, output_router_logits=True))
        without, _ = _observe(model, None, _numbers, lambda: forward(**bare, output_router_logits=True))
    except (TypeError, ValueError, AttributeError, RuntimeError):  # the model has no such argument, or no experts
        return False
    further = auxiliary_loss(model, outputs)
    if further is None or not _is_same(further, auxiliary_loss(model, without)):
        return False
    loss = F.cross_entropy(outputs.logits.float().transpose(1, 2), targets)
    return _close(outputs.loss, loss + further, 1e-6)


def _is_same(loss: torch.Tensor, other: torch.Tensor | None) -> bool:
    return other is not None and _close(loss, other, 1e-6)


def without_labels(model: Any, labels: torch.Tensor, inputs: dict[str, Any]) -> dict[str, Any]:
    """Return inputs without labels that give the same logits as with these labels (N, T)."""
    config: Any = getattr(model, "config", None)
    given = any(inputs.get(name) is not None for name in ("decoder_input_ids", "decoder_inputs_embeds"))
    if given or not getattr(config, "is_encoder_decoder", False):
        return inputs
    if hasattr(model, "prepare_decoder_input_ids_from_labels"):
        shifted = model.prepare_decoder_input_ids_from_labels(labels=labels)
    else:
        shifted = F.pad(labels[:, :-1], (1, 0), value=config.decoder_start_token_id)
        shifted = shifted.masked_fill(shifted == -100, config.pad_token_id)
    return {"use_cache": False, **inputs, "decoder_input_ids": shifted}


def next_tokens(labels: torch.Tensor, last: int = -100) -> torch.Tensor:
    """Return labels (N, T) as targets of the logits: each position's next token, and ``last`` at the end."""
    return F.pad(labels[:, 1:], (0, 1), value=last)


@contextmanager
def replaced_forward(module: torch.nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Replace a module's forward within a ``with`` block."""
    previous = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if previous is None:
            del module.forward
        else:
            module.forward = previous


def few_tokens(model: PreTrainedModel) -> tuple[dict[str, Any], torch.Tensor]:
    """Return inputs and labels of a short text; some labels are ignored, and some are at masked places."""
    name = model.main_input_name
    if name not in model.dummy_inputs:
        raise ValueError(
            f"{type(model).__name__} cannot be examined, because its dummy_inputs have no {name!r}; add it to them"
        )
    inputs = {name: model.dummy_inputs[name].to(model.device)}
    config = model.config.get_text_config(decoder=True)
    labels = torch.arange(15, device=model.device).reshape(3, 5)[: len(inputs[name])] % min(config.vocab_size, 8)
    labels[0, 2] = -100
    if name == "input_ids":
        inputs[name] = inputs[name] % min(config.vocab_size, 8)
        if "attention_mask" in inspect.signature(model.forward).parameters:
            inputs["attention_mask"] = torch.ones_like(inputs[name])
            inputs["attention_mask"][1, 3:] = 0
    return inputs, labels


def _numbers(layer: OutputLayer, hidden: torch.Tensor) -> torch.Tensor:
    """Return fixed numbers of the magnitude of logits, in the shape of the layer's outputs."""
    shape = (*hidden.shape[:-1], len(layer.linear.weight))
    return 8 * torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(hidden.device)


def _observe(
    model: PreTrainedModel,
    layer: OutputLayer | None,
    outputs: Callable[[OutputLayer, torch.Tensor], torch.Tensor],
    call: Callable[[], Any],
) -> tuple[Any, list[torch.Tensor]]:
    """Return the result of a call in which the layer returns these outputs, and the inputs that the layer was given."""
    states: list[torch.Tensor] = []

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        assert layer is not None
        states.append(hidden)
        return outputs(layer, hidden)

    with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(0)  # for the same dropout in each call
        with nullcontext() if layer is None else replaced_forward(layer.linear, forward):
            return call(), states


def _close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-5) -> bool:
    """Return whether two tensors agree to the rounding of their dtypes."""
    half = {a.dtype, b.dtype} & {torch.bfloat16, torch.float16}
    return a.shape == b.shape and bool((a - b).abs().max() <= (2e-2 if half else tolerance) * b.abs().max())
