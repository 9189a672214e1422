"""Attention masks for `torch.func.vmap`, under which a model must not branch on the values of masks or positions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from pycooldown.huggingface.document_attention import block_causal

Tensors = dict[str, torch.Tensor]

# Before version 5, encoder-decoders accept only a padding mask, (N, T), and no attention mask, (N, 1, T, T).
_TAKES_ATTENTION_MASKS = int(transformers.__version__.partition(".")[0]) >= 5


@contextmanager
def vmap_inputs(model: Any, inputs: Tensors) -> Iterator[Tensors]:
    """Yield inputs whose mask the model uses as it is, and set a suitable attention implementation in this context.

    Models use an attention mask, (N, 1, T, T), without looking into it: "sdpa" takes a boolean one, "eager" one that is
    added to the scores. Other implementations, which vmap cannot run, are replaced by "eager".

    Args:
        model: A model of transformers, or a module that wraps one.
        inputs: Inputs of the model: with the padding mask of an encoder, or positions of several documents in a row.
    """
    if getattr(model.config, "is_encoder_decoder", False) and "attention_mask" in inputs:
        if not _TAKES_ATTENTION_MASKS:
            with _eager(model):  # the only implementation that does not look into a padding mask
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
    """Set the attention implementation of all parts of a model to "eager" in this context."""
    parts = [module.config for module in model.modules() if isinstance(module, PreTrainedModel)]
    before = [config._attn_implementation for config in parts]
    try:
        for config in parts:
            config._attn_implementation = "eager"
        yield
    finally:
        for config, implementation in zip(parts, before, strict=True):
            config._attn_implementation = implementation
