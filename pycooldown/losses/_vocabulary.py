"""Cross-entropy of rows whose classes the ranks of a process group share, as a tensor-parallel layer gives them.

A rank's kernel computes the log-sum-exp of its slice. Two all-reduces of a few numbers per row combine these into the
log-sum-exp, the target's logit and the sum of logits over all classes, from which the kernel forms the gradient of the
slice. The first all-reduce also carries the sizes of the slices, so no rank has to know them in advance.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.distributed as dist
from torch.utils.weak import WeakTensorKeyDictionary

from . import backends
from ._checks import values_are_known
from ._statistics import domain_stats
from .backends import KernelOptions, Outputs

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

ELSEWHERE, IGNORED = -1, -2  # targets that are no class of the slice
UNKNOWN = torch.iinfo(torch.int64).max  # number of classes that is not known without a synchronization
MAX_SLICE = 2**24  # classes of a rank: their number is sent as float32

# The largest slice of the ranks, by a layer's weight and the group's name. All ranks look up their parts of one weight
# together, so all of them find the size or none: otherwise those that ask for it would wait for the others.
_largest_slices = WeakTensorKeyDictionary()


class Slice(NamedTuple):
    """The slice of classes of a call.

    Attributes:
        group: Name of the process group, by which operators of torch refer to it.
        num_classes: Number of classes of all ranks, or `UNKNOWN`, which exceeds any target, if it needs a
            synchronization.
    """

    group: str
    num_classes: int


def locate(
    process_group: ProcessGroup,
    num_classes: int,
    replicated: Mapping[str, torch.Tensor | None],
    options: tuple[object, ...],
) -> Slice:
    """Return the known facts about this rank's slice; on the CPU, check with an all-gather that the ranks agree.

    Args:
        process_group: The group of the ranks.
        num_classes: Number of classes that this rank has.
        replicated: Tensors that must be equal on all ranks; "target" is one of them.
        options: Options that must be equal on all ranks.

    Raises:
        ValueError: On the CPU, if the ranks disagree.
    """
    if not isinstance(process_group, dist.ProcessGroup):
        raise TypeError(
            f"process_group must be a torch.distributed.ProcessGroup, as mesh.get_group() is, got {process_group!r}"
        )
    if dist.get_rank(process_group) < 0:
        raise ValueError("this process is not in process_group; pass the group with which it shares the classes")
    if num_classes > MAX_SLICE:
        raise ValueError(f"with process_group a rank can have at most {MAX_SLICE} classes, got {num_classes}")
    target = replicated["target"]
    assert target is not None
    if not values_are_known(target):
        return Slice(process_group.group_name, UNKNOWN)
    sums = [_checksum(tensor) for tensor in replicated.values()]
    mine = torch.tensor([num_classes, zlib.crc32(repr(options).encode()), *sums])
    parts = [torch.empty_like(mine) for _ in range(dist.get_world_size(process_group))]
    dist.all_gather(parts, mine, group=process_group)
    every = torch.stack(parts)
    for name, values in zip(("options", *replicated), every.t()[1:].tolist(), strict=True):
        if len(set(values)) > 1:
            odd = next(r for r, value in enumerate(values) if value != values[0])
            raise ValueError(
                f"the ranks of process_group disagree on {name}: rank {odd} differs from rank 0; everything except the "
                "slice of classes must be equal"
            )
    return Slice(process_group.group_name, int(every[:, 0].sum()))


def _checksum(tensor: torch.Tensor | None) -> int:
    if tensor is None:
        return -1
    content = zlib.crc32(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return zlib.crc32(repr((tensor.shape, tensor.dtype)).encode(), content)


def largest_slice(weight: torch.Tensor, group: str) -> int:
    """Return the largest number of classes of a layer on one rank. Only the first call for a weight asks the ranks.

    A weight that is resized in place keeps its former number, which decides only the size of chunks, not the result.
    """
    of_weight: dict[str, int] = _largest_slices.setdefault(weight, {})  # type: ignore[no-untyped-call]
    if group not in of_weight:
        size = torch.tensor(len(weight), device=weight.device)
        dist.all_reduce(size, dist.ReduceOp.MAX, group=_resolve(group))
        of_weight[group] = int(size)
    return of_weight[group]


def rows(
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
    """Return loss, log-sum-exp and sums of rows over all classes, and the gradient over this rank's.

    Works as `contract.Backend.rows`, but logits are (N, V of this rank), targets number all classes, and on "reference"
    the logits may be float64; scale has the dtype of the results.
    """
    process_group = _resolve(options.group)
    num_rows, rank = len(scale), dist.get_rank(process_group)
    counted = target != options.ignore_index
    if not want_stats:
        counted = counted & (scale != 0)
    local_lse, total = _local(logits, counted, scale.dtype, options)
    top = torch.full_like(scale, -torch.inf)
    if logits.shape[1]:
        top = _capped(logits.amax(1), scale.dtype, options.softcap) if want_stats else torch.zeros_like(scale)
    sizes = scale.new_zeros(dist.get_world_size(process_group))
    sizes[rank] = logits.shape[1]
    largest = torch.cat([local_lse, top, sizes])
    dist.all_reduce(largest, dist.ReduceOp.MAX, group=process_group)
    largest_lse, largest_top = largest[: 2 * num_rows].view(2, num_rows)
    sizes = largest[2 * num_rows :].long()
    num_classes = sizes.sum()

    column = target - sizes[:rank].sum()
    owned = counted & (column >= 0) & (column < logits.shape[1])
    column = column.where(owned, 0)
    at_target = torch.zeros_like(scale)
    if logits.shape[1]:
        at_target = logits.gather(1, column.unsqueeze(1)).squeeze(1)
        at_target = _capped(at_target, scale.dtype, options.softcap).where(owned, 0)
    sums = torch.stack([torch.exp(local_lse - largest_lse), at_target, total, owned.to(scale.dtype)])
    dist.all_reduce(sums, dist.ReduceOp.SUM, group=process_group)
    exponentials, at_target, total, owners = sums
    lse = (largest_lse + exponentials.log()).masked_fill(owners == 0, torch.nan)  # a target that is on no rank
    loss = lse - (1 - options.label_smoothing) * at_target
    if options.label_smoothing:
        loss = loss - options.label_smoothing * total / num_classes
    loss, lse = loss.where(counted, 0), lse.where(counted, 0)

    grad = None
    if want_grad and logits.shape[1] == 0:
        grad = backends.empty_gradient(logits)
    elif want_grad:
        grad = backends.load(options.backend).gradient(
            logits.detach(),
            torch.where(counted, column.where(owned, ELSEWHERE), IGNORED),
            scale,
            lse,
            num_classes,
            options._replace(ignore_index=IGNORED),
            inplace=inplace,
        )
    if not want_stats:
        return Outputs(loss, lse, grad)
    correct = counted & (at_target >= largest_top) & ~loss.isnan()
    return Outputs(loss, lse, grad, *domain_stats(loss, counted, correct, domain_ids, num_domains))


def sum_(tensor: torch.Tensor, group: str) -> None:
    """Sum a tensor over the ranks of a group, in place."""
    dist.all_reduce(tensor, dist.ReduceOp.SUM, group=_resolve(group))


def _resolve(group: str) -> ProcessGroup:
    """Return the process group of a name."""
    resolve = dist.distributed_c10d._resolve_process_group  # type: ignore[attr-defined]
    process_group: ProcessGroup = resolve(group)  # type: ignore[arg-type]
    return process_group


def _local(
    logits: torch.Tensor, counted: torch.Tensor, dtype: torch.dtype, options: KernelOptions
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the log-sum-exp and, for label smoothing, the sum of the (capped) logits of the slice, (N,) each."""
    num_rows, num_classes = logits.shape
    zeros = torch.zeros(num_rows, dtype=dtype, device=logits.device)
    if num_classes == 0:
        return zeros - torch.inf, zeros
    want_sum = bool(options.label_smoothing)
    if options.backend == "reference":
        x = _capped(logits, dtype, options.softcap)
        return x.logsumexp(1), x.sum(1) if want_sum else zeros
    # At a smoothing of 1, the loss is the log-sum-exp less the mean.
    plain = options._replace(ignore_index=IGNORED, label_smoothing=1.0 if want_sum else 0.0, z_loss=0.0)
    outputs = backends.load_fused(options.backend).rows(
        logits,
        torch.where(counted, 0, IGNORED),
        torch.ones_like(zeros),
        None,
        1,
        plain,
        want_grad=False,
        want_stats=False,
        inplace=False,
    )
    return outputs.lse, (outputs.lse - outputs.loss) * num_classes if want_sum else zeros


def _capped(logits: torch.Tensor, dtype: torch.dtype, softcap: float) -> torch.Tensor:
    x = logits.to(dtype)
    return softcap * torch.tanh(x / softcap) if softcap else x
