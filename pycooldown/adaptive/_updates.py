"""Update rules and checks that several learning methods share."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pycooldown.mixture import Mixture, Vector


def exponentiated_gradient(
    weights: Vector,
    scores: Vector,
    step_size: float,
    smoothing: float = 0.0,
    present: npt.NDArray[np.bool_] | None = None,
) -> Vector:
    """Return weights_i exp(step_size * scores_i), normalised and then mixed with the uniform distribution.

    The rule works in log space, so no score overflows. A domain that is not present keeps its weight, and the present
    domains share the rest. A weight of 0 stays 0, apart from the smoothing.

    Args:
        weights: (K,) float64 on the simplex.
        scores: (K,) float64, finite where present.
        step_size: Eta >= 0.
        smoothing: Share c in [0, 1) of the uniform distribution: the result is (1 - c) * normalised + c / K.
        present: (K,) Which domains have a score; by default all.
    """
    present = np.ones(len(weights), dtype=np.bool_) if present is None else present & (weights > 0)
    grown = np.where(present, weights, 0.0)
    if grown.any():
        scores = np.where(grown > 0, step_size * scores, -np.inf)
        grown = grown * np.exp(scores - scores.max())
        grown *= weights[present].sum() / grown.sum()
    return np.asarray((1 - smoothing) * np.where(present, grown, weights) + smoothing / len(weights))


def moving_average(old: Vector, new: Vector, decay: float) -> Vector:
    """Return decay * old + (1 - decay) * new for each domain, where NaN means "no value yet".

    The first value of a domain becomes its average. A domain without a new value keeps its old average.
    """
    mixed = np.where(np.isnan(old), new, decay * old + (1 - decay) * new)
    return np.where(np.isnan(new), old, mixed)


def mean_loss(loss_sum: Vector, count: Vector) -> Vector:
    """Return the mean loss of each domain, (K,) float64; NaN for a domain without data."""
    return np.divide(loss_sum, count, out=np.full_like(loss_sum, np.nan), where=count > 0)


def proportional_with_floor(shares: Vector, least: float, drawn: npt.NDArray[np.bool_]) -> Vector:
    """Return the distribution in proportion to ``shares`` in which every drawn domain has at least ``least``.

    Domains below the floor are raised to it, and the others divide the rest in proportion to their shares. This is the
    exact minimiser of sum_i shares_i^2 / q_i under the floor.

    Args:
        shares: (K,) float64 >= 0, with at least one drawn domain above 0.
        least: Floor, at most 1 / K.
        drawn: (K,) Which domains are drawn at all; the others get 0.
    """
    shares = np.where(drawn, shares, 0.0)
    q = np.where(drawn, least, 0.0)
    free = shares > 0
    while free.any():
        share = (1 - least * (drawn & ~free).sum()) * shares / shares[free].sum()
        low = free & (share < least)
        if not low.any():
            q[free] = share[free]
            break
        free &= ~low
    return np.asarray(q / q.sum())


def check_steps(start: Mixture, step_size: float, smoothing: float) -> None:
    """Raise ValueError for arguments that an exponentiated step cannot use."""
    if not 0 < step_size < np.inf:
        raise ValueError(f"step_size = {step_size}; expected a finite number > 0")
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing = {smoothing}; expected a share in [0, 1)")
    check_all_drawn(start)


def check_all_drawn(start: Mixture) -> None:
    """Raise ValueError if a domain is never drawn, because its loss would never be seen."""
    if not start.sampling.all():
        never = start.domains[int((start.sampling == 0).argmax())]
        raise ValueError(f"start never draws domain {never!r}, so its loss is never seen; give it a positive sampling")


def check_probes(interval: int, decay: float) -> None:
    """Raise ValueError for arguments that probing cannot use."""
    if interval < 1:
        raise ValueError(f"interval = {interval}; expected at least 1 step")
    check_decay("decay", decay)


def check_decay(name: str, decay: float) -> None:
    """Raise ValueError if the decay of a moving average is outside [0, 1)."""
    if not 0 <= decay < 1:
        raise ValueError(f"{name} = {decay}; expected a number in [0, 1)")


def check_least(least: float, num_domains: int) -> None:
    """Raise ValueError if not all domains can have this share at least."""
    if not 0 < least <= 1 / num_domains:
        raise ValueError(f"least = {least}; expected a probability > 0, at most 1/K = {1 / num_domains:.4g}")


def check_warmup(warmup: int) -> None:
    """Raise ValueError if a number of warm-up steps is negative."""
    if warmup < 0:
        raise ValueError(f"warmup = {warmup}; expected a number of steps >= 0")
