"""Find the model inside its wrappers: adapters of peft, torch.compile, DDP, and a user's own modules."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from pycooldown.huggingface.output_layer import few_tokens, replaced_forward

_WAY_OUT = "fuse the model inside it before wrapping, and call it with domain_ids yourself"


def inner_model(model: torch.nn.Module) -> torch.nn.Module:
    """Return the `transformers.PreTrainedModel` inside a model, or the model itself if there is none.

    Raises:
        ValueError: If there are several and none contains the others.
    """
    outermost: dict[str, torch.nn.Module] = {}
    for name, module in model.named_modules():
        inside = any(outer == "" or name.startswith(f"{outer}.") for outer in outermost)
        if isinstance(module, PreTrainedModel) and not inside:
            outermost[name] = module
    if len(outermost) > 1:
        raise ValueError(
            f"{type(model).__name__} holds {len(outermost)} models ({', '.join(outermost)}), so it is not known which "
            "of them has the loss; fuse that one"
        )
    return next(iter(outermost.values()), model)


class Trial(NamedTuple):
    """The outcome of calling a wrapper with a few tokens.

    Attributes:
        loss: The loss in the wrapper's output.
        labels: The labels that the model inside it received.
        position_ids: The positions that it received.
    """

    loss: torch.Tensor
    labels: torch.Tensor | None
    position_ids: torch.Tensor | None


@torch.no_grad()
def try_wrapper(wrapper: torch.nn.Module, inner: Any, **options: Any) -> Trial:
    """Call a wrapper with a few tokens and with further inputs for the model inside it."""
    inputs, labels = few_tokens(inner)
    parameters = inspect.signature(wrapper.forward).parameters.values()
    if all(p.kind is not p.VAR_KEYWORD for p in parameters):
        inputs = {name: value for name, value in inputs.items() if name in {p.name for p in parameters}}
    if "domain_weights" in options:
        options["domain_ids"] = labels.new_zeros(len(labels))
    seen: list[dict[str, Any]] = [{}]
    forward, names = inner.forward, list(inspect.signature(inner.forward).parameters)

    def record(*args: Any, **kwargs: Any) -> Any:
        seen.append({**dict(zip(names, args, strict=False)), **kwargs})
        return forward(*args, **kwargs)

    with torch.random.fork_rng([inner.device] if inner.device.type == "cuda" else []):
        torch.manual_seed(0)  # for the same dropout in each call
        with replaced_forward(inner, record):
            loss = getattr(wrapper(**inputs, labels=labels, **options), "loss", None)
    if not isinstance(loss, torch.Tensor):
        raise ValueError(f"the output of {type(wrapper).__name__} has no loss; {_WAY_OUT}")
    return Trial(loss, seen[-1].get("labels"), seen[-1].get("position_ids"))


def ignored_prefix(model: torch.nn.Module) -> int:
    """Return how many ignored labels a wrapper puts before those of each row, as prompt tuning does, by trial."""
    model = getattr(model, "_orig_mod", model)  # inside torch.compile
    inner: Any = inner_model(model)
    if inner is model or passes_all(model):
        return 0
    seen, given = try_wrapper(model, inner).labels, few_tokens(inner)[1]
    return 0 if seen is None else max(seen.shape[-1] - given.shape[-1], 0)


def passes_positions(model: torch.nn.Module) -> bool:
    """Return whether the model inside a wrapper receives position_ids unchanged, by trial."""
    model = getattr(model, "_orig_mod", model)  # inside torch.compile
    inner: Any = inner_model(model)
    if inner is model or passes_all(model):
        return True
    labels = few_tokens(inner)[1]
    given = (torch.arange(labels.shape[1], device=labels.device) % 3).expand(labels.shape)
    try:
        received = try_wrapper(model, inner, position_ids=given).position_ids
    except TypeError:  # its forward does not take them
        return False
    return received is not None and torch.equal(received, given)


def check_wrapper(wrapper: torch.nn.Module, inner: torch.nn.Module, before: Trial) -> None:
    """Test that a wrapper passes domain_ids on to the fused model inside it, and the same labels as before.

    Args:
        wrapper: The module that will be called.
        inner: The fused model.
        before: The result of `try_wrapper` before the model was fused.

    Raises:
        ValueError: If it does not.
    """
    name, weight = type(wrapper).__name__, torch.tensor([2.0])
    try:
        now = try_wrapper(wrapper, inner, domain_weights=weight)
    except TypeError as error:
        raise ValueError(
            f"{name} does not pass domain_ids on to the {type(inner).__name__} inside it ({error}); let its forward "
            f"take **inputs and pass them on, or {_WAY_OUT}"
        ) from error
    same = before.labels is not None and now.labels is not None and torch.equal(before.labels, now.labels)
    if not same or not torch.allclose(now.loss, 2 * before.loss, rtol=2e-2 if now.loss.dtype.itemsize < 4 else 1e-4):
        raise ValueError(
            f"{name} has a loss of {now.loss / 2:.6g} with the fused {type(inner).__name__} inside it, but its own "
            f"loss is {before.loss:.6g}, so it changes the labels or the loss; {_WAY_OUT}"
        )


def passes_all(model: torch.nn.Module) -> bool:
    """Return whether a module is known to pass all inputs on, so that no trial is needed."""
    compiled = hasattr(model, "_orig_mod")  # the module that torch.compile returns
    return isinstance(model, (PreTrainedModel, torch.nn.parallel.DistributedDataParallel)) or compiled
