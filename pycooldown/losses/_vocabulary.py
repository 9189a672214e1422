"""Cross-entropy of rows whose classes the ranks of a process group share, as a tensor-parallel layer leaves them.

`rows` keeps to what `_reference` says of a fused backend, but for a slice of the classes, and with targets that number
all of them. A rank's kernel gives the log-sum-exp of its slice. Two all-reduces of a few numbers per row make of these
the log-sum-exp, the target's logit and the sum of logits over all classes, and of these the kernel the gradient of its
slice.
"""

from __future__ import annotations

import zlib
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from ._fused import backend_module
from ._rows import Shard

ELSEWHERE, IGNORED = -1, -2  # targets that are no class of the slice


def locate(
    process_group: dist.ProcessGroup,
    num_classes: int,
    device: torch.device,
    replicated: dict[str, torch.Tensor | None],
    options: tuple[Any, ...],
) -> Shard:
    """Finds this rank's part by an all-gather of the number of classes of each.

    Args:
        process_group: of the ranks.
        num_classes: that this rank has.
        device: of the tensors.
        replicated: tensors that must be the same on all ranks.
        options: likewise.

    Raises:
        ValueError: on the CPU, if the ranks disagree.
    """
    if not isinstance(process_group, dist.ProcessGroup):
        raise TypeError(
            f"process_group must be a torch.distributed.ProcessGroup, as mesh.get_group() is, got {process_group!r}"
        )
    rank = dist.get_rank(process_group)
    if rank < 0:
        raise ValueError("this process is not in process_group; pass the group that it shares the classes with")
    checked = device.type == "cpu"
    sums = [_checksum(tensor) if checked else 0 for tensor in replicated.values()]
    mine = torch.tensor([num_classes, zlib.crc32(repr(options).encode()), *sums], device=device)
    parts = [torch.empty_like(mine) for _ in range(dist.get_world_size(process_group))]
    dist.all_gather(parts, mine, group=process_group)
    every = torch.stack(parts)
    sizes = every[:, 0]
    position = torch.stack([sizes[:rank].sum(), sizes.sum()])
    if not checked:
        return Shard(process_group.group_name, position, sizes, torch.iinfo(torch.int64).max)
    for name, values in zip(("options", *replicated), every.t()[1:].tolist(), strict=True):
        if len(set(values)) > 1:
            odd = next(r for r, value in enumerate(values) if value != values[0])
            raise ValueError(
                f"the ranks of process_group disagree on {name}: rank {odd} has others than rank 0; all but the "
                "slice of classes must be the same"
            )
    return Shard(process_group.group_name, position, sizes, int(position[1]))


def _checksum(tensor: torch.Tensor | None) -> int:
    if tensor is None:
        return -1
    content = zlib.crc32(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return zlib.crc32(repr((tensor.shape, tensor.dtype)).encode(), content)


def rows(
    logits: torch.Tensor,
    target: torch.Tensor,
    scale: torch.Tensor,
    domain_ids: torch.Tensor | None,
    num_domains: int,
    *,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float,
    want_grad: bool,
    want_stats: bool,
    inplace: bool,
    backend: str,
    group: str,
    position: torch.Tensor,
) -> tuple[torch.Tensor | None, ...]:
    """Loss, log-sum-exp and sums of rows over all classes, and the gradient over this rank's.

    The logits are (N, V of this rank), and float64 too if the backend, which computes the log-sum-exp of the slice, is
    "reference"; scale has the dtype of the results, and targets number all classes. `Shard` has the meaning of group
    and position, and `_reference` that of the rest.
    """
    first, num_classes = position.unbind()
    counted = target != ignore_index
    if not want_stats:
        counted = counted & (scale != 0)
    column = target - first
    owned = counted & (column >= 0) & (column < logits.shape[1])
    column = column.where(owned, 0)

    local_lse, total = _local(logits, counted, scale.dtype, bool(label_smoothing), softcap, backend)
    at_target = top = torch.zeros_like(scale)
    if logits.shape[1]:
        at_target = _capped(logits.gather(1, column.unsqueeze(1)).squeeze(1), scale.dtype, softcap).where(owned, 0)
        top = _capped(logits.amax(1), scale.dtype, softcap) if want_stats else top
    else:
        top = top - torch.inf

    process_group = _resolve(group)
    largest = torch.stack([local_lse, top])
    dist.all_reduce(largest, dist.ReduceOp.MAX, group=process_group)
    sums = torch.stack([torch.exp(local_lse - largest[0]), at_target, total, owned.to(scale.dtype)])
    dist.all_reduce(sums, dist.ReduceOp.SUM, group=process_group)
    lse = (largest[0] + sums[0].log()).masked_fill(sums[3] == 0, torch.nan)  # a target that nobody has
    loss = lse - (1 - label_smoothing) * sums[1]
    if label_smoothing:
        loss = loss - label_smoothing * sums[2] / num_classes
    loss, lse = loss.where(counted, 0), lse.where(counted, 0)

    grad = None
    if want_grad and logits.shape[1] == 0:
        grad = torch.empty_like(logits)
    elif want_grad:
        grad = backend_module(backend).gradient(
            logits.detach(),
            torch.where(counted, column.where(owned, ELSEWHERE), IGNORED),
            scale,
            lse,
            num_classes,
            ignore_index=IGNORED,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            softcap=softcap,
            inplace=inplace,
        )

    if not want_stats:
        return loss, lse, grad, None, None, None
    ids = torch.zeros_like(target) if domain_ids is None else domain_ids
    zeros = target.new_zeros(num_domains)
    correct = counted & (sums[1] >= largest[1]) & ~loss.isnan()
    return (
        loss,
        lse,
        grad,
        zeros.double().index_add(0, ids, loss.double()),
        zeros.index_add(0, ids, counted.long()),
        zeros.index_add(0, ids, correct.long()),
    )


def sum_(tensor: torch.Tensor, group: str) -> None:
    """Sums a tensor over the ranks of a group, in place."""
    dist.all_reduce(tensor, dist.ReduceOp.SUM, group=_resolve(group))


def _resolve(group: str) -> dist.ProcessGroup:
    """The process group of a name, which is what an operator of torch can be given of it."""
    process_group: dist.ProcessGroup = distributed_c10d._resolve_process_group(group)  # type: ignore[attr-defined, arg-type]
    return process_group


def _local(
    logits: torch.Tensor, counted: torch.Tensor, dtype: torch.dtype, want_sum: bool, softcap: float, backend: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-sum-exp and, if wanted, sum of the (capped) logits of the slice, (N,) each."""
    num_rows, num_classes = logits.shape
    zeros = torch.zeros(num_rows, dtype=dtype, device=logits.device)
    if num_classes == 0:
        return zeros - torch.inf, zeros
    if backend == "reference":
        x = _capped(logits, dtype, softcap)
        return x.logsumexp(1), x.sum(1) if want_sum else zeros
    loss, lse, *_ = backend_module(backend).rows(
        logits,
        torch.where(counted, 0, IGNORED),
        torch.ones_like(zeros),
        None,
        1,
        ignore_index=IGNORED,
        label_smoothing=1.0 if want_sum else 0.0,  # at 1, the loss is the log-sum-exp less the mean
        z_loss=0.0,
        softcap=softcap,
        want_grad=False,
        want_stats=False,
        inplace=False,
    )
    return lse, (lse - loss) * num_classes if want_sum else zeros


def _capped(logits: torch.Tensor, dtype: torch.dtype, softcap: float) -> torch.Tensor:
    x = logits.to(dtype)
    return softcap * torch.tanh(x / softcap) if softcap else x
