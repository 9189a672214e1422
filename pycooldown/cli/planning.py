"""The commands `plan`, `proxy` and `schema`: look ahead before training."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table

from pycooldown.cli._app import RecipeFile, app, console, right, split_arguments
from pycooldown.cli.store_forecast import open_shards, plan_stores, print_store_plans, stores_as_json
from pycooldown.recipes.sizes import Unit

if TYPE_CHECKING:
    from pycooldown.recipes.planning import StagePlan
    from pycooldown.recipes.schema import Recipe

_LEARNED = "The method learns its mixture during training. The plan assumes that the first mixture stays."


@app.command()
def plan(
    recipes: Annotated[
        list[str] | None,
        typer.Argument(
            help="Recipes, and values that replace theirs: training.steps=200 ...",
            metavar="RECIPE.yaml|KEY=VALUE",
        ),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="A method to plan without a recipe file: --method 'cooldown tau=5 switch_at=.5'"),
    ] = None,
    size: Annotated[
        list[str] | None, typer.Option(help="Size of a domain, in place of packed data: --size en=2.7e12")
    ] = None,
    sizes: Annotated[
        Path | None, typer.Option(help="Sizes of domains in a file: YAML (en: 2.7e12) or CSV (domain,size).")
    ] = None,
    unit: Annotated[Unit, typer.Option(help="What the sizes count.")] = "samples",
    sequence_length: Annotated[int | None, typer.Option(min=1, help="Tokens of a sample, for sizes in tokens.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of the run, for methods without a recipe.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Samples per step, for methods without a recipe.")
    ] = None,
    store: Annotated[
        list[str] | None,
        typer.Option(
            help="Shards of a domain in an object store: --store 'en=s3://bucket/en/{000..099}.tar'. "
            "Their sizes are used, and the plan shows what a cache will fetch.",
            metavar="DOMAIN=SHARDS",
        ),
    ] = None,
    cache: Annotated[
        list[str] | None, typer.Option(help="Size of the cache: --cache 200GB; by default 10, 25 and 50 % of the data.")
    ] = None,
    block: Annotated[
        int | None, typer.Option(min=1, help="Samples in a block of the cache and the shuffle; by default 64.")
    ] = None,
    group: Annotated[
        int | None, typer.Option(min=1, help="Blocks whose samples the shuffle mixes; by default 16.")
    ] = None,
    depth: Annotated[
        str | None, typer.Option(help="Bytes to fetch ahead: --depth 4GB; by default a quarter of the cache.")
    ] = None,
    prefetched: Annotated[
        int | None,
        typer.Option(
            min=0, help="Batches that loaders request ahead: num_workers * prefetch_factor, or more; by default 16."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    html: Annotated[
        Path | None,
        typer.Option(help="Write an HTML page with sliders that computes plans in the browser.", metavar="FILE"),
    ] = None,
) -> None:
    """Show what recipes or methods will do to each domain, before anything is trained."""
    from pycooldown.recipes import plan
    from pycooldown.recipes.advice import advise

    chosen = _chosen(recipes or [], method or [], steps, batch_size)
    given = _sizes(size or [], sizes, unit, sequence_length)
    dataset = None
    for_stores = {"cache": cache or None, "depth": depth, "block": block, "group": group, "prefetched": prefetched}
    if store:
        if given is not None:
            raise ValueError("--size and --sizes cannot be used with --store, whose shards have sizes; leave them out")
        dataset = open_shards(store)
        given = dataset.sizes
    elif useless := [f"--{name}" for name, value in for_stores.items() if value is not None]:
        raise ValueError(f"without --store, {', '.join(useless)} would have no effect; add --store or leave them out")
    if html is not None:
        from pycooldown.recipes.planner_page import planner_page

        html.write_text(planner_page(chosen, given), encoding="utf-8")
    plans = {name: plan(recipe, given) for name, recipe in chosen.items()}
    stores = {}
    if dataset is not None:
        options = {"block": block, "group": group, "prefetched": prefetched}
        given_options = {name: value for name, value in options.items() if value is not None}
        stores = plan_stores(chosen, dataset, cache=cache or [], depth=depth, **given_options)
    last = next(iter(plans.values()))[-1]
    counts = dict(zip(last.mixture.domains, last.mixture.sizes.tolist(), strict=True))
    advice = advise(counts, int(last.exposure.draws.sum()))
    if as_json:
        content = {name: [stage.to_dict() for stage in stages] for name, stages in plans.items()}
        document = {"plans": content, "advice": advice} | ({"stores": stores_as_json(stores)} if stores else {})
        typer.echo(json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False))
        return
    if len(plans) > 1:
        _print_side_by_side(plans)
    else:
        _print_stages(next(iter(plans.values())))
    console.print("F = sum of q v^2, the variance inflation: the effective batch size is the batch size / F.")
    if not last.exact:
        console.print("Draws are expected values, because the run is too long to count them one by one.")
    if learning := [name for name, stages in plans.items() if stages[0].learned]:
        sentence = _LEARNED if len(plans) == 1 else f"{', '.join(learning)}: {_LEARNED}"
        console.print(sentence, soft_wrap=True)
    console.print(advice, soft_wrap=True)
    print_store_plans(stores)
    if html is not None:
        console.print(f"The page: {html}", soft_wrap=True)


@app.command()
def proxy(
    recipe: RecipeFile,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the proxy.")],
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Samples per step of the proxy; by default the recipe's.")
    ] = None,
    output: Annotated[Path, typer.Option(help="File for the proxy's recipe.", metavar="FILE")] = Path("proxy.yaml"),
) -> None:
    """Write the recipe of a shorter run that passes through each domain as often as the whole run.

    Each domain is cut by the proxy's share of the draws, so the proxy shows the effects of repetition too.
    """
    from pycooldown._files import write_atomically
    from pycooldown.recipes.proxy import proxy_recipe, proxy_sizes, proxy_text

    whole, small = proxy_recipe(recipe, steps, batch_size)
    share = small.training.num_samples / whole.training.num_samples
    table = Table("domain", right("size"), right("of the proxy"), title=f"share of the data: {share:.4g}")
    for domain, (size, cut) in proxy_sizes(whole, small).items():
        table.add_row(domain, f"{size:,}", f"{cut:,}")
    console.print(table)
    write_atomically(output, proxy_text(small))
    console.print(f"wrote {output}")


@app.command()
def schema() -> None:
    """Print the JSON Schema of recipes, for editors. It includes the methods of installed packages."""
    from pycooldown.recipes.schema import json_schema

    typer.echo(json.dumps(json_schema(), indent=1, ensure_ascii=False))


def _chosen(arguments: list[str], methods: list[str], steps: int | None, batch_size: int | None) -> dict[str, Recipe]:
    """Return the recipes to plan, by name."""
    from pycooldown.recipes import load_recipe
    from pycooldown.recipes.loading import recipe_of

    paths, overrides = split_arguments(arguments)
    if not paths and overrides and not methods:
        raise ValueError(f"{overrides[0]!r} replaces a value of a recipe, but no recipe is given; add the file of one")
    if paths and (steps or batch_size):
        raise ValueError("--steps and --batch-size are for methods without a recipe; pass training.steps=200 instead")
    chosen = {path.stem: load_recipe(path, overrides) for path in paths}
    if len(chosen) < len(paths):
        raise ValueError(f"recipes share a name: {', '.join(path.stem for path in paths)}; rename a file")
    if not paths and not methods:
        raise ValueError("nothing to plan; expected a recipe, or --method with --steps, --batch-size and --size")
    if not paths and (steps is None or batch_size is None):
        raise ValueError("methods without a recipe need --steps and --batch-size")
    if paths:
        base = next(iter(chosen.values())).to_dict()
    else:  # a plan does not depend on the rest of the recipe
        base = {"data": {"path": "."}, "training": {"steps": steps, "batch_size": batch_size}}
    for text in methods:
        name, *options = shlex.split(text) or [""]
        values = {**base, "mixture": {"method": name}}
        chosen[text] = recipe_of(values, f"--method {text!r}", [f"mixture.{option}" for option in options])
    return chosen


def _sizes(
    given: list[str], path: Path | None, unit: Literal["samples", "tokens"], length: int | None
) -> dict[str, int] | None:
    """Return the number of sequences by domain, or ``None`` if it must be read from the recipe's data."""
    from pycooldown.recipes.sizes import parse_size, read_sizes, to_sequences

    if path is None and not given:
        if unit != "samples" or length is not None:
            raise ValueError("--unit and --sequence-length need --size or --sizes, which are missing")
        return None
    pairs = [parse_size(text) for text in given]
    if len(dict(pairs)) < len(pairs):
        raise ValueError("--size names a domain twice; expected one size for each domain")
    return to_sequences({**(read_sizes(path) if path is not None else {}), **dict(pairs)}, unit, length)


def _print_stages(stages: list[StagePlan]) -> None:
    for stage in stages:
        mixture, exposure = stage.mixture, stage.exposure
        tau = "" if mixture.tau is None else f"tau = {mixture.tau:g}, "
        title = f"steps {stage.start} to {stage.end - 1}: {tau}F = {stage.variance_inflation:.3f}"
        columns = ("size", "q", "v", f"draws by step {stage.end}", "epochs")
        table = Table("domain", *(right(column) for column in columns), title=title)
        for i in (-mixture.sizes).argsort(kind="stable"):
            q, v = mixture.sampling[i], mixture.loss_weights[i]
            seen = f"{exposure.draws[i]:,}", f"{exposure.epochs[i]:.2f}"
            table.add_row(mixture.domains[i], f"{mixture.sizes[i]:,}", f"{q:.4f}", f"{v:.3g}", *seen)
        console.print(table)


def _print_side_by_side(plans: Mapping[str, list[StagePlan]]) -> None:
    ends = [stages[-1] for stages in plans.values()]
    weighted = any((end.mixture.loss_weights != 1).any() for end in ends)
    title = "epochs at the end (share of all draws)" + (", last loss weight" if weighted else "")
    table = Table("domain", right("size"), title=title)
    for name in plans:
        table.add_column(name, justify="right", overflow="fold")
    first = ends[0].mixture
    for i in (-first.sizes).argsort(kind="stable"):
        cells = []
        for end in ends:
            share = end.exposure.draws[i] / end.exposure.draws.sum()
            weight = f", {end.mixture.loss_weights[i]:.3g}" if weighted else ""
            cells.append(f"{end.exposure.epochs[i]:.2f} ({share:.4f}){weight}")
        table.add_row(first.domains[i], f"{first.sizes[i]:,}", *cells)
    table.add_section()
    inflations = [[f"{stage.variance_inflation:.3f}" for stage in stages] for stages in plans.values()]
    table.add_row("F", "", *(" to ".join(dict.fromkeys(values)) for values in inflations))
    console.print(table)
