"""A release has absolute links, versions that agree, and workflows that fit."""

import ast
import importlib.util
import re
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PYTHONS = re.findall(r"Programming Language :: Python :: (3\.\d+)", "\n".join(PYPROJECT["project"]["classifiers"]))
ADDRESS = "https://pycooldown.example/pycooldown"


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def workflow(name):
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load((ROOT / f".github/workflows/{name}.yml").read_text())


def test_a_releases_links_are_absolute_and_lead_to_files(tmp_path):
    for name in ("README.md", "pyproject.toml"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    load(ROOT / ".ci/absolute_links.py").main(ADDRESS + "/", "v9", tmp_path)
    before, after = ((folder / "README.md").read_text() for folder in (ROOT, tmp_path))
    links = re.findall(r"\]\(([^)]+)\)", re.sub(r"```.*?```", "", after, flags=re.DOTALL))
    assert links
    assert all(link.startswith("https://") for link in links)
    ours = [link.removeprefix(ADDRESS) for link in links if link.startswith(ADDRESS)]
    assert all((ROOT / re.sub("^/(blob|raw)/v9/", "", link)).exists() for link in ours)
    assert re.findall(r"!\[[^\]]*\]\(" + ADDRESS + "/raw/v9/docs/figures/", after) or "![" not in before
    assert re.findall(r"```.*?```", before, flags=re.DOTALL) == re.findall(r"```.*?```", after, flags=re.DOTALL)
    urls = tomllib.loads((tmp_path / "pyproject.toml").read_text())["project"]["urls"]
    assert set(urls) >= {"Homepage", "Documentation", "Repository", "Changelog", "Issues", "Paper"}
    assert all(url.startswith("https://") for url in urls.values())


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("[a](docs/a.md)", f"[a]({ADDRESS}/blob/v9/docs/a.md)"),
        ("![a](docs/a.png)", f"![a]({ADDRESS}/raw/v9/docs/a.png)"),
        ("[a](https://x.example/b)", "[a](https://x.example/b)"),
        ("[a](#part)", "[a](#part)"),
    ],
)
def test_links(text, wanted):
    assert load(ROOT / ".ci/absolute_links.py").absolute(text, ADDRESS, "v9") == wanted


def test_the_changelog_has_the_version_and_no_ratios():
    version = re.search(r'__version__ = "(.*?)"', (ROOT / "pycooldown/__init__.py").read_text()).group(1)
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert f"## {version} " in changelog
    assert (
        re.findall(r"\d(?:\.\d+)? times|\d ?%|\d ?[µnm]s\b", changelog) == []
    )  # figures of speed belong in docs/performance.md


def test_workflows_cover_the_versions_that_are_promised():
    matrix = workflow("tests")["jobs"]["suite"]["strategy"]["matrix"]
    tested = {*matrix["python"], *(entry["python"] for entry in matrix["include"])}
    assert tested == set(PYTHONS)
    wheels = re.findall(r"cp3(\d+)-\*", PYPROJECT["tool"]["cibuildwheel"]["build"])
    assert [f"3.{minor}" for minor in wheels] == PYTHONS
    floors = dict(re.findall(r'"(torch|transformers)>=(\d+\.\d+)', (ROOT / "pyproject.toml").read_text()))
    assert f"torch=={floors['torch']}.*" in [entry["versions"] for entry in matrix["include"]]
    sessions = workflow("tests")["jobs"]["transformers"]["strategy"]["matrix"]
    assert floors["transformers"] in sessions["version"]


def test_workflows_run_sessions_that_exist():
    sessions = set(re.findall(r"^def (\w+)\(session", (ROOT / "noxfile.py").read_text(), flags=re.MULTILINE))
    checks = workflow("tests")["jobs"]["checks"]["strategy"]["matrix"]["session"]
    named = re.findall(r"nox -s (\w+)", "".join(p.read_text() for p in (ROOT / ".github/workflows").glob("*.yml")))
    assert {*checks, *named} <= sessions


def test_actions_are_pinned_by_hash():
    for path in (ROOT / ".github/workflows").glob("*.yml"):
        for line in path.read_text().splitlines():
            if "uses:" in line and "zizmor: ignore" not in line:
                assert re.search(r"@[0-9a-f]{40}  # v\d+\.\d+\.\d+$", line), line


def test_sessions_install_extras_and_groups_that_exist():
    extras, groups = PYPROJECT["project"]["optional-dependencies"], PYPROJECT["dependency-groups"]
    calls = [
        [argument.value for argument in node.args[1:] if isinstance(argument, ast.Constant)]
        for node in ast.walk(ast.parse((ROOT / "noxfile.py").read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "install"
    ]
    assert len(calls) > 5
    for extra, *named in calls:
        assert set(extra.split(",")) <= set(extras)
        assert set(named) <= set(groups)
