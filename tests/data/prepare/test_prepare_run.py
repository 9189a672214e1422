"""Whole runs give the same bytes whatever the workers. A part that differs from its record is made again."""

import fcntl
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

tokenizers = pytest.importorskip("tokenizers")
pytest.importorskip("orjson")

from pycooldown.data.prepare import Options, TokenizerOptions, parse_inputs, tokenize  # noqa: E402
from pycooldown.data.prepare.make_shards import cut  # noqa: E402
from pycooldown.data.prepare.records import WORK  # noqa: E402
from pycooldown.data.prepare.split import below, choose, keyed_hash, smallest  # noqa: E402
from pycooldown.data.token_shards import open_token_shard  # noqa: E402


@pytest.fixture
def run(corpus, tokenizer_file, tmp_path):
    """Return a function that tokenizes the corpus into a folder of the given name."""

    def call(name="out", tokenizer=None, *, inputs=None, engine=None, **options):
        options = {"shard_bytes": 6000, "validation": 0.1, **options}
        tokenizer = tokenizer or TokenizerOptions(source=tokenizer_file)
        inputs = inputs or parse_inputs([str(corpus)])
        return tokenize(tmp_path / name, inputs, tokenizer, Options(**options), **(engine or {}))

    return call


def contents(folder):
    """Return the hashes of all files but locks."""
    files = (path for path in folder.rglob("*") if path.is_file() and "lock" not in path.name)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def documents(folder, manifest, domain, split):
    """Return the ids of every document of a domain, as stored in the shards."""
    found = []
    for name in sorted(manifest["domains"][domain][split]["shards"]):
        shard = open_token_shard(folder / name)
        blocks = zip(shard.block_offsets.tolist(), np.diff(shard.block_ends, prepend=np.uint64(0)).tolist())
        tokens = np.concatenate(
            [np.frombuffer((folder / name).read_bytes(), shard.dtype, length, offset) for offset, length in blocks]
        )
        found += [ids.tolist() for ids in np.split(tokens, shard.document_ends()[:-1].astype(np.int64))]
    return found


def texts_of(corpus, domain):
    paths = sorted((corpus / domain).iterdir())
    return [json.loads(line)["text"] for path in paths for line in path.read_text(encoding="utf-8").splitlines()]


def test_shards_hold_every_document_once_with_eos_behind_it(run, corpus, tokenizer_file, tmp_path):
    manifest = run(tokenizer=TokenizerOptions(source=tokenizer_file, bos="<s>"))
    own = tokenizers.Tokenizer.from_file(str(tokenizer_file))
    own.no_truncation()
    own.no_padding()
    digest = keyed_hash(0)
    for domain in ("en", "de", "sw"):
        sides = {"train": [], "validation": []}
        for text in texts_of(corpus, domain):
            sides["validation" if digest(text.encode()) < below(0.1) else "train"].append(text)
        for split, texts in sides.items():
            expected = [[0, *own.encode(text, add_special_tokens=False).ids, 1] for text in texts]
            assert documents(tmp_path / "out", manifest, domain, split) == expected
            entry = manifest["domains"][domain][split]
            assert entry["documents"] == len(texts)
            assert entry["characters"] == sum(map(len, texts))
            assert entry["bytes"] == sum(len(text.encode()) for text in texts)
            assert entry["tokens"] == sum(map(len, expected)) == sum(s["tokens"] for s in entry["shards"].values())
        preview = manifest["preview"][domain][0]
        assert (
            preview["decoded"]
            == preview["text"][: len(preview["decoded"])]
            == texts_of(corpus, domain)[0][: len(preview["decoded"])]
        )
    assert len(manifest["domains"]["en"]["train"]["shards"]) > 5
    assert manifest["domains"]["en"]["validation"]["documents"] > 10


def test_the_dataset_reads_it(run, tmp_path):
    from pycooldown.data import TokenDataset
    from pycooldown.data.token_manifest import load_token_manifest

    manifest = run()
    assert load_token_manifest(tmp_path / "out", verify_hashes=True).tokenizer["eos_id"] == 1
    dataset = TokenDataset(tmp_path / "out", length=16)
    assert dataset.tokens == {domain: splits["train"]["tokens"] for domain, splits in manifest["domains"].items()}
    first = [ids for document in documents(tmp_path / "out", manifest, "de", "train") for ids in document][:16]
    assert dataset[0]["input_ids"].tolist() == first


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest["domains"].pop("sw"),
        lambda manifest: manifest.update(domains=dict(reversed(manifest["domains"].items()))),
        lambda manifest: manifest["domains"]["de"]["train"].update(characters=1),
        lambda manifest: manifest["tokenizer"].update(eos_id=2),
    ],
    ids=["a domain removed", "domains reordered", "a count", "the tokenizer"],
)
def test_an_edited_manifest_is_noticed_and_mended(run, tmp_path, change):
    from pycooldown.data.token_manifest import load_token_manifest

    run()
    path = tmp_path / "out" / "manifest.json"
    written = path.read_text(encoding="utf-8")
    manifest = json.loads(written)
    change(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"has changed since it was written.*`pycooldown tokenize` again.*'checksum'"):
        load_token_manifest(tmp_path / "out")
    run()
    assert path.read_text(encoding="utf-8") == written
    del manifest["checksum"]  # the error advises this for edits on purpose; older versions wrote no checksum
    path.write_text(json.dumps(manifest))
    assert list(load_token_manifest(tmp_path / "out").domains) == list(manifest["domains"])


def test_the_same_bytes_for_any_number_of_workers_tasks_and_a_second_run(run, tmp_path):
    first = run("one", validation=10)
    assert run("two", validation=10, engine={"workers": 2}) == first
    for task in ((2, 3), (0, 3), (1, 3)):
        assert run("tasks", validation=10, engine={"task": task}) is None
        assert not (tmp_path / "tasks" / "manifest.json").exists()
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "tasks").rglob("*.tar")}
    run("tasks", validation=10)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "tasks").rglob("*.tar")} == made
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "one").rglob("*.tar*")}
    run("one", validation=10)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "one").rglob("*.tar*")} == times
    plans = [contents(tmp_path / name) for name in ("one", "two", "tasks")]
    assert plans[0] == plans[1] == plans[2]


@pytest.mark.parametrize("harm", ["delete", "truncate", "flip", "ends", "record", "garbage record"])
def test_what_is_missing_or_altered_is_made_again(run, tmp_path, harm):
    run()
    before = contents(tmp_path / "out")
    shard = tmp_path / "out" / "en" / "train-000002.tar"
    record = tmp_path / "out" / WORK / "records" / "en" / "000002.json"
    if harm == "delete":
        shard.unlink()
    elif harm == "truncate":
        os.truncate(shard, 700)
    elif harm == "flip":
        content = bytearray(shard.read_bytes())
        content[600] ^= 1
        shard.write_bytes(content)
    elif harm == "ends":
        shard.with_name(shard.name + ".ends").write_bytes(b"")
    elif harm == "record":
        record.unlink()
    else:
        record.write_text("[" * 10)
    run()
    assert contents(tmp_path / "out") == before


def test_a_changed_input_remakes_its_own_shards_only(run, corpus, tmp_path):
    run()
    path = corpus / "en" / "b.jsonl"
    content = path.read_bytes()
    stat = path.stat()
    path.write_bytes(content.replace(b"maji", b"Maji"))  # the same size; the time is restored below
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.tar")}
    run()
    changed = {p for p, t in before.items() if p.stat().st_mtime_ns != t}
    assert changed
    assert {p.parent.name for p in changed} == {"en"}
    assert len(changed) < len(before) / 2 + 2
    run("fresh")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_other_inputs_and_options_leave_nothing_of_the_former_run(run, corpus, tmp_path):
    run()
    (corpus / "fr").mkdir()
    (corpus / "fr" / "a.jsonl").write_text('{"text": "eau"}\n')
    shutil.rmtree(corpus / "de")
    (tmp_path / "out" / "en" / "train-000001.tar.abcdef").write_text("left by a killed process")
    run(validation=0, shard_bytes=50_000)
    run("fresh", validation=0, shard_bytes=50_000)
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_a_failing_run_leaves_no_manifest_but_its_finished_shards(run, corpus, tmp_path):
    run()
    path = corpus / "en" / "b.jsonl"
    path.write_bytes(path.read_bytes() + b'{"text": 17}\n')
    with pytest.raises(ValueError, match=r"en/b\.jsonl:151 has int 17 in the field 'text'"):
        run()
    assert not (tmp_path / "out" / "manifest.json").exists()
    with pytest.raises(ValueError, match=r"en/b\.jsonl:151 has int 17"):
        run(engine={"workers": 2})
    manifest = run(on_error="skip")
    assert manifest["left_out"]["en"] == {"empty": 0, "field": 1}
    with pytest.raises(ValueError, match=r"en/b\.jsonl:151"):  # the records of that run are not taken over
        run()


def test_documents_without_tokens_are_counted(run, corpus):
    (corpus / "sw" / "c.jsonl").write_text('{"text": ""}\n{"text": ""}\n')
    assert run()["left_out"]["sw"] == {"empty": 2}


@pytest.mark.parametrize("content", ["", "\n\n", '{"text": ""}\n'])
@pytest.mark.parametrize("validation", [0, 0.1, 5])
def test_an_empty_domain_is_named(run, corpus, content, validation):
    (corpus / "fr").mkdir()
    (corpus / "fr" / "a.jsonl").write_text(content)
    with pytest.raises(ValueError, match=r"domain 'fr' (is empty|has no documents for training)"):
        run(validation=validation)


def test_long_documents_are_refused_or_split_into_one_document(run, corpus, tmp_path):
    text = "Feuer\n und " * 40 + "x" * 300
    (corpus / "sw" / "c.jsonl").write_text(json.dumps({"text": text}) + "\n")
    with pytest.raises(ValueError, match=r"c\.jsonl:1 is a document of 740 bytes; expected at most 400"):
        run(max_document_bytes=400)
    manifest = run(max_document_bytes=400, long_documents="split", validation=0)
    found = documents(tmp_path / "out", manifest, "sw", "train")[-1]
    own = tokenizers.Tokenizer.from_file(str(tmp_path / "out" / "tokenizer" / "tokenizer.json"))
    assert own.decode(found[:-1], skip_special_tokens=False) == text
    assert found[-1] == 1
    assert manifest["domains"]["sw"]["train"]["documents"] == 4


@pytest.mark.parametrize("text", ["", "a b", "ab" * 100, "水 火\n" * 50, "\n" * 90, " x" * 90 + "y" * 90])
def test_cut_texts_are_whole_and_short(text):
    pieces = list(cut(text, 64))
    assert "".join(pieces) == text
    assert all(len(piece.encode()) <= 64 for piece in pieces)


def test_validation_by_count_never_takes_a_document_of_training(run, corpus, tmp_path, make_text):
    """No document is in both splits, although the rare domain repeats documents of its own and of the frequent one."""
    texts = [make_text(f"en{i}") for i in range(40)] + [make_text("sw0")] * 3
    (corpus / "sw" / "c.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    manifest = run(validation=7)
    sides = {}
    for split in ("train", "validation"):
        sides[split] = [
            tuple(d) for domain in ("en", "sw", "de") for d in documents(tmp_path / "out", manifest, domain, split)
        ]
    assert not set(sides["train"]) & set(sides["validation"])
    assert 7 + 3 <= len(set(sides["validation"])) <= 7 + 7 + 3
    assert manifest["domains"]["de"]["validation"]["documents"] == 3  # at most a quarter of its 12 documents
    other = run("other", validation=7, seed=1)
    assert other["domains"]["en"]["validation"]["shards"] != manifest["domains"]["en"]["validation"]["shards"]


def test_validation_by_count_takes_the_smallest_hashes():
    digests = [hashlib.sha256(bytes([i])).digest()[:16] for i in range(100)] * 2
    for count in (1, 7, 300):
        kept, total = smallest(iter(digests), count)
        assert kept == sorted(set(digests))[:count]
        assert total == 200
    halves = [smallest(digests[:130], 9), smallest(digests[130:], 9)]
    assert choose({"a": halves}, 9) == set(sorted(set(digests))[:9])
    assert choose({"a": [smallest(digests[:1], 9)], "b": [smallest(digests[:2], 9)]}, 9) == {min(digests[:2])}


def test_validation_by_share_takes_about_that_share(run, corpus):
    manifest = run(validation=0.3)
    counts = [manifest["domains"]["en"][split]["documents"] for split in ("train", "validation")]
    assert sum(counts) == 300
    assert 60 <= counts[1] <= 120
    assert run("none", validation=0)["domains"]["en"]["train"]["documents"] == 300


def test_trained_tokenizer_gives_the_same_bytes_again(run, tmp_path):
    for name, workers in (("one", 1), ("two", 2)):
        run(name, TokenizerOptions(train="bpe", vocabulary_size=300, sample_bytes=20_000), engine={"workers": workers})
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_two_processes_in_one_folder(run, tmp_path):
    run()
    with open(tmp_path / "out" / WORK / "lock", "rb") as other:
        fcntl.flock(other, fcntl.LOCK_SH)  # like a task
        with pytest.raises(BlockingIOError, match="another process is tokenizing into this folder"):
            run()
        run(engine={"task": (0, 2)})
        fcntl.flock(other, fcntl.LOCK_EX)  # like a whole run
        with pytest.raises(BlockingIOError, match="another process"):
            run(engine={"task": (0, 2)})


@pytest.mark.parametrize(
    ("options", "engine", "message"),
    [
        ({"validation": -0.1}, {}, "validation = -0.1; expected a share"),
        ({"validation": 1.5}, {}, "validation = 1.5; expected a share"),
        ({"validation": float("nan")}, {}, "validation = nan"),
        ({"shard_bytes": 0}, {}, "shard_bytes = 0"),
        ({"text_fields": ()}, {}, "text_fields"),
        ({"on_error": "ignore"}, {}, "on_error = 'ignore'; expected one of 'raise', 'skip'"),
        ({"max_document_bytes": 1}, {}, "max_document_bytes = 1"),
        ({}, {"workers": 0}, "workers = 0"),
        ({}, {"task": (3, 3)}, "task = 3/3; expected i/n"),
    ],
)
def test_options_that_are_refused(run, options, engine, message):
    with pytest.raises(ValueError, match=message):
        run(engine=engine, **options)


def command(out, corpus, tokenizer, *options):
    words = [sys.executable, "-m", "pycooldown.cli", "tokenize", str(out), str(corpus), "--tokenizer", str(tokenizer)]
    return [*words, "--shard-bytes", "6000", *options]


def test_killed_and_run_again_with_other_workers(corpus, tokenizer_file, tmp_path):
    process = subprocess.Popen(
        command(tmp_path / "out", corpus, tokenizer_file, "--workers", "2"), stdout=subprocess.DEVNULL
    )
    records = tmp_path / "out" / WORK / "records"
    while process.poll() is None and not list(records.glob("en/*.json")):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    subprocess.run(command(tmp_path / "out", corpus, tokenizer_file, "--workers", "1"), check=True, capture_output=True)
    tokenize(
        tmp_path / "whole",
        {d: str(corpus / d) for d in ("de", "en", "sw")},
        TokenizerOptions(source=tokenizer_file),
        Options(shard_bytes=6000),
    )
    # The killed process may leave temporary files beside the records, but nowhere else.
    whole, found = contents(tmp_path / "whole"), contents(tmp_path / "out")
    assert {name: found.get(name) for name in whole if "plan" not in name} == {
        name: digest for name, digest in whole.items() if "plan" not in name
    }
    assert all(name.startswith(WORK) for name in found.keys() - whole.keys())


def test_a_full_disk_is_named_and_the_next_run_goes_on(corpus, tokenizer_file, tmp_path):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))

    arguments = command(tmp_path / "out", corpus, tokenizer_file)
    failed = subprocess.run(arguments, capture_output=True, text=True, preexec_fn=limit)
    assert failed.returncode == 1
    assert "File too large" in failed.stderr
    assert "finished shards are kept" in failed.stderr
    assert not (tmp_path / "out" / "manifest.json").exists()
    subprocess.run(arguments, check=True, capture_output=True)
    assert (tmp_path / "out" / "manifest.json").exists()


def test_a_killed_worker_is_an_error(run, monkeypatch, corpus):
    """A killed worker raises an error which says that the next run goes on."""
    code = (
        "import os, signal, sys\nfrom pycooldown.data.engines import open_engine\n"
        "def die(n):\n    os.kill(os.getpid(), signal.SIGKILL) if n == 3 else None\n    return n\n"
        "if __name__ == '__main__':\n"
        "    with open_engine(workers=2) as run:\n"
        "        print(sorted(run(die, range(6))))\n"
    )
    path = corpus.parent / "die.py"
    path.write_text(code)
    result = subprocess.run([sys.executable, str(path)], capture_output=True, text=True)
    assert "RuntimeError: a worker process was killed" in result.stderr
    assert "run it again to continue" in result.stderr


def test_workers_use_one_core_each(corpus):
    path = corpus.parent / "env.py"
    path.write_text(
        "import os\nfrom pycooldown.data.engines import open_engine\n"
        "def threads(n):\n    return os.environ['TOKENIZERS_PARALLELISM'], os.environ['RAYON_NUM_THREADS']\n"
        "if __name__ == '__main__':\n"
        "    for workers in (1, 2):\n"
        "        with open_engine(workers=workers) as run:\n"
        "            print(sorted(run(threads, range(2))))\n"
        "    print(os.environ.get('RAYON_NUM_THREADS'))\n"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("RAYON_NUM_THREADS", "TOKENIZERS_PARALLELISM")}
    result = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, env=environment, check=True)
    assert result.stdout.splitlines() == ["[(0, ('false', '1')), (1, ('false', '1'))]"] * 2 + ["None"]


def test_command_trains_a_tokenizer_shows_documents_and_skips_faults(corpus, tmp_path):
    path = corpus / "de" / "b.jsonl"
    path.write_bytes(path.read_bytes() + b"{}\n")
    words = [
        sys.executable,
        "-m",
        "pycooldown.cli",
        "tokenize",
        str(tmp_path / "out"),
        f"de={corpus}/de/*",
        f"sw={corpus}/sw",
    ]
    words += ["--train-tokenizer", "bpe", "--vocabulary-size", "280", "--on-error", "skip", "--validation", "2"]
    result = subprocess.run(words, capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "120"})
    assert "1 field" in result.stdout
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["tokenizer"]["file"] == "tokenizer/tokenizer.json"
    assert manifest["domains"]["de"]["train"]["documents"] == 10
    assert manifest["domains"]["de"]["validation"]["documents"] == 2
    failed = subprocess.run([*words[:-4]], capture_output=True, text=True)
    assert failed.returncode == 1
    assert "b.jsonl:7 lacks a string in the field 'text'" in failed.stderr.replace("\n", "")


FAKE_SBATCH = """#!{python}
import json, os, pathlib, subprocess, sys
folder = pathlib.Path(__file__).parent
jobs = json.loads((folder / "jobs.json").read_text()) if (folder / "jobs.json").exists() else []
options = dict(word[2:].partition("=")[::2] for word in sys.argv[1:] if word.startswith("--"))
script, number = sys.argv[-1], str(100 + len(jobs))
failed = False
if "array" in options:
    first, last = map(int, options["array"].split("-"))
    for i in range(first, last + 1):
        env = {{**os.environ, "SLURM_ARRAY_TASK_ID": str(i)}}
        failed |= subprocess.run(["sh", script], env=env, stdout=2).returncode != 0
elif "dependency" in options:
    array = jobs[int(options["dependency"].removeprefix("afterok:")) - 100]
    failed = array["failed"] or subprocess.run(["sh", script], stdout=2).returncode != 0
(folder / "jobs.json").write_text(json.dumps([*jobs, {{"options": options, "failed": failed}}]))
print(number + ";cluster")
"""


def test_slurm_array_and_the_job_that_finishes(corpus, tokenizer_file, tmp_path, run):
    """The array and the finishing job give the result of one run. A fake `sbatch` runs the jobs at once."""
    (tmp_path / "bin").mkdir()
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.write_text(FAKE_SBATCH.format(python=sys.executable))
    sbatch.chmod(0o755)
    environment = {**os.environ, "PATH": f"{sbatch.parent}:{os.environ['PATH']}"}
    slurm = ["--slurm", "--partition=cpu --time=1:00:00", "--jobs", "2"]
    arguments = [
        *command(tmp_path / "out", corpus, tokenizer_file, *slurm),
        "--text-field",
        "text",
        "--validation",
        "0.1",
    ]
    result = subprocess.run(arguments, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    assert "submitted 100 (2 tasks) and 101, which finishes" in result.stdout
    jobs = json.loads((tmp_path / "bin" / "jobs.json").read_text())
    assert [job["failed"] for job in jobs] == [False, False]
    assert jobs[0]["options"] | {"output": ""} == {
        "partition": "cpu",
        "time": "1:00:00",
        "parsable": "",
        "array": "0-1",
        "output": "",
    }
    assert jobs[1]["options"]["dependency"] == "afterok:100"
    run("whole")
    whole, found = contents(tmp_path / "whole"), contents(tmp_path / "out")
    assert {name: d for name, d in found.items() if not name.startswith(WORK)} == {
        name: d for name, d in whole.items() if not name.startswith(WORK)
    }
    sbatch.write_text("#!/bin/sh\necho no such partition >&2; exit 1\n")
    failed = subprocess.run(arguments, capture_output=True, text=True, env=environment)
    assert failed.returncode == 1
    assert "sbatch refused" in failed.stderr
    assert "no such partition" in failed.stderr


@pytest.mark.slow
def test_memory_does_not_grow_with_the_input(corpus, tokenizer_file, tmp_path):
    """A compressed file is one part, whatever its size, but its documents are not held in memory."""
    from pycooldown.data.prepare.readers import zstd

    line = json.dumps({"text": "Feuer und wasser " * 600}).encode() + b"\n"
    code = (
        "import re, sys\nfrom pycooldown.data.prepare import *\nout, path, tokenizer = sys.argv[1:]\n"
        "tokenize(out, {'a': path}, TokenizerOptions(source=tokenizer), Options(validation=0.5))\n"
        "print(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1])"
    )
    peaks = []
    for count in (400, 1800):
        path, out = tmp_path / f"{count}.jsonl.zst", tmp_path / f"out{count}"
        path.write_bytes(zstd.compress(b"".join(line.replace(b"wasser", b"%d" % i) for i in range(count))))
        arguments = [sys.executable, "-c", code, str(out), str(path), str(tokenizer_file)]
        peaks.append(int(subprocess.run(arguments, capture_output=True, text=True, check=True).stdout))
    assert peaks[1] < peaks[0] + 10_000  # kB; texts and tokens grow by 14,000 kB each


def test_tasks_that_start_at_once_make_one_plan(corpus, tokenizer_file, tmp_path):
    """Any task may be the first, and only one trains the tokenizer."""
    arguments = command(tmp_path / "out", corpus, tokenizer_file, "--validation", "5")
    arguments[arguments.index("--tokenizer") : arguments.index("--tokenizer") + 2] = ["--train-tokenizer", "bpe"]
    arguments += ["--vocabulary-size", "300"]
    tasks = [
        subprocess.Popen([*arguments, "--task", f"{i}/2"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for i in range(2)
    ]
    outputs = [task.communicate()[0].decode() for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0]
    assert sum("tokenizer" in output for output in outputs) == 1
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.tar")}
    subprocess.run(arguments, check=True, capture_output=True)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.tar")} == made


def test_storage_is_at_most_5_percent_over_the_tokens(tokenizer_file, tmp_path, make_text):
    path = tmp_path / "a.jsonl"
    line = "".join(json.dumps({"text": make_text(i, 400)}) + "\n" for i in range(20))
    path.write_text(line * 64)
    options = Options(validation=0, shard_bytes=1 << 20)
    manifest = tokenize(tmp_path / "out", {"a": str(path)}, TokenizerOptions(source=tokenizer_file), options)
    entry = manifest["domains"]["a"]["train"]
    assert entry["tokens"] > 1_000_000
    stored = sum(file.stat().st_size for file in (tmp_path / "out" / "a").iterdir())
    assert 2 * entry["tokens"] < stored <= 1.05 * 2 * entry["tokens"]
