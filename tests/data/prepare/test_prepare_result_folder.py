"""Results in object stores have the bytes of results on disk. A part that differs from its record is made again."""

import hashlib
import os
import random
import time
from datetime import datetime, timezone

import pytest

pytest.importorskip("tokenizers")
pytest.importorskip("orjson")
obstore = pytest.importorskip("obstore")

from obstore.store import from_url  # noqa: E402

from pycooldown.data.prepare import Options, TokenizerOptions, parse_inputs, tokenize  # noqa: E402
from pycooldown.data.prepare.result_folder import open_output  # noqa: E402
from pycooldown.data.stores import StoreError  # noqa: E402

SCHEMES = ("s3", "gs", "az")


def run(out, inputs, tokenizer, **arguments):
    options = {name: arguments.pop(name) for name in ("validation", "shard_bytes", "seed") if name in arguments}
    options = {"shard_bytes": 6000, "validation": 0.1, **options}
    return tokenize(out, inputs, TokenizerOptions(source=tokenizer), Options(**options), **arguments)


def contents(out):
    """Return all files of a result, without its records."""
    output = open_output(out)
    return {name: output.read(name) for name in output.names("") if not name.startswith(".prepare/")}


def upload(folder, url):
    for path in folder.rglob("*"):
        if path.is_file() and "lock" not in path.name:
            obstore.put(from_url(url), path.relative_to(folder.parent).as_posix(), path.read_bytes())


def times(url):
    """Return the time at which each shard was written."""
    return {
        item["path"]: item["last_modified"]
        for batch in obstore.list(from_url(url))
        for item in batch
        if ".tar" in item["path"]
    }


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_same_bytes_as_on_this_machine(corpus, make_store, tokenizer_file, tmp_path, scheme):
    store = make_store(scheme)
    upload(corpus, store)
    local = run(tmp_path / "out", parse_inputs([str(corpus)]), tokenizer_file, validation=10)
    workers = 2 if scheme == "s3" else 1
    manifest = run(f"{store}/x/out/", parse_inputs([f"{store}/data"]), tokenizer_file, validation=10, workers=workers)
    assert manifest == local
    assert contents(f"{store}/x/out") == contents(tmp_path / "out")
    assert len(local["domains"]["en"]["train"]["shards"]) > 5
    made = times(f"{store}/x")
    assert run(f"{store}/x/out", parse_inputs([f"{store}/data"]), tokenizer_file, validation=10) == local
    assert times(f"{store}/x") == made
    assert not [name for name in os.listdir() if ":" in name]  # the URL has not become a folder's name


@pytest.mark.parametrize("harm", ["delete", "same size", "other size", "ends", "record", "garbage record"])
def test_what_is_missing_or_altered_is_made_again(corpus, make_store, tokenizer_file, harm):
    url = make_store("s3")
    run(url, parse_inputs([str(corpus)]), tokenizer_file)
    before, made = contents(url), times(url)
    store, name = from_url(url), "en/train-000002.tar"
    if harm == "delete":
        obstore.delete(store, name)
    elif harm == "same size":
        obstore.put(store, name, before[name][:600] + b"\xff" + before[name][601:])
    elif harm == "other size":
        obstore.put(store, name, before[name][:700])
    elif harm == "ends":
        obstore.put(store, f"{name}.ends", b"")
    elif harm == "record":
        obstore.delete(store, ".prepare/records/en/000002.json")
    else:
        obstore.put(store, ".prepare/records/en/000002.json", b"[" * 10)
    while datetime.now(timezone.utc).replace(microsecond=0) <= max(made.values()):
        time.sleep(0.02)  # times in the store are whole seconds
    run(url, parse_inputs([str(corpus)]), tokenizer_file)
    assert contents(url) == before
    again = {key for key, time in times(url).items() if made.get(key) != time}
    assert again == {key for key in made if "/" in key and key.startswith("en/") and "-000002.tar" in key}


def test_a_result_copied_to_or_from_a_store_is_not_made_again(corpus, make_store, tokenizer_file, tmp_path):
    url = make_store("s3")
    local = run(tmp_path / "out", parse_inputs([str(corpus)]), tokenizer_file)
    upload(tmp_path / "out", url)
    made = times(url)
    for _ in range(2):  # the first run compares hashes, the second one the store's versions
        assert run(f"{url}/out", parse_inputs([str(corpus)]), tokenizer_file) == local
        assert times(url) == made
    output = open_output(f"{url}/out")
    for name in output.names(""):
        path = tmp_path / "back" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(output.read(name))
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "back").rglob("*.tar*")}
    assert run(tmp_path / "back", parse_inputs([str(corpus)]), tokenizer_file) == local
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "back").rglob("*.tar*")} == written


def test_tasks_of_an_array_write_into_a_store(corpus, make_store, tokenizer_file, tmp_path):
    url = make_store("s3")
    upload(corpus, url)
    upload(tokenizer_file.parent, url)
    tokenizer = f"{url}/{tokenizer_file.parent.name}/tokenizer.json"
    inputs = parse_inputs([f"{url}/data"])
    for task in ((1, 2), (0, 2)):
        assert run(f"{url}/out", inputs, tokenizer, validation=10, task=task) is None
    made = times(f"{url}/out")
    assert "manifest.json" not in contents(f"{url}/out")
    expected = run(tmp_path / "out", parse_inputs([str(corpus)]), tokenizer_file, validation=10)
    assert run(f"{url}/out", inputs, tokenizer, validation=10) == expected
    assert times(f"{url}/out") == made
    assert contents(f"{url}/out") == contents(tmp_path / "out")


def test_other_inputs_and_options_leave_nothing_of_the_former_run(corpus, make_store, tokenizer_file, tmp_path):
    url = make_store("s3")
    run(f"{url}/out", parse_inputs([str(corpus)]), tokenizer_file)
    obstore.put(from_url(url), "out/en/notes.txt", b"not of a run")
    inputs = {domain: str(corpus / domain) for domain in ("en", "sw")}
    run(f"{url}/out", inputs, tokenizer_file, validation=0, shard_bytes=50_000)
    run(tmp_path / "fresh", inputs, tokenizer_file, validation=0, shard_bytes=50_000)
    assert contents(f"{url}/out") == {**contents(tmp_path / "fresh"), "en/notes.txt": b"not of a run"}
    records = [open_output(out).names(".prepare/records") for out in (f"{url}/out", tmp_path / "fresh")]
    assert records[0] == records[1]


@pytest.mark.parametrize("name", ["en/train-000001.tar", ".prepare/plan.json"])
def test_a_run_does_not_publish_what_another_one_has_written(corpus, make_store, tokenizer_file, name):
    url = make_store("s3")

    def interfere(phase, done, total):
        if phase == "tokenize" and done == total:
            obstore.put(from_url(url), name, b'{"request": "of another run"}')

    with pytest.raises(BlockingIOError, match=rf"another run has written {name} meanwhile: .*'{url}'"):
        run(url, parse_inputs([str(corpus)]), tokenizer_file, progress=interfere)
    assert "manifest.json" not in contents(url)
    assert run(url, parse_inputs([str(corpus)]), tokenizer_file)


def test_a_failing_run_leaves_no_manifest(corpus, make_store, tokenizer_file):
    url = make_store("s3")
    run(url, parse_inputs([str(corpus)]), tokenizer_file)
    path = corpus / "en" / "b.jsonl"
    path.write_bytes(path.read_bytes() + b'{"text": 17}\n')
    with pytest.raises(ValueError, match=r"en/b\.jsonl:151 has int 17 in the field 'text'"):
        run(url, parse_inputs([str(corpus)]), tokenizer_file)
    assert "manifest.json" not in contents(url)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_large_shards_arrive_in_parts(make_store, tmp_path, scheme):
    output = open_output(make_store(scheme))
    content = random.Random(0).randbytes(12 << 20)
    (tmp_path / "x.tar").write_bytes(content)
    (tmp_path / "x.tar.ends").write_bytes(b"ends")
    output.write("x.tar.ends", b"of another tar")
    versions = output.take(str(tmp_path), ["x.tar", "x.tar.ends"])
    assert versions == output.versions()
    assert all(versions.values())
    digest = hashlib.sha256(content).hexdigest()
    assert output.verify("x.tar", len(content), digest, "") == versions["x.tar"]
    assert output.verify("x.tar", len(content), "other", versions["x.tar"]) == versions["x.tar"]
    assert output.verify("x.tar", len(content), "other", "") is None
    assert output.verify("y.tar", len(content), digest, "") is None
    output.remove("x.tar")
    output.remove("x.tar")
    assert output.names("") == ["x.tar.ends"]
    with pytest.raises(FileNotFoundError):
        output.read("x.tar")


def test_impossible_outputs_are_refused(corpus, make_store, tokenizer_file):
    make_store("s3")
    inputs = parse_inputs([str(corpus)])
    with pytest.raises(ValueError, match="a web server accepts no files: expected a local folder"):
        run("https://x/y", inputs, tokenizer_file)
    with pytest.raises(ValueError, match="ftp://x/y cannot be read; expected a local path, or a bucket"):
        run("ftp://x/y", inputs, tokenizer_file)
    with pytest.raises(StoreError, match=r"bucket does not exist; check the spelling .*'s3://no-such-bucket/out"):
        run("s3://no-such-bucket/out", inputs, tokenizer_file)
    with pytest.raises(ValueError, match=r"tokenizer 's3://no-such-bucket/tokenizer.json' does not exist"):
        run("s3://no-such-bucket/out", inputs, "s3://no-such-bucket/tokenizer.json")


def test_slurm_scripts_stay_on_this_machine_for_an_output_in_a_store(
    corpus, make_store, tokenizer_file, tmp_path, monkeypatch
):
    testing = pytest.importorskip("typer.testing")
    from pycooldown import cli

    url = make_store("s3")
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text("#!/bin/sh\necho 7\n")
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{sbatch.parent}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    words = ["tokenize", f"{url}/out", str(corpus), "--tokenizer", str(tokenizer_file), "--slurm", "", "--jobs", "3"]
    result = testing.CliRunner().invoke(cli.app, words)
    assert "submitted 7 (3 tasks) and 7, which finishes" in result.output
    script = (tmp_path / "tokenize-slurm" / "tokenize.sh").read_text()
    assert f"{url}/out" in script
    assert '--task "$SLURM_ARRAY_TASK_ID/3"' in script
    assert open_output(f"{url}/out").read(".prepare/plan.json")
