"""Inputs in object stores give the bytes of the same files on disk, or clear errors."""

import errno
import gzip
import http.server
import json
import os
import pickle
import random
import shutil
import threading

import pytest

pytest.importorskip("tokenizers")
pytest.importorskip("orjson")
obstore = pytest.importorskip("obstore")

from obstore.store import from_url  # noqa: E402
from store_servers import use_s3  # noqa: E402

from pycooldown.data.prepare import Options, TokenizerOptions, parse_inputs, tokenize  # noqa: E402
from pycooldown.data.prepare.inputs import find_files  # noqa: E402
from pycooldown.data.stores import RANGE_BYTES, StoreError, find_object, is_url, open_binary  # noqa: E402


@pytest.fixture
def bucket(make_store):
    """Return the URL of an empty bucket."""
    return make_store("s3")


def put(bucket, key, content):
    obstore.put(from_url(bucket), key, content)


def upload(folder, bucket):
    for path in folder.rglob("*"):
        if path.is_file():
            put(bucket, str(path.relative_to(folder.parent)), path.read_bytes())


@pytest.fixture
def formats(corpus, make_text):
    """Return the corpus with further domains, one for each format of files."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (corpus / "gz").mkdir()
    with gzip.open(corpus / "gz" / "x.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": make_text(f"gz{i}")}) + "\n" for i in range(40))
    table = pa.table({"id": range(90), "text": [make_text(f"table{i}") for i in range(90)]})
    (corpus / "parquet").mkdir()
    pq.write_table(table, corpus / "parquet" / "x.parquet", row_group_size=20)
    (corpus / "arrow").mkdir()
    with pa.ipc.new_file(corpus / "arrow" / "file.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=30)
    with pa.ipc.new_stream(corpus / "arrow" / "stream.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=30)
    (corpus / "lines").mkdir()
    (corpus / "lines" / "one [1] = ü.json").write_text('{"text": "of lines"}\n{"text": "in .json"}\n{"text": "x"}\n')
    return corpus


def run(out, inputs, tokenizer_file, *, engine=None, **options):
    options = {"shard_bytes": 6000, "validation": 0.1, **options}
    return tokenize(out, inputs, TokenizerOptions(source=tokenizer_file), Options(**options), **(engine or {}))


def contents(folder):
    """Return all files of a result, without its records."""
    files = (path for path in folder.rglob("*") if path.is_file() and ".prepare" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize(("workers", "validation"), [(1, 0.1), (2, 10)])
def test_objects_give_the_bytes_of_the_same_files(formats, bucket, tokenizer_file, tmp_path, workers, validation):
    upload(formats, bucket)
    local = run(tmp_path / "local", parse_inputs([str(formats)]), tokenizer_file, validation=validation)
    inputs = parse_inputs([f"{bucket}/data/"])
    engine = {"workers": workers}
    assert run(tmp_path / "remote", inputs, tokenizer_file, validation=validation, engine=engine) == local
    assert contents(tmp_path / "remote") == contents(tmp_path / "local")
    assert len(local["domains"]["en"]["train"]["shards"]) > 3  # each shard is made from a range of a file
    assert len(local["domains"]["parquet"]["train"]["shards"]) > 1


def test_a_tokenizer_is_trained_on_objects(corpus, bucket, tmp_path):
    upload(corpus, bucket)
    asked = TokenizerOptions(train="bpe", vocabulary_size=300, sample_bytes=20_000)
    tokenize(tmp_path / "local", parse_inputs([str(corpus)]), asked)
    tokenize(tmp_path / "remote", parse_inputs([f"{bucket}/data"]), asked)
    assert contents(tmp_path / "remote") == contents(tmp_path / "local")


def test_a_second_run_trusts_unchanged_objects_and_makes_the_rest_again(corpus, bucket, tokenizer_file, tmp_path):
    upload(corpus, bucket)
    inputs, out = {"en": f"{bucket}/data/en", "sw": f"{bucket}/data/sw/*.jsonl"}, tmp_path / "out"
    first = run(out, inputs, tokenizer_file)
    made = {path: path.stat().st_mtime_ns for path in out.rglob("*.tar*")}
    changed = (corpus / "sw" / "a.jsonl").read_text(encoding="utf-8").replace("a", "o", 20)
    put(bucket, "data/sw/a.jsonl", changed.encode())
    lost = sorted((out / "en").glob("train-*.tar"))[1]
    lost.unlink()
    second = run(out, inputs, tokenizer_file)
    assert second["domains"]["en"] == first["domains"]["en"]
    assert second["domains"]["sw"] != first["domains"]["sw"]
    again = {path for path in out.rglob("*.tar*") if made.get(path) != path.stat().st_mtime_ns}
    assert lost in again
    assert {path.parent.name for path in again} == {"en", "sw"}
    assert not {path for path in again if path.parent.name == "en" and lost.name[-10:-4] not in path.name}


def test_tasks_of_an_array_share_a_plan_of_objects(corpus, bucket, tokenizer_file, tmp_path):
    pytest.importorskip("yaml")
    upload(corpus, bucket)
    (tmp_path / "mix.yaml").write_text(f"{{en: {bucket}/data/en, sw: ['{bucket}/data/sw/*.jsonl', data/de]}}")
    inputs = parse_inputs([str(tmp_path / "mix.yaml")])
    for task in (0, 1):
        assert run(tmp_path / "tasks", inputs, tokenizer_file, validation=10, engine={"task": (task, 2)}) is None
    same = {"en": str(corpus / "en"), "sw": [str(corpus / "sw"), str(corpus / "de")]}
    expected = run(tmp_path / "local", same, tokenizer_file, validation=10)
    assert run(tmp_path / "tasks", inputs, tokenizer_file, validation=10) == expected
    assert contents(tmp_path / "tasks") == contents(tmp_path / "local")


def test_copies_of_objects_are_the_same_input(corpus, bucket, tokenizer_file, tmp_path):
    upload(corpus, bucket)
    run(tmp_path / "out", parse_inputs([str(corpus)]), tokenizer_file)
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.tar*")}
    run(tmp_path / "out", parse_inputs([f"{bucket}/data"]), tokenizer_file)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.tar*")} == made


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("data/en", ["en/a.jsonl", "en/b.jsonl", "en/deep/c.jsonl"]),
        ("data/en/", ["en/a.jsonl", "en/b.jsonl", "en/deep/c.jsonl"]),
        ("data/en/*.jsonl", ["en/a.jsonl", "en/b.jsonl"]),
        ("data/e?/[ab].jsonl", ["en/a.jsonl", "en/b.jsonl"]),
        ("data/**/c.jsonl", ["en/deep/c.jsonl"]),
        ("data/**/*.jsonl", ["en/_x/y.jsonl", "en/a.jsonl", "en/b.jsonl", "en/deep/c.jsonl", "enough.jsonl"]),
        ("data/en*", ["en/a.jsonl", "en/b.jsonl", "en/deep/c.jsonl", "enough.jsonl"]),
        ("data/en/a.jsonl", ["en/a.jsonl"]),
        ("data/set", ["set/data-1.arrow"]),
        ("data/se*", ["set/data-1.arrow"]),
    ],
)
def test_patterns_match_objects_as_they_match_files(pattern, expected, bucket, tmp_path):
    names = "en/a.jsonl en/b.jsonl en/README.md en/.hidden.jsonl en/_x/y.jsonl en/deep/c.jsonl enough.jsonl"
    state = json.dumps({"_data_files": [{"filename": "data-1.arrow"}]})
    files = {**dict.fromkeys(names.split(), "{}"), "set/state.json": state, "set/dataset_info.json": "{}"}
    for name, content in {**files, "set/data-1.arrow": "x", "set/cache-1.arrow": "x"}.items():
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    upload(tmp_path / "data", bucket)
    for root in (str(tmp_path), bucket):
        found, ignored = find_files({"x": f"{root}/{pattern}"})
        assert [file.path.removeprefix(f"{root}/data/") for file in found["x"]] == expected
        assert all(path.endswith("/README.md") for path in ignored)


def test_datasets_of_several_splits_are_refused_as_in_folders(bucket, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    upload(tmp_path / "data", bucket)
    for root in (str(tmp_path), bucket):
        with pytest.raises(
            ValueError, match=f"{root}/data is a Hugging Face .*; use the path of one of them: train, test"
        ):
            find_files({"en": f"{root}/data"})


def test_reading_goes_anywhere_in_an_object(bucket):
    content = random.Random(0).randbytes(RANGE_BYTES * 3 + 17)
    put(bucket, "x", content)
    with open_binary(f"{bucket}/x") as stream:
        assert stream.read() == content
        for place in (0, 1, RANGE_BYTES - 1, len(content) - 5, len(content)):
            stream.seek(place)
            assert stream.read(9) == content[place : place + 9]
        assert stream.seek(-4, os.SEEK_END) == len(content) - 4
        assert stream.read() == content[-4:]


def test_an_object_that_changes_is_refused(bucket):
    put(bucket, "x", b"one" * RANGE_BYTES)
    version = find_object(f"{bucket}/x").version
    with open_binary(f"{bucket}/x", version) as stream:
        stream.read(10)
        put(bucket, "x", b"two" * RANGE_BYTES)
        with pytest.raises(ValueError, match=r"/x has changed since it was planned .* run again"):
            stream.read()
    with pytest.raises(ValueError, match="has changed since it was planned"):
        open_binary(f"{bucket}/x", version)


def test_a_fault_names_object_and_line(corpus, bucket, tokenizer_file, tmp_path):
    lines = (corpus / "en" / "a.jsonl").read_bytes().splitlines(keepends=True)
    put(bucket, "x.jsonl", b"".join([*lines[:100], b'{"text": 17}\n', *lines[100:]]))
    with pytest.raises(ValueError, match=rf"{bucket}/x.jsonl:101 has int 17 in the field 'text'"):
        run(tmp_path / "out", {"en": f"{bucket}/x.jsonl"}, tokenizer_file)
    put(bucket, "x.jsonl.gz", gzip.compress(b"".join(lines))[:-30])
    with pytest.raises(ValueError, match=rf"{bucket}/x.jsonl.gz is damaged or was cut off"):
        run(tmp_path / "out", {"en": f"{bucket}/x.jsonl.gz"}, tokenizer_file)
    put(bucket, "x.parquet", b"PAR1 and no more")
    with pytest.raises(ValueError, match=rf"{bucket}/x.parquet is no Parquet file"):
        run(tmp_path / "out", {"en": f"{bucket}/x.parquet"}, tokenizer_file)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_what_is_missing_is_named(bucket):
    with pytest.raises(ValueError, match=rf"'{bucket}/none.jsonl' of domain 'en' matches no file"):
        find_files({"en": f"{bucket}/none.jsonl"})
    with pytest.raises(
        StoreError, match=r"bucket does not exist; check the spelling .*'s3://no-such-bucket'"
    ) as caught:
        find_files({"en": "s3://no-such-bucket/*.jsonl"})
    assert "\n" not in str(caught.value)


class Handler(http.server.BaseHTTPRequestHandler):
    """Serve files with ranges. The first folder of a path names the fault, if any."""

    files: dict[str, bytes] = {}  # noqa: RUF012
    requests: list[tuple[str, str]] = []  # noqa: RUF012
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, *, body):
        content = self.files.get(self.path)
        self.requests.append((self.command, self.path))
        status, headers = 200, {"Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}
        if self.path.startswith("/forbidden"):
            status, content = 403, b"<Error><Code>SignatureDoesNotMatch</Code>\n<Message>Wrong key.</Message></Error>"
        elif content is None:
            status, content = 404, b""
        elif body and "Range" in self.headers and not self.path.startswith("/whole"):
            first, last = self.headers["Range"].removeprefix("bytes=").split("-")
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            status, content = 206, content[int(first) : int(last) + 1]
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content[: len(content) // 2] if self.path.startswith("/short") else content)
            self.close_connection = self.path.startswith("/short")

    def log_message(self, *_):
        pass


@pytest.fixture
def web(monkeypatch):
    """Return the address of a web server, and its files."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    monkeypatch.setattr(Handler, "files", {})
    monkeypatch.setattr(Handler, "requests", [])
    yield f"http://127.0.0.1:{server.server_port}", Handler.files
    server.shutdown()
    thread.join()
    server.server_close()


def test_files_of_a_web_server_give_the_bytes_of_the_same_files(formats, web, tokenizer_file, tmp_path):
    address, files = web
    shutil.rmtree(formats / "lines")  # the name of its file cannot stand in a URL
    inputs = {}
    for path in sorted(path for path in formats.rglob("*") if path.is_file()):
        name = f"/{path.relative_to(formats)}"
        files[name] = path.read_bytes()
        inputs.setdefault(path.parent.name, []).append(address + name)
    local = run(tmp_path / "local", parse_inputs([str(formats)]), tokenizer_file)
    assert run(tmp_path / "remote", inputs, tokenizer_file) == local
    assert contents(tmp_path / "remote") == contents(tmp_path / "local")


@pytest.mark.parametrize(("scheme", "fetched"), [("s3", set()), ("http", {("GET", "/recorded/x.jsonl")})])
def test_recorded_objects_are_not_fetched_again(scheme, fetched, web, corpus, tokenizer_file, tmp_path, monkeypatch):
    address, files = web
    use_s3(monkeypatch, address)
    files["/recorded/x.jsonl"] = (corpus / "en" / "a.jsonl").read_bytes()
    inputs = {"en": "s3://recorded/x.jsonl" if scheme == "s3" else f"{address}/recorded/x.jsonl"}
    first = run(tmp_path / "out", inputs, tokenizer_file, shard_bytes=1 << 20)
    assert ("GET", "/recorded/x.jsonl") in Handler.requests
    Handler.requests.clear()
    assert run(tmp_path / "out", inputs, tokenizer_file, shard_bytes=1 << 20) == first
    assert {request for request in Handler.requests if request[0] == "GET"} == fetched


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/forbidden/x.jsonl", r"Errno 13.*check the credentials.*/forbidden/x.jsonl"),
        ("/short/x.jsonl", r"Errno 5.*check the endpoint.*/short/x.jsonl"),
        ("/whole/x.jsonl", r"a server that answers requests for range.*/whole/x.jsonl"),
        ("/none.jsonl", "/none.jsonl cannot be listed: http has no folders or patterns; name every file"),
        ("/*.jsonl", "http has no folders or patterns"),
        ("//x.jsonl", "has an empty name between two slashes"),
        ("/a//x.jsonl", "has an empty name between two slashes"),
        ("/x.jsonl?signature=1", "has a query or fragment; expected a plain URL"),
    ],
)
def test_faults_of_a_web_server_are_one_line(path, message, web, tokenizer_file, tmp_path):
    address, files = web
    files |= {"/short/x.jsonl": b'{"text": "x"}\n' * 9, "/whole/x.jsonl": b'{"text": "x"}\n' * 9}
    with pytest.raises((ValueError, OSError), match=message) as caught:
        run(tmp_path / "out", {"en": address + path}, tokenizer_file)
    assert "\n" not in str(caught.value)


def test_names_in_urls_are_decoded_once(web):
    address, files = web
    files["/a%20b=%C3%BC.jsonl"] = b"x"
    assert find_object(f"{address}/a%20b=%C3%BC.jsonl").size == 1
    assert find_object(f"{address}/a b=ü.jsonl").size == 1


def test_credentials_that_are_wrong_or_missing_are_named(web, monkeypatch):
    use_s3(monkeypatch, web[0])
    for pattern in ("x.jsonl", "*.jsonl"):
        with pytest.raises(StoreError, match=r"Errno 13.*check the credentials in the environment.*s3://forbidden"):
            find_files({"en": f"s3://forbidden/{pattern}"})
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", f"{web[0]}/forbidden")
    with pytest.raises(StoreError, match=r"Errno 13.*no credentials were found .*check the credentials") as caught:
        find_files({"en": "s3://no-credentials/x.jsonl"})
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    web[1]["/public/x.jsonl"] = b"{}"
    assert find_object("s3://public/x.jsonl").size == 2


def test_errors_come_back_from_workers():
    error = pickle.loads(pickle.dumps(StoreError(errno.EIO, "the reason", "s3://b/x")))
    assert (type(error), str(error)) == (StoreError, "[Errno 5] the reason: 's3://b/x'")


@pytest.mark.parametrize(
    "url", ["ftp://host/x.jsonl", "file:///x.jsonl", "S3://b/x.jsonl", "s3:///x.jsonl", "hf://datasets/x"]
)
def test_other_urls_are_refused(url):
    with pytest.raises(ValueError, match="cannot be read; expected a local path, or a bucket or host behind s3://"):
        find_files({"en": url})


def test_paths_are_not_taken_for_urls():
    assert not any(is_url(path) for path in ("data/en", "/data", "en=s3://x/y", "c:/data", "./s3:/x"))
