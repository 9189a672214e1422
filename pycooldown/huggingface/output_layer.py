"""The output layer of a Hugging Face model, and the check that its loss is the one that is computed in its place.

The check gives the model a few tokens and has numbers of our choice stand for the outputs of its output layer. So it
sees a factor, a cap or a further loss in a new model too, whose own logits are all near 0.
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
        """Return what is added to scale * weight @ hidden, (V,) or None."""
        bias: torch.Tensor | None = self.linear.bias
        if bias is not None and self.scale != 1:
            bias = self.scale * bias
        final: torch.Tensor | None = getattr(self._model, "final_logits_bias", None)  # of BART and its kin
        if final is None:
            return bias
        row = final[0].to(dtype)
        return row if bias is None else bias + row

    def logits(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return what the model should make of the layer's outputs."""
        logits = self.scale * outputs + getattr(self._model, "final_logits_bias", 0.0)
        return self.softcap * torch.tanh(logits / self.softcap) if self.softcap else logits

    def stand_in(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return zeros (1, 1, V) for the layer's outputs, so that what follows in the model costs nothing."""
        return hidden.new_zeros(1, 1, len(self.linear.weight))


def output_module(model: torch.nn.Module, ours: type) -> tuple[Any, ...]:
    """Return a model's output embeddings and what may change their outputs, to see whether these stay.

    That is a forward that replaces its class's, unless it is one of the class `ours`, and hooks. Hooks of torch's own
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
    """Return the forward that a module has in place of its class's, as Accelerate's hooks give it one, or None."""
    forward = module.__dict__.get("forward")
    return None if getattr(forward, "__func__", None) is type(module).forward else forward


def _active(module: Any) -> Any:
    """Return the copy of a module that peft trains in its place (``modules_to_save``), if that is what it is."""
    copies = getattr(module, "modules_to_save", None)
    if not isinstance(copies, torch.nn.ModuleDict) or not hasattr(module, "original_module"):
        return module
    active = [] if module.disable_adapters else [name for name in module.active_adapters if name in copies]
    return copies[active[0]] if active else module.original_module


# Entries of a model's output that it may add to its loss, and what it multiplies them by: Mixtral's form, then that of
# Switch Transformers, whose z-loss keeps the logits of routers small.
ROUTER_LOSSES = {
    "aux_loss": "router_aux_loss_coef",
    "encoder_aux_loss": "router_aux_loss_coef",
    "decoder_aux_loss": "router_aux_loss_coef",
    "encoder_z_loss": "router_z_loss_coef",
    "decoder_z_loss": "router_z_loss_coef",
}
_COEFFICIENTS = set(ROUTER_LOSSES.values())


class Findings(NamedTuple):
    """What the examination of a model has found.

    Attributes:
        layer: Its output layer, or None if logits have to be formed.
        obstacle: Why they have to be.
        shifts: Whether labels are those of the inputs, each to be predicted one position before.
        auxiliary: Whether the model can add the loss of its routers, and `auxiliary_loss` is what it then adds.
    """

    layer: OutputLayer | None
    obstacle: str | None
    shifts: bool
    auxiliary: bool = False


@torch.no_grad()
def examine(model: torch.nn.Module, forward: Callable[..., Any]) -> Findings:
    """Find out how a model computes its loss, from a few forward passes of a few tokens.

    Args:
        model: Is left as it is, and so are the random generators.
        forward: Its forward, taking inputs by name.

    Raises:
        ValueError: If the loss is not the mean cross-entropy of logits in which the labels have no part, or if this
            cannot be found out, as the model has no dummy inputs.
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
                f"labels change the logits of {type(model).__name__}, so its loss cannot be computed from these"
            )
        logits = theirs.logits.float().transpose(1, 2)
        losses = [F.cross_entropy(logits, targets) for targets in (labels, next_tokens(labels))]
        further = auxiliary_loss(model, theirs)
        fits = [_close(theirs.loss, loss if further is None else loss + further, 1e-6) for loss in losses]
        if not any(fits):
            raise ValueError(
                f"the loss of {type(model).__name__} is not the mean cross-entropy of its logits: that is "
                f"{losses[0]:.6g}, or {losses[1]:.6g} for the next tokens, and its own {theirs.loss:.6g}. It must have "
                f"no further part but the losses of routers in its output ({', '.join(ROUTER_LOSSES)}) times "
                "router_aux_loss_coef or router_z_loss_coef; other losses of experts can be left out with "
                "output_router_logits=False"
            )
        if further is not None and not _is_same(further, auxiliary_loss(model, mine)):
            raise ValueError(
                f"{type(model).__name__} gives the losses of its routers only where it is given labels, so they cannot "
                "be added to another loss; leave them out with output_router_logits=False"
            )
        auxiliary = further is not None
        if further is None and any(hasattr(model.config, name) for name in ("output_router_logits", *_COEFFICIENTS)):
            targets = next_tokens(labels) if fits[1] else labels
            auxiliary = _adds_auxiliary_loss(model, forward, bare, {**inputs, "labels": labels}, targets)
        if layer is not None:
            if len(states) != 1:
                obstacle = f"it takes its output layer {len(states)} times"
            elif not _close(theirs.logits, layer.logits(_numbers(layer, states[0]))):
                obstacle = "it makes of the outputs of its output layer what is not known here"
            else:
                try:
                    _observe(model, layer, OutputLayer.stand_in, lambda: forward(**bare))
                except RuntimeError as error:
                    obstacle = f"it needs logits of their full shape: {error}"
    return Findings(None if obstacle else layer, obstacle, fits[1], auxiliary)


def auxiliary_loss(model: Any, outputs: Any) -> torch.Tensor | None:
    """Return what a model adds to the cross-entropy for the sake of its routers, or None if it adds nothing.

    It is the sum of the losses in `ROUTER_LOSSES` that the model's output has, each times the model's own coefficient.
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

    It must be the same without labels, since that is how the model is called for another loss.
    """
    try:
        outputs, _ = _observe(model, None, _numbers, lambda: forward(**labelled, output_router_logits=True))
        without, _ = _observe(model, None, _numbers, lambda: forward(**bare, output_router_logits=True))
    except (TypeError, ValueError, AttributeError, RuntimeError):  # it has no such argument, or no experts
        return False
    further = auxiliary_loss(model, outputs)
    if further is None or not _is_same(further, auxiliary_loss(model, without)):
        return False
    loss = F.cross_entropy(outputs.logits.float().transpose(1, 2), targets)
    return _close(outputs.loss, loss + further, 1e-6)


def _is_same(loss: torch.Tensor, other: torch.Tensor | None) -> bool:
    return other is not None and _close(loss, other, 1e-6)


def without_labels(model: Any, labels: torch.Tensor, inputs: dict[str, Any]) -> dict[str, Any]:
    """Return inputs that give the logits which the model would give with these labels (N, T)."""
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
    """Have a module use another forward within a ``with`` block."""
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
    """Return inputs and labels; of a text, some labels are ignored, others at places that are not attended to."""
    name = model.main_input_name
    if name not in model.dummy_inputs:
        raise ValueError(f"{type(model).__name__} cannot be examined, as its dummy_inputs have no {name}")
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
    """Return numbers of the size of logits, the same each time, in the shape of the layer's outputs."""
    shape = (*hidden.shape[:-1], len(layer.linear.weight))
    return 8 * torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(hidden.device)


def _observe(
    model: PreTrainedModel,
    layer: OutputLayer | None,
    outputs: Callable[[OutputLayer, torch.Tensor], torch.Tensor],
    call: Callable[[], Any],
) -> tuple[Any, list[torch.Tensor]]:
    """Return what a call gives if the layer gives these outputs, and what the layer was given."""
    states: list[torch.Tensor] = []

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        assert layer is not None
        states.append(hidden)
        return outputs(layer, hidden)

    with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(0)  # for the same dropout each time
        with nullcontext() if layer is None else replaced_forward(layer.linear, forward):
            return call(), states


def _close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-5) -> bool:
    """Return whether two tensors agree to the rounding of their dtypes."""
    half = {a.dtype, b.dtype} & {torch.bfloat16, torch.float16}
    return a.shape == b.shape and bool((a - b).abs().max() <= (2e-2 if half else tolerance) * b.abs().max())
