"""Rooms of the package import lower floors only, imports stay light, and missing parts are named."""

import ast
import shutil
import statistics
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import pycooldown
from pycooldown._extras import shortcoming

PACKAGE = Path(pycooldown.__file__).parent
# From the top down. A module imports its own room and rooms of lower floors, never another room of its own floor.
FLOORS = [
    ("__main__",),
    ("cli",),
    ("training",),  # a former name
    ("recipes",),
    ("huggingface", "gradients.variance", "plots"),
    ("data",),
    ("adaptive", "sampling", "losses"),
    ("schedules", "gradients.theory", "gradients.moments"),
    ("mixture", "_yaml", "domain_log"),
    ("_core", "_extras", "_files", "_html", "processes"),
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
CORE_USERS = {
    "__init__.py",
    "sampling/seeking.py",
    "data/cache/block_files.py",
    "data/cache/plan.py",
    "data/index.py",
    "data/shards.py",
    "data/token_file.py",
    "data/token_ranges.py",
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


def module_name(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path, modules):
    """Return the package's modules that a file imports, also inside functions, but not only for type checkers."""
    package = module_name(path).split(".")
    package = package if path.name == "__init__.py" else package[:-1]
    found, nodes = set(), [ast.parse(path.read_text())]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            nodes += node.orelse
            continue
        nodes += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found |= {name if (name := f"{base}.{alias.name}") in modules else base for alias in node.names}
    return found & modules - {module_name(path)}


def test_no_import_circle():
    paths = {module_name(path): path for path in PACKAGE.rglob("*.py")}
    modules = paths.keys() | {"pycooldown._core"}
    left = {name: imports_of(path, modules) for name, path in paths.items()} | {"pycooldown._core": set()}
    while leaves := {name for name, imported in left.items() if not imported & left.keys()}:
        left = {name: imported for name, imported in left.items() if name not in leaves}
    assert not left, f"these modules import each other in circles: {sorted(left)}"


def test_a_type_name_is_used_for_one_thing():
    homes = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            names = [node.name] if isinstance(node, ast.ClassDef) else []
            if isinstance(node, ast.Assign):  # a type alias has capitals and small letters in its name, as in Vector
                names = [t.id for t in node.targets if isinstance(t, ast.Name) and t.id[0].isupper()]
            for name in names:
                if not name.isupper():
                    homes.setdefault(name, set()).add(str(path.relative_to(PACKAGE)))
    doubles = {name: sorted(files) for name, files in homes.items() if len(files) > 1}
    assert not doubles, f"one name, two things: rename one, or import it: {doubles}"


def test_files_are_short():
    sources = Path(__file__).parent.parent / "csrc"
    files = [*PACKAGE.rglob("*.py"), *(f for f in sources.rglob("*") if f.suffix in {".h", ".cpp", ".cu", ".cuh"})]
    lines = {str(file): len(file.read_text(encoding="utf-8").splitlines()) for file in files}
    assert {file: count for file, count in lines.items() if count > 300} == {}
    assert statistics.median(lines.values()) <= 150


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
        ("data.best_fit", "numba", "data"),
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
    """These are the public names. A change of this list belongs in the CHANGELOG."""
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
    assert shortcoming("lonely", (3, 7)) is None  # its version is unknown
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
