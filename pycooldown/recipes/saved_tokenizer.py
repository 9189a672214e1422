"""Save the tokenizer beside a trained model, so that the folder can be used on its own."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from pycooldown.data.token_manifest import load_token_manifest
from pycooldown.recipes.corpus import Corpus
from pycooldown.recipes.model_section import AnyModel, FolderModel

# Files of the formats that transformers reads from a folder.
_FILES = [
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
]


def save_tokenizer(corpus: Corpus, model: AnyModel, folder: Path) -> None:
    """Save the tokenizer of a run's data in the folder of its model.

    A Hugging Face tokenizer is saved for `transformers.AutoTokenizer.from_pretrained(folder)`. Files of other kinds are
    copied, for their own libraries. Data from sources have no tokenizer. Then the tokenizer of the model's initial
    folder is copied, if there is one.
    """
    if corpus.tokenizer is not None:  # the data are packed pairs
        shutil.copyfile(corpus.tokenizer.path, folder / "tokenizer.model")
    elif corpus.data.path is not None:
        _save(load_token_manifest(Path(corpus.data.path)).tokenizer, folder)
    elif isinstance(model, FolderModel):
        for path in (Path(model.folder) / name for name in _FILES):
            if path.is_file():
                shutil.copyfile(path, folder / path.name)


def _save(tokenizer: Mapping[str, Any], folder: Path) -> None:
    """Save the tokenizer that a manifest describes."""
    file = Path(tokenizer["file"])
    if tokenizer["kind"] != "huggingface":
        shutil.copyfile(file, folder / file.name)
        return
    if (file.parent / "tokenizer_config.json").is_file():
        for path in file.parent.iterdir():
            shutil.copyfile(path, folder / path.name)
        return
    made = PreTrainedTokenizerFast(tokenizer_file=str(file))
    for role in ("eos", "bos"):
        if (number := tokenizer.get(f"{role}_id")) is not None:
            setattr(made, f"{role}_token", made.convert_ids_to_tokens(number))
    made.save_pretrained(str(folder))
