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
# They need NumPy, SciPy and pytest alone, so that they run wherever a wheel can be installed.
PYTEST = ["pytest", "pytest-timeout", "pytest-benchmark", "hypothesis", "scipy"]
# The tests that run README and all pages.
PAGES = ["tests/test_docs.py", "tests/recipes/test_methods.py", "tests/huggingface/test_training_page.py"]
CORE_TESTS = ["core", "golden", "schedules", "gradients/test_theory.py", "test_mixture.py"]


def install(session: nox.Session, extra: str, *groups: str) -> None:
    """Installs pycooldown from a wheel built in isolation, with the pinned versions of everything else."""
    pyproject = nox.project.load_toml("pyproject.toml")
    session.install(*CONSTRAINTS, f".[{extra}]", *nox.project.dependency_groups(pyproject, *groups))


def run_suite(session: nox.Session, *options: str) -> None:
    """Run all tests by two processes, the slow ones at the end, with further options of pytest."""
    for selected in ((), ("-m", "slow")):
        session.run("pytest", "--numprocesses", "2", "--dist", "worksteal", *options, *selected)


@nox.session
def lint(session: nox.Session) -> None:
    """Formatting and lint of Python and C++."""
    session.install(*CONSTRAINTS, "ruff", "clang-format")
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")
    sources = session.run("git", "ls-files", "csrc", external=True, silent=True).split()
    session.run("clang-format", "--dry-run", "-Werror", *sources)


@nox.session
def workflows(session: nox.Session) -> None:
    """What GitHub reads: against its schemas, workflows for what is unsafe too; and cibuildwheel's configuration."""
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
    """Strict type checking of the package."""
    install(session, "all", "lint", "test")
    session.run("mypy")
    session.run("pytest", "tests/losses/test_typing.py")  # the types of calls, by two checkers


@nox.session
def tests(session: nox.Session) -> None:
    """The test suite and then its slow tests, against an installed wheel; `-- tests/core` runs that alone."""
    install(session, "all", "test")
    if session.posargs:
        session.run("pytest", *session.posargs)
    else:
        run_suite(session)


@nox.session
def lowest(session: nox.Session) -> None:
    """The test suite with the lowest versions that pyproject.toml allows; `-- torch==2.13.0` replaces one of them."""
    session.install("uv")
    folder = Path(session.create_tmp())
    (folder / "override.txt").write_text("\n".join(session.posargs) + "\n")
    session.run(
        *("uv", "pip", "compile", "pyproject.toml", "--extra", "all", "--resolution", "lowest-direct", "--quiet"),
        *("--override", f"{folder}/override.txt", "--python", session.python or "python", "-o", f"{folder}/all.txt"),
    )
    # What the package names itself; of what these bring, any version that goes with the test tools will do.
    pyproject = nox.project.load_toml("pyproject.toml")
    extras = pyproject["project"]["optional-dependencies"].values()
    named = {name for extra in [pyproject["project"]["dependencies"], *extras] for name in extra}
    names = {re.match(r"[\w.-]+", requirement).group().replace(".", "-") for requirement in named}
    found = (folder / "all.txt").read_text().splitlines()
    (folder / "lowest.txt").write_text("".join(f"{line}\n" for line in found if line.partition("==")[0] in names))
    test = nox.project.dependency_groups(pyproject, "test")
    # Hugging Face's datasets needs a newer pyarrow than the package does; tests of both together are skipped.
    test = [requirement for requirement in test if not requirement.startswith("datasets")]
    # By uv, too: pip tries hundreds of releases of the tools before it finds some that go with these versions.
    session.run("uv", "pip", "install", "--quiet", "-c", f"{folder}/lowest.txt", ".[all]", *test)
    run_suite(session, "--verbose")  # which names a test that fails at once, not after the last


@nox.session
def bench(session: nox.Session) -> None:
    """Benchmarks against peers, side by side, and a report of them; run them on a quiet machine."""
    install(session, "all", "test", "bench")
    # litdata brings it for images. Beside a torch for CPUs it does not load, and takes transformers with it.
    session.run("pip", "uninstall", "--yes", "--quiet", "torchvision")
    session.run("python", "benchmarks/report.py", *session.posargs)


@nox.session
def ray(session: nox.Session) -> None:
    """`pycooldown tokenize` and `index` on a real Ray cluster of this machine; opt-in, since Ray is large."""
    install(session, "ray,remote", "test")
    session.run("pytest", "tests/data/prepare/test_prepare_ray.py", "tests/data/test_index_ray.py", *session.posargs)


TRAINER_TESTS = ("pytest", "pytest-timeout", "pytest-benchmark", "hypothesis", "datasets", "peft", "psutil")


def only_torch(session: nox.Session) -> tuple[str, str]:
    """Pip's options for the pinned torch and the newest that it finds of all else.

    Without the pin, pip may take a release for which there is no build for CPUs yet, and then one with CUDA.
    """
    pins = [line for line in Path("constraints.txt").read_text().splitlines() if line.startswith("torch==")]
    path = Path(session.create_tmp()) / "torch.txt"
    path.write_text("\n".join(pins) + "\n")
    return "-c", str(path)


# What each framework brings its own pins for, with the release that its example was tried with.
FRAMEWORKS = {
    "trl": ("trl_sft", ("trl==1.16.0",)),
    "torchtitan": ("torchtitan_loader", ("torchtitan==0.3.0", "triton")),  # which a torch for CPUs does not bring
    "olmo_core": ("olmo_core_loader", ("ai2-olmo-core==3.0.0", "google-cloud-storage", "boto3")),
    "litgpt": ("litgpt_data", ("litgpt==0.5.13", "requests")),
    "megatron": ("megatron_external", ("megatron-core==0.16.1",)),
}


@nox.session
@nox.parametrize("framework", list(FRAMEWORKS), ids=list(FRAMEWORKS))
def frameworks(session: nox.Session, framework: str) -> None:
    """The example of a framework in an environment of its own, since their pins exclude each other; opt-in."""
    example, requirements = FRAMEWORKS[framework]
    # Not all of constraints.txt, whose versions some of them refuse.
    needs = (".[train]", *TRAINER_TESTS) if framework == "trl" else (".[data]", *PYTEST)
    session.install(*only_torch(session), *needs, *requirements)
    session.run("pytest", "tests/examples", "-k", example, *session.posargs)
    if framework == "trl":
        session.run("pytest", "tests/huggingface/test_sft.py", *session.posargs)


@nox.session
def llama(session: nox.Session) -> None:
    """A Llama of 50 million parameters under FSDP2 on CPUs, killed and resumed; opt-in, takes minutes."""
    install(session, "train", "test")
    session.run("pytest", "-s", "tests/examples/test_fsdp2_llama.py", env={"PYCOOLDOWN_LARGE_LLAMA": "1"})


# The versions of transformers that the trainer is tested with, by their release: the lower bound of the extra `train`,
# and some between it and that of constraints.txt.
TRANSFORMERS = ("4.57", "5.0", "5.10", "5.24")


@nox.session
@nox.parametrize("version", TRANSFORMERS, ids=TRANSFORMERS)
def transformers(session: nox.Session, version: str) -> None:
    """The tests of the trainer and of recipes with another version of transformers; opt-in."""
    session.install(*only_torch(session), ".[train]", *TRAINER_TESTS, f"transformers=={version}.*")
    session.run("pytest", "-m", "slow or not slow", "tests/huggingface", "tests/recipes", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """The site, built strictly in build/site; every Python snippet of the pages and of the README runs."""
    install(session, "all", "test", "docs")
    session.run("mkdocs", "build", env={"NO_MKDOCS_2_WARNING": "1"})
    session.run("pytest", "tests/test_docs.py", *session.posargs)


@nox.session
def browser(session: nox.Session) -> None:
    """The site, the planner and a report in headless Chromium; opt-in, needs Chromium (apt-get install chromium)."""
    if not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
        session.error("Chromium is missing: apt-get install chromium")
    install(session, "all", "test", "docs", "browser")
    session.run("mkdocs", "build", env={"NO_MKDOCS_2_WARNING": "1"})
    pages = ("tests/recipes/test_planner_page.py", "tests/browse_pages.py", "tests/browse_site.py")
    session.run("pytest", *pages, *session.posargs)


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
# What needs no torch, whose threads the sanitizers cannot see into.
SANITIZED_TESTS = (
    *("core", "sampling", "golden", "fuzz"),
    *("data/test_tar_index.py", "data/test_tar_index_file.py", "data/test_lost_pages.py", "data/test_dataset_index.py"),
)


@nox.session
@nox.parametrize("sanitizer", list(SANITIZERS), ids=list(SANITIZERS))
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
        # What the sanitizers write must not be lost with a process that ends at once.
        *(*command, "-m", "pytest", "-p", "no:cacheprovider", "--timeout=0", "--capture=sys"),
        *(session.posargs or [f"tests/{test}" for test in SANITIZED_TESTS]),
        env=env,
        external=True,
    )


@nox.session
def wheel(session: nox.Session) -> None:
    """A manylinux_2_28 wheel, compiled by zig against an old C library; README and all pages run with it."""
    groups = nox.project.dependency_groups(nox.project.load_toml("pyproject.toml"), "release")
    session.install(*CONSTRAINTS, *groups)
    folder, machine = Path(session.create_tmp()), platform.machine()
    for old in ("built", "dist", "source"):
        shutil.rmtree(folder / old, ignore_errors=True)
    with_zig = {
        name: f"{session.bin}/python -m ziglang {compiler} -target {machine}-linux-gnu.2.28"
        for name, compiler in (("CC", "cc"), ("CXX", "c++"))
    }
    source = folder / "source"  # as a release has it, with absolute links; the address here is one that nobody has
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
    bare = folder / "bare"
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
    # Then everything that a page shows, as its reader runs it: the wheel with its extras, and still no compiler.
    run_bare(*pip, f"{repaired}[all]", *PYTEST)
    run_bare(f"{bare}/bin/python", "-m", "pytest", "-p", "no:cacheprovider", *PAGES)


@nox.session
def macos(session: nox.Session) -> None:
    """The core compiles for macOS without a warning, by zig, which has that system's headers."""
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


# Python of another architecture, and what it loads.
DEBIAN = ["python{0}-minimal", "libpython{0}-minimal", "libpython{0}-stdlib"]
DEBIAN += ["libc6", "libgcc-s1", "libstdc++6", "zlib1g", "libexpat1", "libffi8", "libssl3", "libbz2-1.0", "liblzma5"]


@nox.session
def aarch64(session: nox.Session) -> None:
    """Golden orders on 64-bit ARM: the core compiled by zig, Debian's Python under qemu; opt-in, on Debian alone."""
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
