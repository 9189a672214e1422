"""Plan a run: divide the files, choose the validation documents, get the tokenizer ready."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pycooldown._files import lock_file, sha256, write_atomically
from pycooldown.data.prepare.engines import RunParts
from pycooldown.data.prepare.inputs import InputFile, InputPaths, find_files
from pycooldown.data.prepare.options import Options, TokenizerOptions
from pycooldown.data.prepare.parts import Part, divide
from pycooldown.data.prepare.records import WORK, Setup, part_key
from pycooldown.data.prepare.split import choose, chosen_path, count_digests, validation_test
from pycooldown.data.prepare.tokenizer import TokenizerSpec, prepare_tokenizer
from pycooldown.data.prepare.tokenizer_training import balanced_sample, train_tokenizer
from pycooldown.data.publish import Progress

TOKENIZER = "tokenizer"


@dataclass(frozen=True)
class Plan:
    """What a run will do.

    Attributes:
        setup: What all parts have in common.
        parts: Those of all domains, in order.
        ignored: Files of unknown formats in the folders of the inputs.
    """

    setup: Setup
    parts: list[Part]
    ignored: list[str]


def make_plan(
    folder: Path,
    inputs: InputPaths,
    tokenizer: TokenizerOptions,
    options: Options,
    run: RunParts,
    report: Progress,
    *,
    reuse: bool,
) -> Plan:
    """Return the plan; tasks of an array `reuse` what one of them has found out."""
    files, ignored = find_files(inputs)
    parts = {domain: divide(domain, found, options) for domain, found in files.items()}
    if empty := [domain for domain, found in parts.items() if not found]:
        raise ValueError(f"domain {empty[0]!r} is empty: its {len(files[empty[0]])} files have no bytes; leave it out")
    everything = [part for found in parts.values() for part in found]
    path = folder / WORK / "plan.json"
    (folder / WORK).mkdir(parents=True, exist_ok=True)
    with lock_file(folder / WORK / "plan.lock"):
        request = _request(files, tokenizer, options)
        if reuse and (stored := read_json(path)) is not None and stored.get("request") == request:
            spec = TokenizerSpec(**stored["tokenizer"])
            spec = replace(spec, path=str(folder / WORK / TOKENIZER / spec.path))
            return Plan(Setup(str(folder), options, spec, stored["chosen"]), everything, ignored)
        path.unlink(missing_ok=True)
        chosen = ""
        if options.validation >= 1:
            counts: dict[str, list[tuple[list[bytes], int]]] = {domain: [] for domain in parts}
            for done, (number, found) in enumerate(run(partial(count_digests, options), everything), 1):
                counts[everything[number].domain].append(found)
                report("count", done, len(everything))
            content = b"".join(sorted(choose(counts, int(options.validation))))
            chosen = hashlib.sha256(content).hexdigest()
            write_atomically(chosen_path(str(folder), chosen), content)
        is_validation = validation_test(str(folder), options, chosen)
        source = Path(tokenizer.source) if tokenizer.source is not None else None
        if source is None:
            report("tokenizer", 0, 1)
            trained = folder / WORK / "trained"
            shutil.rmtree(trained, ignore_errors=True)
            trained.mkdir(parents=True)
            size = min(tokenizer.sample_bytes, sum(part.weight for part in everything))
            texts = balanced_sample(parts, options, tau=tokenizer.tau, num_bytes=size, is_validation=is_validation)
            assert tokenizer.train is not None
            source = train_tokenizer(tokenizer.train, texts, tokenizer.vocabulary_size, trained)
            report("tokenizer", 1, 1)
        spec = prepare_tokenizer(
            source,
            folder / WORK / TOKENIZER,
            eos=tokenizer.eos,
            bos=tokenizer.bos,
            parse_special_tokens=options.special_tokens == "parse",
            pattern=tokenizer.pattern,
        )
        stored = {"request": request, "chosen": chosen, "tokenizer": asdict(spec) | {"path": Path(spec.path).name}}
        write_atomically(path, json.dumps(stored))
    return Plan(Setup(str(folder), options, spec, chosen), everything, ignored)


def _request(files: Mapping[str, list[InputFile]], tokenizer: TokenizerOptions, options: Options) -> str:
    """What the tasks of an array must have in common."""
    stats = {domain: [(file.path, file.size, file.version) for file in found] for domain, found in files.items()}
    asked = asdict(tokenizer) | {"source": tokenizer.source and os.fspath(tokenizer.source)}
    if tokenizer.source is not None and os.path.isfile(tokenizer.source):
        asked["sha256"] = sha256(Path(tokenizer.source))
    return hashlib.sha256(json.dumps([stats, asked, asdict(options)], sort_keys=True).encode()).hexdigest()


def fingerprint(plan: Plan) -> str:
    """Return the hash of everything that the plan knows of the result."""
    keys = [part_key(plan.setup, part) for part in plan.parts]
    return hashlib.sha256(json.dumps(keys).encode()).hexdigest()


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the object in a file; nothing if there is none that can be read."""
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


@contextmanager
def locked(folder: Path, *, shared: bool) -> Iterator[None]:
    """Refuse to write where another process does; tasks of an array may do so together."""
    (folder / WORK).mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(lock_file(folder / WORK / "lock", shared=shared, wait=False))
        except BlockingIOError as error:
            reason = "another process is tokenizing into this folder; wait for it, or use another folder"
            raise BlockingIOError(error.errno, reason, str(folder)) from None
        yield
