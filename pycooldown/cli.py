"""The command line: each command calls the library and prints what it returns."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pycooldown._extras import require

require("cli", "typer", "rich", "yaml")

import typer  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import Progress as RichProgress  # noqa: E402
from rich.progress import TaskID  # noqa: E402
from rich.table import Column, Table  # noqa: E402

from pycooldown._cli_tokenize import tokenize  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pycooldown.data.publish import Progress
    from pycooldown.recipes.report import Comparison

app = typer.Typer(
    name="pycooldown",
    help="Train on heavily imbalanced domains: temperature sampling, scalarization and Cooldown.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()

Recipe = Annotated[Path, typer.Argument(help="A recipe, as in recipes/demo/.", metavar="RECIPE.yaml")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Values in place of the recipe's: training.steps=200 ...")]


@app.command()
def pack(
    corpus: Annotated[Path, typer.Argument(help="Folder that `corpus` wrote, or one of the same form.")],
    out: Annotated[Path, typer.Argument(help="Folder for the tar shards, tokenizer and manifest.")],
    domains: Annotated[str | None, typer.Option(help="Domains, comma-separated; all by default.")] = None,
    vocabulary_size: Annotated[int, typer.Option(help="Token ids of the SentencePiece model.")] = 4000,
) -> None:
    """Train a tokenizer and write webdataset tar shards for each domain."""
    from pycooldown.data.pack import pack

    with progress_bars() as progress:
        manifest = pack(corpus, out, domains=names(domains), vocabulary_size=vocabulary_size, progress=progress)
    columns = [_right(column) for column in ("train samples", "tokens", "validation samples")]
    table = Table("domain", *columns, title=str(out))
    tokens, validation = manifest.tokens("train"), manifest.sizes("validation")
    for domain, size in sorted(manifest.sizes("train").items(), key=lambda item: -item[1]):
        table.add_row(domain, f"{size:,}", f"{tokens[domain]:,}", f"{validation[domain]:,}")
    console.print(table)


app.command()(tokenize)


@app.command()
def plan(recipe: Recipe, overrides: Overrides = None) -> None:
    """Show what a recipe will do to each domain, before anything is trained."""
    from pycooldown.recipes import load_recipe, plan
    from pycooldown.recipes.advice import advise

    for stage in plan(load_recipe(recipe, overrides or ())):
        mixture, exposure = stage.mixture, stage.exposure
        tau = "" if mixture.tau is None else f"tau = {mixture.tau:g}, "
        title = f"steps {stage.start} to {stage.end - 1}: {tau}F = {stage.variance_inflation:.3f}"
        columns = ("size", "q", "v", f"draws by step {stage.end}", "epochs")
        table = Table("domain", *(_right(column) for column in columns), title=title)
        for i in (-mixture.sizes).argsort(kind="stable"):
            q, v = mixture.sampling[i], mixture.loss_weights[i]
            seen = f"{exposure.draws[i]:,}", f"{exposure.epochs[i]:.2f}"
            table.add_row(mixture.domains[i], f"{mixture.sizes[i]:,}", f"{q:.4f}", f"{v:.3g}", *seen)
        console.print(table)
    console.print("F = sum of q v^2, the variance inflation: the effective batch size is the batch size / F.")
    if stage.learned:
        console.print("The method learns its mixture while it trains: this holds if the mixture stays as it starts.")
    sizes = dict(zip(mixture.domains, mixture.sizes.tolist(), strict=True))
    console.print(advise(sizes, int(exposure.draws.sum())), soft_wrap=True, highlight=False)


@app.command()
def train(
    recipe: Recipe,
    overrides: Overrides = None,
    output: Annotated[Path | None, typer.Option(help="The run's folder; runs/<recipe's name> by default.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on with a run that was interrupted, if there is one.")] = False,
) -> None:
    """Train a recipe. A folder that holds the finished run already is left as it is."""
    from pycooldown.recipes import load_recipe, train

    folder = output or Path("runs") / recipe.stem
    run = train(load_recipe(recipe, overrides or ()), folder, resume=resume)
    if int(os.environ.get("RANK", "0")) == 0:
        loss, seconds = run.summary["eval_loss"], run.summary["seconds"]
        console.print(f"{run.path}: finished, validation loss {loss:.3f}, trained in {seconds:.0f} s")


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs.", metavar="RUN...")],
    figures: Annotated[Path, typer.Option(help="Folder for the PNGs.")] = Path("report"),
) -> None:
    """Compare runs: a table by domain, a sentence, and pictures."""
    from pycooldown.recipes import compare

    comparison = compare(runs)
    console.print(_comparison_table(comparison))
    console.print(comparison.sentence, soft_wrap=True)
    for path in comparison.save_figures(figures):
        console.print(f"wrote {path}", highlight=False)


@app.command()
def compare(
    recipes: Annotated[list[Path], typer.Argument(help="Recipes on the same data.", metavar="RECIPE.yaml...")],
    output: Annotated[Path, typer.Option(help="Folder for the runs and their comparison.")] = Path("comparison"),
    seeds: Annotated[str, typer.Option(help="Seeds, comma-separated.")] = "0",
    override: Annotated[
        list[str] | None, typer.Option("--set", help="Value in place of each recipe's: training.steps=200")
    ] = None,
) -> None:
    """Train recipes over seeds and compare them: a table with mean ± sd and a picture. Interrupted, it goes on."""
    from pycooldown.recipes import load_recipe, train
    from pycooldown.recipes.sweep import run_study

    loaded = {path.stem: load_recipe(path, override or ()) for path in recipes}
    if len(loaded) < len(recipes):
        raise ValueError(f"recipes share a name: {', '.join(path.stem for path in recipes)}; rename a file")
    numbers = [int(seed) for seed in names(seeds) or ()]
    study = run_study(loaded, numbers, output, lambda recipe, folder: train(recipe, folder, resume=True))
    for measure, rows in study.tables.items():
        table = Table("domain", _right("size"), title=study.title(measure))
        for name in study.recipes:
            table.add_column(name, justify="right", overflow="fold")
        for name, size, cells in rows:
            table.add_row(name, f"{size:,}", *map(str, cells))
        console.print(table)


@app.command()
def variance(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    tau: Annotated[
        list[float] | None, typer.Option(help="Temperature; may be given several times. 5 by default.")
    ] = None,
    more: Annotated[
        list[float] | None, typer.Argument(help="Further temperatures: --tau 2 3 5 100.", metavar="[TAU]...")
    ] = None,
    batches: Annotated[int, typer.Option(help="Batches for each mixture and allocation.")] = 32,
    figures: Annotated[Path, typer.Option(help="Folder for the PNGs.")] = Path("variance"),
) -> None:
    """Measure the gradient variance of mixtures at a run's weights, beside the predicted one."""
    from pycooldown.recipes.gradient_variance import measure_run, save_figures

    moments, results = measure_run(run, [*(tau or []), *(more or [])] or [5.0], num_batches=batches)
    table = Table("domain", _right("tr Sigma"), _right("|mu|^2"), title="per-sample gradients")
    for i, domain in enumerate(moments.domains):
        table.add_row(domain, f"{moments.covariance_traces[i]:.4g}", f"{moments.mean_products[i, i]:.4g}")
    console.print(table)
    columns = (_right(c) for c in ("trace, predicted", "measured (95 % interval)", "variance of the norm", "seconds"))
    table = Table("mixture", "allocation", *columns, title="minibatch gradients")
    for r in results:
        measured = f"{r.trace.value:.4g} ({r.trace.low:.4g} to {r.trace.high:.4g})"
        norm = f"{r.norm_variance.value:.3g} ({r.norm_variance.low:.3g} to {r.norm_variance.high:.3g})"
        table.add_row(r.name, r.allocation, f"{r.predicted.value:.4g}", measured, norm, f"{r.seconds:.1f}")
    console.print(table)
    for path in save_figures(results, figures):
        console.print(f"wrote {path}", highlight=False)


def main() -> None:
    """Run the command line."""
    run(app)


def run(app: typer.Typer) -> None:
    """Run an application, telling the user's errors in a line (PYCOOLDOWN_TRACEBACK=1 shows where they arose)."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # bars of each file of a checkpoint
    try:
        app()
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        if os.environ.get("PYCOOLDOWN_TRACEBACK"):
            raise
        Console(stderr=True).print(f"[bold red]error:[/] {type(error).__name__}: ", end="", highlight=False)
        Console(stderr=True).print(str(error), markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)


def _comparison_table(comparison: Comparison) -> Table:
    title = "validation loss (nats a token) and epochs of the domain"
    table = Table(Column("domain", no_wrap=True), _right("size"), title=title)
    translated = comparison.groups[-1].cells[0].bleu is not None
    for run in comparison.runs:
        table.add_column(f"{run.name}\nloss", justify="right", overflow="fold")  # cut, names would look the same
        for name in ("epochs", *(("BLEU", "chrF") if translated else ())):
            table.add_column(f"\n{name}", justify="right")
    for rows in (comparison.rows, comparison.groups):
        for row in rows:
            cells: list[str] = []
            for i, cell in enumerate(row.cells):
                cells.append(f"[bold]{cell.loss:.3f}[/]" if i == row.best else f"{cell.loss:.3f}")
                cells.append(f"[dim]{cell.epochs:.2f}[/]")
                cells += [f"{score:.1f}" for score in (cell.bleu, cell.chrf) if score is not None]
            table.add_row(row.name, f"{row.size:,}", *cells)
        table.add_section()
    return table


def _right(name: str) -> Column:
    return Column(name, justify="right")


def names(text: str | None) -> list[str] | None:
    """The names in a comma-separated list."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """A bar for each phase of a long call."""
    with RichProgress(*RichProgress.get_default_columns(), console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def show(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = bars.add_task(phase, total=total)
            bars.update(tasks[phase], completed=done, total=total)

        yield show


if __name__ == "__main__":
    main()
