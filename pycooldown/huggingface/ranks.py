"""Sums over the ranks that have different samples, where a job's ranks are laid out in more than one way."""

from __future__ import annotations

import torch
import torch.distributed as dist


class DataParallelRanks:
    """What `DomainSums` and `Learner` ask of an Accelerator, over one data-parallel group.

    Under tensor, context or expert parallelism several ranks hold the same samples. Sums over all ranks would count
    these once for each; sums over the ranks of a data-parallel group, each of which has samples of its own, do not.
    With context parallelism each rank has a part of every sequence: give the group of all ranks that share a batch,
    such as a flattened mesh of "dp" and "cp".

    Args:
        group: For example ``mesh.get_group("dp")``.
        device: Where the sums are kept; one that the group's backend can reduce on.
    """

    def __init__(self, group: dist.ProcessGroup, device: torch.device | str = "cpu") -> None:
        self.group = group
        self.device = torch.device(device)
        self.process_index = dist.get_rank(group)
        self.num_processes = dist.get_world_size(group)

    def reduce(self, tensor: torch.Tensor, reduction: str = "sum") -> torch.Tensor:
        """Return the sum of the ranks' tensors, of any shape; the tensor itself stays."""
        if reduction != "sum":
            raise ValueError(f"reduction = {reduction!r}; expected 'sum'")
        total = tensor.clone()
        dist.all_reduce(total, group=self.group)
        return total

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the ranks' tensors (n, ...), one behind the other along the first dimension."""
        parts = [torch.empty_like(tensor) for _ in range(self.num_processes)]
        dist.all_gather(parts, tensor.contiguous(), group=self.group)
        return torch.cat(parts)

    def unwrap_model(self, model: torch.nn.Module) -> torch.nn.Module:
        """Return the module inside DistributedDataParallel, or the model itself."""
        inner = model.module if isinstance(model, torch.nn.parallel.DistributedDataParallel) else model
        assert isinstance(inner, torch.nn.Module)
        return inner
