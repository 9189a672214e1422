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

def draw_as_device(table: AliasTable, n: int, *, seed: int, offset: int) -> npt.NDArray[np.int32]: ...

class DeviceAliasTable:  # in builds with PYCOOLDOWN_CUDA=ON
    def __init__(self, table: AliasTable) -> None: ...
    @property
    def device(self) -> int: ...
    def draw(self, out: int, n: int, *, seed: int, offset: int = 0, stream: int = 0) -> None: ...

class Allocation(enum.Enum):
    multinomial = 0
    systematic = 1
    quota = 2

class BatchPlanner:
    def __init__(
        self,
        sizes: npt.ArrayLike,
        allocation: Allocation,
        *,
        batch_size: int,
        seed: int,
        shuffle: bool,
        homogeneous: bool = False,
    ) -> None: ...
    @property
    def counts(self) -> npt.NDArray[np.int64]: ...
    @property
    def credits(self) -> npt.NDArray[np.int64]: ...
    def set_batch_sizes(self, sizes: Sequence[tuple[int, int]]) -> None: ...
    def set_epoch_sizes(self, domain: int, sizes: Sequence[tuple[int, int]]) -> None: ...
    def seek(self, counts: npt.ArrayLike, credits: npt.ArrayLike) -> None: ...
    def plan(
        self, spans: Sequence[tuple[AliasTable, int]], step: int, begin: int, end: int
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], npt.NDArray[np.int64]]: ...
    def skip(self, spans: Sequence[tuple[AliasTable, int]], first_step: int, last_step: int) -> None: ...
    def skip_rows(
        self, sampling: npt.ArrayLike, *, first_step: int, num_steps: int, look_ahead: int, end: int
    ) -> None: ...

class TarIndex:
    @staticmethod
    def scan(path: str | bytes) -> TarIndex: ...
    @staticmethod
    def from_bytes(bytes: bytes, shard_size: int, shard_mtime_ns: int) -> TarIndex | None: ...
    @staticmethod
    def count(start: bytes, shard_size: int, shard_mtime_ns: int) -> int | None: ...
    def to_bytes(self) -> bytes: ...
    def __len__(self) -> int: ...
    @property
    def shard_size(self) -> int: ...
    @property
    def shard_mtime_ns(self) -> int: ...
    @property
    def faults(self) -> list[tuple[int, str]]: ...

class TarReader:
    def __init__(self, max_maps: int) -> None: ...
    def add(self, path: str | bytes, domain: str, index: TarIndex) -> None: ...
    def __len__(self) -> int: ...
    def getitems(self, indices: Sequence[int]) -> list[dict[str, Any]]: ...
    def flat(self, indices: Sequence[int], extension: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]: ...

def map_file(path: str | bytes, size: int) -> npt.NDArray[np.uint8]: ...

class TokenReader:
    def __init__(self) -> None: ...
    def add(
        self,
        path: str | bytes,
        *,
        bytes: npt.NDArray[np.uint8],
        dtype: str,
        vocabulary_size: int | None,
        block_offsets: npt.NDArray[np.uint64],
        block_ends: npt.NDArray[np.uint64],
        ends: npt.NDArray[np.uint64],
        ends_path: str | bytes | None,
    ) -> None: ...
    def __len__(self) -> int: ...
    def fill(
        self,
        *,
        pieces: npt.NDArray[np.int64],
        begins: npt.NDArray[np.int64],
        limits: npt.NDArray[np.int64],
        whole_documents: bool,
        across_documents: bool,
        pad_id: int,
        input_ids: npt.NDArray[Any],
        position_ids: npt.NDArray[np.int32] | None,
        segment_ids: npt.NDArray[np.int32] | None,
        labels: npt.NDArray[Any] | None,
        shift_labels: npt.NDArray[Any] | None,
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
    whole_lse: npt.NDArray[np.float32] | None = ...,
    num_whole_classes: int = ...,
) -> tuple[
    npt.NDArray[np.float32],
    npt.NDArray[np.float32],
    npt.NDArray[np.float64],
    npt.NDArray[np.int64],
    npt.NDArray[np.int64],
]: ...
