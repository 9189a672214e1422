"""The models that a recipe can describe, built from configurations alone: nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import LlamaConfig, LlamaForCausalLM, MarianConfig, MarianMTModel, PreTrainedModel

from pycooldown.data.manifest import Tokenizer
from pycooldown.recipes.schema import Recipe

_CLASSES = {"llama": LlamaForCausalLM, "marian": MarianMTModel}


def build_model(recipe: Recipe, tokenizer: Tokenizer) -> PreTrainedModel:
    """Return a model with random weights, with input and output embeddings tied."""
    model = recipe.model
    shared: dict[str, Any] = {
        "vocab_size": tokenizer.vocabulary_size,
        "max_position_embeddings": recipe.data.max_length,
        "pad_token_id": tokenizer.pad_id,
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "tie_word_embeddings": True,
        "use_cache": False,
    }
    if model.family == "llama":
        return LlamaForCausalLM(
            LlamaConfig(
                hidden_size=model.width,
                intermediate_size=model.mlp_width,
                num_hidden_layers=model.layers,
                num_attention_heads=model.heads,
                **shared,
            )
        )
    both = {
        f"{part}_{name}": value
        for part in ("encoder", "decoder")
        for name, value in (("layers", model.layers), ("attention_heads", model.heads), ("ffn_dim", model.mlp_width))
    }
    return MarianMTModel(
        MarianConfig(
            d_model=model.width,
            dropout=model.dropout,
            attention_dropout=model.dropout,
            activation_function="relu",
            scale_embedding=True,
            decoder_start_token_id=tokenizer.bos_id,  # the target side of packed pairs begins with it
            decoder_vocab_size=tokenizer.vocabulary_size,
            forced_eos_token_id=None,
            init_std=model.width**-0.5,  # times the scale of the embeddings: entries of size 1, beside the positions'
            **both,
            **shared,
        )
    )


def load_model(family: str, folder: Path) -> PreTrainedModel:
    """Return the trained model in a run's folder."""
    return _CLASSES[family].from_pretrained(folder / "model")
