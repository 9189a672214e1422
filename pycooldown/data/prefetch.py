"""Move batches to a device ahead of their use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from pycooldown._extras import require

require("data", "torch")

import torch  # noqa: E402

__all__ = ["DevicePrefetcher"]


class DevicePrefetcher:
    """The batches of a loader on a device; the next one is copied while the current one is in use.

    Tensors are copied through two sets of pinned buffers (unless the loader pinned them itself) on a stream of their
    own, so neither the host nor the compute stream waits for a transfer that has had a step's time. On the CPU batches
    pass through as they are.

    One batch is taken from the loader ahead of its use, so its own state is then one batch too far. For a checkpoint
    take `state_dict()` of the prefetcher where the loader has states (torchdata's `StatefulDataLoader`), otherwise ask
    the sampler for the state of the step that training has reached (`DomainBatchSampler.state_dict(step)`).

    Args:
        loader: Batches: tensors, or mappings, lists and tuples of batches; anything else in them passes through.
        device: Where to, "cuda" or "cuda:1" for example.

    Raises:
        ValueError: If the device is neither a CPU nor a CUDA device.
    """

    def __init__(self, loader: Iterable[Any], device: torch.device | str) -> None:
        self.loader = loader
        self.device = torch.device(device)
        if self.device.type not in ("cpu", "cuda"):
            raise ValueError(f"device = {device!r}; expected a CPU or CUDA device")
        self._state: Any = None  # of the loader, behind the batches that were yielded; None where it is the loader's

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.loader) if self.device.type == "cpu" else self._iterate()

    def state_dict(self) -> Any:
        """Return the loader's state behind the batches that were yielded.

        Raises:
            AttributeError: If the loader has no states.
        """
        return self.loader.state_dict() if self._state is None else self._state  # type: ignore[attr-defined]

    def load_state_dict(self, state: Any) -> None:
        """Let the loader go on from a state."""
        self._state = None
        self.loader.load_state_dict(state)  # type: ignore[attr-defined]

    def _iterate(self) -> Iterator[Any]:
        stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        slots = [_PinnedSlot(), _PinnedSlot()]

        def upload(number: int, batch: Any) -> tuple[Any, torch.cuda.Event]:
            slot = slots[number % 2]
            slot.wait()
            with torch.cuda.stream(stream):
                moved = _map(batch, lambda tensor: slot.pin(tensor).to(self.device, non_blocking=True))
                slot.copied = stream.record_event()
            return moved, slot.copied

        for current in self._one_ahead(upload):
            yield _hand_over(*current)

    def _one_ahead(self, upload: Callable[[int, Any], Any]) -> Iterator[Any]:
        """Yield each uploaded batch when the one behind it has been uploaded as well."""
        note = getattr(self.loader, "state_dict", lambda: None)
        self._state, ahead = None, []
        for number, batch in enumerate(self.loader):
            ahead.append(upload(number, batch))
            if number:
                yield ahead.pop(0)
            self._state = note()  # before the next batch is taken
        yield from ahead
        self._state = None


class _PinnedSlot:
    """Pinned buffers that are filled again once their last copies are done."""

    def __init__(self) -> None:
        self.buffers: list[torch.Tensor] = []
        self.used = 0
        self.copied: torch.cuda.Event | None = None

    def wait(self) -> None:
        if self.copied:
            self.copied.synchronize()
        self.used = 0

    def pin(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.device.type != "cpu" or tensor.is_pinned():
            return tensor
        size = tensor.numel() * tensor.element_size()
        if self.used == len(self.buffers):
            self.buffers.append(torch.empty(0, dtype=torch.uint8))
        if self.buffers[self.used].numel() < size:
            self.buffers[self.used] = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        pinned = self.buffers[self.used][:size].view(tensor.dtype).view(tensor.shape)
        self.used += 1
        return pinned.copy_(tensor)


def _hand_over(batch: Any, copied: torch.cuda.Event) -> Any:
    """Let the current stream use what the copying stream made, and the allocator know of it."""

    def claim(tensor: torch.Tensor) -> torch.Tensor:
        stream = torch.cuda.current_stream(tensor.device)
        stream.wait_event(copied)
        tensor.record_stream(stream)
        return tensor

    return _map(batch, claim)


def _map(batch: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(batch, torch.Tensor):
        return function(batch)
    if isinstance(batch, Mapping):
        return {key: _map(value, function) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_map(value, function) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(_map(value, function) for value in batch)
    return batch
