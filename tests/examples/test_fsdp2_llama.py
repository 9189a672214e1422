"""A Llama trains under FSDP2 on documents of 6 domains, is killed, and resumes on two processes and on one.

The model of the suite is small. `nox -s llama` trains one of 50 million parameters in the same way.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

EXAMPLE = Path(__file__).parents[2] / "examples" / "fsdp2_llama.py"
DOCUMENTS = {"ar": 40, "de": 150, "en": 400, "hi": 25, "sw": 15, "zh": 90}
LARGE = os.environ.get("PYCOOLDOWN_LARGE_LLAMA") == "1"
CONFIG = {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64}
CONFIG |= {"num_attention_heads": 4, "num_key_value_heads": 2}
if LARGE:
    CONFIG |= {"num_hidden_layers": 12, "hidden_size": 512, "intermediate_size": 1536, "num_attention_heads": 8}
WORDS, LENGTH = (20_000, 128) if LARGE else (500, 48)
STEPS, SAVE_EVERY, BATCH, MICRO_BATCH = 6, 3, 8, 2
# Two processes add gradients in another order than one, so values may differ after rounding to bfloat16. This is the
# bound on later losses, in units of float32's last place. The small model showed 0, the large one 74.
ULPS = 256 if LARGE else 64


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """Return a folder with documents, a tokenizer, tokens that the command made, and a config file."""
    folder = tmp_path_factory.mktemp("job")
    random = np.random.default_rng(0)
    words = np.array([f"w{i}" for i in range(WORDS)])
    for number, (domain, count) in enumerate(DOCUMENTS.items(), start=1):
        (folder / "texts" / domain).mkdir(parents=True)
        with open(folder / "texts" / domain / "part.jsonl", "w") as file:
            for _ in range(count):
                chosen = words[random.integers(0, WORDS * number // 6, random.integers(20, 90))]
                file.write(json.dumps({"text": " ".join(chosen)}) + "\n")
    own = tokenizers.Tokenizer(tokenizers.models.WordLevel(unk_token="<unk>"))
    own.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    trainer = tokenizers.trainers.WordLevelTrainer(special_tokens=["<unk>", "</s>"], vocab_size=WORDS + 2)
    own.train_from_iterator([" ".join(words)], trainer)
    own.save(str(folder / "tokenizer.json"))
    (folder / "llama.json").write_text(json.dumps(CONFIG))
    command = [sys.executable, "-m", "pycooldown", "tokenize", "tokens", "texts"]
    options = ["--tokenizer", "tokenizer.json", "--eos", "</s>", "--validation", "2"]
    subprocess.run([*command, *options], cwd=folder, env=environment(), check=True, capture_output=True)
    return folder


def start(job, folder, processes):
    """Start a job in a process group of its own, so that a kill reaches all its processes."""
    folder.mkdir(exist_ok=True)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    options = {"steps": STEPS, "save-every": SAVE_EVERY, "batch": BATCH, "micro-batch": MICRO_BATCH, "length": LENGTH}
    numbers = [f"--{name}={value}" for name, value in options.items()]
    command = [*torchrun, EXAMPLE, folder, job / "tokens", f"--config={job / 'llama.json'}", *numbers]
    return subprocess.Popen(command, env=environment(), start_new_session=True, stderr=subprocess.PIPE, text=True)


def finish(process):
    _, errors = process.communicate()
    assert process.returncode == 0, errors


def losses(folder):
    return [json.loads(line) for line in (folder / "losses.jsonl").read_text().splitlines()]


@pytest.mark.slow  # starts torchrun four times
@pytest.mark.timeout(0 if LARGE else 300)
def test_a_llama_is_killed_and_goes_on(job, tmp_path):
    whole, killed, alone = tmp_path / "whole", tmp_path / "killed", tmp_path / "alone"
    finish(start(job, whole, 2))
    process = start(job, killed, 2)
    while not (killed / f"step-{SAVE_EVERY:08d}").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)  # in the middle of a later step
    process.communicate()
    shutil.rmtree(killed / f"step-{STEPS:08d}", ignore_errors=True)  # in case it was already saved
    done = losses(killed)
    shutil.copytree(killed, alone)
    finish(start(job, killed, 2))
    finish(start(job, alone, 1))

    expected = [line["loss"] for line in losses(whole)]
    assert len(expected) == STEPS
    assert [line["loss"] for line in done[:SAVE_EVERY]] == expected[:SAVE_EVERY]
    resumed, of_one = (losses(folder)[len(done) :] for folder in (killed, alone))
    assert [line["step"] for line in resumed] == [line["step"] for line in of_one] == [4, 5, 6]
    assert [line["loss"] for line in resumed] == expected[SAVE_EVERY:]  # bit for bit
    assert {line["processes"] for line in of_one} == {1}
    assert of_one[0]["loss"] == expected[SAVE_EVERY]  # the same weights and micro-batches
    spacing = np.spacing(np.float32(expected[SAVE_EVERY:]))
    distance = np.abs(np.array([line["loss"] for line in of_one]) - expected[SAVE_EVERY:]) / spacing
    print(f"losses {expected}; one process differs by {distance.round(2).tolist()} ulps of float32")
    assert distance.max() <= ULPS
    if LARGE:
        from transformers import LlamaConfig, LlamaForCausalLM

        with torch.device("meta"):
            model = LlamaForCausalLM(LlamaConfig(**CONFIG, vocab_size=WORDS + 2))
        assert sum(p.numel() for p in model.parameters()) > 50e6
