"""Tables for notebooks."""

from collections.abc import Iterable, Sequence
from html import escape


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "", *, most: int = 60) -> str:
    """Return an HTML table of text; its first column is aligned left, the others right.

    Args:
        columns: The names of the columns.
        rows: The cells of each row.
        caption: What the table shows.
        most: The number of rows that are shown; the last row says how many more there are.
    """
    rows = list(rows)
    left = f"<tr><td colspan={len(columns)}>and {len(rows) - most:,} more</td></tr>" if len(rows) > most else ""
    body = "".join(f"<tr>{''.join(_cells('td', row))}</tr>" for row in rows[:most])
    head = f"<thead><tr>{''.join(_cells('th', columns))}</tr></thead>"
    return f"<table><caption>{escape(caption)}</caption>{head}<tbody>{body}{left}</tbody></table>"


def _cells(tag: str, texts: Sequence[str]) -> list[str]:
    sides = ["left", *["right"] * (len(texts) - 1)]
    return [f'<{tag} style="text-align:{side}">{escape(text)}</{tag}>' for side, text in zip(sides, texts, strict=True)]
