"""`fuse_loss`: has a Hugging Face model compute its loss from its last hidden states, weighted by domain."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pycooldown.huggingface.fused_forward import ATTRIBUTE, FusedLoss
from pycooldown.huggingface.wrappers import check_wrapper, inner_model, passes_all, try_wrapper


def fuse_loss(
    model: torch.nn.Module,
    *,
    domain_weights: Sequence[float] | torch.Tensor | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> FusedLoss:
    """Have a model compute its loss by `pycooldown.losses.linear_cross_entropy`, without forming logits.

    Its forward then also takes

        domain_ids: (N,) or of the shape of labels, the domain of each sequence or label.
        domain_weights: (K,) in place of those given here.
        reduction: "mean" or "sum" over the labels that are not ignored, or "none" for (N, T) losses.
        return_stats: Whether the output is a `LossOutput`, which has statistics by domain.
        skip_logits: Whether to do without logits; by default while the model is in training mode. In evaluation mode
            the output has both, for the metrics of `transformers.Trainer`.
        label_smoothing: In place of that given here, in training mode.

    and, from Trainer, num_items_in_batch, which the sum of losses is divided by. Without weights the loss is the
    model's own. The auxiliary loss of a mixture of experts, if the configuration or the call switches it on by
    output_router_logits, is added to the mean or the sum. Calls without labels are as before.

    A few tokens are sent through the model to see that its loss is what is computed in its place. If only its logits
    are not (say, its output layer is an adapter's), there is a warning, and they are formed. The model may be wrapped
    before or afterwards, by peft, torch.compile, DDP or a module of your own: the model inside is fused. Whatever takes
    the place of its output layer later (an adapter, ``resize_token_embeddings``) is examined in the same way.

    Args:
        model: A causal or encoder-decoder model; a module that neither is nor holds a `transformers.PreTrainedModel`
            must give an output with logits (N, T, V) of the next tokens.
        domain_weights: (K,), for calls with domain_ids alone; the returned object's may be set anew between steps.
        label_smoothing: Share of the uniform distribution in the target, in training mode.
        z_loss: Coefficient of the squared log-sum-exp, in training mode.

    Returns:
        What undoes it: by ``undo()``, or at the end of a ``with`` block.

    Raises:
        ValueError: If the model's loss is not the mean cross-entropy of its logits, plus its auxiliary loss; if a
            wrapper does not hand domain_ids on; or if the model is fused already.
    """
    inner = inner_model(model)
    if fused_loss_of(inner) is not None:
        raise ValueError(f"the loss of this {type(inner).__name__} is fused already; call undo() on what that returned")
    wrapped = inner is not model and not passes_all(model)
    before = try_wrapper(model, inner) if wrapped else None
    fused = FusedLoss(inner, domain_weights, label_smoothing, z_loss)
    if before is not None:
        try:
            check_wrapper(model, inner, before)
        except Exception:
            fused.undo()
            raise
    return fused


def fused_loss_of(model: torch.nn.Module) -> FusedLoss | None:
    """Return what `fuse_loss` has made of a model, or of the one inside it, or None."""
    found: FusedLoss | None = inner_model(model).__dict__.get(ATTRIBUTE)
    return found
