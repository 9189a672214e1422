"""`python -m reproduction`: fetch the demo's corpus, train in regimes, test the papers' claims, write their page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table

from pycooldown.cli import console, names, progress_bars, run

if TYPE_CHECKING:
    from reproduction.regimes import Place
    from reproduction.rules import Regime
    from reproduction.translation import TrainedSystem
    from reproduction.verdicts import JudgedClaim

SEEDS = 8

app = typer.Typer(
    name="python -m reproduction",
    help="Reproduce experiments of papers, on real text.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def corpus(
    out: Annotated[Path, typer.Argument(help="Folder for <language>/{train,validation}.jsonl.")],
    languages: Annotated[str | None, typer.Option(help="Language codes, comma-separated; all by default.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder for the download.")] = None,
) -> None:
    """Fetch a real imbalanced corpus: Home Assistant's interface texts in about 48 languages, paired with English."""
    from reproduction.corpora import build_corpus

    with progress_bars() as progress:
        counts = build_corpus(out, cache=cache, languages=names(languages), progress=progress)
    table = Table("language", *(Column(name, justify="right") for name in ("train", "validation")), title=str(out))
    for language, splits in counts.items():
        table.add_row(language, f"{splits['train']:,}", f"{splits['validation']:,}")
    console.print(table)


@app.command()
def documents(
    out: Annotated[Path, typer.Argument(help="Folder for <language>.jsonl.")],
    languages: Annotated[str | None, typer.Option(help="Language codes, comma-separated; all by default.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder for the download.")] = None,
) -> None:
    """Fetch real monolingual documents in about 60 languages, for `pycooldown tokenize`."""
    from reproduction.documents import build_documents

    with progress_bars() as progress:
        counts = build_documents(out, cache=cache, languages=names(languages), progress=progress)
    table = Table("language", *(Column(name, justify="right") for name in ("documents", "characters")), title=str(out))
    for language, found in counts.items():
        table.add_row(language, f"{found['documents']:,}", f"{found['characters']:,}")
    console.print(table)


@app.command()
def packages(
    out: Annotated[Path, typer.Argument(help="Folder for <language>.jsonl.")],
    cache: Annotated[Path | None, typer.Option(help="Folder for the download.")] = None,
) -> None:
    """Fetch documents in English, Italian, Chinese and Swahili by apt, for `blocks`; needs a Debian system."""
    from reproduction.packages import build_packages

    table = Table("language", *(Column(name, justify="right") for name in ("documents", "characters")), title=str(out))
    for language, found in build_packages(out, cache=cache).items():
        table.add_row(language, f"{found['documents']:,}", f"{found['characters']:,}")
    console.print(table)


@app.command()
def reproduce(
    claims: Annotated[list[str] | None, typer.Argument(help="R1 ... R4b, R12 ... R15; all by default.")] = None,
    data: Annotated[Path | None, typer.Option(help="Packed data with German and Romanian, for R4 and R4b.")] = None,
    folder: Annotated[Path, typer.Option(help="Folder for trainings; finished ones are not run again.")] = Path(
        "reproduce"
    ),
    seeds: Annotated[int, typer.Option(help="Paired seeds, at least 4.")] = SEEDS,
    workers: Annotated[int, typer.Option(min=1, help="Processes that train at a time.")] = 1,
    results: Annotated[
        Path | None, typer.Option(help="Folder for a CSV of each claim; FOLDER/results by default.")
    ] = None,
    scale: Annotated[str, typer.Option(help="small runs; paper prints the papers' configurations.")] = "small",
) -> None:
    """Measure the claims that need no regime (theorems, gradients, noisy domains), and judge them together."""
    from reproduction.reproduce import CLAIMS, Result
    from reproduction.reproduce import reproduce as measure
    from reproduction.verdicts import decide

    if scale not in ("small", "paper"):
        raise ValueError(f"scale = {scale!r}; expected 'small' or 'paper'")
    if scale == "paper":
        for name in claims or CLAIMS:
            console.print(f"{name} ({CLAIMS[name].item}): {CLAIMS[name].paper_scale}", soft_wrap=True, highlight=False)
        return

    def show(result: Result) -> None:
        console.print(f"{result.claim}: measured", highlight=False)

    options = {"folder": folder, "data": data, "seeds": seeds, "workers": workers, "results": results}
    found = measure(claims=claims or (), progress=show, **options)  # type: ignore[arg-type]
    for result, (verdict, *_) in zip(found, decide([result.parts for result in found]), strict=True):
        text = f"{result.claim}: {verdict}: {CLAIMS[result.claim].statement}"
        console.print(text, soft_wrap=True, highlight=False)


@app.command()
def regimes(
    data: Annotated[Path, typer.Argument(help="Packed data with German and Romanian.")],
    folder: Annotated[Path, typer.Option(help="Folder for trainings; finished ones are not run again.")] = Path(
        "regimes"
    ),
    regime: Annotated[
        list[str] | None,
        typer.Option(help="SKEW:PASSES[:STEPS], such as 100:130; those of the rules by default.", metavar="REGIME"),
    ] = None,
    claim: Annotated[
        list[str] | None, typer.Option(help="Train only what these claims need: --claim R7 --claim R9.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Paired seeds.")] = SEEDS,
    workers: Annotated[int, typer.Option(min=1, help="Processes that train at a time.")] = 1,
    results: Annotated[
        Path | None, typer.Option(help="Folder for a CSV of each regime; FOLDER/results by default.")
    ] = None,
) -> None:
    """Train the systems of the papers in regimes of skew and exposure, and judge the claims in each by fixed rules."""
    from reproduction.regimes import read_results, train_regimes
    from reproduction.rules import REGIMES, parse_regime
    from reproduction.verdicts import judge

    chosen = [parse_regime(text, claim or ()) for text in regime] if regime else list(REGIMES)
    if claim and not regime:
        raise ValueError("--claim needs a regime of your own; pass --regime SKEW:PASSES, such as --regime 100:130")
    where = results or folder / "results"

    options = {"seeds": range(seeds), "workers": workers, "results": where, "progress": _print_training}
    train_regimes(data, folder, chosen, **options)  # type: ignore[arg-type]
    for trained in chosen:
        found, trainings = read_results(where / f"{trained.skew}-{trained.passes}.csv")
        _print_verdicts(found, judge(trainings))


@app.command()
def blocks(
    data: Annotated[Path, typer.Argument(help="Folder of `pycooldown tokenize` with the languages.")],
    folder: Annotated[Path, typer.Option(help="Folder for trainings; finished ones are not run again.")] = Path(
        "blocks"
    ),
    size: Annotated[
        list[str] | None,
        typer.Option(help="A language and its size in any unit; the paper's four by default.", metavar="NAME=NUMBER"),
    ] = None,
    passes: Annotated[int | None, typer.Option(min=1, help="Passes over the rarest language at tau = 5.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of a training.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Paired seeds.")] = SEEDS,
    workers: Annotated[int, typer.Option(min=1, help="Processes that train at a time.")] = 1,
    results: Annotated[Path | None, typer.Option(help="Folder for a CSV; FOLDER/results by default.")] = None,
) -> None:
    """Train R8: monolingual languages of very different sizes, in packed blocks of tokens."""
    from reproduction import blocks as rules
    from reproduction.regimes import train_regimes
    from reproduction.verdicts import judge

    chosen = dict(_named_size(text) for text in size or ()) or None
    regime = rules.block_regime(chosen, passes or rules.PASSES, steps or rules.STEPS)
    where = results or folder / "results"

    options = {"seeds": range(seeds), "workers": workers, "results": where, "progress": _print_training}
    train_regimes(data, folder, [regime], job=rules.job_of, **options)  # type: ignore[arg-type]
    for trained, trainings in rules.read_results(where).items():
        _print_verdicts(trained, judge(trainings, rules.CLAIMS))


def _print_training(place: Place, training: TrainedSystem) -> None:
    name = f"{place.regime.name}, seed {place.seed}, {place.system}"
    console.print(f"{name}: {training.cpu_seconds:.0f} s of the processor", highlight=False, soft_wrap=True)


def _print_verdicts(regime: Regime, verdicts: list[JudgedClaim]) -> None:
    for judged in verdicts:
        text = f"{regime.name}: {judged.claim.name}: {judged.verdict}: {judged.claim.statement}"
        console.print(text, highlight=False, soft_wrap=True)


def _named_size(text: str) -> tuple[str, int]:
    name, equals, number = text.partition("=")
    if not name or not equals or not number.isdecimal():
        raise ValueError(f"size = {text!r}; expected NAME=NUMBER, such as en=2733")
    return name, int(number)


@app.command()
def groups(
    sweep: Annotated[Path, typer.Argument(help="Folder of `pycooldown sweep` over recipes/table3.")],
    results: Annotated[
        Path | None, typer.Option(help="File for a copy of its rows, which the page reads; none by default.")
    ] = None,
) -> None:
    """Judge table 3: BLEU and chrF of nine languages by groups of size."""
    from reproduction import groups as rules

    if results is not None:
        rules.copy_scores(sweep, results)
    for judged in rules.judge(rules.read_scores(sweep / "sweep.csv")):
        console.print(f"{judged.name}: {judged.verdict}: {judged.statement}", highlight=False, soft_wrap=True)


@app.command()
def demo(
    runs: Annotated[Path, typer.Argument(help="Folder of `pycooldown sweep` over recipes/pair.")],
    out: Annotated[Path, typer.Argument(help="Folder for the figures.")],
) -> None:
    """Draw the demo's trainings: losses by step of the rare and of the frequent language."""
    from reproduction.demo import save_pictures

    for path in save_pictures(runs, out):
        console.print(f"wrote {path}", highlight=False)


@app.command()
def page(
    out: Annotated[Path, typer.Argument(help="Folder for evidence.md and figures/.")] = Path("docs"),
    results: Annotated[
        Path | None,
        typer.Option(help="Folder with regimes/, blocks/ and claims/ of CSV; those of the repository by default."),
    ] = None,
    advice: Annotated[
        Path | None, typer.Option(help="File for the advice of `pycooldown plan`.", metavar="FILE")
    ] = None,
) -> None:
    """Write the page of evidence, its figures and the advice from results; nothing is trained."""
    from reproduction.evidence import read_evidence, save_page

    for path in save_page(read_evidence(results), out, advice):
        console.print(f"wrote {path}", highlight=False)


if __name__ == "__main__":
    run(app)
