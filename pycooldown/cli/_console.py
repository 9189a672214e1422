"""A console that prints foreign text safely: names of domains, runs and files may hold markup or terminal escapes."""

from __future__ import annotations

import re
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.text import Text

# Control characters (C0 except tab and line feed, DEL, C1), and those that reverse the direction of text.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def visible(text: str, *, markup: bool = False) -> str:
    """Return a text with its control characters shown as escapes.

    Args:
        text: The text; its tabs and line feeds stay.
        markup: Whether rich will read the text as markup. If so, brackets are escaped.
    """
    written = _UNSEEN.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)
    return escape(written) if markup else written


class PlainConsole(Console):
    """A console that reads no markup, emoji codes or escapes in strings; use `rich.text.Text` for styles."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a string as text. All output passes through here, including cells and titles of tables."""
        return super().render_str(visible(text), **{**options, "markup": False, "emoji": False})
