"""Small problems with a bad domain, which show the effects of loss weights and variance-aware sampling.

The settings are those of Salmani et al., arXiv 2511.06913, figures 1 to 3, reconstructed. Two domains share the true
parameters, and one of them has more noise, other inputs, or wrong labels. Everything is NumPy and takes seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pycooldown import Mixture, schedules
from pycooldown.adaptive import ERMA, FGLS, Statistics, VarianceAware
from pycooldown.mixture import Vector
from pycooldown.schedules import AdaptiveSchedule, Schedule

Array = npt.NDArray[np.float64]
# Losses (n,) of examples and the gradient of each (n, P), at parameters (P,).
LossesAndGradients = Callable[[Vector, Array, npt.NDArray[np.generic]], tuple[Vector, Array]]

BATCH_SIZE, INTERVAL, PROBE_SIZE, HELD_OUT = 16, 20, 32, 0.2


@dataclass(frozen=True)
class Problem:
    """Training data of each domain, a model with its first parameters, and the error of the final ones.

    Attributes:
        data: Inputs (n, D) and targets (n,) of each domain.
        model: See `LossesAndGradients`.
        parameters: (P,) Parameters to start from.
        error: Error of parameters; lower is better.
        step_size: Step size of gradient descent.
        num_steps: Number of steps.
    """

    data: tuple[tuple[Array, npt.NDArray[np.generic]], ...]
    model: LossesAndGradients
    parameters: Vector
    error: Callable[[Vector], float]
    step_size: float
    num_steps: int


def linear_regression(
    seed: int, *, noise: tuple[float, float] = (1.0, 1.0), spread: tuple[float, float] = (1.0, 1.0)
) -> Problem:
    """Make y = theta . x + noise with x of covariance spread * I, 20 parameters, 400 examples a domain.

    The error is the squared distance to the true parameters.
    """
    rng = np.random.default_rng(seed)
    theta = rng.normal(size=20) / math.sqrt(20)
    data = []
    for sigma, variance in zip(noise, spread, strict=True):
        x = rng.normal(size=(400, 20)) * math.sqrt(variance)
        data.append((x, x @ theta + sigma * rng.normal(size=400)))

    def model(parameters: Vector, x: Array, y: npt.NDArray[np.generic]) -> tuple[Vector, Array]:
        residual = x @ parameters - y.astype(np.float64)
        return residual**2, 2 * residual[:, None] * x

    return Problem(tuple(data), model, np.zeros(20), lambda p: float(((p - theta) ** 2).sum()), 0.02, 1500)


def logistic_regression(seed: int, *, flipped: tuple[float, float]) -> Problem:
    """Make labels from a logistic model of 20 inputs, some flipped; the error is the mean loss on 10,000 clean ones."""
    rng = np.random.default_rng(seed)
    theta = rng.normal(size=20) / math.sqrt(5)

    def draw(n: int, share: float) -> tuple[Array, npt.NDArray[np.generic]]:
        x = rng.normal(size=(n, 20))
        y = rng.uniform(size=n) < 1 / (1 + np.exp(-x @ theta))
        return x, y ^ (rng.uniform(size=n) < share)

    def model(parameters: Vector, x: Array, y: npt.NDArray[np.generic]) -> tuple[Vector, Array]:
        sign = np.where(y, 1.0, -1.0)
        margin = sign * (x @ parameters)
        return np.logaddexp(0, -margin), (-sign / (1 + np.exp(margin)))[:, None] * x

    test = draw(10_000, 0.0)
    data = tuple(draw(400, share) for share in flipped)
    return Problem(data, model, np.zeros(20), lambda p: float(model(p, *test)[0].mean()), 0.05, 1500)


def digits(seed: int, *, wrong: tuple[float, float] = (0.0, 0.4), width: int = 32) -> Problem:
    """Make a network of one hidden layer on scikit-learn's digits, split into two domains, one with wrong labels.

    The error is that on a clean third of the data. ``wrong`` is the share of labels that are replaced by random ones.
    """
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]

    rng = np.random.default_rng(seed)
    images, labels = load_digits(return_X_y=True)
    order = rng.permutation(len(labels))
    images, labels = images[order] / 16 - 0.3, labels[order]
    size = len(labels) // 3
    shapes = ((64, width), (width,), (width, 10), (10,))
    ends = np.cumsum([math.prod(shape) for shape in shapes])

    def forward(parameters: Vector, x: Array) -> tuple[list[Array], Array, Array]:
        w = [part.reshape(shape) for part, shape in zip(np.split(parameters, ends[:-1]), shapes, strict=True)]
        hidden = np.tanh(x @ w[0] + w[1])
        logits = hidden @ w[2] + w[3]
        return w, hidden, logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)

    def model(parameters: Vector, x: Array, y: npt.NDArray[np.generic]) -> tuple[Vector, Array]:
        w, hidden, log_p = forward(parameters, x)
        rows, y = np.arange(len(x)), y.astype(np.int64)
        out = np.exp(log_p)
        out[rows, y] -= 1
        back = (out @ w[2].T) * (1 - hidden**2)
        gradients = (x[:, :, None] * back[:, None], back, hidden[:, :, None] * out[:, None], out)
        return -log_p[rows, y], np.concatenate([g.reshape(len(x), -1) for g in gradients], axis=1)

    def error(parameters: Vector) -> float:
        return float((forward(parameters, images[2 * size :])[2].argmax(axis=1) != labels[2 * size :]).mean())

    data = []
    for i, share in enumerate(wrong):
        x, y = images[i * size : (i + 1) * size], labels[i * size : (i + 1) * size].copy()
        replaced = rng.uniform(size=size) < share
        y[replaced] = rng.integers(10, size=int(replaced.sum()))
        data.append((x, y))
    start = np.concatenate([rng.normal(size=s).ravel() * (s[0] ** -0.5 if len(s) == 2 else 0.0) for s in shapes])
    return Problem(tuple(data), model, start, error, 0.1, 3000)


def methods(start: Mixture) -> dict[str, Callable[[], Schedule]]:
    """Return the methods of the paper's figures, by name."""
    options: dict[str, Any] = {"interval": INTERVAL, "delay": 1}

    def va(objective: Mixture | FGLS | ERMA) -> VarianceAware:
        # Counts are fixed in each step, because `final_error` rounds them.
        return VarianceAware(objective, allocation="quota", decay=0.7, least=1 / BATCH_SIZE, interval=INTERVAL, delay=1)

    return {
        "uniform": lambda: schedules.constant(start),
        "FGLS": lambda: FGLS(start, decay=0.8, **options),
        "VA": lambda: va(start),
        "FGLS+VA": lambda: va(FGLS(start, decay=0.8, **options)),
        "ERMA": lambda: ERMA(start, bias_rate=0.002, variance_rate=0.02, **options),
        "ERMA+VA": lambda: va(ERMA(start, bias_rate=0.002, variance_rate=0.02, **options)),
    }


def final_error(problem: Problem, method: str, seed: int) -> float:
    """Return the error after gradient descent with one of `methods`.

    A step draws b_i examples of domain i, the sampling times 16 rounded by largest remainders to at least one, and
    descends sum_i target_i * (mean gradient of the b_i examples). A fifth of each domain is held out to measure losses.
    """
    rng = np.random.default_rng([seed, 1])
    cuts = [round(len(y) * (1 - HELD_OUT)) for _, y in problem.data]
    train = [(x[:cut], y[:cut]) for (x, y), cut in zip(problem.data, cuts, strict=True)]
    held_out = [(x[cut:], y[cut:]) for (x, y), cut in zip(problem.data, cuts, strict=True)]
    sizes = {f"domain {i}": cut for i, cut in enumerate(cuts)}
    schedule = methods(Mixture.temperature_sampling(sizes, math.inf))[method]()
    parameters = problem.parameters.copy()
    for step in range(problem.num_steps):
        mixture = schedule.mixture(step)
        counts = largest_remainders(mixture.sampling, BATCH_SIZE)
        losses = np.zeros(len(train))
        gradient = np.zeros_like(parameters)
        needs = schedule.needs(step) if isinstance(schedule, AdaptiveSchedule) else frozenset()
        probe = _probe(problem.model, parameters, train, held_out, rng) if needs else {}
        for i, (x, y) in enumerate(train):
            rows = rng.integers(len(y), size=counts[i])
            loss, gradients = problem.model(parameters, x[rows], y[rows])
            losses[i] = loss.sum()
            gradient += mixture.target[i] * gradients.mean(axis=0)
        parameters -= problem.step_size * gradient
        if isinstance(schedule, AdaptiveSchedule):
            schedule.update(step, Statistics(losses, counts, **probe))
    return problem.error(parameters)


def largest_remainders(p: Vector, total: int) -> npt.NDArray[np.int64]:
    """Return whole numbers close to total * p that sum to ``total``, all at least 1."""
    counts = np.maximum(np.floor(total * p), 1).astype(np.int64)
    while (left := total - counts.sum()) != 0:
        remainder = total * p - counts
        i = remainder.argmax() if left > 0 else np.where(counts > 1, remainder, np.inf).argmin()
        counts[i] += np.sign(left)
    return counts


def _probe(
    model: LossesAndGradients,
    parameters: Vector,
    train: list[tuple[Array, npt.NDArray[np.generic]]],
    held_out: list[tuple[Array, npt.NDArray[np.generic]]],
    rng: np.random.Generator,
) -> dict[str, Vector]:
    losses = [model(parameters, x, y)[0] for x, y in held_out]
    variances = []
    for x, y in train:
        rows = rng.choice(len(y), size=min(PROBE_SIZE, len(y)), replace=False)
        variances.append(model(parameters, x[rows], y[rows])[1].var(axis=0, ddof=1).sum())
    return {
        "probe_loss": np.array([loss.mean() for loss in losses]),
        "probe_loss_variance": np.array([loss.var(ddof=1) for loss in losses]),
        "probe_gradient_variance": np.array(variances),
    }
