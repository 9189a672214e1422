"""Sums over the ranks that have different samples, for jobs that combine several kinds of parallelism."""

from __future__ import annotations

import torch
import torch.distributed as dist


class DataParallelRanks:
    """The part of an Accelerator's interface that `DomainSums` and `Learner` use, for one data-parallel group.

    Under tensor, context or expert parallelism several ranks hold the same samples. Sums over all ranks would count
    these several times; sums over the ranks of a data-parallel group, which all have different samples, do not. With
    context parallelism each rank has a part of every sequence: pass the group of all ranks that share a batch, such as
    a flattened mesh of "dp" and "cp".

    Args:
        group: For example ``mesh.get_group("dp")``.
        device: Where the sums are kept; the group's backend must be able to reduce on it.
    """

    def __init__(self, group: dist.ProcessGroup, device: torch.device | str = "cpu") -> None:
        self.group = group
        self.device = torch.device(device)
        self.process_index = dist.get_rank(group)
        self.num_processes = dist.get_world_size(group)

    def reduce(self, tensor: torch.Tensor, reduction: str = "sum") -> torch.Tensor:
        """Return the sum of the ranks' tensors, of any shape; the tensor itself is unchanged."""
        if reduction != "sum":
            raise ValueError(f"reduction = {reduction!r}; expected 'sum'")
        total = tensor.clone()
        dist.all_reduce(total, group=self.group)
        return total

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the ranks' tensors (n, ...), concatenated along the first dimension."""
        parts = [torch.empty_like(tensor) for _ in range(self.num_processes)]
        dist.all_gather(parts, tensor.contiguous(), group=self.group)
        return torch.cat(parts)

    def unwrap_model(self, model: torch.nn.Module) -> torch.nn.Module:
        """Return the module inside DistributedDataParallel, or the model itself."""
        inner = model.module if isinstance(model, torch.nn.parallel.DistributedDataParallel) else model
        assert isinstance(inner, torch.nn.Module)
        return inner
