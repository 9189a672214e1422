"""Reading a run's folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RECIPE, METRICS, SUMMARY = "recipe.json", "metrics.jsonl", "summary.json"
TRANSLATIONS = "translations.jsonl"


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        path: its folder.
        recipe: as resolved, with the data's ``fingerprint`` and the ``sizes`` of the domains.
        train: what was logged of training, one mapping for each time: ``step``, ``loss``, ``loss/{domain}``, ...
        evaluations: the same for evaluation: ``step``, ``eval_loss``, ``eval_loss/{domain}``.
        summary: ``steps``, ``seconds``, ``eval_loss`` and for each of ``domains`` size, draws, tokens, epochs and loss,
            and BLEU and chrF where validation pairs were translated.
    """

    path: Path
    recipe: dict[str, Any]
    train: list[dict[str, float]]
    evaluations: list[dict[str, float]]
    summary: dict[str, Any]

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.resolve().name

    @property
    def sizes(self) -> dict[str, int]:
        """Training samples of each domain."""
        sizes: dict[str, int] = self.recipe["sizes"]
        return sizes

    @classmethod
    def read(cls, path: str | Path) -> Run:
        """Reads a run.

        Raises:
            ValueError: if the folder does not hold a finished run.
        """
        path = Path(path)
        if not (path / RECIPE).exists():
            raise ValueError(f"{path} holds no run; expected a folder that `pycooldown train` wrote")
        if not (path / SUMMARY).exists():
            raise ValueError(f"the run in {path} is not finished; go on with `pycooldown train ... --resume`")
        recipe, summary = _object(path / RECIPE, "sizes"), _object(path / SUMMARY, "domains")
        try:
            logs = [json.loads(line) for line in (path / METRICS).read_text(encoding="utf-8").splitlines()]
        except ValueError as error:
            raise ValueError(f"{path / METRICS} is damaged: {error}") from error
        train, evaluations = ([entry for entry in logs if name in entry] for name in ("loss", "eval_loss"))
        return cls(path, recipe, train, evaluations, summary)


def _object(path: Path, key: str) -> dict[str, Any]:
    """A JSON object that has ``key``."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(value, dict) or key not in value:
        raise ValueError(f"{path} is damaged: expected a JSON object with {key!r}")
    return value
