"""The command `index`: write an index of tar shards."""

from __future__ import annotations

import os
from typing import Annotated, Literal

import typer
from rich.table import Table

from pycooldown.cli._app import app, console, progress_bars, right


@app.command()
def index(
    shards: Annotated[
        list[str],
        typer.Argument(
            metavar="DOMAIN=SHARDS...",
            help="Tar files of each domain: paths, s3://, gs://, az:// and https://, also with braces or wildcards; or "
            "one folder of folders.",
        ),
    ],
    out: Annotated[
        str | None, typer.Option(help="File for the index; for a local folder, dataset.idx in it by default.")
    ] = None,
    workers: Annotated[
        int, typer.Option(help="Shards that are read in parallel; with --ray, 0 means one per core.")
    ] = 8,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Work on a Ray cluster: its address, auto, or local.")
    ] = None,
    on_error: Annotated[
        Literal["raise", "skip"],
        typer.Option(help="Stop at faulty shards, or skip faulty samples and list them in the index."),
    ] = "raise",
) -> None:
    """Write one index of all tar shards of a data set, or update it. TarDataset then opens quickly."""
    from pycooldown.data.dataset_index import INDEX_NAME, open_index
    from pycooldown.data.index_building import build_index
    from pycooldown.data.shard_lists import parse_shards
    from pycooldown.data.stores import is_url

    if out is None:
        if len(shards) > 1 or not os.path.isdir(shards[0]):
            raise ValueError(
                "--out is missing; it is needed if the shards are not one local folder, as in --out dataset.idx"
            )
        out = os.path.join(shards[0], INDEX_NAME)
    if is_url(out):
        raise ValueError(f"--out is the URL {out!r}; expected a local path: copy the index to the store afterwards")
    with progress_bars() as progress:
        build_index(parse_shards(shards), out, workers=workers, ray=ray, on_error=on_error, progress=progress)
    made = open_index(os.path.abspath(out))
    table = Table("domain", right("shards"), right("samples"), title=out)
    firsts = [first for _, first, _ in made.domains] + [made.num_shards]
    for (domain, first, samples), end in zip(made.domains, firsts[1:]):
        table.add_row(domain, f"{end - first:,}", f"{samples:,}")
    console.print(table)
    if faults := made.faults:
        shard, offset, reason = faults[0]
        console.print(f"{len(faults)} samples are left out, the first in {made.path(shard)} at byte {offset}: {reason}")
