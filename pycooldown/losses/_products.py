"""The matrix products of an output layer: its logits, and the gradients of its input and of its weight."""

from __future__ import annotations

import math

import torch

SLICE = 2048  # classes whose logits, or part of the gradient, are formed at a time
# The minimum number of elements of such a part on a GPU: 256 tiles of 128 x 256, two for each multiprocessor.
SLICE_ELEMENTS_GPU = 2048 * 4096

CHUNK_BYTES = 20 << 20  # of logits
# The minimum number of rows in a chunk. With fewer rows, the products wait for the weight to come from memory: while
# one byte is loaded, a GPU makes several hundred operations. On a GPU, moreover, the gradient of 512 rows of 4,096
# features has 64 tiles of 128 x 256 for 132 multiprocessors, and that of 1,024 rows has 128. See docs/gpu.md.
MIN_ROWS_CPU, MIN_ROWS_GPU = 96, 1024
ROW_BYTES_GPU = 128  # rows of logits begin at multiples of this, so that products write and kernels read them whole


def default_chunk_size(num_rows: int, num_classes: int, dtype: torch.dtype, device: torch.device) -> int:
    """Return the rows per chunk: even chunks of at most CHUNK_BYTES of logits, but of the minimum rows or more."""
    least = MIN_ROWS_CPU if device.type == "cpu" else MIN_ROWS_GPU
    limit = max(CHUNK_BYTES // (max(num_classes, 1) * dtype.itemsize), least)
    chunks = max(math.ceil(num_rows / limit), 1)
    return max(math.ceil(num_rows / chunks), 1)


def slice_size(num_features: int, device: torch.device) -> int:
    """Return the number of classes for which the gradient of a layer is formed at a time."""
    if device.type == "cpu":
        return SLICE
    return max(SLICE, math.ceil(SLICE_ELEMENTS_GPU / max(num_features, 1) / 256) * 256)


def empty_logits(num_rows: int, num_classes: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return uninitialized memory for the logits (num_rows, num_classes) of a chunk; on a GPU its rows are padded."""
    unit = 1 if device.type == "cpu" else ROW_BYTES_GPU // dtype.itemsize
    width = math.ceil(num_classes / unit) * unit
    return torch.empty(num_rows, width, dtype=dtype, device=device)[:, :num_classes]


def linear(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Return input (N, D) @ weight (V, D).T + bias (V,), written to out if that is given."""
    dense = weight.is_contiguous() or weight.t().is_contiguous()
    if _has_onednn(input.device, input.dtype) and dense and weight.numel() and input.numel():
        if out is None:
            return torch.ops.mkldnn._linear_pointwise(input.contiguous(), weight, bias, "none", [], "")  # type: ignore[no-any-return]
        # Its output is freshly allocated. A slice at a time keeps that small: large blocks, freed, break up the heap.
        biases = [None] * math.ceil(len(weight) / SLICE) if bias is None else torch.split(bias, SLICE)
        for part, of_part, columns in zip(
            torch.split(weight, SLICE), biases, torch.split(out, SLICE, dim=1), strict=True
        ):
            columns.copy_(linear(input, part.contiguous(), of_part))
        return out
    if bias is None:
        return torch.mm(input, weight.t(), out=out)
    return torch.addmm(bias, input, weight.t(), out=out)


def _has_onednn(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether oneDNN should multiply. torch takes MKL for float32: half as fast on AMD with AVX-512."""
    return (
        device.type == "cpu"
        and dtype == torch.float32
        and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
        and bool(torch.backends.mkldnn.enabled)
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


class WeightGradient:
    """The sum of gradᵀ @ hidden over all rows, for gradients of logits (n, V) that come a chunk of rows at a time.

    Many rows are multiplied faster than a few, and in half precision fewer sums in float32 are needed. So gradients of
    logits wait in the memory of the result, as many rows as fit, each slice of classes at the place of its own part. If
    the result is itself a running sum, it has no room for them, and each chunk is multiplied alone.

    Attributes:
        rows_at_once: Number of rows that are multiplied at once: all rows, or those of a whole number of chunks.
    """

    def __init__(self, weight: torch.Tensor, dtype: torch.dtype, num_rows: int, step: int):
        """Prepare for num_rows rows in chunks of step rows, whose logits have this dtype."""
        self._result = torch.empty_like(weight, memory_format=torch.contiguous_format)
        self._slice = slice_size(weight.shape[1], weight.device)
        narrower = weight.dtype.itemsize < dtype.itemsize
        room = 0 if narrower else weight.shape[1] * weight.dtype.itemsize // dtype.itemsize
        wide = torch.promote_types(dtype, torch.float32)
        at_once = num_rows <= max(step, room)
        self._sum = self._result if at_once or weight.dtype == wide else torch.empty_like(self._result, dtype=wide)
        has_room = self._sum is not self._result and 2 * step <= room
        self._waits = step < num_rows and (at_once or has_room)
        self.rows_at_once = num_rows if at_once else room // step * step if self._waits else step
        self._grad: torch.Tensor | None = None
        self._first = True
        if num_rows == 0:
            self._result.zero_()

    def keep(self, grad: torch.Tensor, begin: int) -> None:
        """Keep the gradient of the logits (n, V) of the rows from begin on, counted within those multiplied at once."""
        if not self._waits:
            self._grad = grad
            return
        for part, columns in zip(self._parts(self._result), torch.split(grad, self._slice, dim=1), strict=True):
            _waiting(part, grad.dtype, begin, len(grad)).copy_(columns)

    def add(self, hidden: torch.Tensor) -> None:
        """Add the product of the gradients that were kept and of the hidden states (n, D) of the same rows."""
        grad, self._grad = self._grad, None
        if grad is not None and self._sum.dtype == grad.dtype:
            self._add(self._sum, grad, hidden)
        elif grad is not None:
            for part, columns in zip(self._parts(self._sum), torch.split(grad, self._slice, dim=1), strict=True):
                self._add(part, columns, hidden)
        else:
            in_place = self._sum is self._result
            scratch = hidden.new_empty(len(hidden) * min(self._slice, len(self._sum)) if in_place else 0)
            for part, place in zip(self._parts(self._sum), self._parts(self._result), strict=True):
                columns = _waiting(place, hidden.dtype, 0, len(hidden))
                if in_place:
                    columns = scratch[: columns.numel()].view_as(columns).copy_(columns)
                self._add(part, columns, hidden)
        self._first = False

    def finish(self) -> torch.Tensor:
        """Return the gradient (V, D), in the dtype of the weight."""
        if self._sum is not self._result:
            self._result.copy_(self._sum)
        return self._result

    def _parts(self, whole: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.split(whole, self._slice)

    def _add(self, part: torch.Tensor, columns: torch.Tensor, hidden: torch.Tensor) -> None:
        if part.dtype != hidden.dtype and part.is_cuda and torch.version.cuda:
            # Summed in float32 from the first product on, without a rounding to half precision for each chunk.
            if self._first:
                torch.mm(columns.t(), hidden, out_dtype=part.dtype, out=part)
            else:
                torch.addmm(part, columns.t(), hidden, out_dtype=part.dtype, out=part)
        elif part.dtype != hidden.dtype:
            product = torch.mm(columns.t(), hidden)
            if self._first:
                part.copy_(product)
            else:
                part.add_(product)
        elif self._first:
            torch.mm(columns.t(), hidden, out=part)
        else:
            part.addmm_(columns.t(), hidden)


def _waiting(part: torch.Tensor, dtype: torch.dtype, begin: int, count: int) -> torch.Tensor:
    """Return the memory in which the gradients of count rows from begin on wait, (count, classes of the part)."""
    classes = len(part)
    return part.view(-1).view(dtype)[begin * classes : (begin + count) * classes].view(count, classes)
