"""Feeds an adaptive schedule: collects the statistics of each step over micro-batches and ranks."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from transformers import TrainerCallback, TrainingArguments

from pycooldown.adaptive import Statistics
from pycooldown.schedules import AdaptiveSchedule
from pycooldown.training.probe import Probe

_ROWS = ("loss_sum", "token_count", "excess_loss_sum", "probe_loss", "probe_loss_variance", "probe_gradient_variance")


class Learner(TrainerCallback):  # type: ignore[misc]
    """Updates a schedule after every optimizer step, with one all-reduce.

    Each domain is probed by one rank, so that the outcome does not depend on the number of ranks.

    Args:
        schedule: updated in place.
        num_domains: K.
        accelerator: sums over ranks.
        reference: model whose losses DoReMi's excess is taken over; put into evaluation mode.
        probe: for the methods that learn from probes.

    Raises:
        ValueError: if the schedule needs a reference model or a probe that is not given.
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
        self.reference = None if reference is None else reference.to(accelerator.device).eval().requires_grad_(False)
        self.probe = probe
        self._sums = torch.zeros(3, num_domains, dtype=torch.float64, device=accelerator.device)
        # The methods ask at fixed intervals: a look at the first thousand steps tells all that they will ever need.
        needs = frozenset[str]().union(*(schedule.needs(step) for step in range(1000)))
        if "excess_loss_sum" in needs and reference is None:
            raise ValueError("the schedule learns from the excess over a reference model: pass reference_model")
        if any(name.startswith("probe") for name in needs) and probe is None:
            raise ValueError("the schedule learns from examples kept out of training: pass probe_dataset")

    def add(self, stats: Any, logits: torch.Tensor, inputs: dict[str, torch.Tensor], targets: torch.Tensor) -> None:
        """Counts a micro-batch in.

        Args:
            stats: of the loss: ``loss_sum`` and ``token_count`` (K,).
            logits: (N, T, V).
            inputs: what gave the logits.
            targets: (N, T), -100 where there is none.
        """
        self._sums[:2] += torch.stack([stats.loss_sum, stats.token_count.double()])
        if self.reference is None:
            return
        domain_ids = inputs["domain_ids"]
        with torch.no_grad():
            names = ("labels", "domain_ids")
            theirs = self.reference(**{name: value for name, value in inputs.items() if name not in names}).logits
            losses = [
                F.cross_entropy(x.detach().transpose(1, 2).float(), targets, ignore_index=-100, reduction="none")
                for x in (logits, theirs)
            ]
            excess = (losses[0] - losses[1]).clamp(min=0).double().sum(dim=1)
            self._sums[2].index_add_(0, domain_ids, excess)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Updates the schedule with the step that ended."""
        step = state.global_step - 1
        needs = self.schedule.needs(step)
        rows = torch.zeros(len(_ROWS), self._sums.shape[1], dtype=torch.float64, device=self._sums.device)
        rows[:3] = self._sums
        if any(name.startswith("probe") for name in needs):
            assert self.probe is not None  # checked at the start
            mine = range(self.accelerator.process_index, rows.shape[1], self.accelerator.num_processes)
            rows[3:] = self.probe.measure(
                self.accelerator.unwrap_model(model), step, mine, gradients="probe_gradient_variance" in needs
            )
        rows = self.accelerator.reduce(rows, "sum").cpu()
        known = {name: row.numpy() for name, row in zip(_ROWS, rows, strict=True) if name in needs or name in _ROWS[:2]}
        self.schedule.update(step, Statistics(**known))
        self._sums.zero_()


def check_read_ahead(args: TrainingArguments, schedule: AdaptiveSchedule) -> None:
    """Raises ValueError if the data loader would ask for batches whose mixture is not decided yet.

    While step t is trained, ``workers * prefetch_factor`` micro-batches beyond it have been asked for.
    """
    ahead = args.dataloader_num_workers * (args.dataloader_prefetch_factor or 2)
    needed = 1 if ahead == 0 else 2 + (ahead - 1) // args.gradient_accumulation_steps
    if schedule.delay < needed:
        raise ValueError(
            f"delay = {schedule.delay}, but {args.dataloader_num_workers} workers read {ahead} micro-batches ahead, of up "
            f"to {needed - 1} steps that are not trained yet; expected a delay of at least {needed}, or fewer workers"
        )
