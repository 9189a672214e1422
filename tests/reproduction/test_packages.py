"""Documents are made from apt's descriptions and from Chromium's interface. Nothing is downloaded here."""

import io
import json
import struct
import subprocess
import tarfile

import pytest

from reproduction import packages

DESCRIPTIONS = """Package: alpha
Description-md5: 0123
Description-en: game of ancient warfare
 It is played in real time
 on maps of many kinds.
 .
 This package contains the documentation.

Package: beta
Description-md5: 4567
Description-en: library for reading maps
 This package contains the documentation.
 .
 It knows <several> formats.

Package: gamma
Description-md5: 89ab
Description-en: untranslated thing of some length
 <trans>

Package: delta
Description-md5: cdef
Description-en: short
"""


def pack(texts):
    content = b"".join(text.encode() for text in texts)
    head = struct.pack("<IIHH", 5, 1, len(texts), 0)
    offset, table = 12 + 6 * (len(texts) + 1), b""
    for i, text in enumerate([*texts, ""]):
        table += struct.pack("<HI", i, offset)
        offset += len(text.encode())
    return head + table + content


def archive(locales):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for locale, content in locales.items():
            info = tarfile.TarInfo(f"./usr/lib/chromium/locales/{locale}.pak")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    stream.seek(0)
    return stream


def test_descriptions_are_documents_without_repeated_paragraphs(tmp_path):
    (tmp_path / "Translation-en").write_text(DESCRIPTIONS, encoding="utf-8")
    assert list(packages.read_descriptions(tmp_path / "Translation-en")) == [
        "game of ancient warfare\nIt is played in real time on maps of many kinds.\n"
        "This package contains the documentation.",
        "library for reading maps\nIt knows <several> formats.",
    ]


def test_an_interface_is_documents_of_25_texts():
    texts = [f"Jambo <b>dunia</b> {i}" for i in range(30)] + ["Jambo <b>dunia</b> 3", "42", "%s"]
    files = {"fr": pack(["Bonjour le monde"]), "sw": pack(texts)}
    documents = list(packages.read_interface(archive(files), "sw"))
    assert [len(document.split("\n")) for document in documents] == [25, 5]
    assert documents[0].split("\n")[:2] == ["Jambo dunia 0", "Jambo dunia 1"]
    with pytest.raises(ValueError, match="no texts in 'xx'"):
        list(packages.read_interface(archive(files), "xx"))
    with pytest.raises(ValueError, match="version 5"):
        list(packages.read_interface(archive({"sw": b"\4\0\0\0" + files["sw"][4:]}), "sw"))


def test_without_apt_the_error_names_the_alternative(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"apt-get update failed .*python -m reproduction blocks"):
        packages.build_packages(tmp_path / "out", cache=tmp_path / "cache")
    assert not (tmp_path / "out").exists()


def test_a_folder_of_documents_is_written_for_tokenize(tmp_path, monkeypatch):
    (tmp_path / "Translation-en").write_text(DESCRIPTIONS, encoding="utf-8")
    tree = tmp_path / "tree"
    for locale in packages.INTERFACE.values():
        path = tree / "usr/lib/chromium/locales" / f"{locale}.pak"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pack([f"{locale} text {i}" for i in range(3)]))
    (tree / "DEBIAN").mkdir()
    control = "Package: chromium-l10n\nVersion: 1\nArchitecture: all\nMaintainer: x <x@example.org>\nDescription: x\n"
    (tree / "DEBIAN" / "control").write_text(control)
    try:
        subprocess.run(["dpkg-deb", "--build", str(tree), str(tmp_path / "x.deb")], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("dpkg-deb is not installed")
    described = dict.fromkeys(packages.DESCRIBED, tmp_path / "Translation-en")
    monkeypatch.setattr(packages, "fetch", lambda cache: (described, tmp_path / "x.deb"))
    counts = packages.build_packages(tmp_path / "out")
    assert {language: found["documents"] for language, found in counts.items()} == {"en": 2, "it": 2, "zh": 1, "sw": 1}
    (line,) = (tmp_path / "out" / "sw.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line) == {"text": "sw text 0\nsw text 1\nsw text 2"}
