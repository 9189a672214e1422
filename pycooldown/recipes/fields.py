"""The types that fields of a recipe are annotated with: what YAML may hold for them, and within which bounds."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticKnownError

CONFIG = ConfigDict(extra="forbid", use_attribute_docstrings=True)


def _refuse_truth_values(value: Any) -> Any:
    if isinstance(value, bool):  # Python counts True as 1, a recipe does not
        raise PydanticKnownError("float_type")
    return value


# YAML 1.1 reads 1e-3 and inf as text, which pydantic takes for numbers.
_Numeric = BeforeValidator(_refuse_truth_values)

_LARGEST = 10**12  # beyond any run, and within what 64 bits and JSON can count

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
