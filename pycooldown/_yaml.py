"""Read YAML of a bounded size. Text that expands, nests or repeats without limit is refused before it is built."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from pycooldown._files import open_regular

MAX_BYTES = 1 << 20
MAX_DEPTH = 20
MAX_NODES = 100_000


def read_yaml(path: str | Path, *, max_bytes: int = MAX_BYTES) -> Any:
    """Return the value in a file.

    Raises:
        OSError: If there is no such file, or it is a folder or a pipe.
        ValueError: If it is too large, not UTF-8, or `parse_yaml` refuses its text.
    """
    with open_regular(path) as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ValueError(f"it has more than {max_bytes:,} bytes; expected a small YAML file")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 text: {error}") from error
    return parse_yaml(text)


def parse_yaml(text: str) -> Any:
    """Return the value of a YAML text.

    Raises:
        ValueError: If the text is not YAML, a key repeats, or it nests deeper than `MAX_DEPTH` levels or would have
            more than `MAX_NODES` values once its aliases are written out.
    """
    try:
        _check_extent(text)
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        raise ValueError(f"it is not YAML: {error}") from error
    except (OverflowError, RecursionError) as error:
        raise ValueError(f"it has a value that cannot be read: {error}") from error


def _check_extent(text: str) -> None:
    """Check the extent of a text by its events, of which there are as many as tokens, without building anything."""
    sizes: dict[str, int] = {}  # nodes of each finished anchor, with its aliases written out
    open_nodes: list[tuple[str | None, int]] = []  # anchor, and nodes before it
    nodes = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise ValueError(
                    f"alias *{event.anchor} is used before the end of its anchor; expected it after the anchor's value"
                )
            nodes += sizes[event.anchor]
        elif isinstance(event, yaml.ScalarEvent):
            nodes += 1
            if event.anchor is not None:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, nodes))
            nodes += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            if anchor is not None:
                sizes[anchor] = nodes - before
        if len(open_nodes) > MAX_DEPTH:
            raise ValueError(f"it nests deeper than {MAX_DEPTH} levels")
        if nodes > MAX_NODES:
            raise ValueError(f"it has more than {MAX_NODES:,} values, counting what aliases repeat")


class _Loader(yaml.SafeLoader):
    """A SafeLoader that refuses a mapping with a repeated key, of which PyYAML would keep the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge" and isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise ValueError(
                        f"key {key.value!r} is repeated in line {key.start_mark.line + 1}; expected each key once"
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)
