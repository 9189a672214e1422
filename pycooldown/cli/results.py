"""The commands `report` and `variance`: look at finished runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table
from rich.text import Text

from pycooldown.cli._app import app, console, numbers, right

if TYPE_CHECKING:
    from pycooldown.recipes.report import Comparison


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs.", metavar="RUN...")],
    figures: Annotated[
        Path | None,
        typer.Option(help="Folder for PNG figures.  [default: report, unless --html is given]", show_default=False),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(help="Write tables, figures and recipes as one self-contained HTML page.", metavar="FILE"),
    ] = None,
) -> None:
    """Compare finished runs: a table by domain, a summary sentence, and figures."""
    from pycooldown.recipes import compare

    comparison = compare(runs)
    console.print(_comparison_table(comparison))
    console.print(comparison.sentence, soft_wrap=True)
    if html is not None:
        from pycooldown._files import write_atomically
        from pycooldown.recipes.report_page import report_page

        write_atomically(html, report_page(comparison))
        console.print(f"wrote {html}")
    if figures is not None or html is None:
        for path in comparison.save_figures(figures or Path("report")):
            console.print(f"wrote {path}")


@app.command()
def variance(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    more: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,  # the former form `--tau 2 3 5`
    tau: Annotated[
        list[str] | None, typer.Option(help="Temperatures, comma-separated: 2,3,5.  [default: 5]", show_default=False)
    ] = None,
    batches: Annotated[int, typer.Option(help="Batches for each mixture and allocation.")] = 32,
    figures: Annotated[Path, typer.Option(help="Folder for PNG figures.")] = Path("variance"),
) -> None:
    """Measure the gradient variance of mixtures at a run's final weights, beside the predicted one."""
    from pycooldown.recipes.gradient_variance import measure_run, save_figures

    taus = [value for text in [*(tau or []), *(more or [])] or ["5"] for value in numbers(text, "--tau")]
    moments, results = measure_run(run, taus, num_batches=batches)
    table = Table("domain", right("tr Sigma"), right("|mu|^2"), title="per-sample gradients")
    for i, domain in enumerate(moments.domains):
        table.add_row(domain, f"{moments.covariance_traces[i]:.4g}", f"{moments.mean_products[i, i]:.4g}")
    console.print(table)
    columns = (right(c) for c in ("trace, predicted", "measured (95 % interval)", "variance of the norm", "seconds"))
    table = Table("mixture", "allocation", *columns, title="minibatch gradients")
    for r in results:
        measured = f"{r.trace.value:.4g} ({r.trace.low:.4g} to {r.trace.high:.4g})"
        norm = f"{r.norm_variance.value:.3g} ({r.norm_variance.low:.3g} to {r.norm_variance.high:.3g})"
        table.add_row(r.name, r.allocation, f"{r.predicted.value:.4g}", measured, norm, f"{r.seconds:.1f}")
    console.print(table)
    for path in save_figures(results, figures):
        console.print(f"wrote {path}")


def _comparison_table(comparison: Comparison) -> Table:
    title = "validation loss (nats a token) and epochs of the domain"
    table = Table(Column("domain", no_wrap=True), right("size"), title=title)
    translated = comparison.groups[-1].cells[0].bleu is not None
    for run in comparison.runs:
        table.add_column(f"{run.name}\nloss", justify="right", overflow="fold")  # cut-off names would look alike
        for name in ("epochs", *(("BLEU", "chrF") if translated else ())):
            table.add_column(f"\n{name}", justify="right")
    for rows in (comparison.rows, comparison.groups):
        for row in rows:
            cells: list[str | Text] = []
            for i, cell in enumerate(row.cells):
                cells.append(Text(f"{cell.loss:.3f}", style="bold" if i == row.best else ""))
                cells.append(Text(f"{cell.epochs:.2f}", style="dim"))
                cells += [f"{score:.1f}" for score in (cell.bleu, cell.chrf) if score is not None]
            table.add_row(row.name, f"{row.size:,}", *cells)
        table.add_section()
    return table
