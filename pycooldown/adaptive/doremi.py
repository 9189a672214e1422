"""DoReMi: domain weights from the excess loss of a small proxy model over a reference model."""

from __future__ import annotations

from typing import Any

import numpy as np

from pycooldown.adaptive._updates import check_decay, check_steps, exponentiated_gradient, mean_loss
from pycooldown.adaptive.schedule import LearnedSchedule
from pycooldown.mixture import Mixture, Vector


class DoReMi(LearnedSchedule):
    """DoReMi's weights, learned with a proxy: target_i <- target_i exp(eta * excess_i), normalised and smoothed.

    Xie et al., "DoReMi: Optimizing Data Mixtures Speeds Up Language Model Pretraining", NeurIPS 2023, algorithm 1. The
    sampling stays that of the start. The excess of a domain is the mean over its tokens of max(loss - reference loss,
    0), clipped at each token. A domain that is equally hard for the reference gains nothing. The weights for the main
    model are the `average` over the steps, without the start. They are shares by name, so the main model may have
    another size than the proxy.

    The public code differs in two points. There a domain that is absent from a batch counts its last excess again (at
    first the logarithm of the vocabulary); here it keeps its target. There the target of a step is used in the next
    step; here ``delay`` steps later.

    Args:
        start: Mixture to begin with; uniform in the paper: ``Mixture.temperature_sampling(sizes, math.inf)``.
        step_size: Eta > 0, in 1/nats. The paper has 1; use 0.1 if the weights concentrate on one domain.
        smoothing: Share c of the uniform distribution in each step's target; the paper has 1e-3.
        decay: Decay of `moving_average`, in [0, 1).
        delay: See `LearnedSchedule`.
    """

    domain_means = True

    def __init__(
        self, start: Mixture, *, step_size: float = 1.0, smoothing: float = 1e-3, decay: float = 0.99, delay: int = 4
    ) -> None:
        super().__init__(start, delay=delay)
        check_steps(start, step_size, smoothing)
        check_decay("decay", decay)
        self.step_size = step_size
        self.smoothing = smoothing
        self.decay = decay
        self._state = {"target_sum": np.zeros(start.num_domains), "moving_average": start.target.copy()}

    @property
    def average(self) -> Mixture:
        """Sampling in proportion to the average target so far, for the main model."""
        if self.num_updates == 0:
            return self.start
        mean = self._state["target_sum"] / self._state["target_sum"].sum()
        return self._mixture(mean, mean)

    @property
    def moving_average(self) -> Mixture:
        """As `average`, but with an exponential moving average. If they differ, the weights have not settled."""
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
