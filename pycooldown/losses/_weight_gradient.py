"""The gradient of an output layer's weight, of chunks of the gradient of its logits."""

from __future__ import annotations

import torch

SLICE = 2048  # classes whose part of the gradient is formed at a time, in cache


class WeightGradient:
    """The sum of gradᵀ @ hidden over groups of chunks of rows: grad (n, V) of the logits, hidden (n, D) of the group.

    Many rows are multiplied faster than a few, and in half precision they spare sums in float32. So the gradients of
    the logits of as many rows as fit wait in the memory of the result, each slice of classes where its own part will
    be. Where the result is itself the sum of several groups, it has no room, and a group is a chunk.

    Attributes:
        result: (V, D), in the dtype of the weight.
        group: Rows of a group, a whole number of chunks unless it is all rows.
    """

    def __init__(self, weight: torch.Tensor, dtype: torch.dtype, num_rows: int, step: int):
        """For num_rows rows in chunks of step, whose logits have dtype."""
        self.result = torch.empty_like(weight, memory_format=torch.contiguous_format)
        room = weight.shape[1] * weight.dtype.itemsize // dtype.itemsize
        wide = torch.promote_types(dtype, torch.float32)
        alone = num_rows <= max(step, room)  # one group: its products are the sum
        self._sum = self.result if alone or weight.dtype == wide else torch.empty_like(self.result, dtype=wide)
        self._waits = step < num_rows and step <= room and (alone or self._sum is not self.result)
        self.group = num_rows if alone else room // step * step if self._waits else step
        self._grad: torch.Tensor | None = None
        self._first = True
        if num_rows == 0:
            self.result.zero_()

    def keep(self, grad: torch.Tensor, begin: int) -> None:
        """Keep the gradient of the logits (n, V) of the group's rows from begin on, until the group is added."""
        if not self._waits:
            self._grad = grad
            return
        for part, columns in zip(torch.split(self.result, SLICE), torch.split(grad, SLICE, dim=1), strict=True):
            _waiting(part, grad.dtype, begin, len(grad)).copy_(columns)

    def add(self, hidden: torch.Tensor) -> None:
        """Add the products of what was kept and the group's hidden (n, D)."""
        grad, self._grad = self._grad, None
        if grad is not None and self._sum.dtype == grad.dtype:
            self._add(self._sum, grad, hidden)
        elif grad is not None:
            for part, columns in zip(torch.split(self._sum, SLICE), torch.split(grad, SLICE, dim=1), strict=True):
                self._add(part, columns, hidden)
        else:
            in_place = self._sum is self.result
            scratch = hidden.new_empty(len(hidden) * min(SLICE, len(self._sum)) if in_place else 0)
            for part, place in zip(torch.split(self._sum, SLICE), torch.split(self.result, SLICE), strict=True):
                columns = _waiting(place, hidden.dtype, 0, len(hidden))
                if in_place:
                    columns = scratch[: columns.numel()].view_as(columns).copy_(columns)
                self._add(part, columns, hidden)
        self._first = False

    def finish(self) -> torch.Tensor:
        """The result."""
        if self._sum is not self.result:
            self.result.copy_(self._sum)
        return self.result

    def _add(self, part: torch.Tensor, columns: torch.Tensor, hidden: torch.Tensor) -> None:
        if part.dtype != hidden.dtype:
            product = torch.mm(columns.t(), hidden)
            part.copy_(product) if self._first else part.add_(product)
        elif self._first:
            torch.mm(columns.t(), hidden, out=part)
        else:
            part.addmm_(columns.t(), hidden)


def _waiting(part: torch.Tensor, dtype: torch.dtype, begin: int, count: int) -> torch.Tensor:
    """Where the gradients of count rows from begin on wait, (count, classes of the part)."""
    classes = len(part)
    return part.view(-1).view(dtype)[begin * classes : (begin + count) * classes].view(count, classes)
