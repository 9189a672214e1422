"""Every format gives the same documents in any ranges, and errors name what is damaged."""

import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

pa = pytest.importorskip("pyarrow")
pytest.importorskip("orjson")

import pyarrow.parquet as pq  # noqa: E402

from pycooldown.data.prepare.formats import Faults  # noqa: E402
from pycooldown.data.prepare.inputs import find_files, parse_inputs  # noqa: E402
from pycooldown.data.prepare.options import Options  # noqa: E402
from pycooldown.data.prepare.parts import FileRange, divide  # noqa: E402
from pycooldown.data.prepare.readers import hash_range, read_documents, zstd  # noqa: E402

TEXTS = [
    "first",
    "zwei Wörter",
    "三",
    "a\nline and\ta tab",
    '"quoted" \\ 🎉',
    "",
    "x" * 5000,
    *(f"t{i}" for i in range(300)),
]


def jsonl(texts=TEXTS):
    return b"".join(json.dumps({"id": i, "text": t}).encode() + b"\n" for i, t in enumerate(texts))


def tar_of(members):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def table(texts=TEXTS):
    return pa.table({"id": range(len(texts)), "text": texts})


def write_arrow(path, new):
    with pa.OSFile(str(path), "wb") as file, new(file, table().schema) as writer:
        writer.write_table(table(), max_chunksize=50)


def write_tar_of_text(path):
    members = [(f"{i:04d}.{kind}", t.encode()) for i, t in enumerate(TEXTS) for kind in ("txt", "cls")]
    path.write_bytes(tar_of(members))


FORMATS = {
    "a.jsonl": lambda p: p.write_bytes(jsonl()),
    "bom.jsonl": lambda p: p.write_bytes(b"\xef\xbb\xbf" + jsonl()),
    "crlf.jsonl": lambda p: p.write_bytes(jsonl().replace(b"\n", b"\r\n\r\n")),
    "last.jsonl": lambda p: p.write_bytes(jsonl()[:-1]),
    "a.jsonl.gz": lambda p: p.write_bytes(gzip.compress(jsonl()[:999]) + gzip.compress(jsonl()[999:])),
    "a.jsonl.zst": lambda p: p.write_bytes(zstd.compress(jsonl()[:999]) + zstd.compress(jsonl()[999:])),
    "lines.json": lambda p: p.write_bytes(jsonl()),
    "lines.json.zst": lambda p: p.write_bytes(zstd.compress(jsonl())),
    "list.json": lambda p: p.write_text("\n [" + ",\n".join(jsonl().decode().splitlines()) + "]"),
    "list.json.gz": lambda p: p.write_bytes(gzip.compress(f"[{','.join(jsonl().decode().splitlines())}]".encode())),
    "a.parquet": lambda p: pq.write_table(table(), p, row_group_size=37),
    "stream.arrow": lambda p: write_arrow(p, pa.ipc.new_stream),
    "file.arrow": lambda p: write_arrow(p, pa.ipc.new_file),
    "text.tar": write_tar_of_text,
    "json.tar": lambda p: p.write_bytes(
        tar_of([(f"{i:04d}.json", json.dumps({"text": t}).encode()) for i, t in enumerate(TEXTS)])
    ),
    "json.tar.gz": lambda p: p.write_bytes(
        gzip.compress(tar_of([(f"{i:04d}.json", json.dumps({"text": t}).encode()) for i, t in enumerate(TEXTS)]))
    ),
}


def ranges_of(path, options):
    found, _ = find_files({"d": str(path)})
    return [file_range for part in divide("d", found["d"], options) for file_range in part.ranges]


def read(ranges, options=None, faults=None):
    options = options or Options()
    faults = faults or Faults(options.on_error)
    return [text for file_range in ranges for text, _ in read_documents(file_range, options, faults)]


@pytest.mark.parametrize("shard_bytes", [1, 700, 1 << 30])
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_documents_in_ranges_of_any_size(tmp_path, name, shard_bytes):
    FORMATS[name](tmp_path / name)
    ranges = ranges_of(tmp_path / name, Options(shard_bytes=shard_bytes))
    assert read(ranges) == TEXTS
    # The ranges cover the file once. Reading their documents gives the hash of their bytes.
    assert [file_range.start for file_range in ranges] == [0, *(file_range.stop for file_range in ranges[:-1])]
    assert ranges[-1].stop == (tmp_path / name).stat().st_size
    for file_range in ranges:
        while_read, alone = (
            hashlib.sha256(),
            hashlib.sha256((tmp_path / name).read_bytes()[file_range.start : file_range.stop]),
        )
        list(read_documents(file_range, Options(), Faults("raise"), while_read))
        again = hashlib.sha256()
        hash_range(file_range, again)
        assert while_read.digest() == again.digest() == alone.digest()
    if shard_bytes < 1000 and name in ("a.jsonl", "crlf.jsonl", "lines.json", "a.parquet"):
        assert len(ranges) > 5


def test_hugging_face_dataset_folder(tmp_path):
    datasets = pytest.importorskip("datasets")
    dataset = datasets.Dataset.from_dict({"text": TEXTS})
    dataset.select(range(len(TEXTS))[::-1]).save_to_disk(tmp_path / "d", num_shards=3)
    found, ignored = find_files({"d": str(tmp_path / "d")})
    assert len(found["d"]) == 3
    assert ignored == []
    assert read(ranges_of(tmp_path / "d", Options())) == TEXTS[::-1]
    datasets.DatasetDict({"train": dataset}).save_to_disk(tmp_path / "splits")
    with pytest.raises(ValueError, match="several splits; use the path of one of them: train"):
        find_files({"d": str(tmp_path / "splits")})


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("file", ["one\r\ntwo\n\n \nthree\n\nfour"]),
        ("line", ["one", "two", " ", "three", "four"]),
        ("paragraph", ["one\r\ntwo", "three", "four"]),
    ],
)
@pytest.mark.parametrize("shard_bytes", [1, 1 << 20])
def test_text_documents(tmp_path, unit, expected, shard_bytes):
    (tmp_path / "a.txt").write_bytes(b"one\r\ntwo\n\n \nthree\n\nfour")
    options = Options(text_documents=unit, shard_bytes=shard_bytes)
    assert read(ranges_of(tmp_path / "a.txt", options), options) == expected


@given(st.lists(st.text(max_size=30), max_size=40), st.integers(1, 200))
def test_ranges_of_lines_lose_and_repeat_nothing(tmp_path_factory, texts, shard_bytes):
    path = tmp_path_factory.mktemp("ranges") / "a.jsonl"
    rows = [json.dumps({"text": t}, ensure_ascii=False) for t in texts]
    path.write_bytes("\n\n".join(rows).encode("utf-8", "surrogatepass"))
    assert read(ranges_of(path, Options(shard_bytes=shard_bytes))) == texts


def test_pairs_are_one_document(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"key": "k", "src": "Hello", "tgt": "Hallo"}\n')
    options = Options(text_fields=("src", "tgt"))
    assert read(ranges_of(tmp_path / "a.jsonl", options), options) == ["Hello\nHallo"]


BAD_LINES = {
    b"{not json}": ("malformed", "is not JSON"),
    b'{"text": "\\ud800"}': ("malformed", "is not JSON"),
    b'{"text": "caf\xe9"}': ("encoding", "is not UTF-8"),
    b'["text"]': ("malformed", r"holds list \['text'\]; expected a JSON object"),
    b'{"body": "x"}': ("field", "lacks a string in the field 'text'"),
    b'{"text": null}': ("field", "lacks a string in the field 'text'"),
    b'{"text": 17}': ("field", "has int 17 in the field 'text'"),
    b'{"text": ["a"]}': ("field", "has list"),
    b'{"text": "' + b"y" * 101 + b'"}': ("long", "is a document of 101 bytes; expected at most 100"),
}


@pytest.mark.parametrize("shard_bytes", [1, 1 << 20])
@pytest.mark.parametrize("line", BAD_LINES)
def test_a_bad_line_is_named_or_counted_and_loses_no_other(tmp_path, line, shard_bytes):
    kind, message = BAD_LINES[line]
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl(["a", "b"]) + line + b"\n" + jsonl(["c"]))
    options = Options(max_document_bytes=100, shard_bytes=shard_bytes)
    with pytest.raises(ValueError, match=rf"a\.jsonl:3 {message}.*on_error='skip'"):
        read(ranges_of(path, options), options)
    faults = Faults("skip")
    assert read(ranges_of(path, options), options, faults) == ["a", "b", "c"]
    assert faults.skipped == {kind: 1}


def test_a_latin_1_file_loses_its_bad_lines_only(tmp_path):
    path = tmp_path / "a.jsonl"
    good = [f"good {i}" for i in range(20)]
    path.write_bytes(jsonl(good[:10]) + '{"text": "é"}\n'.encode("latin-1") + jsonl(good[10:]))
    faults = Faults("skip")
    assert read(ranges_of(path, Options()), Options(), faults) == good
    assert faults.skipped == {"encoding": 1}


def test_bad_rows_of_columns(tmp_path):
    path = tmp_path / "a.parquet"
    values = pa.array([b"good", b"caf\xe9", b"fine"]).cast(pa.string(), safe=False)
    pq.write_table(pa.table({"text": pa.concat_arrays([values, pa.array([None, "end"])])}), path)
    with pytest.raises(ValueError, match=r"a\.parquet, row 1 is not UTF-8"):
        read(ranges_of(path, Options()))
    faults = Faults("skip")
    assert read(ranges_of(path, Options()), Options(), faults) == ["good", "fine", "end"]
    assert faults.skipped == {"encoding": 1, "field": 1}
    pq.write_table(pa.table({"text": [17]}), path)
    with pytest.raises(ValueError, match="column 'text' of type int64; expected strings"):
        read(ranges_of(path, Options()))
    with pytest.raises(ValueError, match="has no column 'body'; expected one of 'text'"):
        read(ranges_of(path, Options()), Options(text_fields=("body",)))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet", "stream.arrow", "file.arrow", "text.tar"])
@pytest.mark.parametrize("cut", [1, 9, 0.5, "batch"])
def test_cut_off_files_are_refused(tmp_path, name, cut):
    path = tmp_path / name
    FORMATS[name](path)
    content = path.read_bytes()
    length = {"batch": len(content) - 8, 0.5: len(content) // 2}.get(cut) or len(content) - cut
    if name == "text.tar" and cut in (1, 9, "batch"):
        length = content.rstrip(b"\0").__len__() // 512 * 512 - 1024  # between two members
    path.write_bytes(content[:length])
    with pytest.raises(ValueError, match=name):
        read(ranges_of(path, Options()))


def test_tars_in_one_file_are_refused(tmp_path):
    write_tar_of_text(tmp_path / "a.tar")
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes() * 2)
    with pytest.raises(ValueError, match="several tars were put into one file"):
        read(ranges_of(tmp_path / "a.tar", Options()))


def test_a_file_that_shrinks_is_noticed(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl())
    file_range = FileRange(str(path), "jsonl", "", 0, path.stat().st_size + 1)
    with pytest.raises(ValueError, match="1 bytes shorter than planned"):
        read([file_range])


def test_inputs_by_argument_folder_and_yaml(tmp_path):
    for name in ("en/a.jsonl", "en/deep/b.jsonl", "en/_SUCCESS", "en/README.md", "en/.c.jsonl", "sw.jsonl.gz"):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"{}")
    expected = {"en": ["en/a.jsonl", "en/deep/b.jsonl"], "sw": ["sw.jsonl.gz"]}
    data = tmp_path / "data"
    (tmp_path / "mix.yaml").write_text("en: data/en\nsw: [data/sw.jsonl.gz]\n")
    for arguments in (
        [f"en={data}/en/**/*.jsonl", f"sw={data}/sw.jsonl.gz"],
        [f"en={data}/en/a.jsonl", f"en={data}/en/deep", f"sw={data}/sw*"],
        [str(data)],
        [str(tmp_path / "mix.yaml")],
    ):
        found, ignored = find_files(parse_inputs(arguments))
        assert {d: [str(Path(f.path).relative_to(data)) for f in files] for d, files in found.items()} == expected
    assert [Path(path).name for path in ignored] == ["README.md"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["en"], "no folder and no YAML file"),
        (["en=x", "sw"], r"input 'sw'; expected domain=pattern"),
        (["en=nothing/*.jsonl"], "'nothing/.*' of domain 'en' matches no file"),
        (["en=ftp://host/x.jsonl"], "cannot be read; expected a local path"),
        (["../en=x"], r"domain '../en' cannot be the name of a folder"),
        (["tokenizer=x"], "domain 'tokenizer' cannot be"),
        (["en=pyproject.toml"], "is of no known format; expected .jsonl"),
    ],
)
def test_inputs_that_are_refused(arguments, message, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[3])
    with pytest.raises(ValueError, match=message):
        find_files(parse_inputs(arguments))
