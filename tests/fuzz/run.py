"""Build the fuzzers with address and undefined-behaviour sanitizers, and run them: ``run.py SECONDS``."""

import io
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def seeds(folder: Path) -> list[str]:
    """Write small tars of every format, with every kind of member."""
    for format in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(folder / f"{format}.tar", "w", format=format) as tar:
            for name in ("a.txt", "a.cls", "d/b.txt", "n" * 90 + ".txt", "ü.txt", "__meta__/x", "d/" * 60 + "c.txt"):
                info = tarfile.TarInfo(name)
                info.size = len(name)
                tar.addfile(info, io.BytesIO(name.encode().ljust(200)))
            for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE):
                info = tarfile.TarInfo(f"kind{kind.decode()}.txt")
                info.type, info.linkname = kind, "elsewhere"
                tar.addfile(info)
    return [str(path) for path in sorted(folder.iterdir())]


def build(binary: Path, *sources: str) -> Path:
    """Compile with sanitizers, and kernels for the baseline instruction set only."""
    flags = ["-std=c++20", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    flags += ["-Icsrc/include", "-Icsrc/cpu", "-DPYCOOLDOWN_ISA=baseline", "-DPYCOOLDOWN_ISA_baseline"]
    subprocess.run([os.environ.get("CXX", "c++"), *flags, *sources, "-o", binary], cwd=ROOT, check=True)
    return binary


def main() -> None:
    """Compile and run. A failure leaves a sanitizer's report and a non-zero status."""
    seconds = sys.argv[1] if len(sys.argv) > 1 else "60"
    with tempfile.TemporaryDirectory() as folder:
        parts = [f"csrc/cpu/{name}.cpp" for name in ("token_reader", "map_guard", "token_copy_kernel", "dispatch")]
        tokens = build(Path(folder, "tokens"), "tests/fuzz/fuzz_token_reader.cpp", *parts)
        subprocess.run([tokens, seconds], check=True)
        tars = build(
            Path(folder, "tars"),
            "tests/fuzz/fuzz_tar_index.cpp",
            "csrc/cpu/tar_scan.cpp",
            "csrc/cpu/tar_index.cpp",
            "csrc/cpu/tar_index_writer.cpp",
            "csrc/cpu/shard_index.cpp",
            "csrc/cpu/mapped_file.cpp",
        )
        corpus = Path(folder, "corpus")
        corpus.mkdir()
        kept = sorted(ROOT.glob("tests/fuzz/corpus/*.tar"))
        subprocess.run([tars, seconds, *seeds(corpus), *kept], check=True)


if __name__ == "__main__":
    main()
