"""A training run as one small YAML file, read into typed, frozen values."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from pycooldown.recipes.learning_rate import Decay
from pycooldown.recipes.methods import METHODS, Method
from pycooldown.sampling.sampler import AllocationName


@dataclass(frozen=True)
class Data:
    """What is read: a folder that `pycooldown pack` wrote.

    Attributes:
        path: the folder.
        domains: those to train on, all that the folder has by default.
        max_length: tokens of a sequence (of each side in translation), longer ones are cut.
        eval_samples: validation sequences of each domain, spread evenly; fewer where a domain has fewer.
    """

    path: str
    domains: tuple[str, ...] | None = None
    max_length: int = 64
    eval_samples: int = 400


@dataclass(frozen=True)
class Model:
    """A transformer with random weights; its vocabulary is that of the data.

    Attributes:
        family: "llama" is a decoder and models the target side of the pairs; "marian" is an encoder-decoder (Vaswani et
            al., 2017, with sinusoidal positions) and translates the source side into the target side.
        layers: of the decoder, and as many of the encoder if there is one.
        dropout: of "marian", in attention too.
    """

    family: Literal["llama", "marian"] = "llama"
    layers: int = 3
    width: int = 192
    heads: int = 4
    mlp_width: int = 512
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.width % (2 * self.heads):
            raise ValueError(
                f"width = {self.width} cannot be cut into {self.heads} heads of even width, which rotary positions "
                f"need; expected a multiple of {2 * self.heads}"
            )
        if self.dropout and (self.family == "llama" or not 0 < self.dropout < 1):
            raise ValueError(f"dropout = {self.dropout}; expected a share in [0, 1) with 'marian', and 0 with 'llama'")


@dataclass(frozen=True)
class Decoding:
    """Translation of validation pairs at the end of a run, for BLEU and chrF.

    Attributes:
        samples: pairs of each domain, spread evenly; fewer where a domain has fewer.
        beams: hypotheses that the search keeps.
        length_penalty: exponent of the length that a hypothesis' log-probability is divided by.
    """

    samples: int = 100
    beams: int = 4
    length_penalty: float = 1.0


@dataclass(frozen=True)
class Training:
    """The run itself; counts are in optimizer steps, ``batch_size`` is in sequences over all ranks and micro-batches.

    Attributes:
        accumulation: micro-batches that a step's batch is cut into on each rank.
        warmup: steps in which the learning rate rises to ``learning_rate``.
        decay: how it falls from there: "cosine" and "exponential" to a tenth at the end, "inverse_sqrt" with the root
            of the steps.
        max_grad_norm: longer gradients are scaled to it; 0 for any length.
        label_smoothing: share of the uniform distribution in the training targets; losses of training are with it,
            those of evaluation without.
        betas: of Adam.
        epsilon: of Adam.
        workers: processes that read data; of no effect on the order of samples.
    """

    steps: int
    batch_size: int
    learning_rate: float = 2e-3
    warmup: int = 50
    decay: Decay = "cosine"
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0
    label_smoothing: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    allocation: AllocationName = "multinomial"
    accumulation: int = 1
    seed: int = 0
    log_every: int = 10
    eval_every: int = 100
    save_every: int = 100
    workers: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing = {self.label_smoothing}; expected a share in [0, 1)")
        for name in ("log_every", "eval_every"):
            if self.save_every % getattr(self, name):
                raise ValueError(
                    f"save_every = {self.save_every} is no multiple of {name} = {getattr(self, name)}; a run that goes "
                    "on from a checkpoint would log other values than one that was never interrupted"
                )


@dataclass(frozen=True)
class Recipe:
    """All that decides the outcome of a run."""

    data: Data
    training: Training
    mixture: Method
    model: Model = dataclasses.field(default_factory=Model)
    decoding: Decoding | None = None

    def __post_init__(self) -> None:
        if self.decoding is not None and self.model.family == "llama":
            raise ValueError("decoding needs a model that translates: model.family 'marian'")

    def to_dict(self) -> dict[str, Any]:
        """JSON values; `load_recipe` gives the same recipe for them, written as YAML."""
        method = next(name for name, kind in METHODS.items() if type(self.mixture) is kind)
        values = dataclasses.asdict(self)
        return {**values, "mixture": {"method": method, **values["mixture"]}}


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe.

    Args:
        path: a YAML file.
        overrides: ``section.key=value`` each, the value as in YAML.

    Raises:
        ValueError: for a key, type or value that is not accepted, naming file and key and saying what is.
        FileNotFoundError: if there is no such file.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds {_shown(values)}; expected sections {', '.join(_keys(Recipe))}")
    source = str(path)
    for override in overrides:
        key, equals, text = override.partition("=")
        section, dot, name = key.partition(".")
        if not (equals and dot and section and name):
            raise ValueError(f"override {override!r}: expected section.key=value, as in training.steps=200")
        if not isinstance(values.setdefault(section, {}), dict):
            raise ValueError(f"{path}: {section} is {_shown(values[section])}; expected a section of keys")
        try:
            values[section][name] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"override {override!r}: {text!r} is not YAML: {error}") from error
        source = f"{path} with {' '.join(overrides)}"
    try:
        return _recipe(values)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _recipe(values: dict[str, Any]) -> Recipe:
    mixture = values.get("mixture")
    method = mixture.get("method") if isinstance(mixture, dict) else mixture
    if not isinstance(mixture, dict) or not isinstance(method, str) or method not in METHODS:
        raise ValueError(f"mixture.method is {_shown(method)}; expected one of {', '.join(METHODS)}")
    options = {name: value for name, value in mixture.items() if name != "method"}
    kind = _section(METHODS[method], options, "mixture")
    recipe: Recipe = _section(Recipe, {**values, "mixture": kind}, "")
    return recipe


def _section(kind: type, values: Any, where: str) -> Any:
    """Builds a dataclass from a mapping, checking keys and types."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} is {_shown(values)}; expected keys {', '.join(_keys(kind))}")
    prefix = f"{where}." if where else ""
    if unknown := [key for key in values if key not in _keys(kind)]:
        raise ValueError(f"{prefix}{unknown[0]} is unknown; expected {', '.join(_keys(kind))}")
    for field in dataclasses.fields(kind):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and field.name not in values:
            raise ValueError(f"{prefix}{field.name} is missing")
    hints = get_type_hints(kind)
    typed = {key: _value(hints[key], value, f"{prefix}{key}") for key, value in values.items()}
    try:
        return kind(**typed)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _value(kind: Any, value: Any, where: str) -> Any:
    """A value of YAML as a value of the type that a field is annotated with."""
    if kind is Method:
        return value
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _section(kind, value, where)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return None if value is None else _value(arguments[0], value, where)
    if origin is Literal and value in arguments:
        return value
    if origin is tuple and isinstance(value, list | tuple):
        kinds = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(kinds) == len(value):
            return tuple(_value(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))
    if kind is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:  # YAML 1.1 reads 1e-3, which has no point, and inf as text
            return float(value)
        except ValueError:
            pass
    if kind is bool and isinstance(value, bool):
        return value
    if kind is int and isinstance(value, int) and not isinstance(value, bool):
        smallest = 0 if where.rpartition(".")[2] in ("warmup", "workers", "seed") else 1
        if value < smallest:
            raise ValueError(f"{where} is {value}; expected a number >= {smallest}")
        return value
    if kind is str and isinstance(value, str) and value:
        return value
    hint = ": put it in quotes, YAML reads a bare no, on or yes as a truth value" if isinstance(value, bool) else ""
    raise ValueError(f"{where} is {_shown(value)}; expected {_named(kind)}{hint}")


def _named(kind: Any) -> str:
    arguments = get_args(kind)
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(repr, arguments))}"
    if get_origin(kind) is tuple:
        return (
            f"a list of {_named(arguments[0])}" if arguments[-1] is Ellipsis else f"a list of {len(arguments)} values"
        )
    return {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}[kind]


def _keys(kind: type) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


def _shown(value: Any) -> str:
    return "missing" if value is None else f"{value!r} ({type(value).__name__})"
