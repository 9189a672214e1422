"""Find a tokenizer and its special tokens, and store a copy with the result."""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from typing import Any

from pycooldown.data.prepare.encoders import Encoder, open_encoder
from pycooldown.data.prepare.result_folder import open_output
from pycooldown.data.stores import find_object, is_url, open_binary

KINDS = {".json": "huggingface", ".model": "sentencepiece", ".tiktoken": "tiktoken"}  # by the suffix of the file
EXTRAS = ("tokenizer_config.json", "special_tokens_map.json")
# Usual names of the end-of-document token, for tokenizers whose files do not state it.
EOS_NAMES = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[EOS]")
EXPECTED = "a Hugging Face tokenizer.json or its folder, a SentencePiece .model, or a .tiktoken file"


@dataclass(frozen=True)
class TokenizerSpec:
    """A tokenizer's file and how it is used.

    Attributes:
        path: The path or URL of the file.
        kind: `"huggingface"`, `"sentencepiece"` or `"tiktoken"`.
        sha256: The SHA-256 of the file.
        library: The library that encodes with it and its version, as in "tokenizers 0.23.3". Another one may give other
            ids.
        vocabulary_size: The number of token ids.
        eos_id: The id after every document; `None` for none.
        bos_id: The id before every document; `None` for none.
        parse_special_tokens: Whether names of special tokens in a text become these tokens.
        pattern: For tiktoken, the regular expression that divides a text into words.
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


def prepare_tokenizer(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    eos: str | int | None = "auto",
    bos: str | int | None = None,
    parse_special_tokens: bool = False,
    pattern: str | None = None,
) -> TokenizerSpec:
    """Copy a tokenizer into `folder` and find its special tokens.

    Args:
        source: A Hugging Face `tokenizer.json` or a folder with one, a SentencePiece `.model` (or a folder with
            `tokenizer.model`), or a `.tiktoken` file; a path or a URL.
        folder: Where to put the copy, a path or a URL; other files there are removed.
        eos: The token after every document: its name, its id, `None` for none, or `"auto"` for the one stated in the
            tokenizer's files, or else the only token with a usual name.
        bos: The token before every document: a name, an id, `None` for none, or `"auto"` for the one stated in the
            files.
        parse_special_tokens: Whether to encode names of special tokens in a text as these tokens.
        pattern: The regular expression of words. A `.tiktoken` file needs it; other tokenizers contain it.

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
    content = _read(file)
    encoder = open_encoder(content, file, kind, parse_special_tokens, pattern or "")
    name = {"huggingface": "tokenizer.json", "sentencepiece": "tokenizer.model"}.get(kind, posixpath.basename(file))
    contents = {name: content}
    declared: dict[str, Any] = dict(encoder.specials)
    if kind == "huggingface" and file != os.fspath(source):
        extras = (posixpath.join(posixpath.dirname(file), extra) for extra in EXTRAS)
        contents |= {posixpath.basename(extra): _read(extra) for extra in extras if _is_file(extra)}
        declared = _declared(file, contents.get("tokenizer_config.json", b"{}"))
    eos_id, bos_id = (_special(encoder, file, role, asked, declared) for role, asked in (("eos", eos), ("bos", bos)))
    output = open_output(folder)
    for other in set(output.names("")) - contents.keys():
        output.remove(other)
    for target, data in contents.items():
        output.write(target, data)
    return TokenizerSpec(
        path=output.path(name),
        kind=kind,
        sha256=hashlib.sha256(content).hexdigest(),
        library=_library(kind),
        vocabulary_size=max(encoder.vocabulary_size, 1 + max(eos_id or 0, bos_id or 0)),
        eos_id=eos_id,
        bos_id=bos_id,
        parse_special_tokens=parse_special_tokens,
        pattern=pattern or "",
    )


def tokenizer_hash(source: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a tokenizer's file.

    Raises:
        ValueError: If it does not exist or is of no known kind.
    """
    return hashlib.sha256(_read(_find(source)[0])).hexdigest()


@lru_cache(maxsize=2)
def load_encoder(spec: TokenizerSpec) -> Encoder:
    """Load a tokenizer, once per process.

    Raises:
        ValueError: If its file or library differs from the prepared one.
    """
    content = _read(spec.path)
    if (found := hashlib.sha256(content).hexdigest()) != spec.sha256:
        raise ValueError(f"{spec.path} has SHA-256 {found}; expected {spec.sha256}: it has changed; run again")
    if (library := _library(spec.kind)) != spec.library:
        raise ValueError(f"this machine has {library}, but the run was planned with {spec.library}; install the same")
    return open_encoder(content, spec.path, spec.kind, spec.parse_special_tokens, spec.pattern)


def _library(kind: str) -> str:
    name = {"huggingface": "tokenizers"}.get(kind, kind)
    return f"{name} {version(name)}"


def _find(source: str | os.PathLike[str]) -> tuple[str, str]:
    """Return the path or URL of a tokenizer's file, and its kind."""
    source = os.fspath(source)
    for file in (source, posixpath.join(source, "tokenizer.json"), posixpath.join(source, "tokenizer.model")):
        kind = KINDS.get(posixpath.splitext(file)[1])
        if kind and _is_file(file):
            return file, kind
    raise ValueError(
        f"tokenizer {source!r} does not exist or is of no known kind; expected {EXPECTED}. If there is none yet, "
        "--train-tokenizer bpe (TokenizerOptions(train='bpe')) trains one on the documents"
    )


def _is_file(path: str) -> bool:
    return find_object(path) is not None if is_url(path) else os.path.isfile(path)


def _read(path: str) -> bytes:
    with open_binary(path) as file:
        return file.read()


def _declared(file: str, content: bytes) -> dict[str, str]:
    """Return the special tokens that the `tokenizer_config.json` beside a file names."""
    try:
        config = json.loads(content)
    except ValueError as error:
        raise ValueError(f"tokenizer_config.json beside {file} is not JSON: {error}") from error
    found = {}
    for role in ("eos", "bos"):
        token = config.get(f"{role}_token")
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            found[role] = token
    return found


def _special(encoder: Encoder, file: str, role: str, asked: str | int | None, declared: dict[str, Any]) -> int | None:
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
