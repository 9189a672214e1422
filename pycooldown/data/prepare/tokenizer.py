"""Load a tokenizer of any of three kinds, and encode texts in batches into arrays of ids."""

from __future__ import annotations

import base64
import binascii
import json
import shutil
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pycooldown._extras import require
from pycooldown._files import sha256

Ids = npt.NDArray[np.uint32]
KINDS = ("huggingface", "sentencepiece", "tiktoken")
# What tokenizers call the end of a document, where their files do not say which token it is.
EOS_NAMES = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[EOS]")
EXPECTED = "a Hugging Face tokenizer.json or its folder, a SentencePiece .model, or a .tiktoken file"


@dataclass(frozen=True)
class TokenizerSpec:
    """A tokenizer's file and how it is used.

    Attributes:
        path: The file.
        kind: `"huggingface"`, `"sentencepiece"` or `"tiktoken"`.
        sha256: Of the file.
        library: What encodes with it, and its version, as in "tokenizers 0.23.3": another may give other ids.
        vocabulary_size: Number of token ids.
        eos_id: Id behind every document; `None` for none.
        bos_id: Id before every document; `None` for none.
        parse_special_tokens: Whether names of special tokens in a text become these tokens.
        pattern: The regular expression that divides a text into words, of tiktoken.
    """

    path: str
    kind: str
    sha256: str
    library: str
    vocabulary_size: int
    eos_id: int | None
    bos_id: int | None
    parse_special_tokens: bool
    pattern: str = ""


class Encoder(Protocol):
    """What every kind of tokenizer can do."""

    @property
    def vocabulary_size(self) -> int:
        """Number of token ids: one more than the largest."""

    def encode(self, texts: list[str]) -> list[Ids]:
        """Return the ids of each text, without BOS and EOS."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, special tokens included where the tokenizer can show them."""

    def token_id(self, token: str) -> int | None:
        """Return the id of a token; `None` if there is none of this name."""


def prepare_tokenizer(
    source: Path,
    folder: Path,
    *,
    eos: str | int | None = "auto",
    bos: str | int | None = None,
    parse_special_tokens: bool = False,
    pattern: str | None = None,
) -> TokenizerSpec:
    """Copy a tokenizer into `folder` and find its special tokens.

    Args:
        source: A Hugging Face `tokenizer.json` or a folder with one, a SentencePiece `.model` (or a folder with
            `tokenizer.model`), or a `.tiktoken` file.
        folder: Where to put the copy; made if missing.
        eos: The token behind every document: its name, its id, `None` for none, or `"auto"` for what the tokenizer's
            files say, or else the one token with a usual name.
        bos: The token before every document: a name, an id, `None` for none, or `"auto"` for what the files say.
        parse_special_tokens: Encode names of special tokens in a text as these tokens.
        pattern: Regular expression of words, which a `.tiktoken` file needs and others have themselves.

    Raises:
        ValueError: If the file is of no known kind or damaged, or a special token cannot be found.
        OSError: If a file cannot be read or written.
    """
    file, kind = _find(source)
    if (kind == "tiktoken") != (pattern is not None):
        raise ValueError(
            f"{file} needs pattern, the regular expression of its words, as tiktoken's Encoding has it in `_pat_str`"
            if kind == "tiktoken"
            else f"pattern is for .tiktoken files; {file} is of kind {kind}"
        )
    encoder = _load(str(file), kind, parse_special_tokens, pattern or "")
    names: dict[str, Any] = {}
    extras: list[Path] = []
    if kind == "sentencepiece":
        names = {role: id_ for role, id_ in _sentencepiece_specials(encoder).items() if id_ >= 0}
    elif kind == "huggingface" and source.is_dir():
        names = _declared(source)
        extras = [source / extra for extra in ("tokenizer_config.json", "special_tokens_map.json")]
    eos_id, bos_id = (_special(encoder, file, role, asked, names) for role, asked in (("eos", eos), ("bos", bos)))
    target = folder / {"huggingface": "tokenizer.json", "sentencepiece": "tokenizer.model"}.get(kind, file.name)
    if file.resolve() != target.resolve():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for path in (file, *(extra for extra in extras if extra.is_file())):
            shutil.copyfile(path, target if path == file else folder / path.name)
    digest = sha256(target)
    size = max(encoder.vocabulary_size, 1 + max(eos_id or 0, bos_id or 0))
    return TokenizerSpec(
        str(target), kind, digest, _library(kind), size, eos_id, bos_id, parse_special_tokens, pattern or ""
    )


@lru_cache(maxsize=2)
def load_encoder(spec: TokenizerSpec) -> Encoder:
    """Load a tokenizer, once in a process.

    Raises:
        ValueError: If its file or library is not the one that was prepared.
    """
    if (found := sha256(Path(spec.path))) != spec.sha256:
        raise ValueError(f"{spec.path} has SHA-256 {found}; expected {spec.sha256}: it was changed; run again")
    if (library := _library(spec.kind)) != spec.library:
        raise ValueError(f"this machine has {library}, but the run was planned with {spec.library}; install the same")
    return _load(spec.path, spec.kind, spec.parse_special_tokens, spec.pattern)


def _library(kind: str) -> str:
    name = {"huggingface": "tokenizers"}.get(kind, kind)
    return f"{name} {version(name)}"


def _load(path: str, kind: str, parse_special_tokens: bool, pattern: str) -> Encoder:
    if kind == "huggingface":
        return _HuggingFace(path, parse_special_tokens)
    if parse_special_tokens:
        raise ValueError(f"special_tokens = 'parse' is for Hugging Face tokenizers; {path} is of kind {kind}")
    return _SentencePiece(path) if kind == "sentencepiece" else _Tiktoken(path, pattern)


def _find(source: Path) -> tuple[Path, str]:
    candidates = [source / "tokenizer.json", source / "tokenizer.model"] if source.is_dir() else [source]
    for file in candidates:
        if file.is_file():
            kind = {".json": "huggingface", ".model": "sentencepiece", ".tiktoken": "tiktoken"}.get(file.suffix)
            if kind:
                return file, kind
    raise ValueError(f"tokenizer {str(source)!r} is not there or of no known kind; expected {EXPECTED}")


def _declared(folder: Path) -> dict[str, str]:
    """Return the special tokens that a Hugging Face folder names."""
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    found = {}
    for role in ("eos", "bos"):
        token = config.get(f"{role}_token")
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            found[role] = token
    return found


def _sentencepiece_specials(encoder: Encoder) -> dict[str, int]:
    assert isinstance(encoder, _SentencePiece)
    return {"eos": encoder.processor.eos_id(), "bos": encoder.processor.bos_id()}


def _special(encoder: Encoder, file: Path, role: str, asked: str | int | None, declared: dict[str, Any]) -> int | None:
    """Return the id that `asked` names."""
    if asked is None:
        return None
    if asked == "auto":
        asked = declared.get(role)
        if asked is None and role == "eos":
            known = [name for name in EOS_NAMES if encoder.token_id(name) is not None]
            asked = known[0] if len(known) == 1 else None
        if asked is None:
            raise ValueError(
                f"{role} = 'auto', but {file} does not say which token that is; name it ({role}='</s>' or its id), or "
                f"use {role}=None (--{role} none)"
            )
    if isinstance(asked, int):
        if not 0 <= asked < 1 << 32:
            raise ValueError(f"{role} = {asked}; expected a token id, 0 to 2^32 - 1")
        return asked
    if (found := encoder.token_id(asked)) is None:
        raise ValueError(f"{role} = {asked!r} is no token of {file}; expected one of its tokens, or an id")
    return found


class _HuggingFace:
    def __init__(self, path: str, parse_special_tokens: bool) -> None:
        require("prepare", "tokenizers")
        from tokenizers import Tokenizer

        try:
            self.tokenizer = Tokenizer.from_file(path)
        except Exception as error:  # of the Rust code, without a class of its own
            raise ValueError(f"{path} is no tokenizer.json that `tokenizers` can read: {error}") from error
        self.tokenizer.no_truncation()  # many files have these from the training of a model
        self.tokenizer.no_padding()
        self.tokenizer.encode_special_tokens = not parse_special_tokens
        self.vocabulary_size = 1 + max(self.tokenizer.get_vocab(with_added_tokens=True).values())

    def encode(self, texts: list[str]) -> list[Ids]:
        encodings = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        # The quickest way out of a list of ints, 3 % of the time of encoding.
        return [np.frombuffer(array("I", encoding.ids), np.uint32) for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))

    def token_id(self, token: str) -> int | None:
        found = self.tokenizer.token_to_id(token)
        return None if found is None else int(found)


class _SentencePiece:
    def __init__(self, path: str) -> None:
        require("prepare", "sentencepiece")
        import sentencepiece

        try:
            self.processor = sentencepiece.SentencePieceProcessor(model_file=path)
        except (RuntimeError, OSError) as error:
            raise ValueError(f"{path} is no SentencePiece model: {error}") from error
        self.vocabulary_size = int(self.processor.get_piece_size())

    def encode(self, texts: list[str]) -> list[Ids]:
        return [np.frombuffer(array("I", ids), np.uint32) for ids in self.processor.encode(texts, num_threads=1)]

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.processor.decode(list(map(int, ids))))

    def token_id(self, token: str) -> int | None:
        found = int(self.processor.piece_to_id(token))
        return found if self.processor.id_to_piece(found) == token else None


class _Tiktoken:
    def __init__(self, path: str, pattern: str) -> None:
        require("tiktoken", "tiktoken")
        import tiktoken

        ranks: dict[bytes, int] = {}
        try:
            for line in Path(path).read_bytes().splitlines():
                if line:
                    token, rank = line.split()
                    ranks[base64.b64decode(token, validate=True)] = int(rank)
            self.encoding = tiktoken.Encoding("pycooldown", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
        except (ValueError, binascii.Error) as error:
            raise ValueError(f"{path} is no .tiktoken file (base64 token and rank a line): {error}") from error
        self._ranks = ranks
        self.vocabulary_size = 1 + max(ranks.values(), default=-1)

    def encode(self, texts: list[str]) -> list[Ids]:
        return [np.asarray(self.encoding.encode_to_numpy(text, disallowed_special=()), np.uint32) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        known = [int(id_) for id_ in ids if id_ < self.vocabulary_size]
        return self.encoding.decode_bytes(known).decode("utf-8", "replace")

    def token_id(self, token: str) -> int | None:
        return self._ranks.get(token.encode())
