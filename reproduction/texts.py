"""Translations from packed data, as samples of the small Transformer.

English to German, frequent, and to Romanian, rare: both cut to the sizes of a regime.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np

from pycooldown.data import TarDataset
from pycooldown.data.manifest import load_manifest
from pycooldown.huggingface.batches import packed_ids
from reproduction import kept
from reproduction.model import Pair

FREQUENT, RARE = "de", "ro"
VALIDATION = 150  # pairs of each language
SAMPLE_LENGTH = 32  # tokens of a sample, at most half of them English

Sizes = dict[str, int]


@dataclass(frozen=True)
class Texts:
    """Training samples of the domains, one domain after another, and validation samples.

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


def choose_texts(folder: Path, sizes: Sizes, seed: int) -> Texts:
    """Choose training pairs at random by ``seed``; the validation pairs are the same for all seeds.

    Raises:
        ValueError: If the data in ``folder`` have fewer pairs, or lack a language.
    """
    rng = np.random.default_rng(seed)
    train: list[Pair] = []
    for domain, size in sizes.items():
        samples = read_samples(folder, domain, "train")
        if len(samples) < size:
            raise ValueError(
                f"{folder} has {len(samples):,} training pairs of {domain!r}; this regime needs {size:,}: expected a "
                "lower skew, more passes, or fewer steps"
            )
        train += [samples[i] for i in rng.permutation(len(samples))[:size]]
    validation = {d: spread(read_samples(folder, d, "validation"), VALIDATION) for d in sizes}
    return Texts(train, dict(sizes), validation, load_manifest(folder).tokenizer.vocabulary_size)


@cache
def read_samples(folder: Path, domain: str, split: str) -> list[Pair]:
    """Read the samples of one language, cut to ``SAMPLE_LENGTH`` tokens, once per process.

    Raises:
        ValueError: If the packed data in ``folder`` do not have the language.
    """
    manifest = load_manifest(folder)
    if domain not in manifest.domains:
        raise ValueError(f"{folder} has no {domain!r}; pack a corpus with that language")
    dataset = TarDataset({"all": manifest.shards(split)[domain]})
    samples = []
    for packed in dataset.__getitems__(list(range(len(dataset)))):
        source, target = (packed_ids(packed, side).astype(np.int64) for side in ("src", "tgt"))
        source = source[: SAMPLE_LENGTH // 2]
        # The start token of the target is left out, because the end token of the source takes its place.
        samples.append((np.concatenate([source, target[1:]])[:SAMPLE_LENGTH], len(source)))
    return samples


def spread(samples: list[Pair], count: int) -> list[Pair]:
    """Return ``count`` evenly spread samples."""
    return [samples[i] for i in np.linspace(0, len(samples) - 1, min(count, len(samples))).astype(int)]
