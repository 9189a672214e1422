"""Attention masks that `torch.func.vmap` can take: it forbids that a model looks into a mask, or into positions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from pycooldown.huggingface.document_attention import block_causal

Tensors = dict[str, torch.Tensor]

# Before, encoder-decoders take no mask of attention, (N, 1, T, T), but only one of padding.
_OF_ATTENTION = int(transformers.__version__.partition(".")[0]) >= 5


@contextmanager
def vmap_inputs(model: Any, inputs: Tensors) -> Iterator[Tensors]:
    """Give inputs whose mask no model looks into, and let attention be of a form that takes it, until the end.

    A mask of attention, (N, 1, T, T), is taken as it is: a boolean one by "sdpa", one that is added to the scores by
    "eager". Other implementations, which vmap cannot run, are replaced by "eager".

    Args:
        model: Of transformers, or what wraps one.
        inputs: Of the model, with padding of an encoder or positions of several documents in a row.
    """
    if getattr(model.config, "is_encoder_decoder", False) and "attention_mask" in inputs:
        if not _OF_ATTENTION:
            with _eager(model):  # the one form that does not look into a mask of padding
                yield inputs
            return
        allowed = inputs["attention_mask"].bool()[:, None, None]
    elif inputs.get("position_ids") is not None and "attention_mask" not in inputs:
        allowed = block_causal(inputs["position_ids"])
    else:
        yield inputs
        return
    if getattr(model.config, "_attn_implementation", None) == "sdpa":
        yield {**inputs, "attention_mask": allowed}
        return
    hidden = torch.zeros(allowed.shape, dtype=model.dtype, device=allowed.device)
    with _eager(model):
        yield {**inputs, "attention_mask": hidden.masked_fill(~allowed, torch.finfo(model.dtype).min)}


@contextmanager
def _eager(model: torch.nn.Module) -> Iterator[None]:
    """Let all parts of a model compute attention by matrix products, until the end."""
    parts = [module.config for module in model.modules() if isinstance(module, PreTrainedModel)]
    before = [config._attn_implementation for config in parts]
    try:
        for config in parts:
            config._attn_implementation = "eager"
        yield
    finally:
        for config, implementation in zip(parts, before, strict=True):
            config._attn_implementation = implementation
