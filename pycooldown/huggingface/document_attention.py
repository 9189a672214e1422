"""Rows that hold several documents.

Where ``position_ids`` restart within a row, no token should attend to another document. Models of transformers use
positions for this only without a cache and without an attention mask, and some (OPT, Bloom, Mamba) never do. Many
attend across documents without a warning, so each model is tested with a few tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from pycooldown.huggingface.wrappers import inner_model, passes_positions

_LENGTHS = (5, 7)  # tokens of the two test documents

WAY_OUT = (
    'give each document its own row (TokenDataset(mode="document"), in a recipe data.mode=document), or accept '
    "attention across documents by leaving out position_ids (in a recipe data.intra_document_attention=false)"
)


def leak(model: torch.nn.Module) -> str | None:
    """Return how a model confuses two documents in one row, or None if it keeps them apart.

    The second document's logits must not depend on the first one's embeddings: the derivatives must be exactly 0, in
    half precision too. And the logits must equal those of the second document in its own row, up to rounding.

    Args:
        model: A decoder, or a wrapper of one. The model and the random generators are left unchanged.
    """
    inner: Any = inner_model(model)
    if not isinstance(inner, PreTrainedModel):
        return f"{type(model).__name__} is no model of transformers, so whether it separates documents is not known"
    if not passes_positions(model):
        return f"{type(model).__name__} does not pass position_ids on, so the documents in a row are read as one text"
    device = inner.device
    vocabulary = inner.config.get_text_config(decoder=True).vocab_size
    ids = torch.arange(1, 1 + sum(_LENGTHS), device=device)[None] * 5 % vocabulary
    positions = torch.cat([torch.arange(length, device=device) for length in _LENGTHS])[None]
    was_training, seen = inner.training, []

    def watch(module: torch.nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        seen.append(output.detach().requires_grad_())
        return seen[-1]

    def logits(start: int) -> torch.Tensor:
        outputs: torch.Tensor = inner(
            input_ids=ids[:, start:], position_ids=positions[:, start:], use_cache=False
        ).logits
        return outputs

    first = _LENGTHS[0]
    inner.eval()
    hook = inner.get_input_embeddings().register_forward_hook(watch)
    try:
        with torch.enable_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            packed = logits(0)[:, first:]
            signs = torch.arange(packed.numel(), device=device).reshape(packed.shape) % 7 - 3
            (gradient,) = torch.autograd.grad((packed * signs.to(packed.dtype)).sum(), seen[:1])
            separate = logits(first).detach()
    except TypeError as error:
        return f"{type(inner).__name__} takes no position_ids, so it reads the documents in a row as one text ({error})"
    finally:
        hook.remove()
        inner.train(was_training)
    share = float(gradient[:, :first].abs().max() / gradient.abs().max())
    if share > 1e-6:
        return f"tokens of {type(inner).__name__} attend to other documents in their row (tested with a few tokens)"
    difference = float((packed.detach() - separate).abs().max() / separate.abs().max())
    if difference > (5e-2 if packed.dtype.itemsize < 4 else 1e-3):
        return (
            f"the logits of {type(inner).__name__} for the second of two documents in a row differ by {difference:.1e} "
            "from those of the document alone (tested with a few tokens)"
        )
    return None


def restarts(position_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> bool:
    """Return whether positions (N, T) restart within a row, at tokens that are not masked."""
    steps = position_ids[..., 1:] <= position_ids[..., :-1]
    if attention_mask is not None and attention_mask.shape == position_ids.shape:
        kept = attention_mask.bool()
        steps = steps & kept[..., 1:] & kept[..., :-1]
    return bool(steps.any())


def for_packed(inputs: dict[str, Any], problem: str | None) -> dict[str, Any]:
    """Return inputs with which the model respects positions that restart; inputs without positions unchanged.

    Args:
        inputs: The model's inputs.
        problem: What `leak` returned for the model.

    Raises:
        ValueError: If positions restart, and the model does not keep documents apart, or a mask hides tokens at the
            beginning or in the middle of a row.
    """
    positions, mask = inputs.get("position_ids"), inputs.get("attention_mask")
    if positions is None or positions.dim() != 2:
        return inputs
    if problem is None and mask is None:
        return {**inputs, "use_cache": False}
    if not restarts(positions, mask):
        return inputs
    if problem is not None:
        raise ValueError(f"rows hold several documents, but {problem}; {WAY_OUT}")
    if mask is not None and (mask.shape != positions.shape or bool((mask[:, 1:] > mask[:, :-1]).any())):
        raise ValueError(
            "rows hold several documents, and their attention_mask is more than padding on the right, so transformers "
            "would ignore that positions restart; let the data_collator leave the mask out"
        )
    return {name: value for name, value in inputs.items() if name != "attention_mask"} | {"use_cache": False}


def block_causal(position_ids: torch.Tensor) -> torch.Tensor:
    """Return the mask (N, 1, T, T) bool with which a token attends to itself and earlier tokens of its document."""
    starts = torch.zeros_like(position_ids, dtype=torch.bool)
    starts[:, 1:] = position_ids[:, 1:] != position_ids[:, :-1] + 1
    documents = starts.long().cumsum(1)
    same = documents[:, None, :, None] == documents[:, None, None, :]
    return same & torch.ones(position_ids.shape[1], position_ids.shape[1], device=same.device).tril().bool()
