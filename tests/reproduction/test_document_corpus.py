"""The corpus of monolingual documents is built from a wheel."""

import hashlib
import json
import zipfile
from pathlib import Path

import pytest

from reproduction.corpora import Wheel
from reproduction.documents import build_documents, read_documents

LONG = [f"A sentence of some length with the number {i}." for i in range(4)]


@pytest.fixture
def wheel(tmp_path: Path) -> Wheel:
    """Write components a to d. Each is a document in English, three are in German and one in Frisian."""
    path = tmp_path / "cache" / "tinytexts-1.0-py3-none-any.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        for n, name in enumerate("abcd"):
            files = {"en": {"title": f"Part {name}", "steps": {"user": LONG, "more": dict(enumerate(LONG)), "no": ""}}}
            if n < 3:
                german = {str(i): f"Auf Deutsch {name}: {text}" for i, text in enumerate(LONG)}
                files["de"] = {"title": f"Part {name}", **german, "again": german["0"]}
            if n < 1:
                files["fy"] = {"title": "Koart", "text": "In sin " * 20}
                files["sensor.de"] = {"text": "Not a language " * 20}
            for language, content in files.items():
                archive.writestr(f"homeassistant/components/{name}/translations/{language}.json", json.dumps(content))
    return Wheel("tinytexts", "1.0", hashlib.sha256(path.read_bytes()).hexdigest(), "Apache-2.0")


def test_a_document_has_the_texts_of_a_component_in_one_language(wheel: Wheel, tmp_path: Path) -> None:
    found = read_documents(tmp_path / "cache" / wheel.filename)
    assert {language: sorted(documents) for language, documents in found.items()} == {
        "en": ["a", "b", "c", "d"],
        "de": ["a", "b", "c"],
        "fy": ["a"],
    }
    assert found["en"]["a"] == "\n".join(["Part a", *LONG])  # each string comes once
    assert found["de"]["b"] == "\n".join(f"Auf Deutsch b: {text}" for text in LONG)  # the English title is left out
    assert found["fy"]["a"] == "Koart\n" + "In sin " * 20


def test_folder_is_what_tokenize_reads(wheel: Wheel, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    from pycooldown.data.prepare import Options, TokenizerOptions, parse_inputs, tokenize

    counts = build_documents(tmp_path / "out", cache=tmp_path / "cache", wheel=wheel)
    assert {language: count["documents"] for language, count in counts.items()} == {"en": 4, "de": 3}
    inputs = parse_inputs([str(tmp_path / "out")])
    assert sorted(inputs) == ["de", "en"]
    tokenizer = TokenizerOptions(train="bpe", vocabulary_size=300)
    manifest = tokenize(tmp_path / "tokens", inputs, tokenizer, Options(validation=1))
    assert manifest is not None
    for language, count in counts.items():
        splits = manifest["domains"][language].values()
        assert sum(split["documents"] for split in splits) == count["documents"]
        assert sum(split["characters"] for split in splits) == count["characters"]


def test_languages_are_chosen_or_refused(wheel: Wheel, tmp_path: Path) -> None:
    arguments = {"cache": tmp_path / "cache", "wheel": wheel}
    assert list(build_documents(tmp_path / "out", languages=["fy"], min_documents=1, **arguments)) == ["fy"]
    for languages, message in ((["fy"], "'fy' with 1 documents"), (["xx"], "'xx' with 0 documents"), ([], "is empty")):
        with pytest.raises(ValueError, match=message):
            build_documents(tmp_path / "out", languages=languages, **arguments)
    assert [path.name for path in (tmp_path / "out").glob("*.jsonl")] == ["fy.jsonl"]


@pytest.mark.parametrize("content", [b"\xff", b"[]", b"{"])
def test_malformed_files_are_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("homeassistant/components/a/translations/en.json", content)
    with pytest.raises(ValueError, match=r"components/a/translations/en\.json in .*bad\.whl"):
        read_documents(path)
    path.write_bytes(b"no zip")
    with pytest.raises(ValueError, match=r"bad\.whl is not a wheel"):
        read_documents(path)
