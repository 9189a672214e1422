"""The shape of the package: which room imports which, what stays unloaded, what a missing part says."""

import ast
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import pycooldown
from pycooldown._extras import shortcoming

PACKAGE = Path(pycooldown.__file__).parent
# From the top down: a module imports its own room and those of lower floors; rooms of one floor do not know each other.
FLOORS = [
    ("__main__",),
    ("cli",),
    ("training",),  # a former name
    ("recipes",),
    ("huggingface", "gradients.variance", "plots"),
    ("data",),
    ("adaptive", "sampling", "losses"),
    ("schedules", "gradients.theory", "gradients.moments"),
    ("mixture",),
    ("_core", "_extras", "_files", "_html", "processes"),
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
CORE_USERS = {
    "__init__.py",
    "sampling/planner.py",
    "data/index.py",
    "data/shards.py",
    "data/token_file.py",
    "data/tokens.py",
    "losses/backends/cpp.py",
}
HEAVY = (
    "torch",
    "triton",
    "webdataset",
    "numba",
    "transformers",
    "accelerate",
    "matplotlib",
    "sentencepiece",
    "typer",
    "tokenizers",
    "pyarrow",
    "orjson",
)


def room_of(module):
    parts = module.split(".")[1:3]
    return ".".join(parts) if ".".join(parts) in FLOOR_OF else parts[0]


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "pycooldown")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "pycooldown":
            if node.module == "pycooldown":
                yield from (f"pycooldown.{alias.name}" for alias in node.names)
            else:
                yield node.module


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path):
    relative = path.relative_to(PACKAGE)
    if relative.name == "__init__.py" and len(relative.parts) < 3:
        return
    room = room_of(".".join(("pycooldown", *relative.with_suffix("").parts)))
    assert room in FLOOR_OF, f"{relative} is in no room; draw it into FLOORS"
    for module in imported_modules(path):
        target = room_of(module)
        if target == "_core":
            assert str(relative) in CORE_USERS, f"{relative} uses the compiled core; go through a module that wraps it"
        elif target in FLOOR_OF and target != room:
            assert FLOOR_OF[target] > FLOOR_OF[room], f"{relative} ({room}) imports {module}: imports point down only"


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_import_loads_nothing_heavy():
    code = f"import pycooldown, sys; print(sorted(set({HEAVY}) & set(sys.modules)))"
    assert run(code).stdout.strip() == "[]"


def test_command_line_help_loads_nothing_heavy():
    code = (
        "import sys; from pycooldown.cli import main; sys.argv = ['pycooldown', '--help']\n"
        "try: main()\nexcept SystemExit: pass\n"
        f"print(sorted((set({HEAVY}) - {{'typer'}}) & set(sys.modules)))"
    )
    assert run(code).stdout.strip().splitlines()[-1] == "[]"


def test_missing_core_says_what_to_run():
    code = "import sys; sys.modules['pycooldown._core'] = None; import pycooldown"
    error = run(code).stderr.strip().splitlines()[-1]
    assert error.startswith("ImportError: pycooldown's compiled core is missing")
    assert "pip install ." in error


@pytest.mark.parametrize(
    ("module", "missing", "extra"),
    [
        ("losses", "torch", "losses"),
        ("data.pack", "webdataset", "data"),
        ("data.manifest", "pydantic", "data"),
        ("data.packing", "numba", "data"),
        ("data.prepare.formats", "orjson", "prepare"),
        ("data.prepare.columnar", "pyarrow", "prepare"),
        ("huggingface", "transformers", "train"),
        ("recipes", "pydantic", "cli"),
        ("plots", "matplotlib", "plots"),
        ("cli", "typer", "cli"),
    ],
)
def test_missing_extra_says_what_to_install(module, missing, extra):
    code = f"import sys; sys.modules['{missing}'] = None; import pycooldown.{module}"
    error = run(code).stderr.strip().splitlines()[-1]
    assert f"pip install 'pycooldown[{extra}]'" in error


def test_version():
    try:
        assert metadata.version("pycooldown") == pycooldown.__version__
    except metadata.PackageNotFoundError:
        pytest.skip("running from a source tree that is not installed")


def test_public_names():
    """Changes of this list are changes of the public surface: they belong in the CHANGELOG."""
    assert sorted(pycooldown.__all__) == [
        "AliasTable",
        "BatchPlan",
        "DomainBatchSampler",
        "Exposure",
        "Mixture",
        "Schedule",
        "schedules",
        "temperature",
        "theory",
    ]


def test_a_module_that_is_missing_or_too_old_is_named(tmp_path, monkeypatch):
    (tmp_path / "lonely.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert shortcoming("absent", (3, 7)) == "running without absent installed"
    assert shortcoming("lonely", (3, 7)) is None  # no version is known
    for installed, expected in [
        ("3.10.0", None),
        ("3.7.1+git1", None),
        ("4", None),
        ("3.6.9", "3.6.9"),
        ("2.13", "2.13"),
    ]:
        info = tmp_path / f"lonely-{installed}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: lonely\nVersion: {installed}\n")
        found = shortcoming("lonely", (3, 7))
        assert found == (expected and f"lonely {expected}; expected 3.7 or newer")
        shutil.rmtree(info)


@pytest.mark.parametrize("name", ["MixtureTrainer", "load_recipe"])
def test_former_names_warn(name):
    pytest.importorskip("transformers")
    from pycooldown import huggingface, recipes, training

    with pytest.warns(DeprecationWarning, match=f"pycooldown.training.{name} is now pycooldown"):
        assert getattr(training, name) is getattr(huggingface if name == "MixtureTrainer" else recipes, name)
