"""The common base of all methods: mixtures learned during training, known a fixed number of steps ahead."""

from __future__ import annotations

import sys
import warnings
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Mapping
from typing import Any

import numpy as np

from pycooldown.adaptive.statistics import DomainStatsLike, read_statistics
from pycooldown.mixture import Mixture, Vector

NEAR_ONE_HOT = 0.99


class LearnedSchedule(ABC):
    """A schedule whose mixture of step t is a function of the statistics of the steps up to t - delay.

    A data loader asks for batches before the preceding steps are trained. The delay is therefore a fixed number: steps
    0 to delay - 1 have the start mixture, and the update of step s decides step s + delay. So a mixture never changes
    once it has been used, and the order of samples does not depend on how far ahead the loader runs. A mixture that is
    not decided yet is an error, never a guess.

    The trainer calls `update` once after every optimizer step, with the statistics of the *global* batch: summed over
    micro-batches, and over ranks by one all-reduce, so that all ranks learn the same weights.

    Args:
        start: The mixture to begin with.
        delay: Steps from the statistics to the mixture that they decide, at least 1. A loader may ask for at most this
            many batches that are not trained yet.

    Attributes:
        current: The mixture from the statistics so far, which comes into force `delay` steps later.
        num_updates: The number of steps learned from.
        domain_means: Whether the objective is sum_i target_i * (mean loss of the tokens of domain i in the batch). If
            not, the tokens of all domains are averaged together, and domain i weighs target_i times its mean number of
            tokens in a sample. The two differ where domains differ in length.
    """

    domain_means: bool = False

    def __init__(self, start: Mixture, *, delay: int) -> None:
        if delay < 1:
            raise ValueError(f"delay = {delay}; expected at least 1: a step cannot use its own statistics")
        self.start = start
        self.delay = delay
        self.current = start
        self.num_updates = 0
        self._changes: list[tuple[int, Mixture]] = [(0, start)]  # first steps and their mixtures
        self._state: dict[str, Vector] = {}  # what the method has learned: vectors over the domains
        self._warned = False

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return the hyper-parameters as JSON values. A state can be loaded only by a job with equal settings."""

    @abstractmethod
    def _learn(self, step: int, stats: dict[str, Vector]) -> Mixture:
        """Update ``self._state`` and return the new mixture, or ``self.current`` itself if nothing changes."""

    @property
    def statistics(self) -> frozenset[str]:
        """The names of all `Statistics` that `needs` may return, so that a job can check them before it starts.

        Raises:
            TypeError: If a subclass defines `needs` but not this.
        """
        if type(self).needs is not LearnedSchedule.needs:
            raise TypeError(
                f"{type(self).__name__} defines needs() but not `statistics`; declare all its statistics there"
            )
        return frozenset()

    def needs(self, step: int) -> frozenset[str]:
        """Return the names of the `Statistics` that ``update(step, ...)`` reads beyond those of `DomainStatsLike`."""
        return frozenset()

    def mixture(self, step: int) -> Mixture:
        """Return the mixture of a step, if it is decided and not yet forgotten.

        Raises:
            LookupError: If the step lies more than ``delay`` beyond the last update, or before the last one.
        """
        if step >= self._horizon:
            raise LookupError(
                f"the mixture of step {step} depends on the statistics of step {step - self.delay}, which is not "
                f"trained yet: the data loader runs more than delay = {self.delay} steps ahead; raise the delay, or "
                "lower num_workers * prefetch_factor (an adaptive schedule's exposure cannot be forecast)"
            )
        changes = self._changes  # read after the horizon: another thread may be training
        if step < changes[0][0]:
            raise LookupError(
                f"the mixture of step {step} is forgotten: {self.num_updates} steps are trained, and only those from "
                f"{changes[0][0]} on are kept"
            )
        return changes[bisect_right(changes, step, key=lambda change: change[0]) - 1][1]

    def next_change(self, step: int) -> int | None:
        """Return the first step after ``step`` whose mixture differs, or is not decided yet."""
        undecided = max(self._horizon, step + 1)
        return next((first for first, _ in self._changes if first > step), undecided)

    def describe(self) -> str:
        """Return a text that is equal for equal methods with equal settings and start."""
        settings = {**self.settings(), "delay": self.delay}
        return f"{type(self).__name__}({self.start.describe()}, {', '.join(f'{k}={v}' for k, v in settings.items())})"

    def update(self, step: int, stats: DomainStatsLike) -> None:
        """Learn from the statistics of a trained step, which decides the mixture of step ``step + delay``.

        Raises:
            ValueError: If steps are left out or repeated, or a statistic is missing, misshapen or not finite. Nothing
                is changed then.
        """
        if step != self.num_updates:
            raise ValueError(
                f"update of step {step}; expected step {self.num_updates}: call it for every step once and in order"
            )
        read = read_statistics(stats, self.needs(step), self.start.domains, step)
        mixture = self._learn(step, read)
        changes = self._changes
        if mixture != self.current:
            changes = [*changes, (step + self.delay, mixture)]
            self.current = mixture
        while len(changes) > 1 and changes[1][0] <= step:
            changes = changes[1:]
        # A new list, and before the horizon moves: a data loader in another thread never sees half of an update.
        self._changes = changes
        self.num_updates += 1
        self._warn_if_one_hot()

    def state_dict(self) -> dict[str, Any]:
        """Return what has been learned, as JSON values, with domains by name."""
        return {
            "version": 1,
            "method": type(self).__name__,
            "settings": {**self.settings(), "delay": self.delay},
            "num_updates": self.num_updates,
            "learned": {name: self._by_name(vector) for name, vector in self._state.items()},
            "mixtures": [
                {"step": step, "target": self._by_name(m.target), "sampling": self._by_name(m.sampling)}
                for step, m in self._changes
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state; the domains may be in another order.

        Raises:
            ValueError: If the state is damaged, is of another method, or has other settings or domains. Nothing is
                changed then.
        """
        self._go_on(*self._read_state(state))

    def _go_on(self, learned: dict[str, Vector], changes: list[tuple[int, Mixture]], num_updates: int) -> None:
        self._state, self._changes, self.num_updates = learned, changes, num_updates
        self.current = changes[-1][1]

    def _read_state(self, state: Any) -> tuple[dict[str, Vector], list[tuple[int, Mixture]], int]:
        """Return what has been learned, the mixtures by first step and the number of updates, all of it checked."""
        mine = self.state_dict()
        if not isinstance(state, Mapping):
            raise ValueError(
                f"state is a {type(state).__name__}; expected a value of {type(self).__name__}.state_dict()"
            )
        if missing := set(mine) - set(state):
            raise ValueError(f"state lacks {sorted(missing)}; expected a value of {type(self).__name__}.state_dict()")
        for name in ("version", "method", "settings"):
            if state[name] != mine[name]:
                raise ValueError(f"{name} is {state[name]!r} in the state and {mine[name]!r} here")
        num_updates, learned, mixtures = state["num_updates"], state["learned"], state["mixtures"]
        if type(num_updates) is not int or not 0 <= num_updates < 2**62:
            raise ValueError(f"state is damaged: num_updates is {num_updates!r}; expected an integer in [0, 2^62)")
        if not isinstance(learned, Mapping) or set(learned) != set(self._state):
            held = sorted(map(str, learned)) if isinstance(learned, Mapping) else learned
            raise ValueError(f"state holds {held!r}; expected {sorted(self._state)}")
        vectors = {name: self._by_position(name, learned[name]) for name in self._state}
        if not isinstance(mixtures, list | tuple) or not mixtures:
            raise ValueError(f"state is damaged: mixtures is {mixtures!r}; expected a list of at least one")
        changes: list[tuple[int, Mixture]] = []
        for change in mixtures:
            if not isinstance(change, Mapping) or not {"step", "target", "sampling"} <= set(change):
                raise ValueError(f"state is damaged: mixtures holds {change!r}; expected step, target and sampling")
            least = changes[-1][0] + 1 if changes else 0
            if type(step := change["step"]) is not int or not least <= step < num_updates + self.delay:
                raise ValueError(
                    f"state is damaged: a mixture of {num_updates} updates has step {step!r}; expected an integer in "
                    f"[{least}, {num_updates + self.delay})"
                )
            target, sampling = (self._by_position(name, change[name]) for name in ("target", "sampling"))
            changes.append((step, self._mixture(target, sampling)))
        return vectors, changes, num_updates

    @property
    def _horizon(self) -> int:
        return self.num_updates + self.delay

    def _mixture(self, target: Vector, sampling: Vector | None = None) -> Mixture:
        """Return a mixture with ``target`` over the start's domains; by default its sampling is that of the start."""
        return self.start.reweighted(target, self.start.sampling if sampling is None else sampling)

    def _by_name(self, vector: Vector) -> dict[str, float | None]:
        values = (None if np.isnan(x) else x for x in vector.tolist())  # JSON has no NaN
        return dict(zip(self.start.domains, values, strict=True))

    def _by_position(self, name: str, values: Any) -> Vector:
        if not isinstance(values, Mapping) or set(values) != set(self.start.domains):
            differ = sorted(map(str, set(values) ^ set(self.start.domains))) if isinstance(values, Mapping) else values
            raise ValueError(f"{name} in the state is of other domains; {differ!r} are only in one of the two")
        for value in values.values():
            if value is not None and (type(value) not in (int, float) or not abs(value) <= sys.float_info.max):
                raise ValueError(f"state is damaged: {name} holds {value!r}; expected finite numbers, or None")
        return np.array([np.nan if values[d] is None else values[d] for d in self.start.domains], dtype=np.float64)

    def _warn_if_one_hot(self) -> None:
        i = int(self.current.target.argmax())
        if self.current.target[i] > max(NEAR_ONE_HOT, self.start.target[i]) and not self._warned:
            self._warned = True
            warnings.warn(
                f"{type(self).__name__} gives domain {self.start.domains[i]!r} {self.current.target[i]:.3f} of the "
                f"target after {self.num_updates} steps: the others are hardly trained; decrease the step size, "
                "increase the smoothing, or use batches that hold all domains",
                stacklevel=3,
            )
