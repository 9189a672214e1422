"""The command `tokenize`: turn documents into shards of tokens."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Column, Table

from pycooldown.cli._app import app, console, progress_bars

Task = Annotated[str | None, typer.Option(metavar="I/N", help="Make only share I of N of the shards, counted from 0.")]


@app.command()
def tokenize(
    context: typer.Context,
    out: Annotated[
        str, typer.Argument(help="Folder for the shards, the tokenizer and the manifest, also s3://, gs:// and az://.")
    ],
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="DOMAIN=FILES...",
            help="Files, globs or folders of each domain, also s3://, gs://, az:// and https://; or one folder of "
            "folders, or a YAML.",
        ),
    ],
    tokenizer: Annotated[
        str | None,
        typer.Option(help="tokenizer.json or its folder, SentencePiece .model, or .tiktoken file; also a URL."),
    ] = None,
    train_tokenizer: Annotated[
        Literal["bpe", "sentencepiece"] | None,
        typer.Option(help="Train a tokenizer instead, on a sample of the domains."),
    ] = None,
    vocabulary_size: Annotated[int, typer.Option(help="Vocabulary size of a tokenizer that is trained.")] = 32_000,
    tau: Annotated[
        float, typer.Option(help="Temperature that balances the domains in the sample for training a tokenizer.")
    ] = 3.0,
    sample_bytes: Annotated[
        int, typer.Option(help="Bytes of text in the sample for training a tokenizer.")
    ] = 100_000_000,
    pattern: Annotated[
        str | None, typer.Option(help="Regular expression that splits text into words, for a .tiktoken file.")
    ] = None,
    eos: Annotated[str, typer.Option(help="Token after every document: a name, an id, auto or none.")] = "auto",
    bos: Annotated[str, typer.Option(help="Token before every document: a name, an id, auto or none.")] = "none",
    special_tokens: Annotated[
        Literal["text", "parse"], typer.Option(help="Read names of special tokens in documents as text, or as tokens.")
    ] = "text",
    text_field: Annotated[
        list[str] | None,
        typer.Option(help="Field with the text, by default text; given twice, two fields are joined by a newline."),
    ] = None,
    text_documents: Annotated[
        Literal["file", "line", "paragraph"], typer.Option(help="What one document is in a .txt file.")
    ] = "file",
    validation: Annotated[
        float, typer.Option(help="Share of the documents for validation, or, from 1 on, documents per domain.")
    ] = 0.01,
    seed: Annotated[int, typer.Option(help="Seed of the choice of validation documents.")] = 0,
    on_error: Annotated[
        Literal["raise", "skip"], typer.Option(help="Stop at records that cannot be read, or skip and count them.")
    ] = "raise",
    long_documents: Annotated[
        Literal["refuse", "split"], typer.Option(help="Refuse or split documents longer than --max-document-bytes.")
    ] = "refuse",
    max_document_bytes: Annotated[int, typer.Option(help="Longest text that is encoded in one piece.")] = 4_000_000,
    shard_bytes: Annotated[int, typer.Option(help="Bytes of input for one shard.")] = 64 << 20,
    workers: Annotated[int, typer.Option(help="Processes, one core each; with --ray, 0 means all cores.")] = 1,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Work on a Ray cluster: its address, auto, or local.")
    ] = None,
    task: Task = None,
    slurm: Annotated[
        str | None,
        typer.Option(
            metavar="OPTIONS", help="Submit a Slurm job array with these sbatch options instead of working here."
        ),
    ] = None,
    jobs: Annotated[int, typer.Option(help="Number of jobs in that array.")] = 16,
) -> None:
    """Turn documents into shards of tokens. An interrupted call is continued; a finished one is only checked."""
    from pycooldown.data.prepare import Options, TokenizerOptions, parse_inputs, prepare_plan
    from pycooldown.data.prepare import tokenize as run

    if slurm is not None and task is not None:
        raise ValueError("--slurm submits all tasks itself; leave out --task")
    files = parse_inputs(inputs)
    asked = TokenizerOptions(
        source=tokenizer,
        train=train_tokenizer,
        vocabulary_size=vocabulary_size,
        tau=tau,
        sample_bytes=sample_bytes,
        eos=_special(eos),
        bos=_special(bos),
        pattern=pattern,
    )
    options = Options(
        text_fields=tuple(text_field or ("text",)),
        text_documents=text_documents,
        on_error=on_error,
        long_documents=long_documents,
        max_document_bytes=max_document_bytes,
        special_tokens=special_tokens,
        validation=validation,
        seed=seed,
        shard_bytes=shard_bytes,
    )
    if slurm is not None:
        from pycooldown.data.prepare.records import WORK
        from pycooldown.data.prepare.slurm import submit
        from pycooldown.data.stores import is_url

        with progress_bars() as progress:
            parts = prepare_plan(out, files, asked, options, workers=workers, progress=progress)
        folder = Path("tokenize-slurm").absolute() if is_url(out) else Path(out, WORK, "slurm")
        array, finish = submit(folder, _again(context), jobs=min(jobs, parts), options=slurm)
        console.print(f"submitted {array} ({min(jobs, parts)} tasks) and {finish}, which finishes")
        return
    with progress_bars() as progress:
        manifest = run(
            out, files, asked, options, workers=workers, ray=ray, task=_task(task) if task else None, progress=progress
        )
    if manifest is None:
        console.print(f"task {task}: its shards are made; the command without --task finishes")
    else:
        _show(out, manifest)


def _special(text: str) -> str | int | None:
    return None if text == "none" else int(text) if text.isdecimal() else text


def _task(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal()):
        raise ValueError(f"--task {text}; expected I/N, as in 0/16")
    return int(number), int(count)


def _again(context: typer.Context) -> list[str]:
    """Return the words of this command, without the Slurm options."""
    arguments: list[str] = []
    words: list[str] = []
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        if parameter.name in ("slurm", "jobs") or value is None or value == parameter.default:
            continue
        values = [str(item) for item in (value if isinstance(value, (list, tuple)) else [value])]
        if parameter.param_type_name == "argument":
            arguments += values
        else:
            words += [word for item in values for word in (parameter.opts[0], item)]
    return [sys.executable, "-m", "pycooldown.cli", "tokenize", *arguments, *words]


def _show(out: str, manifest: dict[str, Any]) -> None:
    names = ("documents", "characters", "tokens", "validation documents", "left out")
    table = Table("domain", *(Column(name, justify="right") for name in names), title=out)
    for domain, splits in sorted(manifest["domains"].items(), key=lambda item: -item[1]["train"]["tokens"]):
        train = splits["train"]
        counts = (train["documents"], train["characters"], train["tokens"], splits["validation"]["documents"])
        left_out = ", ".join(f"{n:,} {kind}" for kind, n in manifest["left_out"][domain].items() if n) or "0"
        table.add_row(domain, *(f"{count:,}" for count in counts), left_out)
    console.print(table)
    for domain, documents in manifest["preview"].items():
        for document in documents[:1]:
            shown = " ".join(document["decoded"].split())[:100]
            console.print(f"{domain}: {shown}", soft_wrap=True)
