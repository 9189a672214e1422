"""Pages of the site that are made from the package: keys of recipes, the command line, the planner, examples.

MkDocs calls the functions whose names begin with ``on_``. A page holds ``{{ recipe_keys }}`` or ``{{ command_line }}``
where the generated part goes.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from mkdocs.structure.files import File, Files

from pycooldown.cli import app
from pycooldown.recipes.loading import recipe_of
from pycooldown.recipes.planner_page import planner_page
from pycooldown.recipes.schema import json_schema


def on_files(files: Files, config: Any) -> Files:
    """Add the planner, with sizes of a corpus in four languages."""
    sizes = {"en": 659_179_687, "it": 39_062_500, "zh": 9_521_484, "sw": 244_140}
    methods = [
        {"method": "temperature", "tau": 5},
        {"method": "scalarization", "tau": 5},
        {"method": "cooldown"},
        {"method": "unimax", "max_epochs": 4},
    ]
    run = {"data": {"path": "packed"}, "training": {"steps": 100_000, "batch_size": 1024}}
    recipes = {method["method"]: recipe_of({**run, "mixture": method}, "the site's planner") for method in methods}
    page = planner_page(recipes, sizes)
    files.append(File.generated(config, "planner.html", content=page))
    for example in sorted(Path(config.config_file_path).parent.glob("examples/*.py")):
        content = f"# {example.name}\n\n```python\n{example.read_text(encoding='utf-8')}```\n"
        files.append(File.generated(config, f"examples/{example.stem}.md", content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the generated parts where a page asks for them."""
    for name, make in (("recipe_keys", _recipe_keys), ("command_line", _command_line)):
        mark = "{{ " + name + " }}"
        if mark in markdown:
            markdown = markdown.replace(mark, "\n".join(make()))
    # Links that hold in a clone, from folders of pages too.
    return re.sub(r"\]\(((?:\.\./)*)\.\./examples/(\w+)\.py\)", r"](\1examples/\2.md)", markdown)


def _recipe_keys() -> Iterator[str]:
    schema = json_schema()
    definitions = schema["$defs"]
    for section, reference in schema["properties"].items():
        if section == "mixture":
            continue
        yield from (f"## `{section}`", "", *([text, ""] if (text := _plain(reference.get("description", ""))) else []))
        kinds = [part["$ref"].rpartition("/")[2] for part in [reference, *reference.get("anyOf", [])] if "$ref" in part]
        for kind in kinds:  # none where any key is taken
            heading = [f"### `{section}`: {_plain(definitions[kind]['description'])}"] if len(kinds) > 1 else []
            alone = [_plain(definitions[kind]["description"])] if len(kinds) == 1 else []
            yield from (*heading, *alone, "", *_table(definitions[kind]), "")
    yield from ("## `mixture`", "", "`method` names the method; the other keys are its own.", "")
    for method in schema["properties"]["mixture"]["oneOf"]:
        yield from (f"### `{method['properties']['method']['const']}`", "", method["description"], "")
        yield from (*_table(method), "")


def _table(definition: dict[str, Any]) -> Iterator[str]:
    keys = {key: value for key, value in definition["properties"].items() if key != "method"}
    if not keys:
        yield "No options."
        return
    yield from ("| key | type | default | meaning |", "|---|---|---|---|")
    for key, value in keys.items():
        default = "needed" if key in definition.get("required", ()) else f"`{_yaml(value.get('default'))}`"
        meaning = _plain(value.get("description", "")).replace("|", "\\|")
        yield f"| `{key}` | {_type(value)} | {default} | {meaning} |"


def _plain(text: str) -> str:
    """Return a description as one line, with the marks of code as Markdown has them."""
    return " ".join(text.replace("``", "`").split())


def _yaml(value: Any) -> str:
    return json.dumps(value).strip('"')


def _type(value: dict[str, Any]) -> str:
    if "enum" in value:
        return " or ".join(f"`{choice}`" for choice in value["enum"])
    if "anyOf" in value:
        return " or ".join(_type(part) for part in value["anyOf"])
    if value.get("type") == "array":
        parts = value.get("prefixItems") or [value.get("items", {})]
        return f"list of {' and '.join(dict.fromkeys(_type(part) for part in parts))}"
    bounds = {"minimum": "≥ {}", "exclusiveMinimum": "> {}", "maximum": "≤ {}", "exclusiveMaximum": "< {}"}
    found = [text.format(f"{value[key]:,}") for key, text in bounds.items() if key in value]
    return " ".join([value.get("type", "value"), ", ".join(found)]).strip()


def _command_line() -> Iterator[str]:
    group = typer.main.get_command(app)
    for name, command in group.commands.items():
        if command.hidden:
            continue
        with command.make_context(name, [], resilient_parsing=True) as context:
            yield from (
                f"## `pycooldown {name}`",
                "",
                html.escape(command.help or ""),
                "",
                "```",
                context.get_usage(),
                "```",
                "",
            )
            rows = [record for parameter in command.params if (record := parameter.get_help_record(context))]
        yield from ("| argument or option | meaning |", "|---|---|") if rows else ()
        for names, text in rows:
            yield f"| `{names}` | {html.escape(text)} |"
        yield ""
