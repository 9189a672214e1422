"""HTML tables and pages."""

from collections.abc import Iterable, Sequence
from html import escape

_STYLE = """
:root { color-scheme: light dark; --line: light-dark(#d5d8dc, #444b52); --card: light-dark(#f6f8fa, #22272e); }
body { margin: 0 auto; padding: 1rem; max-width: 64rem; font: 15px/1.45 system-ui, sans-serif;
  color: light-dark(#1c2126, #e3e7eb); background: light-dark(#fff, #1a1e23); }
h1 { font-size: 1.35rem; margin: 0 0 .3rem; } h2 { font-size: 1.1rem; margin: 1.6rem 0 .4rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: .3rem 0; color: light-dark(#57606a, #9aa4af); }
th, td { padding: .2rem .6rem; border-bottom: 1px solid var(--line); }
figure { margin: 1rem 0; } figcaption { color: light-dark(#57606a, #9aa4af); }
img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
pre { overflow-x: auto; background: var(--card); padding: .6rem; font: 13px/1.4 ui-monospace, monospace; }
"""
# A browser that opens the page sends no request to any server, for any content of the page.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class Strong(str):
    """A text that a table shows in bold."""


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "", *, most: int = 60) -> str:
    """Return an HTML table of text; its first column is aligned left, the others right.

    Args:
        columns: The names of the columns.
        rows: The cells of each row.
        caption: What the table shows.
        most: Maximum number of rows; a last row tells how many more there are.
    """
    rows = list(rows)
    left = f"<tr><td colspan={len(columns)}>and {len(rows) - most:,} more</td></tr>" if len(rows) > most else ""
    body = "".join(f"<tr>{''.join(_cells('td', row))}</tr>" for row in rows[:most])
    head = f"<thead><tr>{''.join(_cells('th', columns))}</tr></thead>"
    return f"<table><caption>{escape(caption)}</caption>{head}<tbody>{body}{left}</tbody></table>"


def wide(content: str, label: str) -> str:
    """Return content that scrolls sideways on a narrow screen, also by keyboard."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">{content}</div>'


def page(title: str, body: str) -> str:
    """Return a whole page: one file that loads nothing."""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _cells(tag: str, texts: Sequence[str]) -> list[str]:
    sides = ["left", *["right"] * (len(texts) - 1)]
    return [f'<{tag} style="text-align:{side}">{_text(text)}</{tag}>' for side, text in zip(sides, texts, strict=True)]


def _text(text: str) -> str:
    return f"<b>{escape(text)}</b>" if isinstance(text, Strong) else escape(text)
