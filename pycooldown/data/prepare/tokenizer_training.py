"""Train a tokenizer on a sample of the documents that is balanced over the domains."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pycooldown._extras import require
from pycooldown.data.prepare.formats import Faults
from pycooldown.data.prepare.options import Options
from pycooldown.data.prepare.parts import FileRange, Part
from pycooldown.data.prepare.readers import read_documents
from pycooldown.data.prepare.sentencepiece_training import train_sentencepiece
from pycooldown.mixture import temperature

TokenizerKind = Literal["bpe", "sentencepiece"]
EOS, PAD = "<|endoftext|>", "<|pad|>"


def train_tokenizer(kind: TokenizerKind, texts: Iterable[str], vocabulary_size: int, folder: Path) -> Path:
    """Train a tokenizer and write it into `folder`. The same texts give the same bytes.

    Args:
        kind: `"bpe"`, byte-pair encoding of bytes by `tokenizers`, with the special tokens `<|endoftext|>` and
            `<|pad|>`; or `"sentencepiece"`, a byte-pair model with byte fallback. Both can spell every text.
        texts: The sample.
        vocabulary_size: Number of token ids, special ones included.
        folder: Must exist.

    Returns:
        Path of the file.

    Raises:
        ValueError: If an option is out of range or the sample is too small for the vocabulary.
    """
    if kind == "bpe":
        path = folder / "tokenizer.json"
        path.write_text(_byte_level_bpe(texts, vocabulary_size), encoding="utf-8")
    elif kind == "sentencepiece":
        path = folder / "tokenizer.model"
        # It ignores texts longer than its limit for a sentence, so it gets single lines.
        lines = (line for text in texts for line in text.splitlines() if line)
        path.write_bytes(train_sentencepiece(lines, vocabulary_size))
    else:
        raise ValueError(f"train_tokenizer = {kind!r}; expected 'bpe' or 'sentencepiece'")
    return path


def balanced_sample(
    parts: Mapping[str, Sequence[Part]],
    options: Options,
    *,
    tau: float,
    num_bytes: int,
    is_validation: Callable[[bytes], bool],
) -> Iterator[str]:
    """Yield training documents, with the share of bytes that :func:`pycooldown.temperature` gives each domain.

    The sizes of the domains are those of their files; compressed ones count four times. In a domain, every file
    contributes documents from its top, in equal shares; a domain that has too few is repeated.

    Args:
        parts: The parts of each domain.
        options: What a document is.
        tau: Temperature; 1 is proportional to the sizes, larger is flatter.
        num_bytes: Size of the sample in UTF-8.
        is_validation: Return whether a document is left out.
    """
    shares = temperature([sum(part.weight for part in domain) for domain in parts.values()], tau)
    for domain, share in zip(parts.values(), shares):
        ranges = [file_range for part in domain for file_range in part.ranges]
        left = max(round(num_bytes * float(share)), 1)
        while left > 0:
            before = left
            for number, file_range in enumerate(ranges):
                quota = -(-left // (len(ranges) - number))
                for text in _training_documents(file_range, options, is_validation):
                    size = len(text.encode("utf-8"))
                    yield text if size <= quota else text[:quota]
                    left, quota = left - min(size, quota), quota - size
                    if quota <= 0:
                        break
                if left <= 0:
                    break
            if left == before:
                break  # nothing to train on here


def _training_documents(
    file_range: FileRange, options: Options, is_validation: Callable[[bytes], bool]
) -> Iterator[str]:
    for text, data in read_documents(file_range, options, Faults(options.on_error)):
        if data and not is_validation(data):
            yield text


def _byte_level_bpe(texts: Iterable[str], vocabulary_size: int) -> str:
    require("prepare", "tokenizers")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocabulary_size < (least := len(alphabet) + 2):
        raise ValueError(f"vocabulary_size = {vocabulary_size}; expected at least {least}: all bytes, {EOS} and {PAD}")
    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[EOS, PAD],
        initial_alphabet=alphabet,
        max_token_length=64,  # otherwise a rare, repeated domain gets whole sentences as tokens
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return str(tokenizer.to_str(pretty=True))
