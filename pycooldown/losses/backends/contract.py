"""The contract of backends: the options of a row's loss, the results, and the functions of each backend.

`reference` defines the loss in plain torch operations. `cpp` (CPU) and `triton` (GPU) are fused: one sweep computes the
loss and its gradient. Each of the two is a module with the functions of `Backend`.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch

# The options that the fused backends support. Any other option of `KernelOptions` needs the reference backend, unless
# it has the default of `LossOptions`.
FUSED_OPTIONS = ("ignore_index", "label_smoothing", "z_loss", "softcap")
FUSED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # dtypes of logits that the fused backends accept


def empty_gradient(logits: torch.Tensor) -> torch.Tensor:
    """Return uninitialized memory for the gradient of logits (N, V), in their dtype and on their device.

    If the rows of the logits are padded by less than an eighth, such as 50,257 classes to 50,304, those of the gradient
    are padded alike. Then rows of both begin at the same distance from a multiple of 16 bytes, so that they are read
    and written 16 bytes at a time. Otherwise the rows follow each other without gaps.
    """
    num_rows, num_classes = logits.shape
    step, inner = logits.stride()
    padded = inner == 1 and num_rows > 1 and 8 * num_classes < 8 * step < 9 * num_classes
    return logits.new_empty_strided((num_rows, num_classes), (step if padded else max(num_classes, 1), 1))


class KernelOptions(NamedTuple):
    """The options of a row's loss, as kernels take them; the same for all rows.

    With x = logits, or softcap * tanh(logits / softcap), and lse = log Σ_j exp x_j, a row of target t and scale s has

        loss = lse - (1 - label_smoothing) x_t - label_smoothing * mean_j x_j
        gradient_j = s * d(loss + z_loss * lse²)/d(logits)_j

    The fields are also the last arguments of the torch operators, whose schema is made from them. Fields that
    `LossOptions` has too are copied from there by name, with None as 0.

    Attributes:
        ignore_index: Target of rows that have loss 0 and gradient 0.
        label_smoothing: Share of the uniform distribution in the target, in [0, 1].
        z_loss: Coefficient of lse²; 0 for none.
        softcap: Bound of the logits; 0 for none.
        backend: "cpp" or "triton"; "reference" with a group only.
        group: Name of the process group whose ranks share the classes, or "" if all classes are here.
    """

    ignore_index: int
    label_smoothing: float
    z_loss: float
    softcap: float
    backend: str
    group: str = ""


class Outputs(NamedTuple):
    """The results of `Backend.rows`.

    Attributes:
        loss: (N,) float32, without z-loss and not scaled.
        lse: (N,) float32, log-sum-exp of the logits.
        grad: (N, V) in the dtype of the logits, scaled and with z-loss; the logits' own memory if inplace, of the
            strides of `empty_gradient` if not. None unless wanted.
        loss_sum: (K,) float64, sum of `loss` over the rows of each domain that are not ignored. None unless wanted, as
            the next two.
        token_count: (K,) int64, number of these rows.
        correct: (K,) int64, number of these rows whose target has the largest logit. Ties count, NaN does not.
    """

    loss: torch.Tensor
    lse: torch.Tensor
    grad: torch.Tensor | None = None
    loss_sum: torch.Tensor | None = None
    token_count: torch.Tensor | None = None
    correct: torch.Tensor | None = None

    @property
    def stats(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The sums by domain, if they were wanted."""
        assert self.loss_sum is not None
        assert self.token_count is not None
        assert self.correct is not None
        return self.loss_sum, self.token_count, self.correct


class SliceBackend(Protocol):
    """The functions that every backend has, `reference` too."""

    def gradient(
        self,
        logits: torch.Tensor,
        target: torch.Tensor,
        scale: torch.Tensor,
        lse: torch.Tensor,
        num_whole_classes: torch.Tensor,
        options: KernelOptions,
        *,
        inplace: bool,
    ) -> torch.Tensor:
        """Return the gradient over a slice of the classes, given the log-sum-exp over all of them.

        Args:
            logits: (N, V of the slice).
            target: (N,) int64, counted from the slice's first class; -1 if the row's class is in another slice.
            scale: (N,) float32. The gradient of rows that are ignored or of scale 0 is 0.
            lse: (N,) float32, over all classes.
            num_whole_classes: () int64, the number of all classes.
            options: `ignore_index` is not -1.
            inplace: Whether to write the gradient over the logits.

        Returns:
            (N, V of the slice) in the dtype of the logits, with the strides of `empty_gradient` unless inplace.
        """

    def scale_(self, grad: torch.Tensor, factor: torch.Tensor) -> None:
        """Multiply grad (N, V) in place by a 0-dimensional tensor on its device, without waiting for the device.

        A factor of 1 costs nothing on the fused backends.
        """


class Backend(SliceBackend, Protocol):
    """The functions of a fused backend."""

    def rows(
        self,
        logits: torch.Tensor,
        target: torch.Tensor,
        scale: torch.Tensor,
        domain_ids: torch.Tensor | None,
        num_domains: int,
        options: KernelOptions,
        *,
        want_grad: bool,
        want_stats: bool,
        inplace: bool,
    ) -> Outputs:
        """Return loss, gradient and sums of rows, in one sweep.

        Ignored rows have loss 0, lse 0 and gradient 0 for any logits. So have rows of scale 0, except that with
        want_stats their loss and lse are computed. Sums are formed in a fixed order: the same bits every time.

        Args:
            logits: (N, V) of one of `FUSED_DTYPES`, with any strides.
            target: (N,) int64.
            scale: (N,) float32, the weight of each row.
            domain_ids: (N,) int64, or None if all rows belong to domain 0.
            num_domains: K.
            options: Those of the loss.
            want_grad: Whether to compute the gradient.
            want_stats: Whether to compute the sums by domain.
            inplace: Whether to write the gradient over the logits.

        Raises:
            IndexError: On the CPU, for a target out of range. On a GPU, raising would need a synchronization: loss and
                gradient of the row are NaN instead.
        """
