"""Counts what Triton's kernels load and store, in its interpreter: every access of every program, byte by byte."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from triton.runtime.interpreter import interpreter_builder


class Access(NamedTuple):
    """Addresses that one instruction loads from or stores to where its mask is set, and the bytes at each."""

    stores: bool
    addresses: np.ndarray[Any, np.dtype[np.uint64]]
    itemsize: int


class Traffic:
    """The accesses that were counted."""

    def __init__(self) -> None:
        self.accesses: list[Access] = []

    def total(self) -> tuple[int, int]:
        """Return the bytes that were loaded and stored."""
        loaded, stored = (
            sum(access.addresses.size * access.itemsize for access in self.accesses if access.stores == stores)
            for stores in (False, True)
        )
        return loaded, stored

    def of(self, tensor: torch.Tensor, *, stores: bool) -> torch.Tensor:
        """Return how often each element of a tensor was loaded, or stored, in its shape.

        Raises:
            ValueError: If an access took a part of an element.
        """
        begin, size = tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()
        counts = np.zeros(size, np.int64)
        for access in self.accesses:
            if access.stores == stores:
                first = access.addresses.astype(np.int64) - begin
                inside = first[(first >= 0) & (first < size)]
                np.add.at(counts, inside[:, None] + np.arange(access.itemsize), 1)
        of_elements = counts.reshape(-1, tensor.itemsize)
        if (of_elements != of_elements[:, :1]).any():
            raise ValueError("parts of elements were loaded or stored")
        return torch.from_numpy(of_elements[:, 0].copy()).as_strided(
            tensor.shape, tensor.stride(), tensor.storage_offset()
        )


@contextmanager
def counted() -> Iterator[Traffic]:
    """Count the accesses of all kernels that run in the interpreter meanwhile."""
    traffic = Traffic()

    def watch(function: Callable[..., Any], *, stores: bool) -> Callable[..., Any]:
        def watched(pointers: Any, *arguments: Any) -> Any:
            mask = arguments[1 if stores else 0]
            chosen = np.broadcast_to(mask.data, pointers.data.shape).astype(bool)
            itemsize = pointers.get_element_ty().primitive_bitwidth // 8
            traffic.accesses.append(Access(stores, pointers.data[chosen].copy(), itemsize))
            return function(pointers, *arguments)

        return watched

    builder = interpreter_builder
    builder.create_masked_load = watch(builder.create_masked_load, stores=False)
    builder.create_masked_store = watch(builder.create_masked_store, stores=True)
    try:
        yield traffic
    finally:
        del builder.create_masked_load, builder.create_masked_store  # those of the class are seen again
