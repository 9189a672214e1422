"""Turn documents of many domains into shards of tokens: plan, make every shard, and publish the manifest."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

from pycooldown.data.engines import open_engine
from pycooldown.data.prepare.finish import MANIFEST, finish
from pycooldown.data.prepare.inputs import InputPaths
from pycooldown.data.prepare.make_shards import make_shards
from pycooldown.data.prepare.options import Options, TokenizerOptions
from pycooldown.data.prepare.plan import fingerprint, locked, make_plan, read_json
from pycooldown.data.prepare.records import Record
from pycooldown.data.prepare.result_folder import open_output
from pycooldown.data.publish import Progress
from pycooldown.data.stores import is_url


def tokenize(
    out: str | os.PathLike[str],
    inputs: InputPaths,
    tokenizer: TokenizerOptions,
    options: Options | None = None,
    *,
    workers: int = 1,
    ray: str | None = None,
    task: tuple[int, int] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any] | None:
    """Write the documents of every domain as shards of tokens, which :class:`pycooldown.data.TokenDataset` reads.

    The result has the same bytes for any number of workers and every engine. An interrupted run's finished shards are
    used by the next one: a shard is made again unless its record has the hashes of the shard, the input, the options
    and the tokenizer. `out` has a manifest only while it is complete. The manifest of a run with other inputs or
    options is removed first, and files that only that run needed are removed at the end.

    Args:
        out: The folder of the result, a path or a URL in an object store (`s3://`, `gs://`, `az://`); created if
            missing. For a store, each worker holds a shard in a temporary folder before the upload. Let only one run at
            a time write there.
        inputs: Files, globs or folders of each domain, also in object stores (see
            :func:`pycooldown.data.prepare.inputs.find_files`).
        tokenizer: The tokenizer to use or to train.
        options: What a document is and how it is treated.
        workers: Processes, one core each. With Ray: cores to use, 0 for all.
        ray: The address of a Ray cluster, `"auto"` for the one of this machine, or `"local"` to start one. All its
            machines must reach the inputs, `out` and your own tokenizer, in object stores or a shared file system.
        task: (i, n): make only the i-th of n shares of the shards, with i from 0, for jobs in an array. Each shard
            belongs to one share. A call without `task` finishes: it makes missing shards and writes the manifest.
        progress: Called as `progress(phase, done, total)` with the phases "count", "tokenizer" and "tokenize".

    Returns:
        The manifest; nothing for a task.

    Raises:
        ValueError: If an option is out of range, a domain is empty, or a record is invalid; the message has file and
            line.
        BlockingIOError: If another run writes to `out`, or has written there in the meantime.
        OSError: If a file cannot be read or written, or an object store does not answer.
        RuntimeError: If a worker process dies.
    """
    options = options or Options()
    if task is not None and not 0 <= task[0] < task[1]:
        raise ValueError(f"task = {task[0]}/{task[1]}; expected i/n with 0 <= i < n")
    output = open_output(out)
    if ray is not None:  # its workers have another current folder
        output = open_output(out if is_url(out) else os.path.abspath(out))
        inputs = {
            domain: [
                os.fspath(path) if is_url(path) else os.path.abspath(path)
                for path in ([files] if isinstance(files, (str, os.PathLike)) else files)
            ]
            for domain, files in inputs.items()
        }
    report = progress or (lambda phase, done, total: None)
    with locked(output, shared=task is not None), open_engine(workers=workers, ray=ray) as run:
        plan = make_plan(output, inputs, tokenizer, options, run, report, reuse=task is not None)
        planned = fingerprint(plan)
        if (read_json(output, MANIFEST) or {}).get("fingerprint") != planned:
            output.remove(MANIFEST)
        parts = plan.parts if task is None else plan.parts[task[0] :: task[1]]
        parts = sorted(parts, key=lambda part: -part.weight)
        records: dict[tuple[str, int], Record] = {}
        report("tokenize", 0, len(parts))
        for number, record in run(partial(make_shards, plan.setup), parts):
            records[parts[number].domain, parts[number].index] = record
            report("tokenize", len(records), len(parts))
        return None if task is not None else finish(output, plan, records, planned)


def prepare_plan(
    out: str | os.PathLike[str],
    inputs: InputPaths,
    tokenizer: TokenizerOptions,
    options: Options | None = None,
    *,
    workers: int = 1,
    progress: Progress | None = None,
) -> int:
    """Do the work before the shards, for tasks to use: train the tokenizer and choose the validation documents.

    The arguments are those of :func:`tokenize`.

    Returns:
        The number of parts, each of which becomes a shard; more tasks than that have nothing to do.
    """
    report = progress or (lambda phase, done, total: None)
    output = open_output(out)
    with locked(output, shared=True), open_engine(workers=workers) as run:
        return len(make_plan(output, inputs, tokenizer, options or Options(), run, report, reuse=True).parts)
