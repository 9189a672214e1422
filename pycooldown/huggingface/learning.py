"""Update an adaptive schedule with the statistics of each step, collected over micro-batches and ranks."""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback

from pycooldown.adaptive import Statistics
from pycooldown.huggingface.fused_loss import fuse_loss, fused_loss_of
from pycooldown.huggingface.probe import Probe
from pycooldown.losses._statistics import sum_by_domain
from pycooldown.schedules import AdaptiveSchedule

_ROWS = (
    "loss_sum",
    "token_count",
    "excess_loss_sum",
    "probe_loss",
    "probe_loss_variance",
    "probe_gradient_variance",
    "probe_gradient_second_moment",
)


class Learner(TrainerCallback):  # type: ignore[misc]
    """A callback that updates a schedule after every optimizer step, with one all-reduce.

    Each domain is probed by one rank, so the outcome does not depend on the number of ranks.

    Args:
        schedule: Updated in place.
        num_domains: K.
        accelerator: Sums over ranks; an `accelerate.Accelerator`, or `DataParallelRanks` for part of the ranks.
        reference: The model over whose losses DoReMi takes the excess. It is put into evaluation mode.
        probe: A probe, for the methods that learn from probes.

    Raises:
        ValueError: If the schedule needs a reference model or a probe and none is given.
    """

    def __init__(
        self,
        schedule: AdaptiveSchedule,
        num_domains: int,
        accelerator: Any,
        reference: torch.nn.Module | None,
        probe: Probe | None,
    ) -> None:
        self.schedule = schedule
        self.accelerator = accelerator
        self.reference: Any = None
        if reference is not None:
            self.reference = reference.to(accelerator.device).eval().requires_grad_(False)
            if fused_loss_of(self.reference) is None:  # it may be another trainer's too
                fuse_loss(self.reference)
        self.probe = probe
        self._sums = torch.zeros(3, num_domains, dtype=torch.float64, device=accelerator.device)
        if "excess_loss_sum" in schedule.statistics and reference is None:
            raise ValueError("the schedule learns from the excess over a reference model; pass reference_model")
        if any(name.startswith("probe") for name in schedule.statistics) and probe is None:
            raise ValueError("the schedule learns from examples kept out of training; pass probe")

    def add(self, stats: torch.Tensor) -> None:
        """Add a micro-batch's sums of losses and numbers of tokens by domain, (2, K)."""
        self._sums[:2] += stats

    def add_excess(self, losses: torch.Tensor, inputs: dict[str, torch.Tensor], domain_ids: torch.Tensor) -> None:
        """Add the excess of the tokens' losses over the reference's.

        Args:
            losses: (N, T), of these inputs.
            inputs: The model's inputs.
            domain_ids: (N, T), of the tokens.
        """
        with torch.no_grad():
            same = {name: value for name, value in inputs.items() if name != "domain_ids"}
            theirs = self.reference(**same, reduction="none", skip_logits=True).loss
            excess = (losses - theirs).clamp(min=0)
        self._sums[2] += sum_by_domain(excess.flatten(), domain_ids.flatten(), self._sums.shape[1])

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Update the schedule with the step that has just ended."""
        step = state.global_step - 1
        needs = self.schedule.needs(step)
        if undeclared := sorted(needs - self.schedule.statistics):
            raise ValueError(
                f"{type(self.schedule).__name__}.needs({step}) has {undeclared[0]!r}, which its attribute `statistics` "
                "does not declare; add it there"
            )
        rows = torch.zeros(len(_ROWS), self._sums.shape[1], dtype=torch.float64, device=self._sums.device)
        rows[:3] = self._sums
        if any(name.startswith("probe") for name in needs):
            assert self.probe is not None  # checked at the start
            mine = range(self.accelerator.process_index, rows.shape[1], self.accelerator.num_processes)
            gradients = any(name.startswith("probe_gradient") for name in needs)
            rows[3:] = self.probe.measure(self.accelerator.unwrap_model(model), step, mine, gradients=gradients)
        rows = self.accelerator.reduce(rows, "sum").cpu()
        known = {name: row.numpy() for name, row in zip(_ROWS, rows, strict=True) if name in needs or name in _ROWS[:2]}
        self.schedule.update(step, Statistics(**known))
        self._sums.zero_()
