"""The values of each domain at each log of a run, for any number of domains, as one growing array in a file.

The file is NumPy's own format, a record for each log:

    logs = np.load("run/domains.npy", mmap_mode="r")
    logs["step"]                      # (n,)
    logs["loss"][-1]                  # (K,) the newest loss of each domain, in the order of the mixture's domains
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pycooldown._files import open_atomically

TRAINING, EVALUATION = "domains.npy", "domains-eval.npy"


def append(path: Path, step: int, values: Mapping[str, npt.NDArray[Any]]) -> None:
    """Append a record. Records of this step and later ones, from an interrupted process, are dropped first.

    A reader sees either all of a record or nothing: its bytes are written before the count in the header.

    Args:
        path: The file. A file with other fields, or with another number of domains, is replaced.
        step: The step of the log.
        values: (K,) by name. Integers are stored as int64, others as float32.
    """
    record = np.zeros(
        1, dtype=[("step", "<i8"), *((name, _kind(array), array.shape) for name, array in values.items())]
    )
    record["step"] = step
    for name, array in values.items():
        record[name] = array
    before = read(path) if path.exists() else None
    if before is None or before.dtype != record.dtype:
        before = record[:0]
    kept = int(np.searchsorted(before["step"], step))
    if not kept or kept < len(before):
        # Replace the old file by a new one: readers may have mapped the old file, and truncating it would kill them.
        with open_atomically(path, durable=False) as file:
            _write_header(file, record.dtype, kept + 1)
            file.write(before[:kept].tobytes())
            file.write(record.tobytes())
        return
    with open(path, "r+b") as file:
        _write_header(file, record.dtype, kept)  # of the same length as the next header, so that records need not move
        file.seek(kept * record.dtype.itemsize, 1)
        file.truncate()  # half a record
        file.write(record.tobytes())
        file.flush()
        file.seek(0)
        _write_header(file, record.dtype, kept + 1)


def read(path: Path) -> npt.NDArray[np.void]:
    """Return the records, mapped into memory.

    Raises:
        ValueError: If the file is damaged.
    """
    try:
        records: npt.NDArray[np.void] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if records.ndim != 1 or "step" not in (records.dtype.names or ()):
        raise ValueError(f"{path} is damaged: expected records with a step")
    return records


def _kind(array: npt.NDArray[Any]) -> str:
    return "<i8" if np.issubdtype(array.dtype, np.integer) else "<f4"


def _write_header(file: Any, dtype: np.dtype[np.void], count: int) -> None:
    description = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(file, description)
