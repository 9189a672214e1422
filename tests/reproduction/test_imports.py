"""Reproductions import only public names of the package and use other names for their own classes."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE, HERE = (sorted((ROOT / name).rglob("*.py")) for name in ("pycooldown", "reproduction"))


@pytest.mark.parametrize("path", HERE, ids=lambda path: path.name)
def test_only_public_names_of_the_package_are_imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pycooldown"):
            names = [*node.module.split("."), *(alias.name for alias in node.names)]
            assert not [name for name in names if name.startswith("_")], f"{path.name}:{node.lineno}"


def test_the_package_does_not_import_reproductions():
    for path in PACKAGE:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not [module for module in modules if module.split(".")[0] == "reproduction"], path


def test_no_class_has_a_name_of_the_package():
    def names(paths):
        trees = [ast.parse(path.read_text(encoding="utf-8")) for path in paths]
        return {node.name for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)}

    assert names(PACKAGE) & names(HERE) == set()
