"""Online data mixing: the bandit Exp3 draws the domains that have the most loss left."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pycooldown.adaptive.group_dro import check_steps, exponentiated_gradient
from pycooldown.adaptive.schedule import LearnedSchedule
from pycooldown.mixture import Mixture, Vector


def exploration_rate(num_domains: int, step: int) -> float:
    """epsilon_t = min(1/K, sqrt(ln K / (K t))), with t counted from 1; 1/K for t <= 0.

    Albalak et al., "Efficient Online Data Mixing For Language Model Pre-Training", 2023, algorithm 1.
    """
    if step <= 0:
        return 1 / num_domains
    return min(1 / num_domains, math.sqrt(math.log(num_domains) / (num_domains * step)))


def exp3(rewards: Vector, step: int) -> Vector:
    """pi_i = (1 - K epsilon_t) exp(epsilon_(t-1) R_i) / sum_j exp(epsilon_(t-1) R_j) + epsilon_t, t from 1.

    Args:
        rewards: (K,) estimates of each domain's reward so far.
        step: t.
    """
    k = len(rewards)
    epsilon = exploration_rate(k, step)
    uniform = np.full(k, 1 / k)
    return exponentiated_gradient(uniform, rewards, exploration_rate(k, step - 1), smoothing=k * epsilon)


class OnlineDataMixing(LearnedSchedule):
    """Draws from Exp3's distribution over domains, with the loss as the reward; all losses weigh the same.

    Albalak et al., "Efficient Online Data Mixing For Language Model Pre-Training", 2023. The paper draws a whole batch
    from one domain and divides its reward by the probability of the draw. A batch here holds many domains: domain i's
    reward is its share of the batch's loss, loss_sum_i / sum_j token_count_j / sampling_i, which is the same where the
    batch has one domain, and has the domain's loss as expectation (our generalisation). Domains that a batch lacks get
    reward 0, as in Exp3.

    Args:
        start: mixture of the first ``delay`` steps; the rewards alone decide from there on.
        reward_scale: nats that make a reward of 1; 10 in the public code.
        momentum: None adds the rewards up; a number in [0, 1) makes them a moving average, as in the paper's variant
            with 0.9.
        delay: see `LearnedSchedule`.
    """

    def __init__(
        self, start: Mixture, *, reward_scale: float = 10.0, momentum: float | None = None, delay: int = 4
    ) -> None:
        super().__init__(start, delay=delay)
        check_steps(start, 1 / reward_scale if reward_scale else math.inf, 0.0)
        if momentum is not None and not 0 <= momentum < 1:
            raise ValueError(f"momentum = {momentum}; expected a number in [0, 1), or None to add rewards up")
        self.reward_scale = reward_scale
        self.momentum = momentum
        self._state = {"rewards": np.zeros(start.num_domains)}

    def settings(self) -> dict[str, Any]:
        """See `LearnedSchedule.settings`."""
        return {"reward_scale": self.reward_scale, "momentum": self.momentum}

    def _learn(self, step: int, stats: dict[str, Vector]) -> Mixture:
        drawn_with = self.mixture(step).sampling
        tokens = max(stats["token_count"].sum(), 1.0)
        loss_sum = np.where(stats["token_count"] > 0, stats["loss_sum"], 0.0)
        reward = loss_sum / tokens / drawn_with / self.reward_scale
        if self.momentum is None:
            rewards = self._state["rewards"] + reward
        else:
            rewards = self.momentum * self._state["rewards"] + (1 - self.momentum) * reward
        self._state = {"rewards": rewards}
        p = exp3(rewards, step + 1)
        return self._mixture(p, p)
