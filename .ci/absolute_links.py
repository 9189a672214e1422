"""Make a release's links absolute, in the tree that it is built from: a package index shows README.md without the rest.

    python .ci/absolute_links.py https://HOST/OWNER/NAME v0.3.0

Links of README.md get the address of the repository at that tag, and pyproject.toml names the address in [project.urls].
Workflows know the address themselves, so a release sets nothing but its tag.
"""

import re
import sys
from pathlib import Path

MARK = '# "Homepage", '  # begins the line that stands for the addresses


def absolute(text: str, address: str, tag: str) -> str:
    """Return Markdown with the address in front of each relative link; pictures are linked as raw files."""

    def link(match: re.Match[str]) -> str:
        picture, label, target = match.groups()
        kind = "raw" if picture else "blob"
        return f"{picture}[{label}]({address}/{kind}/{tag}/{target})"

    return re.sub(r"(!?)\[([^\]]*)\]\((?![a-z]+:|#)([^)\s]+)\)", link, text)


def with_urls(text: str, address: str, tag: str) -> str:
    """Return pyproject.toml with the addresses of the project."""
    lines = text.splitlines(keepends=True)
    (place,) = (i for i, line in enumerate(lines) if line.startswith(MARK))
    urls = {
        "Homepage": address,
        "Repository": address,
        "Documentation": f"{address}/tree/{tag}/docs",
        "Changelog": f"{address}/blob/{tag}/CHANGELOG.md",
        "Issues": f"{address}/issues",
    }
    lines[place : place + 1] = [f'{name} = "{url}"\n' for name, url in urls.items()]
    return "".join(lines)


def main(address: str, tag: str, folder: Path = Path()) -> None:
    """Rewrite the two files in a folder."""
    for name, change in (("README.md", absolute), ("pyproject.toml", with_urls)):
        path = folder / name
        path.write_text(change(path.read_text(encoding="utf-8"), address.rstrip("/"), tag), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:3])
