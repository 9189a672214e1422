"""Encode texts in batches into arrays of ids, by tokenizers of three kinds."""

from __future__ import annotations

import base64
import binascii
from array import array
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pycooldown._extras import require

Ids = npt.NDArray[np.uint32]


class Encoder(Protocol):
    """The interface of every kind of tokenizer."""

    @property
    def vocabulary_size(self) -> int:
        """Number of token ids: one more than the largest."""

    @property
    def specials(self) -> Mapping[str, int]:
        """Ids of "eos" and "bos", if the file states them."""

    def encode(self, texts: list[str]) -> list[Ids]:
        """Return the ids of each text, without BOS and EOS."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, with special tokens if the tokenizer can show them."""

    def token_id(self, token: str) -> int | None:
        """Return the id of a token; `None` if there is none of this name."""


def open_encoder(content: bytes, path: str, kind: str, parse_special_tokens: bool, pattern: str) -> Encoder:
    """Return the encoder of a tokenizer's file.

    Args:
        content: The content of the file.
        path: Its path or URL, for errors.
        kind: `"huggingface"`, `"sentencepiece"` or `"tiktoken"`.
        parse_special_tokens: Encode names of special tokens in a text as these tokens.
        pattern: The regular expression of words, for tiktoken.

    Raises:
        ValueError: If the file is damaged, or the kind has no special tokens to parse.
    """
    if kind == "huggingface":
        return _HuggingFace(content, path, parse_special_tokens)
    if parse_special_tokens:
        raise ValueError(f"special_tokens = 'parse' is for Hugging Face tokenizers; {path} is of kind {kind}")
    return _SentencePiece(content, path) if kind == "sentencepiece" else _Tiktoken(content, path, pattern)


def as_array(ids: list[int]) -> Ids:
    """Return token ids as an array, in the fastest way from a list: NumPy's own way takes three times as long."""
    return np.frombuffer(array("I", ids), np.uint32)


class _HuggingFace:
    def __init__(self, content: bytes, path: str, parse_special_tokens: bool) -> None:
        require("prepare", "tokenizers")
        from tokenizers import Tokenizer

        try:
            self.tokenizer = Tokenizer.from_buffer(content)
        except Exception as error:  # the Rust code raises no more specific class
            raise ValueError(f"{path} is no tokenizer.json that `tokenizers` can read: {error}") from error
        self.tokenizer.no_truncation()  # many files still contain such settings of a model's training
        self.tokenizer.no_padding()
        self.tokenizer.encode_special_tokens = not parse_special_tokens
        self.specials: dict[str, int] = {}
        self.vocabulary_size = 1 + max(self.tokenizer.get_vocab(with_added_tokens=True).values())

    def encode(self, texts: list[str]) -> list[Ids]:
        encodings = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [as_array(encoding.ids) for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))

    def token_id(self, token: str) -> int | None:
        found = self.tokenizer.token_to_id(token)
        return None if found is None else int(found)


class _SentencePiece:
    def __init__(self, content: bytes, path: str) -> None:
        require("prepare", "sentencepiece")
        import sentencepiece

        try:
            if not content:  # SentencePiece would accept it without a model
                raise RuntimeError("it is empty")
            self.processor = sentencepiece.SentencePieceProcessor(model_proto=content)
        except (RuntimeError, OSError) as error:
            raise ValueError(f"{path} is no SentencePiece model: {error}") from error
        self.vocabulary_size = int(self.processor.get_piece_size())
        ids = {"eos": int(self.processor.eos_id()), "bos": int(self.processor.bos_id())}
        self.specials = {role: id_ for role, id_ in ids.items() if id_ >= 0}

    def encode(self, texts: list[str]) -> list[Ids]:
        return [as_array(ids) for ids in self.processor.encode(texts, num_threads=1)]

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.processor.decode(list(map(int, ids))))

    def token_id(self, token: str) -> int | None:
        found = int(self.processor.piece_to_id(token))
        return found if self.processor.id_to_piece(found) == token else None


class _Tiktoken:
    def __init__(self, content: bytes, path: str, pattern: str) -> None:
        require("tiktoken", "tiktoken")
        import tiktoken

        ranks: dict[bytes, int] = {}
        try:
            for line in content.splitlines():
                if line:
                    token, rank = line.split()
                    ranks[base64.b64decode(token, validate=True)] = int(rank)
            self.encoding = tiktoken.Encoding("pycooldown", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
        except (ValueError, binascii.Error) as error:
            raise ValueError(f"{path} is no .tiktoken file (base64 token and rank a line): {error}") from error
        self._ranks = ranks
        self.specials: dict[str, int] = {}
        self.vocabulary_size = 1 + max(ranks.values(), default=-1)

    def encode(self, texts: list[str]) -> list[Ids]:
        return [np.asarray(self.encoding.encode_to_numpy(text, disallowed_special=()), np.uint32) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        known = [int(id_) for id_ in ids if id_ < self.vocabulary_size]
        return self.encoding.decode_bytes(known).decode("utf-8", "replace")

    def token_id(self, token: str) -> int | None:
        return self._ranks.get(token.encode())
