"""The section ``model`` of a recipe: the short form, a folder of weights, or a configuration of transformers."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter
from pydantic.dataclasses import dataclass

from pycooldown.recipes.fields import CONFIG, Count, Share, Text

Attention = Annotated[
    Text | None,
    Field(description="Implementation of attention, as transformers names it: sdpa, eager, flash_attention_2, ..."),
]
WeightsDtype = Annotated[
    Literal["float32", "bfloat16", "float16"],
    Field(description="Type of the weights. Trainer's bf16 computes in half precision with float32 weights too."),
]


@dataclass(frozen=True, config=CONFIG)
class Model:
    """A transformer with random weights. Its vocabulary is that of the data."""

    family: Literal["llama", "marian"] = "llama"
    """The architecture. "llama" is a decoder and models documents or the target side of pairs; "marian" is an
    encoder-decoder (Vaswani et al., 2017, with sinusoidal positions) and translates the source side into the target
    side."""
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
    attn_implementation: Attention = None
    dtype: WeightsDtype = "float32"

    def __post_init__(self) -> None:
        if self.width % (2 * self.heads):
            raise ValueError(
                f"width = {self.width} cannot be cut into {self.heads} heads of even width, as rotary positions need; "
                f"expected a multiple of {2 * self.heads}"
            )
        if self.dropout and self.family == "llama":
            raise ValueError(f"dropout = {self.dropout}; expected 0 with 'llama', which has no dropout")


@dataclass(frozen=True, config=CONFIG)
class FolderModel:
    """A model with the weights in a folder, from which training continues."""

    folder: Text
    """What `save_pretrained` wrote. Its vocabulary must have the ids of the data's tokenizer."""
    attn_implementation: Attention = None
    dtype: WeightsDtype = "float32"


@dataclass(frozen=True, config=CONFIG)
class ConfigModel:
    """A model with random weights, from a configuration of transformers."""

    config: Text | dict[Text, Any]
    """``model_type`` and what transformers' configuration of it takes, or the path of a config.json or YAML with that.
    Without ``vocab_size``, that of the tokenizer is taken; in place of the one in a file, it always is."""
    attn_implementation: Attention = None
    dtype: WeightsDtype = "float32"

    def __post_init__(self) -> None:
        if isinstance(self.config, dict) and not isinstance(self.config.get("model_type"), str):
            raise ValueError("config.model_type is missing; expected a model type of transformers, such as llama")


AnyModel = Model | FolderModel | ConfigModel


def model_kind(value: Any) -> Any:
    """Return the class for a section with these keys."""
    keys = value if isinstance(value, dict) else {}
    return FolderModel if "folder" in keys else ConfigModel if "config" in keys else Model


def read_model(value: Any) -> AnyModel:
    """Return the options in a section ``model``.

    Raises:
        pydantic.ValidationError: For keys and values that are not accepted.
    """
    if dataclasses.is_dataclass(value) and isinstance(value, (Model, FolderModel, ConfigModel)):
        return value
    read: AnyModel = TypeAdapter(model_kind(value)).validate_python(value)
    return read
