"""Online data mixing: the bandit Exp3 draws the domains that have the most loss left."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pycooldown.adaptive._updates import check_all_drawn, check_decay, check_warmup, exponentiated_gradient, mean_loss
from pycooldown.adaptive.schedule import LearnedSchedule
from pycooldown.mixture import Mixture, Vector


def exploration_rate(num_domains: int, step: int) -> float:
    """Return epsilon_t = min(1/K, sqrt(ln K / (K t))), with t counted from 1; 1/K for t <= 0.

    Albalak et al., "Efficient Online Data Mixing For Language Model Pre-Training", 2023, algorithm 1.
    """
    if step <= 0:
        return 1 / num_domains
    return min(1 / num_domains, math.sqrt(math.log(num_domains) / (num_domains * step)))


def exp3(rewards: Vector, step: int) -> Vector:
    """Return pi_i = (1 - K epsilon_t) exp(epsilon_(t-1) R_i) / sum_j exp(epsilon_(t-1) R_j) + epsilon_t, t from 1.

    Args:
        rewards: (K,) Estimates of each domain's reward so far.
        step: The number t of the step.
    """
    k = len(rewards)
    epsilon = exploration_rate(k, step)
    uniform = np.full(k, 1 / k)
    return exponentiated_gradient(uniform, rewards, exploration_rate(k, step - 1), smoothing=k * epsilon)


def smoothed_mean(log_rewards: Vector, step: int) -> Vector:
    """Return pi_i = (1 - K epsilon_t) R_i / sum_j R_j + epsilon_t, t from 1.

    Args:
        log_rewards: (K,) log R_i, with at least one finite value; NaN for R_i = 0.
        step: The number t of the step.
    """
    seen = ~np.isnan(log_rewards)
    uniform = np.where(seen, 1 / seen.sum(), 0.0)
    smoothing = len(seen) * exploration_rate(len(seen), step)
    return exponentiated_gradient(uniform, log_rewards, 1.0, smoothing=smoothing, present=seen)


class OnlineDataMixing(LearnedSchedule):
    """Sampling from a bandit's distribution over domains, with the loss as the reward; all losses weigh the same.

    Albalak et al., "Efficient Online Data Mixing For Language Model Pre-Training", 2023. There are two variants.

    Without ``momentum``, rewards are added up (Exp3, the paper's algorithm 1). The paper draws a whole batch from one
    domain and divides its reward by the probability of the draw. A batch here holds many domains. The reward of domain
    i is its share of the batch's loss, loss_sum_i / sum_j token_count_j / sampling_i. That is the same where the batch
    has one domain, and its expectation is the domain's loss (our generalisation). A domain that is absent from a batch
    gets reward 0, as in Exp3.

    With ``momentum``, R_i <- momentum * R_i + (1 - momentum) * exp(L_i) for the domains in the batch. L_i is the mean
    loss of a token in nats. The other domains keep their R_i. The distribution is that of `smoothed_mean`. This is the
    variant for batches of many domains in the authors' public code.

    Args:
        start: Mixture of the first ``warmup`` + ``delay`` steps; the rewards alone decide from there on.
        reward_scale: Nats that make a reward of 1, > 0; by default 10, as in the public code. Not used with
            ``momentum``.
        momentum: ``None`` to add rewards up, or a number in [0, 1), 0.9 in the public code.
        warmup: Steps from which nothing is learned; the public scripts have 2,000. They count for epsilon_t.
        delay: See `LearnedSchedule`.

    Raises:
        ValueError: If an argument is out of range, or ``reward_scale`` is given with ``momentum``.
    """

    def __init__(
        self,
        start: Mixture,
        *,
        reward_scale: float | None = None,
        momentum: float | None = None,
        warmup: int = 0,
        delay: int = 4,
    ) -> None:
        super().__init__(start, delay=delay)
        check_all_drawn(start)
        check_warmup(warmup)
        if momentum is not None:
            check_decay("momentum", momentum)
            if reward_scale is not None:
                raise ValueError(
                    f"reward_scale = {reward_scale} is not used with momentum = {momentum}, which takes exp(loss): "
                    "leave one of the two out"
                )
        reward_scale = 10.0 if reward_scale is None else reward_scale
        if not 0 < reward_scale < math.inf:
            raise ValueError(f"reward_scale = {reward_scale}; expected a finite number of nats > 0")
        self.reward_scale = reward_scale
        self.momentum = momentum
        self.warmup = warmup
        if momentum is None:
            self._state = {"rewards": np.zeros(start.num_domains)}
        else:
            self._state = {"log_rewards": np.full(start.num_domains, np.nan)}

    def settings(self) -> dict[str, Any]:
        """See `LearnedSchedule.settings`."""
        settings: dict[str, Any] = {"momentum": self.momentum}
        if self.momentum is None:
            settings = {"reward_scale": self.reward_scale, **settings}
        return {**settings, "warmup": self.warmup} if self.warmup else settings

    def _learn(self, step: int, stats: dict[str, Vector]) -> Mixture:
        if step < self.warmup:
            return self.current
        if self.momentum is None:
            self._state = {"rewards": self._state["rewards"] + self._rewards(step, stats)}
            p = exp3(self._state["rewards"], step + 1)
            return self._mixture(p, p)
        loss, old = mean_loss(stats["loss_sum"], stats["token_count"]), self._state["log_rewards"]
        with np.errstate(divide="ignore", invalid="ignore"):  # a momentum of 0 has logarithm -inf
            kept = np.where(np.isnan(old), -np.inf, np.log(self.momentum) + old)
            new = np.logaddexp(kept, math.log1p(-self.momentum) + loss)
        self._state = {"log_rewards": np.where(np.isnan(loss), old, new)}
        if np.isnan(self._state["log_rewards"]).all():
            return self.current
        p = smoothed_mean(self._state["log_rewards"], step + 1)
        return self._mixture(p, p)

    def _rewards(self, step: int, stats: dict[str, Vector]) -> Vector:
        drawn_with = self.mixture(step).sampling
        tokens = max(stats["token_count"].sum(), 1.0)
        loss_sum = np.where(stats["token_count"] > 0, stats["loss_sum"], 0.0)
        return np.asarray(loss_sum / tokens / drawn_with / self.reward_scale)
