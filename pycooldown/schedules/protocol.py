"""The methods that a sampler and a trainer call on a schedule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from pycooldown.mixture import Mixture, Vector


@runtime_checkable
class Schedule(Protocol):
    """The methods that a sampler calls. All mixtures of a schedule have the same domains and sizes."""

    def mixture(self, step: int) -> Mixture:
        """Return the mixture of optimizer step ``step`` (from 0)."""
        ...

    def next_change(self, step: int) -> int | None:
        """Return the first step after ``step`` whose mixture may differ, or ``None`` if there is none."""
        ...

    def describe(self) -> str:
        """Return a text that is equal for equal schedules over the same sizes; saved states are checked against it."""
        ...


@runtime_checkable
class ContinuousSchedule(Schedule, Protocol):
    """A schedule whose mixture changes at every step, and which computes many of them at once."""

    @property
    def settled_from(self) -> int:
        """The step from which the mixture no longer changes."""
        ...

    def sampling(self, first_step: int, last_step: int) -> Vector:
        """Return float64 (last_step - first_step, K): row i is ``mixture(first_step + i).sampling`` to the bit."""
        ...


@runtime_checkable
class AdaptiveSchedule(Schedule, Protocol):
    """A schedule that learns (`pycooldown.adaptive`).

    Attributes:
        delay: How many steps ahead of training its mixtures are known, at least 1.
    """

    delay: int

    @property
    def statistics(self) -> frozenset[str]:
        """The names of all statistics that `needs` may return."""
        ...

    def needs(self, step: int) -> frozenset[str]:
        """Return the names of the statistics that ``update(step, ...)`` reads, apart from losses and counts."""
        ...

    def update(self, step: int, stats: Any) -> None:
        """Learn from the statistics of a trained step, which decides the mixture of step ``step + delay``."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what has been learned, as JSON values."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state."""
        ...


def check_step(step: int) -> int:
    """Return ``step`` if it is not negative.

    Raises:
        ValueError: If it is.
    """
    if step < 0:
        raise ValueError(f"step = {step}; expected a step >= 0")
    return step
