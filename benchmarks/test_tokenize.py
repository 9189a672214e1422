"""Cost of `pycooldown tokenize` beside the tokenizer alone, with 2 workers, in memory, and the cost of peers.

    pytest benchmarks/test_tokenize.py --benchmark-enable -s

Documents are Python sources of the installed packages, in pieces of 4,000 characters; the tokenizer is a byte-level BPE
of 8,000 ids, trained on some of them. CPU seconds are those of all processes. Contenders take turns, since single runs
vary by half; ratios are medians over neighbouring runs. Peers run if they are installed: datatrove's DocumentTokenizer,
and `datasets.map` without its cache. `PYCOOLDOWN_TOKENIZE_MB` is the size of the text. Runs of 1 and 2 workers take
turns in processes of their own, whose start is not counted; that of their workers is. Ours also gets the text
`PYCOOLDOWN_TOKENIZE_COPIES` times, as a corpus on which the start of workers weighs little.
"""

import json
import multiprocessing
import os
import resource
import shutil
import site
import statistics
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import pytest

tokenizers = pytest.importorskip("tokenizers")

from pycooldown.data.prepare import Options, TokenizerOptions, tokenize  # noqa: E402
from pycooldown.data.prepare.encoders import as_array  # noqa: E402
from pycooldown.data.prepare.formats import Faults  # noqa: E402
from pycooldown.data.prepare.inputs import find_files  # noqa: E402
from pycooldown.data.prepare.parts import divide  # noqa: E402
from pycooldown.data.prepare.readers import read_documents  # noqa: E402
from pycooldown.data.prepare.split import validation_test  # noqa: E402
from pycooldown.data.token_shard_writer import write_token_shard  # noqa: E402

MEGABYTES = int(os.environ.get("PYCOOLDOWN_TOKENIZE_MB", "32"))
COPIES = int(os.environ.get("PYCOOLDOWN_TOKENIZE_COPIES", "3"))
ROUNDS = 5
BATCH = 256  # documents, a megabyte


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Return four files of JSON lines, a tokenizer for them, and the documents."""
    folder = tmp_path_factory.mktemp("tokenize")
    documents, size = [], 0
    for path in sorted(Path(site.getsitepackages()[0]).rglob("*.py")):
        text = path.read_text(encoding="utf-8", errors="ignore")
        documents += [text[i : i + 4000] for i in range(0, len(text), 4000)]
        size += len(text)
        if size > MEGABYTES << 20:
            break
    (folder / "data").mkdir()
    for i in range(4):
        lines = (json.dumps({"text": text}) + "\n" for text in documents[i::4])
        (folder / "data" / f"{i}.jsonl").write_text("".join(lines), encoding="utf-8")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=8000,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents[::20], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder, documents


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")


def cpu_seconds():
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def clean(folder):
    shutil.rmtree(folder / "out", ignore_errors=True)
    (folder / "out").mkdir()


def report(benchmark, name, figures):
    benchmark.extra_info.update(figures)
    print(f"\n{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in figures.items()))


@lru_cache
def load(path):
    """Return one object for all rounds: `tokenizers` keeps caches for each, and slows down with many in a thread."""
    return tokenizers.Tokenizer.from_file(path)


def alone(folder, documents):
    """Run the tokenizer alone, on batches of a megabyte from memory; return the number of tokens."""
    tokenizer, tokens = load(str(folder / "tokenizer.json")), 0
    for i in range(0, len(documents), BATCH):
        tokens += sum(map(len, tokenizer.encode_batch_fast(documents[i : i + BATCH], add_special_tokens=False)))
    return tokens


def ours(folder, workers, inputs="data", shard_bytes=(MEGABYTES << 20) // 8):
    options = Options(shard_bytes=shard_bytes, validation=0.01)
    asked = TokenizerOptions(source=folder / "tokenizer.json")
    tokenize(folder / "out", {"code": str(folder / inputs)}, asked, options, workers=workers)


def datatrove(folder, workers):
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    step = DocumentTokenizer(
        str(folder / "out"), tokenizer_name_or_path=str(folder / "tokenizer.json"), eos_token="<|endoftext|>"
    )
    pipeline = [JsonlReader(str(folder / "data")), step]
    LocalPipelineExecutor(pipeline, tasks=4, workers=workers, logging_dir=str(folder / "out" / "logs")).run()


def datasets_map(folder, workers):
    import datasets
    from transformers import PreTrainedTokenizerFast

    datasets.disable_caching()
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    files = [str(path) for path in sorted((folder / "data").iterdir())]
    dataset = datasets.load_dataset("json", data_files=files, split="train", cache_dir=str(folder / "out" / "cache"))
    dataset = dataset.map(
        lambda batch: {"input_ids": tokenizer(batch["text"], add_special_tokens=False)["input_ids"]},
        batched=True,
        num_proc=workers if workers > 1 else None,
        remove_columns=dataset.column_names,
    )
    dataset.save_to_disk(str(folder / "out" / "saved"))


CONTENDERS = {"pycooldown": (ours, None), "datatrove": (datatrove, "datatrove"), "datasets": (datasets_map, "datasets")}


def test_components(benchmark, corpus):
    """Measure each step of the work in CPU seconds over those of the tokenizer. Their sum is the cost of ours."""
    folder, documents = corpus
    clean(folder)
    options = Options(validation=0.01)
    files, _ = find_files({"code": str(folder / "data")})
    ranges = [file_range for part in divide("code", files["code"], options) for file_range in part.ranges]
    is_validation = validation_test(str(folder / "out"), options, "")
    tokenizer = load(str(folder / "tokenizer.json"))
    contents = [text.encode() for text in documents]
    encodings = tokenizer.encode_batch_fast(documents, add_special_tokens=False)
    arrays = [as_array(encoding.ids) for encoding in encodings]

    def read():
        import hashlib

        for file_range in ranges:
            for _ in read_documents(file_range, options, Faults("raise"), hashlib.sha256()):
                pass

    steps = {
        "tokenizer": lambda: alone(folder, documents),
        "reading": read,
        "splitting": lambda: sum(map(is_validation, contents)),
        "arrays": lambda: [as_array(encoding.ids) for encoding in encodings],
        "writing": lambda: write_token_shard(folder / "out" / "x.tar", arrays, 8000),
    }
    spent = {name: [] for name in steps}

    def turn():
        for name, step in steps.items():
            start = time.process_time()
            step()
            spent[name].append(time.process_time() - start)

    benchmark.pedantic(turn, rounds=ROUNDS, warmup_rounds=1)
    ratios = {
        name: statistics.median(a / b for a, b in zip(seconds[1:], spent["tokenizer"][1:]))
        for name, seconds in spent.items()
        if name != "tokenizer"
    }
    figures = {f"{name} over the tokenizer": ratio for name, ratio in ratios.items()}
    report(benchmark, "components", {**figures, "sum over the tokenizer": sum(ratios.values())})


@pytest.mark.parametrize("name", CONTENDERS)
def test_one_worker(benchmark, corpus, name):
    """Measure complete runs of one worker, ours beside the tokenizer alone.

    Peers are not measured beside it: their imports slow down the tokenizer in this process, which would flatter their
    ratio.
    """
    contender, module = CONTENDERS[name]
    if module and find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    folder, documents = corpus
    ratios, seconds, tokens = [], [], 0

    def turn():
        nonlocal tokens
        start = cpu_seconds()
        tokens = alone(folder, documents)
        middle, clock = cpu_seconds(), time.perf_counter()
        contender(folder, 1)
        seconds.append(time.perf_counter() - clock)
        ratios.append((cpu_seconds() - middle) / (middle - start))

    benchmark.pedantic(turn, setup=lambda: clean(folder), rounds=ROUNDS if module is None else 3, warmup_rounds=1)
    figures = {"seconds": statistics.median(seconds[1:]), "tokens/s": tokens / statistics.median(seconds[1:])}
    if module is None:
        figures["CPU over the tokenizer"] = statistics.median(ratios[1:]) - 1
    report(benchmark, f"{name}, 1 worker", figures)


def seconds_of(contender, *arguments):
    """Return the wall-clock seconds of a run, measured in the process that runs it."""
    clock = time.perf_counter()
    contender(*arguments)
    return time.perf_counter() - clock


def in_new_process(contender, *arguments):
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(seconds_of, contender, *arguments).result()


@pytest.mark.parametrize("name", [*CONTENDERS, "pycooldown, larger"])
def test_two_workers(benchmark, corpus, name):
    """Measure the speed-up by a second worker, including the start of workers."""
    contender, module = CONTENDERS[name.split(",")[0]]
    if module and find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    folder, _ = corpus
    seconds, inputs = {1: [], 2: []}, ()
    if name.endswith("larger"):
        inputs = ("larger",)
        (folder / "larger").mkdir(exist_ok=True)
        for i, path in enumerate(sorted((folder / "data").iterdir()) * COPIES):
            shutil.copyfile(path, folder / "larger" / f"{i}.jsonl")

    def turn():
        for workers, times in seconds.items():
            clean(folder)
            times.append(in_new_process(contender, folder, workers, *inputs))

    benchmark.pedantic(turn, rounds=3)
    speedup = statistics.median(one / two for one, two in zip(seconds[1], seconds[2]))
    report(benchmark, f"{name}, 2 workers", {"speed-up": speedup, "seconds": statistics.median(seconds[2])})


def test_memory(benchmark, corpus):
    """Measure the peak of one worker on one compressed file whose documents are nearly of the maximum length."""
    from pycooldown.data.prepare.readers import zstd

    folder, documents = corpus
    text = "".join(documents)
    size = 3_500_000
    lines = [json.dumps({"text": text[i : i + size]}) + "\n" for i in range(0, 4 * len(text) // 5, size)]
    (folder / "big").mkdir(exist_ok=True)
    (folder / "big" / "x.jsonl.zst").write_bytes(zstd.compress("".join(lines).encode()))
    code = (
        "import re, sys\nfrom pycooldown.data.prepare import *\nout, path, tokenizer = sys.argv[1:]\n"
        "tokenize(out, {'a': path}, TokenizerOptions(source=tokenizer))\n"
        "print(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1])"
    )
    arguments = [sys.executable, "-c", code, str(folder / "out"), str(folder / "big"), str(folder / "tokenizer.json")]

    def call():
        clean(folder)
        return subprocess.run(arguments, capture_output=True, text=True, check=True).stdout

    peak = int(benchmark.pedantic(call, rounds=1))
    report(benchmark, "memory", {"peak MB": peak / 1000, "file MB": sum(map(len, lines)) / 1e6})
