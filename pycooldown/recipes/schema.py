"""A training run as one small YAML file: its sections and keys, with their types, defaults and bounds."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Any, Literal

from pydantic import PlainValidator, TypeAdapter
from pydantic.dataclasses import dataclass

from pycooldown.recipes.fields import (
    CONFIG,
    Count,
    Finite,
    FinitePositive,
    Flag,
    Natural,
    Number,
    Seed,
    Share,
    Text,
)
from pycooldown.recipes.learning_rate import Decay
from pycooldown.recipes.methods import MethodOptions, method_schemas, read_method
from pycooldown.sampling.sampler import AllocationName


@dataclass(frozen=True, config=CONFIG)
class Data:
    """The data to read: a folder that `pycooldown pack` wrote."""

    path: Text
    """The folder."""
    domains: tuple[Text, ...] | None = None
    """The domains to train on; all that the folder has by default."""
    max_length: Count = 64
    """Tokens of a sequence (of each side in translation); longer ones are cut."""
    eval_samples: Count = 400
    """Validation sequences of each domain, spread evenly; fewer where a domain has fewer."""


@dataclass(frozen=True, config=CONFIG)
class Model:
    """A transformer with random weights. Its vocabulary is that of the data."""

    family: Literal["llama", "marian"] = "llama"
    """The architecture. "llama" is a decoder and models the target side of the pairs; "marian" is an encoder-decoder
    (Vaswani et al., 2017, with sinusoidal positions) and translates the source side into the target side."""
    layers: Count = 3
    """Layers of the decoder, and as many of the encoder if there is one."""
    width: Count = 192
    """Width of the hidden states."""
    heads: Count = 4
    """Attention heads of each layer."""
    mlp_width: Count = 512
    """Width of the feed-forward layers."""
    dropout: Share = 0.0
    """Dropout of "marian", in attention too."""

    def __post_init__(self) -> None:
        if self.width % (2 * self.heads):
            raise ValueError(
                f"width = {self.width} cannot be cut into {self.heads} heads of even width, which rotary positions "
                f"need; expected a multiple of {2 * self.heads}"
            )
        if self.dropout and self.family == "llama":
            raise ValueError(f"dropout = {self.dropout}; expected 0 with 'llama', which has none")


@dataclass(frozen=True, config=CONFIG)
class Decoding:
    """Translation of validation pairs at the end of a run, for BLEU and chrF."""

    samples: Count = 100
    """Pairs of each domain, spread evenly; fewer where a domain has fewer."""
    beams: Count = 4
    """Hypotheses that the search keeps."""
    length_penalty: Number = 1.0
    """Exponent of the length that a hypothesis' log-probability is divided by."""


@dataclass(frozen=True, config=CONFIG)
class Training:
    """The run itself. Counts are in optimizer steps."""

    steps: Count
    """Optimizer steps of the run."""
    batch_size: Count
    """Sequences of a step, over all ranks and micro-batches."""
    learning_rate: Finite = 2e-3
    """The highest learning rate."""
    warmup: Natural = 50
    """Steps in which the learning rate rises to `learning_rate`."""
    decay: Decay = "cosine"
    """How the learning rate falls from there: "cosine" and "exponential" to a tenth at the end, "inverse_sqrt" with
    the root of the steps."""
    weight_decay: Finite = 0.1
    """Weight decay of AdamW."""
    max_grad_norm: Finite = 1.0
    """Scale longer gradients to this norm; 0 accepts any length."""
    label_smoothing: Share = 0.0
    """Share of the uniform distribution in the training targets. Losses of training are with it, those of evaluation
    without."""
    betas: tuple[Share, Share] = (0.9, 0.999)
    """Decay rates of Adam's moments."""
    epsilon: FinitePositive = 1e-8
    """Epsilon of Adam."""
    allocation: AllocationName = "multinomial"
    """How a batch is shared out to the domains; see `pycooldown.DomainBatchSampler`."""
    accumulation: Count = 1
    """Micro-batches that a step's batch is cut into on each rank."""
    seed: Seed = 0
    """Seed of the weights and of the order of samples."""
    log_every: Count = 10
    """Steps between two logs of training."""
    eval_every: Count = 100
    """Steps between two evaluations."""
    save_every: Count = 100
    """Steps between two checkpoints."""
    workers: Natural = 0
    """Processes that read data. They do not change the order of samples."""
    allow_non_finite: Flag = False
    """Train on although a loss is not finite; by default the run stops with an error."""

    def __post_init__(self) -> None:
        for name in ("log_every", "eval_every"):
            if self.save_every % getattr(self, name):
                raise ValueError(
                    f"save_every = {self.save_every} is no multiple of {name} = {getattr(self, name)}; a run that goes "
                    "on from a checkpoint would log other values than one that was never interrupted"
                )


@dataclass(frozen=True, config=CONFIG)
class Recipe:
    """All that decides the outcome of a run."""

    data: Data
    training: Training
    mixture: Annotated[MethodOptions, PlainValidator(read_method, json_schema_input_type=dict[str, Any])]
    """The mixing method and its options."""
    model: Model = dataclasses.field(default_factory=Model)
    decoding: Decoding | None = None
    """Translate validation pairs at the end of the run; needs an encoder-decoder."""

    def __post_init__(self) -> None:
        if self.decoding is not None and self.model.family == "llama":
            raise ValueError("decoding needs a model that translates: model.family 'marian'")

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values (an infinite number as text); `load_recipe` reads them back into an equal recipe."""
        values: dict[str, Any] = _jsonable(dataclasses.asdict(self))
        return {**values, "mixture": {"method": self.mixture.name, **values["mixture"]}}


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _jsonable(inner) for key, inner in value.items()}
    if isinstance(value, tuple):
        return tuple(_jsonable(inner) for inner in value)
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of recipes, for editors; the options of each registered method are part of it."""
    schema = TypeAdapter(Recipe).json_schema()
    schema["properties"]["mixture"] = {
        "description": schema["properties"]["mixture"]["description"],
        "oneOf": method_schemas(),
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
