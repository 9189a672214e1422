"""The types that annotate a recipe's fields: which YAML values are accepted, and within which bounds."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, PlainValidator, TypeAdapter
from pydantic_core import PydanticCustomError, PydanticKnownError

from pycooldown.sampling.stops import STOP_RULES, StopRule

CONFIG = ConfigDict(extra="forbid", use_attribute_docstrings=True)


def _refuse_truth_values(value: Any) -> Any:
    if isinstance(value, bool):  # in Python True is 1, but a recipe must not use it as a number
        raise PydanticKnownError("float_type")
    return value


# YAML 1.1 reads 1e-3 and inf as text; pydantic turns it into numbers.
_Numeric = BeforeValidator(_refuse_truth_values)

_LARGEST = 10**12  # more than any run needs, and exact in 64 bits and in JSON

Count = Annotated[int, Field(strict=True, ge=1, le=_LARGEST)]
Natural = Annotated[int, Field(strict=True, ge=0, le=_LARGEST)]
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**32)]  # NumPy's generator, which Trainer seeds, takes 32 bits
Flag = Annotated[bool, Field(strict=True)]
Text = Annotated[str, Field(min_length=1)]
Number = Annotated[float, _Numeric]
NonNegative = Annotated[float, Field(ge=0), _Numeric]
Positive = Annotated[float, Field(gt=0), _Numeric]
Share = Annotated[float, Field(ge=0, lt=1), _Numeric]
Portion = Annotated[float, Field(gt=0, le=1), _Numeric]
ProperShare = Annotated[float, Field(gt=0, lt=1), _Numeric]
Finite = Annotated[float, Field(ge=0, allow_inf_nan=False), _Numeric]
FinitePositive = Annotated[float, Field(gt=0, allow_inf_nan=False), _Numeric]


_count: TypeAdapter[int] = TypeAdapter(Count)
_pairs: TypeAdapter[tuple[tuple[int, int], ...]] = TypeAdapter(tuple[tuple[Natural, Count], ...])


def _steps(value: Any) -> Any:
    if not isinstance(value, str):
        return _count.validate_python(value)
    if value not in STOP_RULES:
        raise PydanticCustomError("literal_error", "", {"expected": f"a whole number, {', '.join(STOP_RULES)}"})
    return value


def _batch_size(value: Any) -> Any:
    if not isinstance(value, list | tuple):
        return _count.validate_python(value)
    pairs = _pairs.validate_python(value)
    starts = [start for start, _ in pairs]
    if not starts or starts[0] != 0 or starts != sorted(set(starts)):
        raise ValueError(f"its pairs start at steps {starts}; expected 0 and then increasing steps")
    return pairs


Steps = Annotated[int | StopRule, PlainValidator(_steps, json_schema_input_type=Count | StopRule)]
BatchSize = Annotated[
    int | tuple[tuple[int, int], ...],
    PlainValidator(_batch_size, json_schema_input_type=Count | tuple[tuple[Natural, Count], ...]),
]
