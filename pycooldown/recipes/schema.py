"""A training run as one small YAML file: its sections and keys, with their types, defaults and bounds."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Any, Literal

from pydantic import PlainValidator, TypeAdapter
from pydantic.dataclasses import dataclass

from pycooldown.recipes.fields import (
    CONFIG,
    BatchSize,
    Count,
    Finite,
    FinitePositive,
    Flag,
    Natural,
    Number,
    Portion,
    Seed,
    Share,
    Steps,
    Text,
)
from pycooldown.recipes.learning_rate_decay import Decay
from pycooldown.recipes.methods import MethodOptions, method_schemas, read_method
from pycooldown.recipes.model_section import AnyModel, FolderModel, Model, read_model
from pycooldown.sampling.sampler import AllocationName

Shares = Portion | dict[Text, Portion]


def _read_shares(value: Any) -> Shares:
    kind: Any = dict[Text, Portion] if isinstance(value, dict) else Portion
    read: Shares = TypeAdapter(kind).validate_python(value)
    return read


@dataclass(frozen=True, config=CONFIG)
class Data:
    """The data to read: documents as tokens, or packed pairs."""

    path: Text | None = None
    """A folder that `pycooldown tokenize` (documents) or `pycooldown pack` (pairs) wrote."""
    sources: dict[Text, Any] | None = None
    """Tokens of other projects instead of `path`. By domain: the path of a .tar, {megatron: PREFIX}, {datatrove: FILE},
    {flat: FILE, dtype: uint16, eos_id: 0}, {llm_c: FILE} or {litdata: FOLDER}, or a list of these; the options are
    those of `pycooldown.data.token_sources`."""
    validation_sources: dict[Text, Any] | None = None
    """The same for validation. Domains that are not listed are not evaluated."""
    vocabulary_size: Count | None = None
    """Number of token ids of `sources`."""
    domains: tuple[Text, ...] | None = None
    """The domains to train on; by default all domains of the data."""
    share: Annotated[Shares, PlainValidator(_read_shares, json_schema_input_type=Shares)] = 1.0
    """Share of each domain's training sequences that is used, spread evenly over it, as `pycooldown proxy` sets it for
    a shorter run with the same epochs; or a share by domain, and all of the others."""
    length: Count | None = None
    """Tokens of a sequence of documents; 1024 by default."""
    mode: Literal["concat", "document", "best_fit"] | None = None
    """The form of sequences of documents: "concat" (the default) cuts a domain's stream of tokens, "document" has one
    document, padded, "best_fit" packs whole documents. See `pycooldown.data.TokenDataset`."""
    intra_document_attention: Flag | None = None
    """Whether tokens attend only to their own document (the default). The model is first tested for this ability."""
    max_length: Count | None = None
    """Tokens of a packed pair's sequence, of each side in translation; longer ones are cut. 64 by default."""
    eval_samples: Count = 400
    """Validation sequences of each domain, spread evenly; fewer where a domain has fewer."""

    def __post_init__(self) -> None:
        if (self.path is None) == (self.sources is None):
            raise ValueError("expected exactly one of path (a folder) and sources (tokens by domain)")
        if self.sources is not None and self.vocabulary_size is None:
            raise ValueError("vocabulary_size is missing; it is needed with sources, which do not contain it")
        if self.sources is None and self.validation_sources is not None:
            raise ValueError("validation_sources needs sources; a folder has its own validation split")
        if self.sources is not None and not self.sources:
            raise ValueError("sources is empty; expected a source for each domain")


@dataclass(frozen=True, config=CONFIG)
class Decoding:
    """Translation of validation pairs at the end of a run, for BLEU and chrF."""

    samples: Count = 100
    """Pairs of each domain, spread evenly; fewer where a domain has fewer."""
    beams: Count = 4
    """Hypotheses that the search keeps."""
    length_penalty: Number = 1.0
    """A hypothesis' log-probability is divided by its length to this power."""


@dataclass(frozen=True, config=CONFIG)
class Training:
    """The run itself. Counts are in optimizer steps."""

    steps: Steps
    """Optimizer steps of the run, or the rule that ends it after one pass: "first_exhausted" (no sequence comes twice),
    "all_exhausted" (each has come) or "all_exhausted_without_replacement" (each has come once), see
    `pycooldown.DomainBatchSampler`. A rule needs a mixture that does not go by the number of steps."""
    batch_size: BatchSize
    """Sequences of a step, over all ranks and micro-batches. A ramp has [first step, sequences] pairs, the first one
    from step 0; to resume with another batch size, add a pair from a step after the newest checkpoint's."""
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
    """Share of the uniform distribution in the training targets. It is part of training losses, but not of evaluation
    losses."""
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
    """Continue training if a loss is not finite; by default the run stops with an error."""

    @property
    def batch_sizes(self) -> tuple[tuple[int, int], ...]:
        """The (first step, sequences) pairs of batches."""
        return ((0, self.batch_size),) if isinstance(self.batch_size, int) else self.batch_size

    @property
    def num_samples(self) -> int:
        """The number of samples that the run draws.

        Raises:
            ValueError: If the run ends by a rule, because then the number depends on the data.
        """
        from pycooldown.sampling.changes import BatchSizes

        if isinstance(self.steps, str):
            raise ValueError(
                f"training.steps = {self.steps!r}; expected a number of steps, which fixes the samples drawn"
            )
        return BatchSizes(self.batch_sizes).samples_before(self.steps)

    def __post_init__(self) -> None:
        for name in ("log_every", "eval_every"):
            if self.save_every % getattr(self, name):
                raise ValueError(
                    f"save_every = {self.save_every} is no multiple of {name} = {getattr(self, name)}; a run that "
                    "resumes from a checkpoint would log other values than an uninterrupted one; change either"
                )


@dataclass(frozen=True, config=CONFIG)
class Recipe:
    """Everything that decides the result of a run."""

    data: Data
    training: Training
    mixture: Annotated[MethodOptions, PlainValidator(read_method, json_schema_input_type=dict[str, Any])]
    """The mixing method and its options."""
    model: Annotated[AnyModel, PlainValidator(read_model, json_schema_input_type=AnyModel)] = dataclasses.field(
        default_factory=Model
    )
    """What is trained: a short form, {folder: ...} or {config: ...}."""
    trainer: dict[Text, Any] = dataclasses.field(default_factory=dict)
    """Further fields of transformers' TrainingArguments, by their names there: bf16, gradient_checkpointing, optim,
    torch_compile, fsdp, report_to, ... They are checked against the installed version when training begins."""
    peft: dict[Text, Any] | None = None
    """Train an adapter of peft on the weights in `model.folder`: ``type`` (lora, ...) and what peft's configuration of
    that type takes."""
    decoding: Decoding | None = None
    """Translate validation pairs at the end of the run; needs an encoder-decoder."""

    def __post_init__(self) -> None:
        if self.peft is not None and not isinstance(self.peft.get("type"), str):
            raise ValueError("peft.type is missing; expected the name of a method of peft, such as lora")
        if self.peft is not None and not isinstance(self.model, FolderModel):
            raise ValueError("peft adapts existing weights; expected model: {folder: ...}")
        if self.decoding is not None and isinstance(self.model, Model) and self.model.family == "llama":
            raise ValueError(
                "decoding needs an encoder-decoder; expected model.family 'marian', or no section decoding"
            )

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
    """Return the JSON Schema of recipes, for editors. It includes the options of each registered method."""
    schema = TypeAdapter(Recipe).json_schema()
    schema["properties"]["mixture"] = {
        "description": schema["properties"]["mixture"]["description"],
        "oneOf": method_schemas(),
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
