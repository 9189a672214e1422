"""The command `fit-mixture`: from a sweep to a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from pycooldown.cli._app import app, console, right


@app.command("fit-mixture")
def fit_mixture(
    sweep: Annotated[Path, typer.Argument(help="Folder of a sweep, or its sweep.csv.")],
    recipe: Annotated[Path, typer.Argument(help="Recipe of the next run; its mixture is replaced.")],
    output: Annotated[Path, typer.Option(help="File for the new recipe.", metavar="FILE")] = Path("fitted.yaml"),
    prior_tau: Annotated[float, typer.Option(help="Temperature of the prior mixture.")] = 1.0,
    strength: Annotated[float, typer.Option(help="Weight of the divergence from the prior, in nats of loss.")] = 0.01,
    max_epochs: Annotated[float | None, typer.Option(help="Maximum passes through a domain in the next run.")] = None,
) -> None:
    """Fit each domain's loss to the mixtures of a sweep, and write a recipe with the best weights."""
    import yaml

    from pycooldown import temperature
    from pycooldown._files import write_atomically
    from pycooldown.recipes import load_recipe
    from pycooldown.recipes.mixture_fit import best_mixture, epoch_bounds, fit_losses, read_sweep

    base = load_recipe(recipe)
    runs = read_sweep(sweep)
    law = fit_losses(runs.mixtures, runs.losses)
    draws = base.training.num_samples
    most = None if max_epochs is None else epoch_bounds(runs.sizes, draws, max_epochs)
    prior = temperature(runs.sizes, prior_tau)
    p = best_mixture(law, prior, strength=strength, most=most)
    columns = ("size", "prior", "fitted", "epochs", "predicted loss", "error of the fit")
    table = Table("domain", *map(right, columns), title=f"{len(runs.mixtures)} runs")
    errors = (law.residuals**2).mean(axis=0) ** 0.5
    for i, domain in enumerate(runs.domains):
        epochs = p[i] * draws / runs.sizes[i]
        numbers = (f"{runs.sizes[i]:,}", f"{prior[i]:.4f}", f"{p[i]:.4f}", f"{epochs:.2f}", f"{law.losses(p)[i]:.3f}")
        table.add_row(domain, *numbers, f"{errors[i]:.3f}")
    console.print(table)
    weights = [[domain, round(float(share), 6)] for domain, share in zip(runs.domains, p, strict=True)]
    values = {**base.to_dict(), "mixture": {"method": "weights", "weights": weights}}
    write_atomically(output, yaml.safe_dump(values, sort_keys=False))
    console.print(f"wrote {output}")
