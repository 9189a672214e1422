import enum
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

def isa() -> str: ...
def philox4x32(counter: Sequence[int], key: Sequence[int]) -> list[int]: ...
def permutation(size: int, *, seed: int, domain: int = 0, epoch: int = 0) -> npt.NDArray[np.int64]: ...

class AliasTable:
    def __init__(self, probabilities: npt.ArrayLike) -> None: ...
    def draw(self, n: int, *, seed: int, offset: int = 0, num_threads: int | None = None) -> npt.NDArray[np.int32]: ...
    @property
    def probabilities(self) -> npt.NDArray[np.float64]: ...
    def __len__(self) -> int: ...

class Allocation(enum.Enum):
    multinomial = 0
    systematic = 1

def allocate(
    table: AliasTable, allocation: Allocation, *, seed: int, step: int, batch_size: int
) -> npt.NDArray[np.int32]: ...

class DomainCursors:
    def __init__(self, sizes: npt.ArrayLike, *, seed: int, shuffle: bool) -> None: ...
    counts: npt.NDArray[np.int64]
    def advance(
        self, domain_ids: npt.NDArray[np.int32], begin: int, end: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]: ...
    def skip(
        self,
        table: AliasTable,
        allocation: Allocation,
        *,
        seed: int,
        first_step: int,
        last_step: int,
        batch_size: int,
    ) -> None: ...

def cross_entropy(
    logits: npt.NDArray[Any],
    grad: npt.NDArray[Any] | None,
    target: npt.NDArray[np.int64],
    scale: npt.NDArray[np.float32],
    domain_ids: npt.NDArray[np.int64] | None,
    num_domains: int,
    *,
    want_stats: bool,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float,
    num_threads: int,
) -> tuple[
    npt.NDArray[np.float32],
    npt.NDArray[np.float32],
    npt.NDArray[np.float64],
    npt.NDArray[np.int64],
    npt.NDArray[np.int64],
]: ...
