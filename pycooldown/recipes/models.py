"""Build the models that a recipe can describe, only from configurations and folders. Nothing is downloaded."""

from __future__ import annotations

import hashlib
import inspect
import json
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    LlamaConfig,
    MarianConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from pycooldown._files import read_bounded
from pycooldown._yaml import MAX_BYTES, read_yaml
from pycooldown.recipes.adapters import ADAPTER, load_adapted
from pycooldown.recipes.corpus import Corpus, TokenIds
from pycooldown.recipes.documents import edges
from pycooldown.recipes.model_section import AnyModel, FolderModel, Model

_IDS = ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")


def build_model(model: AnyModel, corpus: Corpus) -> PreTrainedModel:
    """Return the model, with random or loaded weights. The short form ties input and output embeddings.

    Raises:
        OSError: If a file does not exist.
        ValueError: If transformers has no such configuration, or the model does not fit the data.
    """
    options: dict[str, Any] = {"dtype": getattr(torch, model.dtype)}
    if model.attn_implementation is not None:
        options["attn_implementation"] = model.attn_implementation
    if isinstance(model, FolderModel):
        config = AutoConfig.from_pretrained(_folder(model.folder), local_files_only=True)
        _check_fit(config, corpus)
        built = _auto(config).from_pretrained(model.folder, local_files_only=True, **options)
        built.config.use_cache = False
    else:
        config = _short_config(model, corpus) if isinstance(model, Model) else _config(model.config, corpus)
        config.use_cache = False
        _check_fit(config, corpus)
        built = _auto(config).from_config(config, **options)
    return built


def model_fingerprint(model: AnyModel) -> str | None:
    """Return a hash of the weights and configuration in a folder; None for a model with random weights.

    The hash covers names, sizes, and the first and last 64 KiB of each file, so large weights are not read twice.
    """
    if not isinstance(model, FolderModel):
        return None
    digest = hashlib.sha256()
    for path in sorted(_folder(model.folder).iterdir()):
        if path.suffix in (".json", ".safetensors", ".bin"):
            digest.update(repr((path.name, path.stat().st_size)).encode() + edges(path))
    return digest.hexdigest()


def load_model(folder: Path) -> PreTrainedModel:
    """Return the trained model in a run's folder, with its adapter if it has one."""
    path = folder / "model"
    if (path / ADAPTER).exists():
        return load_adapted(path)
    return _auto(AutoConfig.from_pretrained(path)).from_pretrained(path)


def _folder(name: str) -> Path:
    if not (Path(name) / "config.json").is_file():
        raise FileNotFoundError(f"{name}/config.json is missing; expected a folder written by save_pretrained")
    return Path(name)


def _auto(config: PretrainedConfig) -> Any:
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def _short_config(model: Model, corpus: Corpus) -> PretrainedConfig:
    ids = corpus.token_ids
    shared: dict[str, Any] = {**_of_tokenizer(ids), "max_position_embeddings": corpus.length}
    shared["tie_word_embeddings"] = True
    if model.family == "llama":
        return LlamaConfig(
            hidden_size=model.width,
            intermediate_size=model.mlp_width,
            num_hidden_layers=model.layers,
            num_attention_heads=model.heads,
            **shared,
        )
    both = {
        f"{part}_{name}": value
        for part in ("encoder", "decoder")
        for name, value in (("layers", model.layers), ("attention_heads", model.heads), ("ffn_dim", model.mlp_width))
    }
    return MarianConfig(
        d_model=model.width,
        dropout=model.dropout,
        attention_dropout=model.dropout,
        activation_function="relu",
        scale_embedding=True,
        decoder_start_token_id=ids.bos_id,  # the target side of packed pairs starts with it
        decoder_vocab_size=ids.vocabulary_size,
        forced_eos_token_id=None,
        init_std=model.width**-0.5,  # times the embeddings' scale this gives entries of size 1, as positions have
        **both,
        **shared,
    )


def _config(given: str | dict[str, Any], corpus: Corpus) -> PretrainedConfig:
    """Return the configuration in a file or a recipe, completed by the values of the tokenizer."""
    from_file = isinstance(given, str)
    values = _read(given) if isinstance(given, str) else dict(given)
    kind = values.pop("model_type", None)
    if kind not in CONFIG_MAPPING:
        near = get_close_matches(str(kind), list(CONFIG_MAPPING.keys()), n=2)
        raise ValueError(
            f"model.config.model_type is {kind!r}, which this version of transformers does not have"
            + (f"; did you mean {' or '.join(near)}?" if near else "")
        )
    if from_file:  # the file was made for another tokenizer
        values = {name: value for name, value in values.items() if name not in _IDS}
    else:
        _check_names(kind, values)
    for name, value in _of_tokenizer(corpus.token_ids).items():
        values.setdefault(name, value)
    return AutoConfig.for_model(kind, **values)


def _read(path: str) -> dict[str, Any]:
    values = json.loads(read_bounded(path, MAX_BYTES)) if path.endswith(".json") else read_yaml(path)
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}; expected model_type and a configuration's values")
    return values


def _check_names(kind: str, values: dict[str, Any]) -> None:
    """Raise ValueError for a key that transformers would store without using it."""
    cls = CONFIG_MAPPING[kind]
    known = {*cls().to_dict(), *cls.attribute_map, *inspect.signature(cls.__init__).parameters} - {"self", "kwargs"}
    for name in values:
        if name not in known:
            near = get_close_matches(name, sorted(known), n=2)
            raise ValueError(
                f"model.config.{name} is unknown to {cls.__name__}"
                + (f"; did you mean {' or '.join(near)}?" if near else f"; expected some of {', '.join(sorted(known))}")
            )


def _of_tokenizer(ids: TokenIds) -> dict[str, Any]:
    # The embedding of a pad token would not be trained, so none is set unless the tokenizer has its own.
    return {
        "vocab_size": ids.vocabulary_size,
        "pad_token_id": ids.pad_id,
        "bos_token_id": ids.bos_id,
        "eos_token_id": ids.eos_id,
    }


def _check_fit(config: Any, corpus: Corpus) -> None:
    """Raise ValueError if the model does not fit the data, before any weights take memory."""
    corpus.collator(translates=config.is_encoder_decoder)  # raises
    text = config.get_text_config(decoder=True)
    if text.vocab_size < corpus.token_ids.vocabulary_size:
        raise ValueError(
            f"the model has {text.vocab_size} token ids, but the data's tokenizer {corpus.token_ids.vocabulary_size}; "
            "tokenize the data with the model's own tokenizer, or leave vocab_size out"
        )
    longest = getattr(text, "max_position_embeddings", None)
    if isinstance(longest, int) and longest < corpus.length:
        raise ValueError(
            f"the model has max_position_embeddings = {longest}, but the sequences {corpus.length} tokens; set the "
            "model's higher, or the length of the sequences lower"
        )
