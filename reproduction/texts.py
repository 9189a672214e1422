"""Translations from packed data, as samples of the small Transformer.

English-{German, Romanian}: German as it is, Romanian cut to ``NUM_ROMANIAN`` pairs, as skewed as English-Romanian is
among the pairs of Li et al. (NAACL 2025).
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np

from pycooldown.data import TarDataset
from pycooldown.data.manifest import load_manifest
from reproduction import kept
from reproduction.model import MAX_LENGTH, Pair

HIGH, LOW = "de", "ro"
NUM_ROMANIAN = 240
VALIDATION = 300  # pairs of each language

Sizes = dict[str, int]


@dataclass(frozen=True)
class Texts:
    """Training samples of the domains, laid end to end, and validation samples.

    Attributes:
        train: Training samples.
        sizes: Number of training samples of each domain, in order.
        validation: Validation samples of each domain.
        vocabulary_size: Number of token ids.
    """

    train: list[Pair]
    sizes: Sizes
    validation: dict[str, list[Pair]]
    vocabulary_size: int

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all samples."""

        def parts() -> Iterator[bytes]:
            yield repr((self.sizes, list(self.validation), self.vocabulary_size)).encode()
            for samples in (self.train, *self.validation.values()):
                for tokens, prefix in samples:
                    yield tokens.tobytes() + prefix.to_bytes(4, "little")

        return kept.digest(parts())


@cache
def read_texts(folder: Path) -> Texts:
    """Read packed data that hold both languages, once in a process.

    Raises:
        ValueError: If a language is missing.
    """
    high, low = (read_samples(folder, domain, "train") for domain in (HIGH, LOW))
    low = spread(low, NUM_ROMANIAN)
    validation = {d: spread(read_samples(folder, d, "validation"), VALIDATION) for d in (HIGH, LOW)}
    vocabulary_size = load_manifest(folder).tokenizer.vocabulary_size
    return Texts([*high, *low], {HIGH: len(high), LOW: len(low)}, validation, vocabulary_size)


def read_samples(folder: Path, domain: str, split: str, max_length: int = MAX_LENGTH) -> list[Pair]:
    """Read the samples of one language, cut to ``max_length`` tokens of which at most half are English.

    Raises:
        ValueError: If the packed data in ``folder`` do not have the language.
    """
    manifest = load_manifest(folder)
    if domain not in manifest.domains:
        raise ValueError(f"{folder} has no {domain!r}; pack a corpus with that language")
    dataset = TarDataset({"all": manifest.shards(split)[domain]})
    samples = []
    for packed in dataset.__getitems__(list(range(len(dataset)))):
        source, target = (
            np.load(io.BytesIO(packed[f"{side}.npy"]), allow_pickle=False).astype(np.int64) for side in ("src", "tgt")
        )
        source = source[: max_length // 2]
        # The start token of the target is left out: the end token of the source takes its place.
        samples.append((np.concatenate([source, target[1:]])[:max_length], len(source)))
    return samples


def spread(samples: list[Pair], count: int) -> list[Pair]:
    """Return ``count`` of the samples, evenly spread."""
    return [samples[i] for i in np.linspace(0, len(samples) - 1, min(count, len(samples))).astype(int)]
