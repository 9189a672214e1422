"""Read the folder of a finished run."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pycooldown import domain_log
from pycooldown._files import open_regular
from pycooldown.mixture import Vector

RECIPE, METRICS, SUMMARY = "recipe.json", "metrics.jsonl", "summary.json"
TRANSLATIONS = "translations.jsonl"


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        path: Its folder.
        recipe: The resolved recipe, with the data's ``fingerprint`` and the ``sizes`` of the domains.
        train: Training logs, one mapping per log: ``step``, ``loss``, ``loss/{domain}``, ... With more than 64 domains
            a log has only some of them, while `series` has all.
        evaluations: Evaluation logs: ``step``, ``eval_loss``, ``eval_loss/{domain}``.
        summary: ``steps``, ``seconds``, ``eval_loss`` and for each of ``domains`` size, draws, tokens, epochs and loss.
            BLEU and chrF are included if validation pairs were translated.
    """

    path: Path
    recipe: dict[str, Any]
    train: list[dict[str, float]]
    evaluations: list[dict[str, float]]
    summary: dict[str, Any]

    @property
    def name(self) -> str:
        """Return the folder's name."""
        return self.path.resolve().name

    @property
    def sizes(self) -> dict[str, int]:
        """Return the training samples of each domain."""
        sizes: dict[str, int] = self.recipe["sizes"]
        return sizes

    def series(self, name: str) -> tuple[Vector, dict[str, Vector]]:
        """Return the steps of the logs, (n,), and the logged values (n,) by domain.

        Args:
            name: ``q``, ``samples``, ``tokens``, ``epochs``, ``loss``, ``v``, ``target``, ``share`` or ``eval_loss``.

        Returns:
            The steps and the values; NaN if a domain has none. Without any log there are no values.

        Raises:
            ValueError: If the file of a run of many domains is damaged.
        """
        evaluated = name == "eval_loss"
        path = self.path / (domain_log.EVALUATION if evaluated else domain_log.TRAINING)
        if path.exists():
            records = domain_log.read(path)
            values = records[name].reshape(len(records), -1).astype(np.float64)
            if values.shape[1] != len(self.sizes):
                raise ValueError(
                    f"{path} has {values.shape[1]} domains, but {self.path / RECIPE} has {len(self.sizes)}; restore "
                    "the folder from a copy"
                )
            return records["step"].astype(np.float64), dict(zip(self.sizes, values.T, strict=True))
        entries = self.evaluations if evaluated else self.train
        steps = np.array([entry["step"] for entry in entries], dtype=np.float64)
        known = [domain for domain in self.sizes if any(f"{name}/{domain}" in entry for entry in entries)]
        return steps, {d: np.array([entry.get(f"{name}/{d}", math.nan) for entry in entries]) for d in known}

    @classmethod
    def read(cls, path: str | Path) -> Run:
        """Read a run.

        Raises:
            ValueError: If the folder does not hold a finished run.
        """
        path = Path(path)
        if not (path / RECIPE).exists():
            raise ValueError(f"{path} holds no run; expected a folder written by `pycooldown train`")
        if not (path / SUMMARY).exists():
            raise ValueError(f"the run in {path} is not finished; continue it with `pycooldown train ... --resume`")
        recipe, summary = read_json(path / RECIPE, "sizes"), _with_nan(read_json(path / SUMMARY, "domains"))
        summary["domains"] = {domain: _with_nan(entry) for domain, entry in summary["domains"].items()}
        try:
            lines = _text(path / METRICS).splitlines()
            logs = [_with_nan(json.loads(line)) for line in lines]
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path / METRICS} is damaged: {error}") from error
        train, evaluations = ([entry for entry in logs if name in entry] for name in ("loss", "eval_loss"))
        return cls(path, recipe, train, evaluations, summary)


def read_json(path: Path, key: str | None = None) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        ValueError: If the file holds something else, or the object lacks ``key``.
    """
    try:
        value = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(value, dict) or (key is not None and key not in value):
        raise ValueError(f"{path} is damaged: expected a JSON object" + (f" with {key!r}" if key else ""))
    return value


def _text(path: Path) -> str:
    with open_regular(path) as file:
        return file.read().decode("utf-8")


def _with_nan(entry: dict[str, Any]) -> dict[str, Any]:
    """Return values with NaN in place of JSON's null, which stands for losses that were not finite."""
    return {key: math.nan if value is None and "loss" in key else value for key, value in entry.items()}
