"""Messages about mistakes in a recipe: the key, the given and the expected value, and keys with similar names."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, get_args, get_origin, get_type_hints

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from pycooldown.recipes.methods import find_method
from pycooldown.recipes.model_section import model_kind
from pycooldown.recipes.schema import Recipe

_LONGEST = 80  # characters of a value shown in messages

_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "string_type": "a text",
    "string_too_short": "a text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "greater_than": "a number > {gt:g}",
    "greater_than_equal": "a number >= {ge:g}",
    "less_than": "a number < {lt:.12g}",
    "less_than_equal": "a number <= {le:g}",
}


def describe(error: ValidationError, values: dict[str, Any]) -> list[str]:
    """Return a sentence for each mistake that pydantic found in the sections of a recipe.

    Args:
        error: The error raised by validating `values`.
        values: Sections by name, as they came from YAML.
    """
    return [_sentence(details, values) for details in error.errors(include_url=False)]


def shown(value: Any, *, typed: bool = True, quoted: bool = True) -> str:
    """Return a value as shown in errors: its Python form, cut if it is long, and its type."""
    if value is None:
        return "empty"
    text = repr(value)
    if not quoted:
        text = text[1:-1]
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]}..."
    return f"{text} ({type(value).__name__})" if typed and quoted else text


def _sentence(details: ErrorDetails, values: dict[str, Any]) -> str:
    location, kind, given = details["loc"], details["type"], details["input"]
    context = details.get("ctx", {})
    section, where = _section(location[:-1], values), _where(location)
    if kind == "unexpected_keyword_argument":
        hint = _nearest(location[-1], _names(section))
        if location[0] == "training" and "token" in str(location[-1]):
            hint = "; set batch_size to the tokens per step divided by data.length, as all rows have this length"
        return f"{where} is unknown; expected {_keys(section)}{hint}"
    if kind == "missing" and isinstance(location[-1], str):
        missing = _section(location, values)
        return f"{where} is missing" + (f"; expected keys {_keys(missing)}" if missing else "")
    if kind == "invalid_key":
        inside = _where([part for part in location[:-1] if isinstance(part, str)]) or "it"
        return f"{inside} has the key {shown(given)}; expected a text: put it in quotes"
    if kind == "unknown_method" and not isinstance(given, dict):
        return f"mixture is {shown(given)}; expected keys method and its options, as in {{method: cooldown, tau: 5}}"
    if kind == "unknown_method":
        method = given.get("method")
        named = "missing" if method is None else shown(method)
        return f"mixture.method is {named}; expected one of {context['names']}" + _nearest(
            method, context["names"].split(", ")
        )
    if kind == "dataclass_type":
        return f"{where} is {shown(given)}; expected keys {_keys(_section(location, values))}"
    if kind == "value_error":
        return f"{where}: {context['error']}" if where else str(context["error"])
    if kind == "literal_error":
        choices = context["expected"].replace(" or ", ", ")
        near = _nearest(given, choices.replace("'", "").split(", "))
        return f"{where} is {shown(given)}; expected one of {choices}{near}"
    if kind in ("missing", "too_long"):  # of a list with a fixed length
        place = location[:-1] if kind == "missing" else location
        length = len(get_args(_list_in(_hint(place, values))))
        return f"{_where(place)} is {shown(given)}; expected a list of {length} values"
    expected = _EXPECTED[kind].format(**context) if kind in _EXPECTED else details["msg"]
    hint = ""
    if kind == "string_type" and isinstance(given, bool):
        hint = ": put it in quotes, because YAML reads no, on or yes without quotes as a truth value"
    elif kind == "string_type" and not isinstance(given, list | dict):
        hint = ": put it in quotes"
    return f"{where} is {shown(given, typed=not context)}; expected {expected}{hint}"


def _where(location: Sequence[str | int]) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return text.removeprefix(".")


def _section(location: Sequence[str | int], values: dict[str, Any]) -> Any:
    """Return the dataclass whose keys belong at a location, or ``None``."""
    if not location:
        return Recipe
    if location == ("mixture",):
        mixture = values.get("mixture")
        name = mixture.get("method") if isinstance(mixture, dict) else None
        return find_method(name) if isinstance(name, str) else None
    if location == ("model",):
        return model_kind(values.get("model"))
    if location == ("mixture", "proxy_model"):
        return model_kind(values["mixture"]["proxy_model"])
    if len(location) == 1:
        hint = get_type_hints(Recipe).get(str(location[0]))
    else:
        hint = _hint(location, values) if location[0] == "mixture" else None
    return next((part for part in (hint, *get_args(hint)) if dataclasses.is_dataclass(part)), None)


def _hint(location: Sequence[str | int], values: dict[str, Any]) -> Any:
    """Return the annotation of the value at a location."""
    hint = get_type_hints(_section(location[:1], values))[str(location[1])]
    for place in location[2:]:
        inner = get_args(hint)
        hint = inner[0] if inner[-1] is Ellipsis else inner[int(place)]
    return hint


def _list_in(hint: Any) -> Any:
    """Return the list type among the alternatives of an annotation, or the annotation itself."""
    return next((part for part in get_args(hint) if get_origin(part) is tuple), hint)


def _names(section: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(section)] if section is not None else []


def _keys(section: Any) -> str:
    return ", ".join(_names(section)) or "no keys"


def _nearest(given: Any, known: Sequence[str]) -> str:
    close = get_close_matches(str(given), known, n=2)
    return f"; did you mean {' or '.join(close)}?" if close else ""
