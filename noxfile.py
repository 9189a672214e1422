"""Sessions for development and CI: `nox -l` lists them, `nox -s tests` runs one."""

import platform
import re
import shutil
from pathlib import Path

import nox

nox.options.default_venv_backend = "venv"
nox.options.sessions = ["lint", "types", "tests"]
nox.options.reuse_existing_virtualenvs = True

CONSTRAINTS = ("-c", "constraints.txt")
# Tests of the core need only NumPy, SciPy and pytest, so they run wherever a wheel can be installed.
PYTEST = ["pytest", "pytest-timeout", "pytest-benchmark", "hypothesis", "scipy"]
# The tests that run the README and all pages.
PAGES = ["tests/test_docs.py", "tests/recipes/test_methods.py", "tests/huggingface/test_training_page.py"]
CORE_TESTS = ["core", "golden", "schedules", "gradients/test_theory.py", "test_mixture.py"]


def install(session: nox.Session, extra: str, *groups: str) -> None:
    """Install pycooldown from a wheel built in isolation, with pinned versions of everything else."""
    pyproject = nox.project.load_toml("pyproject.toml")
    session.install(*CONSTRAINTS, f".[{extra}]", *nox.project.dependency_groups(pyproject, *groups))


def run_suite(session: nox.Session, *options: str) -> None:
    """Run all tests in two processes, the slow ones last, with further options of pytest."""
    for selected in ((), ("-m", "slow")):
        session.run("pytest", "--numprocesses", "2", "--dist", "worksteal", *options, *selected)


@nox.session
def lint(session: nox.Session) -> None:
    """Check format and lint of Python and C++."""
    session.install(*CONSTRAINTS, "ruff", "clang-format")
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")
    sources = session.run("git", "ls-files", "csrc", external=True, silent=True).split()
    session.run("clang-format", "--dry-run", "-Werror", *sources)


@nox.session
def workflows(session: nox.Session) -> None:
    """Check what GitHub reads (schemas, and the security of workflows) and the configuration of cibuildwheel."""
    session.install(*CONSTRAINTS, "check-jsonschema", "zizmor", "cibuildwheel")
    for schema, pattern in (
        ("github-workflows", ".github/workflows/*.yml"),
        ("dependabot", ".github/dependabot.yml"),
        ("github-issue-forms", ".github/ISSUE_TEMPLATE/[!c]*.yml"),
        ("github-issue-config", ".github/ISSUE_TEMPLATE/config.yml"),
        ("citation-file-format", "CITATION.cff"),
    ):
        session.run("check-jsonschema", "--builtin-schema", f"vendor.{schema}", *map(str, sorted(Path().glob(pattern))))
    session.run("zizmor", "--offline", "--quiet", ".github/workflows")
    for platform_name in ("linux", "macos"):
        session.run("cibuildwheel", "--platform", platform_name, "--print-build-identifiers")


@nox.session
def types(session: nox.Session) -> None:
    """Run strict type checking of the package."""
    install(session, "all", "lint", "test")
    session.run("mypy")
    session.run("pytest", "tests/losses/test_typing.py")  # types of calls, checked by mypy and pyright


@nox.session
def tests(session: nox.Session) -> None:
    """Run the test suite and then its slow tests against an installed wheel; `-- tests/core` runs only these tests."""
    install(session, "all", "test")
    if session.posargs:
        session.run("pytest", *session.posargs)
    else:
        run_suite(session)


@nox.session
def lowest(session: nox.Session) -> None:
    """Run the tests with the lowest versions that pyproject.toml allows; `-- torch==2.13.0` replaces one of them."""
    session.install("uv")
    folder = Path(session.create_tmp())
    (folder / "override.txt").write_text("\n".join(session.posargs) + "\n")
    session.run(
        *("uv", "pip", "compile", "pyproject.toml", "--extra", "all", "--resolution", "lowest-direct", "--quiet"),
        *("--override", f"{folder}/override.txt", "--python", session.python or "python", "-o", f"{folder}/all.txt"),
    )
    # Lowest versions of direct requirements only; for their own requirements, any version that suits the test tools.
    pyproject = nox.project.load_toml("pyproject.toml")
    extras = pyproject["project"]["optional-dependencies"].values()
    named = {name for extra in [pyproject["project"]["dependencies"], *extras] for name in extra}
    names = {re.match(r"[\w.-]+", requirement).group().replace(".", "-") for requirement in named}
    found = (folder / "all.txt").read_text().splitlines()
    (folder / "lowest.txt").write_text("".join(f"{line}\n" for line in found if line.partition("==")[0] in names))
    test = nox.project.dependency_groups(pyproject, "test")
    # datasets needs a newer pyarrow than the package does, so tests of both together are skipped.
    test = [requirement for requirement in test if not requirement.startswith("datasets")]
    # With uv, because pip tries hundreds of releases of the tools before it finds some that suit these versions.
    session.run("uv", "pip", "install", "--quiet", "-c", f"{folder}/lowest.txt", ".[all]", *test)
    run_suite(session, "--verbose")  # which names a test that fails at once, not after the last


@nox.session
def bench(session: nox.Session) -> None:
    """Run the benchmarks against peers and write a report; use a quiet machine."""
    install(session, "all", "test", "bench")
    # litdata installs it for images. With a CPU build of torch it fails to load, and then transformers fails too.
    session.run("pip", "uninstall", "--yes", "--quiet", "torchvision")
    session.run("python", "benchmarks/report.py", *session.posargs)


@nox.session
def ray(session: nox.Session) -> None:
    """Run `pycooldown tokenize` and `index` on a local Ray cluster; opt-in, because Ray is large."""
    install(session, "ray,remote", "test")
    session.run("pytest", "tests/data/prepare/test_prepare_ray.py", "tests/data/test_index_ray.py", *session.posargs)


TRAINER_TESTS = (*PYTEST, "datasets", "peft", "psutil")


def only_torch(session: nox.Session) -> tuple[str, str]:
    """Return pip's options for the pinned torch and the newest versions of everything else.

    Without the pin, pip may choose a release that has no CPU build yet, and then install one with CUDA.
    """
    pins = [line for line in Path("constraints.txt").read_text().splitlines() if line.startswith("torch==")]
    path = Path(session.create_tmp()) / "torch.txt"
    path.write_text("\n".join(pins) + "\n")
    return "-c", str(path)


# Each framework, which has its own pins, with the release that its example was tested with.
FRAMEWORKS = {
    "trl": ("trl_sft", ("trl==1.16.0",)),
    "torchtitan": ("torchtitan_loader", ("torchtitan==0.3.0", "triton")),  # not part of a CPU build of torch
    "olmo_core": ("olmo_core_loader", ("ai2-olmo-core==3.0.0", "google-cloud-storage", "boto3")),
    "litgpt": ("litgpt_data", ("litgpt==0.5.13", "requests")),
    "megatron": ("megatron_external", ("megatron-core==0.16.1",)),
}


@nox.session
@nox.parametrize("framework", list(FRAMEWORKS), ids=list(FRAMEWORKS))
def frameworks(session: nox.Session, framework: str) -> None:
    """Run a framework's example in its own environment, because the pins of frameworks conflict; opt-in."""
    example, requirements = FRAMEWORKS[framework]
    # Not all of constraints.txt, because some frameworks refuse its versions.
    needs = (".[train]", *TRAINER_TESTS) if framework == "trl" else (".[data]", *PYTEST)
    session.install(*only_torch(session), *needs, *requirements)
    session.run("pytest", "tests/examples", "-k", example, *session.posargs)
    if framework == "trl":
        session.run("pytest", "tests/huggingface/test_sft.py", *session.posargs)


@nox.session
def llama(session: nox.Session) -> None:
    """Train a 50M-parameter Llama with FSDP2 on CPUs, kill it and resume it; opt-in, takes minutes."""
    install(session, "train", "test")
    session.run("pytest", "-s", "tests/examples/test_fsdp2_llama.py", env={"PYCOOLDOWN_LARGE_LLAMA": "1"})


# The transformers releases that the trainer is tested with: the lower bound of the extra `train`, and some between it
# and the version in constraints.txt.
TRANSFORMERS = ("4.57", "5.0", "5.10", "5.24")


@nox.session
@nox.parametrize("version", TRANSFORMERS, ids=TRANSFORMERS)
def transformers(session: nox.Session, version: str) -> None:
    """Run the tests of the trainer and of recipes with another version of transformers; opt-in."""
    session.install(*only_torch(session), ".[train]", *TRAINER_TESTS, f"transformers=={version}.*")
    session.run("pytest", "-m", "slow or not slow", "tests/huggingface", "tests/recipes", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the site in build/site, with warnings as errors, and run all Python snippets of pages and README."""
    install(session, "all", "test", "docs")
    session.run("mkdocs", "build", env={"NO_MKDOCS_2_WARNING": "1"})
    session.run("pytest", "tests/test_docs.py", *session.posargs)


@nox.session
def browser(session: nox.Session) -> None:
    """Test the site, the planner and a report in headless Chromium; opt-in, needs apt-get install chromium."""
    if not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
        session.error("Chromium is missing; install it: apt-get install chromium")
    install(session, "all", "test", "docs", "browser")
    session.run("mkdocs", "build", env={"NO_MKDOCS_2_WARNING": "1"})
    pages = ("tests/recipes/test_planner_page.py", "tests/browse_pages.py", "tests/browse_site.py")
    session.run("pytest", *pages, *session.posargs)


@nox.session
def cuda_code(session: nox.Session) -> None:
    """Compile the CUDA kernels for every supported architecture; needs nvcc, but no GPU."""
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
    """Run TestU01's SmallCrush on the raw random numbers; opt-in, takes about a minute."""
    if not Path("/usr/include/testu01/bbattery.h").exists() and "CPLUS_INCLUDE_PATH" not in session.env:
        session.error(
            "TestU01 is missing; apt-get install libtestu01-0-dev (in Debian's non-free component), or set its "
            "location in CPLUS_INCLUDE_PATH and LIBRARY_PATH"
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
    """Check registers, spills, shared memory and access widths of the Triton kernels, compiled without a GPU."""
    install(session, "all")
    session.run("python", "benchmarks/triton_aot.py", *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Fuzz the readers of tokens and tars under sanitizers, then states; `nox -s fuzz -- 300` sets seconds for each."""
    session.install(*CONSTRAINTS, ".", "hypothesis", "pytest", "pytest-benchmark", "pytest-timeout")
    session.run("python", "tests/fuzz/run.py", *(session.posargs or ["60"]))
    session.run("pytest", "tests/fuzz", "--hypothesis-profile=fuzz", "--timeout=0")


# For each sanitizer: its runtime library, the compiler's flag and its options. Python does not free all memory at its
# end, so leaks are not detected.
SANITIZERS = {
    "thread": ("libtsan.so", "thread", {"TSAN_OPTIONS": "halt_on_error=1 second_deadlock_stack=1 handle_sigbus=0"}),
    "address": (
        "libasan.so",
        "address,undefined",
        {
            "ASAN_OPTIONS": "detect_leaks=0 strict_string_checks=1 handle_sigbus=0",
            "UBSAN_OPTIONS": "halt_on_error=1 print_stacktrace=1",
            "PYTHONMALLOC": "malloc",
        },
    ),
}
# Tests without torch, because sanitizers cannot observe its threads.
SANITIZED_TESTS = (
    *("core", "sampling", "golden", "fuzz"),
    *("data/test_tar_index.py", "data/test_tar_index_file.py", "data/test_lost_pages.py", "data/test_dataset_index.py"),
)


@nox.session
@nox.parametrize("sanitizer", list(SANITIZERS), ids=list(SANITIZERS))
def sanitize(session: nox.Session, sanitizer: str) -> None:
    """Build the core with sanitizers and run tests of random numbers, samplers, threads and indexes; opt-in."""
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
    # The sanitizer's runtime needs the exceptions of the C++ library, which Python does not link.
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
        # Output of the sanitizers must not be lost if the process ends abruptly.
        *(*command, "-m", "pytest", "-p", "no:cacheprovider", "--timeout=0", "--capture=sys"),
        *(session.posargs or [f"tests/{test}" for test in SANITIZED_TESTS]),
        env=env,
        external=True,
    )


@nox.session
def wheel(session: nox.Session) -> None:
    """Build a manylinux_2_28 wheel with zig against an old C library, and run the README and all pages with it."""
    groups = nox.project.dependency_groups(nox.project.load_toml("pyproject.toml"), "release")
    session.install(*CONSTRAINTS, *groups)
    folder, machine = Path(session.create_tmp()), platform.machine()
    for old in ("built", "dist", "source"):
        shutil.rmtree(folder / old, ignore_errors=True)
    with_zig = {
        name: f"{session.bin}/python -m ziglang {compiler} -target {machine}-linux-gnu.2.28"
        for name, compiler in (("CC", "cc"), ("CXX", "c++"))
    }
    source = folder / "source"  # as in a release, with absolute links to an address that does not exist
    for name in session.run("git", "ls-files", external=True, silent=True).splitlines():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(name, source / name)
    with session.chdir(source):
        session.run("python", ".ci/absolute_links.py", "https://pycooldown.example/pycooldown", "v0")
    session.run("python", "-m", "build", "--outdir", str(folder / "built"), str(source), env=with_zig)
    (built,) = (folder / "built").glob("*.whl")
    # Fails if the wheel needs symbols newer than those of glibc 2.28 and GCC 8.
    platform_tag = f"manylinux_2_28_{machine}"
    session.run("auditwheel", "repair", "--plat", platform_tag, "--wheel-dir", str(folder / "dist"), str(built))
    (repaired,) = (folder / "dist").glob("*.whl")
    (sdist,) = (folder / "built").glob("*.tar.gz")
    session.run("twine", "check", "--strict", str(repaired), str(sdist))
    session.run("check-wheel-contents", str(repaired))
    session.run("pyroma", "--min", "10", str(source))
    bare = folder.resolve() / "bare"  # in PATH, which must not depend on the folder that a test runs in
    session.run("python", "-m", "venv", "--clear", str(bare))
    pip = (f"{bare}/bin/python", "-m", "pip", "install", "--quiet", *CONSTRAINTS)
    (bare / "bin/cat").symlink_to(shutil.which("cat"))  # a page reads through it

    def run_bare(*command: str) -> None:
        """Run a program of the bare environment, with no compiler on the path."""
        session.run(*command, env={"PATH": f"{bare}/bin", "PYTHONSAFEPATH": "1"}, external=True)

    run_bare(*pip, f"{repaired}[cli]", *PYTEST)
    size = ("--size", "en=9000", "--size", "sw=40", "--steps", "100", "--batch-size", "8")
    run_bare(f"{bare}/bin/pycooldown", "plan", *size, "--method", "cooldown")
    tests = [path for name in CORE_TESTS if Path(path := f"tests/{name}").exists()]
    run_bare(f"{bare}/bin/python", "-m", "pytest", "-p", "no:cacheprovider", *tests)
    # Then run all pages as a reader does: with the wheel and its extras, but without a compiler.
    run_bare(*pip, f"{repaired}[all]", *PYTEST)
    run_bare(f"{bare}/bin/python", "-m", "pytest", "-p", "no:cacheprovider", *PAGES)


@nox.session
def macos(session: nox.Session) -> None:
    """Compile the core for macOS with zig, which has that system's headers, and fail on warnings."""
    session.install(*CONSTRAINTS, "ziglang", "pybind11")
    includes = session.run("python", "-m", "pybind11", "--includes", silent=True)
    system = includes.replace("-I", "-isystem").split()
    sources = session.run("git", "ls-files", "csrc/*.cpp", external=True, silent=True).split()
    flags = ["-std=c++20", "-O1", "-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Wno-sign-conversion", "-Werror"]
    isa = ("-DPYCOOLDOWN_ISA=baseline", "-DPYCOOLDOWN_ISA_baseline", "-DPYCOOLDOWN_HAVE_baseline")
    for source in sources:
        session.run(
            *("python", "-m", "ziglang", "c++", "-target", "aarch64-macos.11.0", *flags, *isa),
            *("-Icsrc/include", "-Icsrc/cpu", *system, "-c", source, "-o", f"{session.create_tmp()}/object.o"),
        )


# Python for another architecture, and its libraries.
DEBIAN = ["python{0}-minimal", "libpython{0}-minimal", "libpython{0}-stdlib"]
DEBIAN += ["libc6", "libgcc-s1", "libstdc++6", "zlib1g", "libexpat1", "libffi8", "libssl3", "libbz2-1.0", "liblzma5"]


@nox.session
def aarch64(session: nox.Session) -> None:
    """Check golden orders on 64-bit ARM: core compiled by zig, Debian's Python under qemu; opt-in, only on Debian."""
    if not (shutil.which("qemu-aarch64-static") and shutil.which("apt-get")):
        session.error("needs Debian with qemu: apt-get install qemu-user-static")
    session.install(*CONSTRAINTS, "ziglang", "pybind11")
    minor = session.run("python", "-c", "import sys; print('%d.%d' % sys.version_info[:2])", silent=True).strip()
    folder = Path(session.create_tmp()).resolve()
    for name in ("lists/partial", "packages", "root", "site"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    apt = ["apt-get", "-qq", "-o", "APT::Architectures::=arm64", "-o", f"Dir::State::lists={folder}/lists"]
    apt += ["-o", f"Dir::Cache={folder}"]
    session.run(*apt, "update", external=True)
    with session.chdir(folder / "packages"):
        session.run(*apt, "download", *(f"{name.format(minor)}:arm64" for name in DEBIAN), external=True)
    for package in (folder / "packages").glob("*.deb"):
        session.run("dpkg-deb", "--extract", str(package), str(folder / "root"), external=True)
    platforms = [f"--platform=manylinux{version}_aarch64" for version in ("2014", "_2_27", "_2_28")]
    session.run(
        *("python", "-m", "pip", "install", "--quiet", "--upgrade", "--only-binary=:all:", *platforms),
        *(f"--python-version={minor}", f"--target={folder}/site", *CONSTRAINTS, "numpy", "pytest"),
    )
    shutil.rmtree(folder / "site/pycooldown", ignore_errors=True)
    shutil.copytree("pycooldown", folder / "site/pycooldown", ignore=shutil.ignore_patterns("_core*.so", "__pycache__"))
    includes = session.run("python", "-m", "pybind11", "--includes", silent=True).split()
    core = f"_core.cpython-{minor.replace('.', '')}-aarch64-linux-gnu.so"
    isa = ("-DPYCOOLDOWN_ISA=baseline", "-DPYCOOLDOWN_ISA_baseline", "-DPYCOOLDOWN_HAVE_baseline")
    session.run(
        *(
            "python",
            "-m",
            "ziglang",
            "c++",
            "-target",
            "aarch64-linux-gnu.2.28",
            "-std=c++20",
            "-O2",
            "-fPIC",
            "-shared",
        ),
        *(*isa, "-Icsrc/include", "-Icsrc/cpu", *includes, *map(str, sorted(Path("csrc").glob("*.cpp")))),
        *(*map(str, sorted(Path("csrc/cpu").glob("*.cpp"))), "-o", f"{folder}/site/pycooldown/{core}"),
    )
    session.run(
        *("qemu-aarch64-static", "-L", f"{folder}/root", f"{folder}/root/usr/bin/python{minor}", "-m", "pytest"),
        *("-p", "no:cacheprovider", "-c", "/dev/null", "--confcutdir=tests/golden", "tests/golden"),
        env={"PYTHONPATH": f"{folder}/site", "PYTHONSAFEPATH": "1"},
        external=True,
    )
