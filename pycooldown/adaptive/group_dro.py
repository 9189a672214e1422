"""Group distributionally robust optimization: minimise the loss of the worst domain."""

from __future__ import annotations

from typing import Any

import numpy as np

from pycooldown.adaptive._updates import check_decay, check_steps, exponentiated_gradient, mean_loss, moving_average
from pycooldown.adaptive.schedule import LearnedSchedule
from pycooldown.mixture import Mixture, Vector


def worst_share(losses: Vector, fractions: Vector, share: float, least: float = 0.0) -> Vector:
    """Return the target that puts all weight on the worst ``share`` of the data.

    Domains are taken from the highest loss down. Each gets its fraction of the data divided by ``share``, until the
    weight is used up; the last one gets the rest. Without ``least`` this is the conditional value at risk of the
    domains' losses at level ``share``.

    Args:
        losses: (K,) float64.
        fractions: (K,) Each domain's share of the data, on the simplex.
        share: Alpha in (0, 1].
        least: Part of the weight in [0, 1) that goes to all domains in proportion to ``fractions``.
    """
    order = np.argsort(-losses, kind="stable")
    taken = np.minimum(np.cumsum(fractions[order]), share)
    weights = np.empty_like(fractions)
    weights[order] = np.diff(taken, prepend=0.0) / taken[-1]
    return np.asarray(least * fractions + (1 - least) * weights)


class GroupDRO(LearnedSchedule):
    """Higher targets for domains with high loss: target_i <- target_i exp(eta L_i), normalised.

    Sagawa et al., "Distributionally Robust Neural Networks for Group Shifts", ICLR 2020, algorithm 1. The sampling
    stays that of the start. L_i is the mean loss of a token of domain i in the batch. A domain that is absent from a
    batch keeps its target. DoReMi is the same rule with the excess over a reference in place of the loss.

    The further options are those of the authors' public code, where ``worst`` is called "btl". There an adjustment
    counts only if it is positive for all groups, and an absent group has loss 0.

    Args:
        start: First mixture; ``Mixture.temperature_sampling(sizes, math.inf)`` draws all domains alike.
        step_size: Eta > 0, in 1/nats. Not used with ``worst``.
        smoothing: Share of the uniform distribution in the target, in [0, 1); the paper has 0. Not used with ``worst``.
        adjustment: C >= 0: the loss of domain i counts as L_i + C / sqrt(n_i), with n_i the domain's size.
        normalize_losses: Divide the losses by their sum over the domains in the batch, before the step. Not used with
            ``worst``.
        worst: Alpha in (0, 1]: put all weight on the domains of highest loss that hold this share of the data, by
            moving averages of the losses, in place of the exponentiated step; see `worst_share`.
        decay: Decay of these moving averages, in [0, 1); 1 - gamma in the public code. Used only with ``worst``.
        least: Weight in [0, 1) that all domains keep, in proportion to size. Used only with ``worst``.
        delay: See `LearnedSchedule`.

    Raises:
        ValueError: If an argument is out of range, or is not used by the rule that the others choose.
    """

    domain_means = True

    def __init__(
        self,
        start: Mixture,
        *,
        step_size: float = 0.01,
        smoothing: float = 0.0,
        adjustment: float = 0.0,
        normalize_losses: bool = False,
        worst: float | None = None,
        decay: float = 0.9,
        least: float = 0.0,
        delay: int = 4,
    ) -> None:
        super().__init__(start, delay=delay)
        check_steps(start, step_size, smoothing)
        check_decay("decay", decay)
        if not 0 <= adjustment < np.inf:
            raise ValueError(f"adjustment = {adjustment}; expected a finite number >= 0")
        if worst is not None and not 0 < worst <= 1:
            raise ValueError(f"worst = {worst}; expected a share of the data in (0, 1], or None")
        if not 0 <= least < 1:
            raise ValueError(f"least = {least}; expected a weight in [0, 1)")
        if worst is None and least:
            raise ValueError(f"least = {least} is used only with worst; set worst, or use smoothing")
        if worst is not None and (smoothing or normalize_losses):
            raise ValueError("smoothing and normalize_losses are not used with worst; leave them out")
        self.step_size = step_size
        self.smoothing = smoothing
        self.adjustment = adjustment
        self.normalize_losses = normalize_losses
        self.worst = worst
        self.decay = decay
        self.least = least
        if worst is not None:
            self._state = {"loss": np.full(start.num_domains, np.nan)}

    def settings(self) -> dict[str, Any]:
        """See `LearnedSchedule.settings`."""
        settings: dict[str, Any] = {"step_size": self.step_size, "smoothing": self.smoothing}
        if self.adjustment:
            settings["adjustment"] = self.adjustment
        if self.normalize_losses:
            settings["normalize_losses"] = True
        if self.worst is not None:
            settings |= {"worst": self.worst, "decay": self.decay, "least": self.least}
        return settings

    def _learn(self, step: int, stats: dict[str, Vector]) -> Mixture:
        loss = mean_loss(stats["loss_sum"], stats["token_count"])
        adjustment = self.adjustment / np.sqrt(self.start.sizes)
        if self.worst is not None:
            averages = moving_average(self._state["loss"], loss, self.decay)
            self._state = {"loss": averages}
            if np.isnan(averages).any():  # a domain that was never seen cannot be ranked
                return self.current
            fractions = self.start.sizes / self.start.sizes.sum()
            return self._mixture(worst_share(averages + adjustment, fractions, self.worst, self.least))
        loss = loss + adjustment
        if self.normalize_losses and (total := np.nansum(loss)) > 0:
            loss = loss / total
        target = exponentiated_gradient(
            self.current.target, loss, self.step_size, self.smoothing, present=~np.isnan(loss)
        )
        return self._mixture(target)
