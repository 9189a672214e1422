"""`fuse_loss`: make a Hugging Face model compute its loss from its last hidden states, weighted by domain."""

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
    """Make a model compute its loss with `pycooldown.losses.linear_cross_entropy`, without forming logits.

    Its forward then also takes
        domain_ids: (N,) or of the shape of labels, the domain of each sequence or label.
        domain_weights: (K,) in place of the weights given here.
        reduction: "mean" or "sum" over the labels that are not ignored, or "none" for (N, T) losses.
        return_stats: Whether the output is a `LossOutput`, which has statistics by domain.
        skip_logits: Whether to omit logits; by default True in training mode. In evaluation mode the output has loss
            and logits, for the metrics of `transformers.Trainer`.
        label_smoothing: In place of the value given here, in training mode.

    and num_items_in_batch, by which Trainer has the sum of losses divided. Without weights the loss is the model's own.
    A mixture of experts may have an auxiliary loss, switched on by output_router_logits in the configuration or the
    call. It is added to the mean or the sum. Calls without labels are unchanged.

    A few tokens are sent through the model to check that its own loss is the one computed in its place. If only its
    logits differ (for example, because its output layer is an adapter's), there is a warning, and logits are formed.
    The model may be wrapped before or afterwards, by peft, torch.compile, DDP or your own module: the model inside is
    fused. If its output layer is replaced later (by an adapter or ``resize_token_embeddings``), the new layer is
    examined in the same way.

    Args:
        model: A causal or encoder-decoder model. A module that neither is nor holds a `transformers.PreTrainedModel`
            must return an output with logits (N, T, V) of the next tokens.
        domain_weights: (K,), for calls with domain_ids only. Set the attribute of the returned object to change them
            between steps.
        label_smoothing: Share of the uniform distribution in the target, in training mode.
        z_loss: Coefficient of the squared log-sum-exp, in training mode.

    Returns:
        An object that undoes the change with ``undo()`` or at the end of a ``with`` block.

    Raises:
        ValueError: If the model's loss is not the mean cross-entropy of its logits plus its auxiliary loss, if a
            wrapper does not pass domain_ids on, or if the model is fused already.
    """
    inner = inner_model(model)
    if fused_loss_of(inner) is not None:
        raise ValueError(
            f"the loss of this {type(inner).__name__} is fused already; call undo() on the earlier FusedLoss"
        )
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
    """Return the `FusedLoss` of a model, or of the one inside it, or None."""
    found: FusedLoss | None = inner_model(model).__dict__.get(ATTRIBUTE)
    return found
