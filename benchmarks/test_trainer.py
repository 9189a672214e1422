"""Steps of MixtureTrainer, whose loss is fused, beside those of Trainer, and the data path's share of a step.

    OMP_NUM_THREADS=1 pytest benchmarks/test_trainer.py --benchmark-enable -s     # on a quiet machine; some minutes

Both trainers train in one process, each in a thread of its own, and hand over after every optimizer step, so that what
else the machine does meets both alike. A step is all from one handing over to the next: its batch, forward, backward,
clipping, the optimizer and the callbacks. The model is the demo's (3 layers of width 192) with the vocabulary of the
case, and both see batches of the same shape. Printed and in extra_info are, in wall time and in the process's time on
processors (which waiting for a processor does not change), the median of the ratios of neighbouring steps with its 95 %
interval (bootstrap) and the ratio of the shortest steps; and the median share of a step that passes before its
micro-batches are there.
"""

import io
import tarfile
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from pycooldown import Mixture, schedules
from pycooldown.data import TarDataset, TokenDataset, token_sources
from pycooldown.gradients.moments import bootstrap
from pycooldown.huggingface import MixtureTrainer, PackedText

pytestmark = pytest.mark.timeout(0)  # the suite's limit detects hangs, not slow machines
DOMAINS = [f"d{i}" for i in range(10)]
STEPS, WARM_UP = 44, 4
CASES = {
    "demo, vocabulary 4000": ("pairs", 4000, 32, 48),  # data, vocabulary, tokens of a sequence, sequences of a batch
    "vocabulary 4096, T = 256": ("tokens", 4096, 256, 8),
    "vocabulary 4096, T = 1024": ("tokens", 4096, 1024, 2),
    "vocabulary 32768, T = 256": ("tokens", 32768, 256, 4),
    "vocabulary 32768, T = 1024": ("tokens", 32768, 1024, 1),
}


class Turns(TrainerCallback):
    """A callback that lets two trainers take turns, and records how long each step took.

    Args:
        number: 0 or 1, the number of this trainer.
        baton: Shared state: whose turn it is, and whether one of the two has ended.
    """

    def __init__(self, number, baton):
        self.number, self.baton, self.seconds, self.processor = number, baton, [], []

    def on_train_begin(self, args, state, control, **kwargs):
        """Wait for the first turn."""
        self.wait()

    def on_step_end(self, args, state, control, **kwargs):
        """Record the time, and let the other trainer do a step."""
        self.seconds.append(time.perf_counter() - self.begin)
        self.processor.append(time.process_time() - self.begin_processor)  # the other waits, and takes none
        self.hand_over()
        self.wait()

    def on_train_end(self, args, state, control, **kwargs):
        """Let the other trainer finish."""
        self.hand_over(ended=True)

    def wait(self):
        """Wait for this trainer's turn."""
        with self.baton["condition"]:
            self.baton["condition"].wait_for(lambda: self.baton["turn"] == self.number or self.baton["ended"])
        self.begin, self.begin_processor = time.perf_counter(), time.process_time()

    def hand_over(self, *, ended=False):
        """Pass the turn to the other trainer."""
        with self.baton["condition"]:
            self.baton["turn"] = 1 - self.number
            self.baton["ended"] |= ended
            self.baton["condition"].notify_all()


class Timed(MixtureTrainer):
    """A trainer that records how long each step waits for its micro-batches."""

    fetching = ()

    def get_batch_samples(self, *args, **kwargs):
        """Return the micro-batches."""
        begin = time.perf_counter()
        batches = super().get_batch_samples(*args, **kwargs)
        self.fetching = (*self.fetching, time.perf_counter() - begin)
        return batches


def packed_pairs(folder, vocabulary, length):
    """Return domains of samples as written by `pycooldown pack`, 600 each."""
    random, shards = np.random.default_rng(0), {}
    for domain in DOMAINS:
        shards[domain] = [str(folder / f"{domain}.tar")]
        with tarfile.open(shards[domain][0], "w") as tar:
            for i in range(600):
                for side in ("src", "tgt"):
                    np.save(file := io.BytesIO(), random.integers(vocabulary, size=length).astype(np.uint16))
                    info = tarfile.TarInfo(f"{i:06d}.{side}.npy")
                    info.size = file.tell()
                    tar.addfile(info, io.BytesIO(file.getvalue()))
    return TarDataset(shards), PackedText(length)


def tokens(folder, vocabulary, length):
    """Return domains of 40 to 400 sequences of tokens."""
    random, sources = np.random.default_rng(0), {}
    for number, domain in enumerate(DOMAINS, start=1):
        random.integers(vocabulary, size=40 * number * length).astype(np.uint16).tofile(folder / f"{domain}.bin")
        sources[domain] = token_sources.flat(folder / f"{domain}.bin", "uint16", eos_id=0)
    columns = ("input_ids", "labels")
    return TokenDataset(sources, length, columns=columns, vocabulary_size=vocabulary), TokenDataset.collate


def model_of(vocabulary, length):
    torch.manual_seed(0)
    shape = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=vocabulary, max_position_embeddings=length, tie_word_embeddings=True, **shape)
    config.use_cache = False
    return LlamaForCausalLM(config)


def compared(mine, theirs):
    """Return our steps over theirs: the median of neighbours' ratios, its 95 % interval, and the minima's ratio."""
    ratio, low, high = bootstrap(lambda ratios: np.median(ratios, axis=-1), mine / theirs)
    return {"ratio": ratio, "low": low, "high": high, "least": mine.min() / theirs.min()}


@pytest.mark.parametrize("name", CASES)
def test_step(benchmark, name):
    kind, vocabulary, length, batch_size = CASES[name]
    baton = {"condition": threading.Condition(), "turn": 0, "ended": False}
    turns = [Turns(number, baton) for number in range(2)]
    with tempfile.TemporaryDirectory() as folder:
        dataset, collate = (packed_pairs if kind == "pairs" else tokens)(Path(folder), vocabulary, length)
        options = {
            "output_dir": folder,
            "max_steps": STEPS,
            "per_device_train_batch_size": batch_size,
            "logging_steps": 10,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            "remove_unused_columns": False,
        }
        schedule = schedules.constant(Mixture.temperature_sampling(dataset.sizes, 5.0))
        shared = {"train_dataset": dataset, "data_collator": collate}
        models = [model_of(vocabulary, length) for _ in turns]
        ours = Timed(models[0], TrainingArguments(**options), schedule=schedule, callbacks=[turns[0]], **shared)
        plain = Trainer(models[1], TrainingArguments(**options), callbacks=[turns[1]], **shared)

        def train():
            threads = [threading.Thread(target=trainer.train) for trainer in (ours, plain)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        benchmark.pedantic(train, rounds=1)
    steps = {
        "wall": [np.array(turn.seconds[WARM_UP:]) for turn in turns],
        "processor": [np.array(turn.processor[WARM_UP:]) for turn in turns],
    }
    mine, theirs = steps["wall"]
    assert len(mine) == len(theirs) == STEPS - WARM_UP
    share = np.median(np.array(ours.fetching[WARM_UP:STEPS]) / mine)
    benchmark.extra_info.update(data_share=share, trainer_seconds=np.median(theirs))
    print(f"\n{name}: data path {share:.2%} of a step; ours over Trainer")
    for clock, (mine, theirs) in steps.items():
        found = compared(mine, theirs)
        benchmark.extra_info.update({f"{clock}_{key}": value for key, value in found.items()})
        print("  {clock} {ratio:.3f} [{low:.3f}, {high:.3f}], shortest {least:.3f}".format(clock=clock, **found))
