"""Plan a run: divide the files, choose the validation documents, and prepare the tokenizer."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from pycooldown.data.engines import RunParts
from pycooldown.data.prepare.inputs import InputFile, InputPaths, find_files
from pycooldown.data.prepare.options import Options, TokenizerOptions
from pycooldown.data.prepare.parts import Part, divide
from pycooldown.data.prepare.records import WORK, Setup, part_key
from pycooldown.data.prepare.result_folder import ResultFolder
from pycooldown.data.prepare.split import choose, chosen_name, count_digests, validation_test
from pycooldown.data.prepare.tokenizer_files import TokenizerSpec, prepare_tokenizer, tokenizer_hash
from pycooldown.data.prepare.tokenizer_training import balanced_sample, train_tokenizer
from pycooldown.data.publish import Progress

TOKENIZER = "tokenizer"
PLAN = f"{WORK}/plan.json"
MEANWHILE = "this folder; wait for it, or use another folder"


@dataclass(frozen=True)
class Plan:
    """What a run will do.

    Attributes:
        request: A hash of the requested inputs and options.
        setup: Values common to all parts.
        parts: The parts of all domains, in order.
        ignored: Files of unknown formats in the folders of the inputs.
    """

    request: str
    setup: Setup
    parts: list[Part]
    ignored: list[str]


def make_plan(
    output: ResultFolder,
    inputs: InputPaths,
    tokenizer: TokenizerOptions,
    options: Options,
    run: RunParts,
    report: Progress,
    *,
    reuse: bool,
) -> Plan:
    """Return the plan; with `reuse`, tasks of an array use what one of them has already computed."""
    files, ignored = find_files(inputs)
    parts = {domain: divide(domain, found, options) for domain, found in files.items()}
    if empty := [domain for domain, found in parts.items() if not found]:
        raise ValueError(f"domain {empty[0]!r} is empty: its {len(files[empty[0]])} files have no bytes; leave it out")
    everything = [part for found in parts.values() for part in found]
    with output.lock(f"{WORK}/plan.lock"):
        request = _request(files, tokenizer, options)
        if reuse and (stored := read_json(output, PLAN)) is not None and stored.get("request") == request:
            spec = TokenizerSpec(**stored["tokenizer"])
            spec = replace(spec, path=output.path(f"{WORK}/{TOKENIZER}/{spec.path}"))
            return Plan(request, Setup(output.location, options, spec, stored["chosen"]), everything, ignored)
        output.remove(PLAN)
        chosen = ""
        if options.validation >= 1:
            counts: dict[str, list[tuple[list[bytes], int]]] = {domain: [] for domain in parts}
            for done, (number, found) in enumerate(run(partial(count_digests, options), everything), 1):
                counts[everything[number].domain].append(found)
                report("count", done, len(everything))
            content = b"".join(sorted(choose(counts, int(options.validation))))
            chosen = hashlib.sha256(content).hexdigest()
            output.write(chosen_name(chosen), content)
        with tempfile.TemporaryDirectory(prefix="pycooldown-") as trained:
            source = tokenizer.source
            if tokenizer.train is not None:
                report("tokenizer", 0, 1)
                is_validation = validation_test(output.location, options, chosen)
                size = min(tokenizer.sample_bytes, sum(part.weight for part in everything))
                texts = balanced_sample(parts, options, tau=tokenizer.tau, num_bytes=size, is_validation=is_validation)
                source = train_tokenizer(tokenizer.train, texts, tokenizer.vocabulary_size, Path(trained))
                report("tokenizer", 1, 1)
            assert source is not None
            spec = prepare_tokenizer(
                source,
                output.path(f"{WORK}/{TOKENIZER}"),
                eos=tokenizer.eos,
                bos=tokenizer.bos,
                parse_special_tokens=options.special_tokens == "parse",
                pattern=tokenizer.pattern,
            )
        kept = asdict(spec) | {"path": PurePosixPath(spec.path).name}
        output.write(PLAN, json.dumps({"request": request, "chosen": chosen, "tokenizer": kept}))
    return Plan(request, Setup(output.location, options, spec, chosen), everything, ignored)


def _request(files: Mapping[str, list[InputFile]], tokenizer: TokenizerOptions, options: Options) -> str:
    """Return a hash of everything that the tasks of an array must have in common."""
    stats = {domain: [(file.path, file.size, file.version) for file in found] for domain, found in files.items()}
    asked = asdict(tokenizer)
    if tokenizer.source is not None:
        asked |= {"source": os.fspath(tokenizer.source), "sha256": tokenizer_hash(tokenizer.source)}
    return hashlib.sha256(json.dumps([stats, asked, asdict(options)], sort_keys=True).encode()).hexdigest()


def fingerprint(plan: Plan) -> str:
    """Return a hash of everything in the plan that decides the result."""
    keys = [part_key(plan.setup, part) for part in plan.parts]
    return hashlib.sha256(json.dumps(keys).encode()).hexdigest()


def read_json(output: ResultFolder, name: str) -> dict[str, Any] | None:
    """Return the JSON object in a file, or None if none can be read."""
    try:
        value = json.loads(output.read(name))
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


@contextmanager
def locked(output: ResultFolder, *, shared: bool) -> Iterator[None]:
    """Refuse to write where another process does; tasks of an array may write together."""
    with ExitStack() as stack:
        try:
            stack.enter_context(output.lock(f"{WORK}/lock", shared=shared, wait=False))
        except BlockingIOError as error:
            reason = f"another process is tokenizing into {MEANWHILE}"
            raise BlockingIOError(error.errno, reason, output.location) from None
        yield
