"""The command `pack`: prepare packed data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from pycooldown.cli._app import app, console, names, progress_bars, right


@app.command()
def pack(
    corpus: Annotated[Path, typer.Argument(help="Folder with <domain>/{train,validation}.jsonl.")],
    out: Annotated[Path, typer.Argument(help="Folder for the tar shards, tokenizer and manifest.")],
    domains: Annotated[str | None, typer.Option(help="Domains, comma-separated; all by default.")] = None,
    vocabulary_size: Annotated[int, typer.Option(help="Token ids of the SentencePiece model.")] = 4000,
) -> None:
    """Train a tokenizer and write webdataset tar shards for each domain."""
    from pycooldown.data.pack import pack

    with progress_bars() as progress:
        manifest = pack(corpus, out, domains=names(domains), vocabulary_size=vocabulary_size, progress=progress)
    columns = [right(column) for column in ("train samples", "tokens", "validation samples")]
    table = Table("domain", *columns, title=str(out))
    tokens, validation = manifest.tokens("train"), manifest.sizes("validation")
    for domain, size in sorted(manifest.sizes("train").items(), key=lambda item: -item[1]):
        table.add_row(domain, f"{size:,}", f"{tokens[domain]:,}", f"{validation[domain]:,}")
    console.print(table)
