"""What `pycooldown tokenize` costs beside the tokenizer alone, and peers, in CPU seconds and time.

    pytest benchmarks/test_tokenize.py --benchmark-enable -s

Documents are Python sources of the installed packages, in pieces of 4,000 characters; the tokenizer is a byte-level BPE
of 8,000 ids, trained on some of them. CPU seconds are those of all processes. Contenders take turns, since single runs
vary by half; `over_the_tokenizer` is the median of the ratios of neighbouring runs. Peers run if they are installed:
datatrove's DocumentTokenizer, and `datasets.map` without its cache.
"""

import json
import os
import resource
import shutil
import site
import statistics
import time
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import pytest

tokenizers = pytest.importorskip("tokenizers")

from pycooldown.data.prepare import Options, TokenizerOptions, tokenize  # noqa: E402

MEGABYTES = int(os.environ.get("PYCOOLDOWN_TOKENIZE_MB", "40"))
ROUNDS = 5


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Four files of JSON lines, and a tokenizer for them."""
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


def cpu_seconds():
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


@lru_cache
def load(path):
    """One object for all rounds: `tokenizers` keeps caches for each, and slows down with many in a thread."""
    return tokenizers.Tokenizer.from_file(path)


def alone(folder, documents):
    """The tokenizer alone, on batches of a megabyte from memory; returns the number of tokens."""
    tokenizer, tokens = load(str(folder / "tokenizer.json")), 0
    for i in range(0, len(documents), 256):
        tokens += sum(map(len, tokenizer.encode_batch_fast(documents[i : i + 256], add_special_tokens=False)))
    return tokens


def ours(folder, workers):
    options = Options(shard_bytes=(MEGABYTES << 20) // 8, validation=0.01)
    inputs, tokenizer = {"code": str(folder / "data")}, TokenizerOptions(source=folder / "tokenizer.json")
    tokenize(folder / "out", inputs, tokenizer, options, workers=workers)


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


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("name", CONTENDERS)
def test_tokenize(benchmark, corpus, monkeypatch, name, workers):
    contender, module = CONTENDERS[name]
    if module and find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    folder, documents = corpus
    ratios, seconds, tokens = [], [], 0

    def turn():
        nonlocal tokens
        start = cpu_seconds()
        tokens = alone(folder, documents)
        middle, clock = cpu_seconds(), time.perf_counter()
        contender(folder, workers)
        seconds.append(time.perf_counter() - clock)
        ratios.append((cpu_seconds() - middle) / (middle - start))

    def clean():
        shutil.rmtree(folder / "out", ignore_errors=True)
        (folder / "out").mkdir()

    benchmark.pedantic(turn, setup=clean, rounds=ROUNDS, warmup_rounds=1)
    figures = {
        "over_the_tokenizer": statistics.median(ratios[1:]) - 1,
        "seconds": statistics.median(seconds[1:]),
        "tokens_per_second": tokens / statistics.median(seconds[1:]),
    }
    benchmark.extra_info.update(figures)
    print(name, workers, {key: round(value, 3) for key, value in figures.items()})
