"""Sessions for development and CI: `nox -l` lists them, `nox -s tests` runs one."""

import shutil
from pathlib import Path

import nox

nox.options.default_venv_backend = "venv"
nox.options.sessions = ["lint", "types", "tests"]
nox.options.reuse_existing_virtualenvs = True

CONSTRAINTS = ("-c", "constraints.txt")


def install(session: nox.Session, extra: str, *groups: str) -> None:
    """Installs pycooldown from a wheel built in isolation, with the pinned versions of everything else."""
    pyproject = nox.project.load_toml("pyproject.toml")
    session.install(*CONSTRAINTS, f".[{extra}]", *nox.project.dependency_groups(pyproject, *groups))


@nox.session
def lint(session: nox.Session) -> None:
    """Formatting and lint of Python and C++."""
    session.install(*CONSTRAINTS, "ruff", "clang-format")
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")
    sources = session.run("git", "ls-files", "csrc", external=True, silent=True).split()
    session.run("clang-format", "--dry-run", "-Werror", *sources)


@nox.session
def types(session: nox.Session) -> None:
    """Strict type checking of the package."""
    install(session, "all", "lint", "test")
    session.run("mypy")
    session.run("pytest", "tests/losses/test_typing.py")  # the types of calls, by two checkers


@nox.session
def tests(session: nox.Session) -> None:
    """The test suite, against an installed wheel."""
    install(session, "all", "test")
    session.run("pytest", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Benchmarks against peers, side by side, and a report of them; run them on a quiet machine."""
    install(session, "all", "test", "bench")
    # litdata brings it for images. Beside a torch for CPUs it does not load, and takes transformers with it.
    session.run("pip", "uninstall", "--yes", "--quiet", "torchvision")
    session.run("python", "benchmarks/report.py", *session.posargs)


@nox.session
def ray(session: nox.Session) -> None:
    """`pycooldown tokenize` on a real Ray cluster of this machine; opt-in, since Ray is large."""
    install(session, "ray", "test")
    session.run("pytest", "tests/data/prepare/test_prepare_ray.py", *session.posargs)


# What each framework brings its own pins for, with the release that its example was tried with.
FRAMEWORKS = {
    "trl": ("trl_sft", ("trl==1.16.0",)),
    "torchtitan": ("torchtitan_loader", ("torchtitan==0.3.0",)),
    "olmo_core": ("olmo_core_loader", ("ai2-olmo-core==3.0.0", "google-cloud-storage", "boto3")),
}


@nox.session
@nox.parametrize("framework", list(FRAMEWORKS))
def frameworks(session: nox.Session, framework: str) -> None:
    """The example of a framework in an environment of its own, since their pins exclude each other; opt-in."""
    example, requirements = FRAMEWORKS[framework]
    # Not by constraints.txt, whose versions some of them refuse.
    session.install(".[train]", "pytest", "pytest-timeout", "pytest-benchmark", "hypothesis", "datasets", *requirements)
    session.run("pytest", "tests/examples", "-k", example, *session.posargs)
    if framework == "trl":
        session.run("pytest", "tests/huggingface/test_sft.py", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Every relative link of the Markdown pages leads somewhere, and every Python snippet of the README runs."""
    install(session, "all", "test")
    session.run("pytest", "tests/test_docs.py", *session.posargs)


@nox.session
def cuda_code(session: nox.Session) -> None:
    """Compiles the CUDA kernels for every supported architecture; needs nvcc, but no GPU."""
    folder = session.create_tmp()
    for sm in ("sm_80", "sm_90", "sm_100"):
        for source in session.run("git", "ls-files", "csrc/cuda/*.cu", external=True, silent=True).split():
            session.run(
                *("nvcc", "-std=c++20", "-O3", f"-arch={sm}", "-Werror", "all-warnings", "-Xcompiler=-Wall,-Wextra"),
                *("-Xptxas", "-v", "-Icsrc/include", "-Icsrc/cuda", "-c", source, "-o", f"{folder}/{sm}.o"),
                external=True,
            )


@nox.session
def statistics(session: nox.Session) -> None:
    """TestU01's SmallCrush over the raw random numbers; opt-in, about a minute."""
    if not Path("/usr/include/testu01/bbattery.h").exists() and "CPLUS_INCLUDE_PATH" not in session.env:
        session.error(
            "TestU01 is missing: apt-get install libtestu01-0-dev (in Debian's non-free component), or name its place "
            "in CPLUS_INCLUDE_PATH and LIBRARY_PATH"
        )
    program = f"{session.create_tmp()}/small_crush"
    source = "tests/statistics/small_crush.cpp"
    session.run(
        *("c++", "-std=c++20", "-O3", "-Icsrc/include", source, "-o", program),
        *("-ltestu01", "-ltestu01probdist", "-ltestu01mylib", "-lm"),
        external=True,
    )
    session.run(program, external=True)


@nox.session
def gpu_code(session: nox.Session) -> None:
    """Registers, spills, shared memory and access widths of the Triton kernels, compiled without a GPU."""
    install(session, "all")
    session.run("python", "benchmarks/triton_aot.py", *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """The readers of tokens and tars under sanitizers, then states; seconds for each reader: `nox -s fuzz -- 300`."""
    session.install(*CONSTRAINTS, ".", "hypothesis", "pytest", "pytest-benchmark", "pytest-timeout")
    session.run("python", "tests/fuzz/run.py", *(session.posargs or ["60"]))
    session.run("pytest", "tests/fuzz", "--hypothesis-profile=fuzz", "--timeout=0")


# Where each sanitizer's runtime lies, what it is built with, and its options. Python never frees what it keeps until
# its end, so leaks are not looked for.
SANITIZERS = {
    "thread": ("libtsan.so", "thread", {"TSAN_OPTIONS": "halt_on_error=1 second_deadlock_stack=1"}),
    "address": (
        "libasan.so",
        "address,undefined",
        {
            "ASAN_OPTIONS": "detect_leaks=0 strict_string_checks=1",
            "UBSAN_OPTIONS": "halt_on_error=1 print_stacktrace=1",
            "PYTHONMALLOC": "malloc",
        },
    ),
}
# What needs no torch, whose threads the sanitizers cannot see into.
SANITIZED_TESTS = ("core", "sampling", "golden", "fuzz", "data/test_tar_index.py", "data/test_tar_index_file.py")


@nox.session
@nox.parametrize("sanitizer", list(SANITIZERS))
def sanitize(session: nox.Session, sanitizer: str) -> None:
    """The core built with sanitizers, under the tests of random numbers, samplers, threads and indexes; opt-in."""
    session.install(*CONSTRAINTS, "cmake", "ninja", "numpy", "pybind11", "scipy", "webdataset")
    session.install(*CONSTRAINTS, "hypothesis", "pytest", "pytest-benchmark", "pytest-timeout")
    runtime, flag, options = SANITIZERS[sanitizer]
    source = Path.cwd()
    folder = Path(session.create_tmp()).resolve()
    shutil.rmtree(folder / "pycooldown", ignore_errors=True)
    shutil.copytree("pycooldown", folder / "pycooldown", ignore=shutil.ignore_patterns("_core*.so", "__pycache__"))
    session.run(
        *("cmake", "-S", str(source), "-B", str(folder / "build"), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=RelWithDebInfo"),
        f"-DCMAKE_CXX_FLAGS=-fsanitize={flag} -fno-sanitize-recover=all -fno-omit-frame-pointer",
        f"-DPython_EXECUTABLE={shutil.which('python', path=session.bin)}",
        f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={folder / 'pycooldown'}",
    )
    session.run("cmake", "--build", str(folder / "build"))
    # Python is not linked with the C++ library, whose exceptions the runtime must find when it starts.
    libraries = [
        session.run("c++", f"-print-file-name={name}", external=True, silent=True).strip()
        for name in (runtime, "libstdc++.so")
    ]
    env = {"LD_PRELOAD": " ".join(libraries), "PYTHONPATH": str(folder), **options}
    # Address randomization may put Python where the thread sanitizer keeps its shadow memory.
    command = ("setarch", "--addr-no-randomize", f"{session.bin}/python", "-P")
    session.run(
        *command,
        "-c",
        f"import pycooldown; assert pycooldown.__file__.startswith({str(folder)!r})",
        env=env,
        external=True,
    )
    session.run(
        *(*command, "-m", "pytest", "-p", "no:cacheprovider", "--timeout=0"),
        *(session.posargs or [f"tests/{test}" for test in SANITIZED_TESTS]),
        env=env,
        external=True,
    )
