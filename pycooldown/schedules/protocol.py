"""What the sampler and the trainer ask of a schedule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from pycooldown.mixture import Mixture


@runtime_checkable
class Schedule(Protocol):
    """What a sampler needs to know of a schedule. All its mixtures share the same domains and sizes."""

    def mixture(self, step: int) -> Mixture:
        """The mixture of optimizer step ``step`` (from 0)."""
        ...

    def next_change(self, step: int) -> int | None:
        """The first step after ``step`` whose mixture may differ from that of ``step``; ``None`` if there is none."""
        ...

    def describe(self) -> str:
        """A text that is equal for equal schedules over the same sizes; saved states are checked against it."""
        ...


@runtime_checkable
class AdaptiveSchedule(Schedule, Protocol):
    """A schedule that learns (`pycooldown.adaptive`): its mixtures are known only ``delay`` steps ahead of training."""

    delay: int

    @property
    def statistics(self) -> frozenset[str]:
        """All statistics that `needs` ever gives."""
        ...

    def needs(self, step: int) -> frozenset[str]:
        """The statistics that the update of ``step`` reads beside losses and counts."""
        ...

    def update(self, step: int, stats: Any) -> None:
        """Learns from the statistics of ``step``; decides the mixture of step ``step + delay``."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What has been learned, as JSON values."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a saved state."""
        ...
