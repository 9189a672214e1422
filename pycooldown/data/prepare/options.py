"""The options of `pycooldown tokenize`, for documents and for the tokenizer."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

MAX_DOCUMENT_BYTES = 4_000_000
MAX_RECORD_BYTES = 64 << 20  # limit of one line or text file, which must fit in memory


@dataclass(frozen=True)
class Options:
    """What a document is and how it is treated. Every option here changes the shards.

    Attributes:
        text_fields: The fields of a record whose texts, joined by a newline, are the document: one for documents,
            source and target for pairs.
        text_documents: The unit of a document in a `.txt` file: the whole `"file"`, a `"line"`, or a `"paragraph"`
            (lines up to a blank one).
        on_error: `"raise"` stops at the first invalid record; `"skip"` leaves such records out and counts them.
        long_documents: How to treat a document above `max_document_bytes`: `"refuse"` makes it an error that `on_error`
            handles; `"split"` encodes it in pieces that are cut at white space. It stays one document.
        max_document_bytes: The longest document, in bytes of UTF-8, that the tokenizer gets in one piece.
        special_tokens: How names of special tokens in a text are encoded: `"text"` like other text, so that no document
            can contain an EOS by its spelling; `"parse"` as the special tokens.
        validation: A share of the documents, below 1, or a number of distinct documents per domain (see
            :mod:`pycooldown.data.prepare.split`).
        seed: The seed of the hash that chooses the validation documents.
        shard_bytes: Bytes of input per shard; compressed files count four times their size.

    Raises:
        ValueError: If an option is unknown or out of range.
    """

    text_fields: tuple[str, ...] = ("text",)
    text_documents: Literal["file", "line", "paragraph"] = "file"
    on_error: Literal["raise", "skip"] = "raise"
    long_documents: Literal["refuse", "split"] = "refuse"
    max_document_bytes: int = MAX_DOCUMENT_BYTES
    special_tokens: Literal["text", "parse"] = "text"
    validation: float = 0.01
    seed: int = 0
    shard_bytes: int = 64 << 20

    def __post_init__(self) -> None:
        choices = {
            "text_documents": ("file", "line", "paragraph"),
            "on_error": ("raise", "skip"),
            "long_documents": ("refuse", "split"),
            "special_tokens": ("text", "parse"),
        }
        for name, values in choices.items():
            if (value := getattr(self, name)) not in values:
                raise ValueError(f"{name} = {value!r}; expected one of {', '.join(map(repr, values))}")
        if not self.text_fields or not all(isinstance(field, str) and field for field in self.text_fields):
            raise ValueError(f"text_fields = {self.text_fields!r}; expected names of fields")
        if not 64 <= self.max_document_bytes <= MAX_RECORD_BYTES:
            raise ValueError(f"max_document_bytes = {self.max_document_bytes}; expected 64 to {MAX_RECORD_BYTES}")
        if self.shard_bytes < 1:
            raise ValueError(f"shard_bytes = {self.shard_bytes}; expected at least 1")
        if not self.validation >= 0 or (self.validation >= 1 and self.validation != int(self.validation)):
            raise ValueError(
                f"validation = {self.validation}; expected a share in [0, 1) or a whole number of documents"
            )
        # 50 and 50.0 are the same value and must be equal in records.
        object.__setattr__(self, "validation", int(self.validation) if self.validation >= 1 else float(self.validation))


@dataclass(frozen=True)
class TokenizerOptions:
    """The tokenizer and its special tokens.

    Attributes:
        source: Its file or folder, a path or a URL (see :func:`prepare_tokenizer`); `None` to train one.
        train: `"bpe"` or `"sentencepiece"`, if there is no source.
        vocabulary_size: The number of token ids of a trained tokenizer.
        tau: The temperature of its training sample.
        sample_bytes: The maximum size of that sample in bytes of text.
        eos: The token after every document: a name, an id, `None` for none, or `"auto"` for the one stated in the
            files.
        bos: The token before every document, in the same way.
        pattern: The regular expression that divides a text into words, for a `.tiktoken` file.
    """

    source: str | os.PathLike[str] | None = None
    train: Literal["bpe", "sentencepiece"] | None = None
    vocabulary_size: int = 32_000
    tau: float = 3.0
    sample_bytes: int = 100_000_000
    eos: str | int | None = "auto"
    bos: str | int | None = None
    pattern: str | None = None

    def __post_init__(self) -> None:
        if (self.source is None) == (self.train is None):
            raise ValueError("expected exactly one of source (a tokenizer's file) and train ('bpe' or 'sentencepiece')")
        if self.sample_bytes < 1:
            raise ValueError(f"sample_bytes = {self.sample_bytes}; expected at least 1")
