"""The best mixture by a law of each domain's loss as a function of the mixture, fitted to the runs of a sweep."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pycooldown.mixture import Vector

Matrix = npt.NDArray[np.float64]
_RIDGE = 1e-6  # keeps the slope at 0 in directions in which the runs do not vary
_SMALLEST = 1e-12


@dataclass(frozen=True)
class SweepRuns:
    """The contents of a sweep's CSV file.

    Attributes:
        domains: K names.
        sizes: (K,) training samples.
        mixtures: (R, K), the share of each domain in the draws of each run.
        losses: (R, K), validation losses in nats a token.
    """

    domains: tuple[str, ...]
    sizes: npt.NDArray[np.int64]
    mixtures: Matrix
    losses: Matrix


@dataclass(frozen=True)
class LossLaw:
    """Each domain's loss as L_k(p) = c_k + exp(t_k . p), of Ye et al., "Data Mixing Laws", ICLR 2025.

    Their factor in front of the exponential is part of t, since p sums to 1.

    Attributes:
        floors: (K,) c.
        slopes: (K, K) t, a row for each loss.
        residuals: (R, K), measured less fitted.
    """

    floors: Vector
    slopes: Matrix
    residuals: Matrix

    def losses(self, p: npt.ArrayLike) -> Vector:
        """Return the predicted losses (K,) under a mixture (K,)."""
        return np.asarray(self.floors + np.exp(self.slopes @ np.asarray(p, dtype=np.float64)))


def read_sweep(path: str | Path) -> SweepRuns:
    """Read ``sweep.csv`` from its path or from a folder written by `pycooldown sweep`.

    Raises:
        ValueError: If the file has other columns, or a run lacks a domain.
        FileNotFoundError: If there is no such file.
    """
    path = Path(path)
    path = path / "sweep.csv" if path.is_dir() else path
    with open(path, encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("measure") == "loss"]
    if not rows or not {"recipe", "seed", "domain", "size", "epochs", "value"} <= set(rows[0]):
        raise ValueError(f"{path} has no losses; expected a sweep.csv written by `pycooldown sweep`")
    domains = tuple(dict.fromkeys(row["domain"] for row in rows))
    runs: dict[tuple[str, str], dict[str, dict[str, str]]] = {}
    for row in rows:
        runs.setdefault((row["recipe"], row["seed"]), {})[row["domain"]] = row
    if short := [run for run, found in runs.items() if len(found) < len(domains)]:
        raise ValueError(f"{path}: {short[0][0]} with seed {short[0][1]} lacks domains; expected {', '.join(domains)}")
    sizes = np.array([int(next(iter(runs.values()))[domain]["size"]) for domain in domains])
    draws = np.array([[float(found[d]["epochs"]) for d in domains] for found in runs.values()]) * sizes
    losses = np.array([[float(found[d]["value"]) for d in domains] for found in runs.values()])
    return SweepRuns(domains, sizes, draws / draws.sum(axis=1, keepdims=True), losses)


def fit_losses(mixtures: Matrix, losses: Matrix) -> LossLaw:
    """Fit the law to runs by least squares (Levenberg, 1944; Marquardt, 1963).

    Args:
        mixtures: (R, K) mixtures of the runs; at least K + 1 must differ.
        losses: (R, K) their losses, finite.

    Raises:
        ValueError: If there are too few different mixtures, or a loss is not finite.
    """
    different = len(np.unique(mixtures.round(6), axis=0))
    if different < mixtures.shape[1] + 1:
        raise ValueError(
            f"the runs have {different} different mixtures of {mixtures.shape[1]} domains; expected at least "
            f"{mixtures.shape[1] + 1}, such as a sweep over mixture.tau and weights"
        )
    if not np.isfinite(losses).all():
        raise ValueError("losses has a value that is not finite; leave that run out")
    fitted = [_fit_one(mixtures, y) for y in losses.T]
    floors, slopes = np.array([c for c, _ in fitted]), np.array([t for _, t in fitted])
    return LossLaw(floors, slopes, losses - floors - np.exp(mixtures @ slopes.T))


def best_mixture(
    law: LossLaw,
    prior: npt.ArrayLike,
    *,
    strength: float = 0.01,
    most: npt.ArrayLike | None = None,
    importances: npt.ArrayLike | None = None,
    max_steps: int = 20_000,
) -> Vector:
    """Return the mixture that minimises sum_k w_k L_k(p) + strength * KL(p || prior) with p_k <= most_k.

    The objective is convex. It is minimised by exponentiated gradient steps. After each, the mixture within the bounds
    that is nearest in KL divergence is taken.

    Args:
        law: The fitted losses.
        prior: (K,) mixture that p is kept near to, all > 0.
        strength: Weight of the divergence, in nats of loss, >= 0.
        most: (K,) upper bounds, for example from a cap on epochs; none by default.
        importances: (K,) w, >= 0, even by default; scaled to sum to 1.
        max_steps: Maximum number of descent steps.

    Raises:
        ValueError: If an argument is out of its range, or no mixture satisfies the bounds.
    """
    start: Vector = np.asarray(prior, dtype=np.float64)
    start = start / start.sum()
    bounds = np.ones_like(start) if most is None else np.minimum(np.asarray(most, dtype=np.float64), 1.0)
    w = np.ones_like(start) if importances is None else np.asarray(importances, dtype=np.float64)
    if (start <= 0).any() or (w < 0).any() or w.sum() <= 0 or not 0 <= strength < math.inf:
        raise ValueError(
            f"prior = {start.tolist()}, importances = {w.tolist()}, strength = {strength}; expected a prior > 0, "
            "importances >= 0 and a finite strength >= 0"
        )
    if (bounds <= 0).any() or bounds.sum() < 1:
        raise ValueError(
            f"most = {bounds.tolist()} sums to {bounds.sum():.4g}; expected bounds > 0 that sum to at least 1"
        )
    w = w / w.sum()

    def objective(p: Vector) -> float:
        return float(w @ law.losses(p) + strength * (p @ np.log(p / start)))

    p, rate = _within(start, bounds), 1.0
    value = objective(p)
    for _ in range(max_steps):
        gradient = law.slopes.T @ (w * np.exp(law.slopes @ p)) + strength * np.log(p / start)
        while rate > 1e-9:
            moved = _within(p * np.exp(-rate * (gradient - gradient.min())), bounds)
            if (after := objective(moved)) <= value:
                break
            rate /= 2
        else:
            break
        change, p, value, rate = float(np.abs(moved - p).max()), moved, after, rate * 1.5
        if change < 1e-10:
            break
    return p


def epoch_bounds(sizes: npt.ArrayLike, draws: int, max_epochs: float) -> Vector:
    """Return the largest share of each domain, (K,), that passes through it at most ``max_epochs`` times.

    Args:
        sizes: (K,) samples of each domain.
        draws: Samples that the run draws.
        max_epochs: Cap on the passes, > 0.
    """
    return np.minimum(max_epochs * np.asarray(sizes, dtype=np.float64) / draws, 1.0)


def _within(p: Vector, bounds: Vector) -> Vector:
    """Return the mixture q <= bounds with the least KL(q || p): min(bounds, a p), with a such that it sums to 1."""
    p = np.maximum(p / p.sum(), _SMALLEST)
    full = np.zeros(len(p), dtype=bool)
    for _ in range(len(p)):
        left = 1 - bounds[full].sum()
        q = np.where(full, bounds, p * left / max(p[~full].sum(), _SMALLEST))
        if not (over := ~full & (q > bounds)).any():
            return np.asarray(q / q.sum())
        full |= over
    return np.asarray(bounds / bounds.sum())


def _fit_one(mixtures: Matrix, y: Vector) -> tuple[float, Vector]:
    """Return floor and slopes of one loss: the best fit over several initial floors below the lowest loss."""
    spread = max(float(y.max() - y.min()), 1e-3)
    found = []
    for below in (0.1, 1.0, 10.0):
        c = float(y.min()) - below * spread
        t = np.linalg.lstsq(mixtures, np.log(y - c), rcond=None)[0]
        found.append(_descend(mixtures, y, np.concatenate([[c], t])))
    _, theta = min(found, key=lambda pair: pair[0])
    return float(theta[0]), theta[1:]


def _descend(mixtures: Matrix, y: Vector, theta: Vector) -> tuple[float, Vector]:
    """Return the sum of squares and the parameters (c, t) after at most 200 steps of Levenberg and Marquardt."""

    def residual(at: Vector) -> Vector:
        return np.asarray(y - at[0] - np.exp(np.minimum(mixtures @ at[1:], 50)))

    damping, current = 1e-3, residual(theta)
    for _ in range(200):
        jacobian = np.column_stack([np.ones(len(y)), mixtures * np.exp(mixtures @ theta[1:])[:, None]])
        normal, pull = jacobian.T @ jacobian, jacobian.T @ current
        step = np.linalg.solve(normal + damping * np.diag(np.diag(normal)) + _RIDGE * np.eye(len(theta)), pull)
        moved = residual(theta + step)
        if moved @ moved < current @ current:
            gain = current @ current - moved @ moved
            theta, current, damping = theta + step, moved, damping / 3
            if gain < 1e-14:
                break
        else:
            damping *= 4
            if damping > 1e12:
                break
    return float(current @ current), theta
