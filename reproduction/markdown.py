"""Tables in Markdown."""

from __future__ import annotations


def row(*cells: str) -> str:
    """Return a row of a table."""
    return f"| {' | '.join(cells)} |"


def rule(columns: int) -> str:
    """Return the line between the first row and the others."""
    return "|" + "---|" * columns
