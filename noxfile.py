"""Sessions for development and CI: `nox -l` lists them, `nox -s tests` runs one."""

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
    """The tar scanner on damaged input, under sanitizers; give the seconds: `nox -s fuzz -- 300`."""
    session.run("python", "tests/fuzz/run.py", *(session.posargs or ["60"]))
