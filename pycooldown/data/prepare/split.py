"""Choose the validation documents by a keyed hash of their text.

Only the text decides. So a document that occurs twice, in one domain or in two, is always on the same side, for any
order and division of the files. With a share, a document is for validation if its hash, as a number in [0, 1), is below
the share. With a number n, each domain chooses its n documents of smallest hash: at most a quarter of its documents,
but at least one of two. A document chosen by one domain is for validation in all domains. This needs one pass over all
documents before they are tokenized.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache

from pycooldown.data.prepare.formats import Faults
from pycooldown.data.prepare.options import Options
from pycooldown.data.prepare.parts import Part
from pycooldown.data.prepare.readers import read_documents
from pycooldown.data.prepare.records import WORK
from pycooldown.data.prepare.result_folder import open_output

Digest = bytes


def keyed_hash(seed: int) -> Callable[[bytes], Digest]:
    """Return the function that hashes a document's UTF-8 bytes to 16 bytes."""
    key = f"pycooldown validation {seed}".encode()[:64]
    return lambda text: hashlib.blake2b(text, digest_size=16, key=key).digest()


def below(share: float) -> Digest:
    """Return the digest below which a given share of all digests lies."""
    return min(int(share * 2**128), 2**128 - 1).to_bytes(16, "big")


def smallest(digests: Iterable[Digest], count: int) -> tuple[list[Digest], int]:
    """Return the `count` smallest distinct digests, in order, and the number of all digests."""
    kept: set[Digest] = set()
    heap: list[int] = []  # negated, so that the largest kept digest is on top
    total = 0
    for digest in digests:
        total += 1
        if digest in kept:
            continue
        number = int.from_bytes(digest, "big")
        if len(heap) < count:
            heapq.heappush(heap, -number)
            kept.add(digest)
        elif number < -heap[0]:
            kept.remove((-heapq.heapreplace(heap, -number)).to_bytes(16, "big"))
            kept.add(digest)
    return sorted(kept), total


def choose(candidates: Mapping[str, Iterable[tuple[list[Digest], int]]], count: int) -> set[Digest]:
    """Return the digests that are for validation, from the results of :func:`smallest` in the parts of each domain."""
    chosen: set[Digest] = set()
    for parts in candidates.values():
        digests: set[Digest] = set()
        documents = 0
        for part, total in parts:
            digests.update(part)
            documents += total
        limit = min(count, max(documents // 4, int(documents >= 2)))
        chosen.update(sorted(digests)[:limit])
    return chosen


def count_digests(options: Options, part: Part) -> tuple[list[bytes], int]:
    """Return the smallest distinct digests of a part's documents, as many as may be chosen, and the number of all."""
    digest = keyed_hash(options.seed)
    faults = Faults(options.on_error)
    documents = (document for file_range in part.ranges for document in read_documents(file_range, options, faults))
    return smallest((digest(data) for _, data in documents if data), int(options.validation))


def validation_test(out: str, options: Options, chosen: str) -> Callable[[bytes], bool]:
    """Return a function of a document's UTF-8 bytes that decides whether it is for validation."""
    share, digest = options.validation, keyed_hash(options.seed)
    if not share:
        return lambda data: False
    if share < 1:
        bound = below(share)
        return lambda data: digest(data) < bound
    digests = _chosen(out, chosen)
    return lambda data: digest(data) in digests


def chosen_name(chosen: str) -> str:
    """Return the name of the file of chosen digests, relative to the output, from its SHA-256."""
    return f"{WORK}/validation-{chosen[:16]}"


@lru_cache(maxsize=1)
def _chosen(out: str, chosen: str) -> frozenset[bytes]:
    output, name = open_output(out), chosen_name(chosen)
    content = output.read(name)
    if hashlib.sha256(content).hexdigest() != chosen:
        raise ValueError(f"{output.path(name)} was changed; run again")
    return frozenset(content[i : i + 16] for i in range(0, len(content), 16))
