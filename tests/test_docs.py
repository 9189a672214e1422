"""The links of the pages lead to files, and their Python snippets run."""

import ast
import importlib.util
import re
import shlex
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").rglob("*.md")])
FENCE = re.compile(r"^(<!-- not run: .+ -->\n)?```python\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
FOUND = {page: FENCE.findall(page.read_text()) for page in PAGES}
SNIPPETS = {page: [code for skipped, code in found if not skipped] for page, found in FOUND.items()}
NOT_RUN = [code for found in FOUND.values() for skipped, code in found if skipped]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"(?:^|\s)(pycooldown|python -m reproduction) (.+)$")
README = ROOT / "README.md"
# tests/recipes/test_methods.py and tests/huggingface/test_training_page.py run these.
ELSEWHERE = {ROOT / "docs/recipes.md", ROOT / "docs/training.md"}
MADE = {"planner.html"}  # docs/hooks.py makes it when the site is built


def name(page):
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_relative_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if not re.match(r"[a-z]+:", target) and Path(target).name not in MADE:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def run(code, tmp_path, monkeypatch):
    """Run code from a file, since dataclasses and Triton may read its source."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "snippet.py").write_text(code)
    spec = importlib.util.spec_from_file_location("snippet", tmp_path / "snippet.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "snippet", module)
    spec.loader.exec_module(module)


@pytest.mark.parametrize("snippet", SNIPPETS[README], ids=lambda s: s.strip().splitlines()[0][:50])
def test_readme_snippets_run(snippet, tmp_path, monkeypatch):
    run(snippet, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    "page", [page for page, found in SNIPPETS.items() if found and page != README and page not in ELSEWHERE], ids=name
)
def test_snippets_of_a_page_run_one_after_the_other(page, tmp_path, monkeypatch):
    run("\n".join(SNIPPETS[page]), tmp_path, monkeypatch)


@pytest.mark.parametrize("snippet", NOT_RUN, ids=lambda s: s.strip().splitlines()[-1][:50])
def test_imports_of_snippets_that_are_not_run_exist(snippet):
    imports = [node for node in ast.parse(snippet).body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert imports
    exec(compile(ast.Module(imports, []), "page", "exec"), {})


def shown_commands():
    """Yield the program and the arguments of every command line in the pages."""
    for page in PAGES:
        for language, text in BLOCK.findall(page.read_text()):
            for line in text.replace("\\\n", " ").splitlines() if not language else ():
                if found := COMMAND.search(line):
                    yield found[1], shlex.split(found[2], comments=True)


@pytest.mark.parametrize(
    ("program", "arguments"),
    list(shown_commands()),
    ids=lambda shown: shown if isinstance(shown, str) else " ".join(shown),
)
def test_shown_commands_are_understood(program, arguments, tmp_path, monkeypatch):
    typer = pytest.importorskip("typer")
    monkeypatch.chdir(tmp_path)
    module = "pycooldown.cli" if program == "pycooldown" else "reproduction.__main__"
    app = pytest.importorskip(module).app
    name, *rest = arguments
    command = typer.main.get_command(app).commands[name]
    command.make_context(name, rest)  # an error names options, arguments and values that it does not know
    if name == "plan" and "--size" in rest:  # it needs no file
        app(arguments, standalone_mode=False)


def shown_recipes():
    """Yield the recipes in the pages; parts of recipes have no training or no mixture."""
    for page in PAGES:
        for language, text in BLOCK.findall(page.read_text()):
            if language == "yaml" and "training:" in text and "mixture:" in text and "data:" in text:
                yield pytest.param(text, id=f"{name(page)}: {text.splitlines()[0]}")


@pytest.mark.parametrize("text", list(shown_recipes()))
def test_shown_recipes_are_read(text, tmp_path):
    pytest.importorskip("pydantic")
    from pycooldown.recipes import load_recipe

    (tmp_path / "recipe.yaml").write_text(text)
    assert load_recipe(tmp_path / "recipe.yaml").training.steps


def pages_of(entries):
    for entry in entries:
        target = next(iter(entry.values())) if isinstance(entry, dict) else entry
        yield from pages_of(target) if isinstance(target, list) else [target]


def test_the_navigation_has_every_page():
    yaml = pytest.importorskip("yaml")
    listed = list(pages_of(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert sorted(listed) == sorted(str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md"))


@pytest.fixture(scope="module")
def hooks():
    pytest.importorskip("mkdocs")
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs/hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", [page for page in PAGES if ROOT / "docs" in page.parents], ids=name)
def test_links_of_the_site_stay_within_it(hooks, page):
    text = re.sub(r"```.*?```", "", hooks.on_page_markdown(page.read_text()), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if not re.match(r"[a-z]+:", target) and Path(target).name not in MADE:
            place = (page.parent / target).resolve().relative_to(ROOT / "docs")
            clone = ROOT / place.with_suffix(".py") if place.parts[0] == "examples" else ROOT / "docs" / place
            assert clone.exists(), f"{page.name} links to {target}"


def test_generated_pages_name_every_key_and_command(hooks):
    from pycooldown.cli import app
    from pycooldown.recipes.schema import json_schema

    keys = hooks.on_page_markdown("{{ recipe_keys }}")
    for section in json_schema()["properties"]:
        assert f"## `{section}`" in keys
    for definition in json_schema()["$defs"].values():
        assert all(f"| `{key}` |" in keys for key in definition.get("properties", {}) if key != "method")
    commands = hooks.on_page_markdown("{{ command_line }}")
    names = [c.name or c.callback.__name__ for c in app.registered_commands if not c.hidden]
    assert all(f"## `pycooldown {name}`" in commands for name in names)
    assert hooks.on_page_markdown("[x](../examples/trl_sft.py)") == "[x](examples/trl_sft.md)"
    assert hooks.on_page_markdown("[x](../../examples/trl_sft.py)") == "[x](../examples/trl_sft.md)"


def test_pages_have_snippets():
    assert len(SNIPPETS[README]) >= 3
    assert sum(bool(found) for found in SNIPPETS.values()) >= 12
