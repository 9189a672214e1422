"""DoReMi: domain weights from the excess loss of a small proxy model over a reference model."""

from __future__ import annotations

from typing import Any

import numpy as np

from pycooldown.adaptive.group_dro import check_steps, exponentiated_gradient, mean_loss
from pycooldown.adaptive.schedule import LearnedSchedule
from pycooldown.mixture import Mixture, Vector


class DoReMi(LearnedSchedule):
    """The proxy stage: target_i <- target_i exp(eta * excess_i), normalised and smoothed; sampling as at the start.

    Xie et al., "DoReMi: Optimizing Data Mixtures Speeds Up Language Model Pretraining", NeurIPS 2023, algorithm 1. The
    excess of a domain is the mean over its tokens of max(loss - reference loss, 0), clipped at each token. Domains that
    are as hard for the reference gain nothing. The weights for the main model are their `average` over the steps,
    which does not count the start.

    Differences from the public code, both ours: a domain that a batch lacks keeps its target (there: its last excess
    counts again, at first the logarithm of the vocabulary), and the target of step t is ``delay`` steps old (there: 0).

    Args:
        start: uniform in the paper: ``Mixture.temperature_sampling(sizes, math.inf)``.
        step_size: eta > 0, in 1/nats; 1 in the paper, 0.1 is advised where the weights run to one domain.
        smoothing: share of the uniform distribution in each step's target, c = 1e-3 in the paper.
        decay: of the exponential moving average that `moving_average` gives beside the plain one.
        delay: see `LearnedSchedule`.
    """

    def __init__(
        self, start: Mixture, *, step_size: float = 1.0, smoothing: float = 1e-3, decay: float = 0.99, delay: int = 4
    ) -> None:
        super().__init__(start, delay=delay)
        check_steps(start, step_size, smoothing)
        if not 0 <= decay < 1:
            raise ValueError(f"decay = {decay}; expected a number in [0, 1)")
        self.step_size = step_size
        self.smoothing = smoothing
        self.decay = decay
        self._state = {"target_sum": np.zeros(start.num_domains), "moving_average": start.target.copy()}

    @property
    def average(self) -> Mixture:
        """Temperature-like sampling from the average target so far, for the main model."""
        if self.num_updates == 0:
            return self.start
        mean = self._state["target_sum"] / self._state["target_sum"].sum()
        return self._mixture(mean, mean)

    @property
    def moving_average(self) -> Mixture:
        """The same from the exponential moving average, which shows whether the weights have settled."""
        mean = self._state["moving_average"] / self._state["moving_average"].sum()
        return self._mixture(mean, mean)

    @property
    def statistics(self) -> frozenset[str]:
        """See `LearnedSchedule.statistics`."""
        return frozenset({"excess_loss_sum"})

    def needs(self, step: int) -> frozenset[str]:
        """See `LearnedSchedule.needs`."""
        return self.statistics

    def settings(self) -> dict[str, Any]:
        """See `LearnedSchedule.settings`."""
        return {"step_size": self.step_size, "smoothing": self.smoothing, "decay": self.decay}

    def _learn(self, step: int, stats: dict[str, Vector]) -> Mixture:
        excess = mean_loss(stats["excess_loss_sum"], stats["token_count"])
        target = exponentiated_gradient(
            self.current.target, excess, self.step_size, self.smoothing, present=~np.isnan(excess)
        )
        average = self.decay * self._state["moving_average"] + (1 - self.decay) * target
        self._state = {"target_sum": self._state["target_sum"] + target, "moving_average": average}
        return self._mixture(target)
