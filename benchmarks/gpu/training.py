"""Steps of Llama-shaped models: time and peak memory of MixtureTrainer and of Hugging Face's own Trainer."""

from __future__ import annotations

import tempfile
import time
from typing import Any

import torch
from common import DEVICE, ON_GPU, Run, missing, parse, synchronize

SIZES = {"large": 8192, "small": 1024}
# Hidden size, intermediate size, layers, heads, classes, sequences of a batch, their length.
MODELS = {
    "125M": (768, 2048, 12, 12, 32_000, 16, 1024),
    "1B": (2048, 5632, 22, 16, 32_000, 4, 1024),
}
DRY = {"tiny": (16, 32, 1, 2, 100, 4, 16)}


def model(shape: tuple[int, ...], seed: int = 0) -> Any:
    """Return a model with random weights."""
    import transformers

    hidden, intermediate, layers, heads, classes, _, length = shape
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=classes,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=length,
        use_cache=False,
    )
    return transformers.LlamaForCausalLM(config).to(DEVICE)


class Sequences(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Random tokens."""

    def __init__(self, classes: int, length: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.tokens = torch.randint(classes, (256, length), generator=generator)

    def __len__(self) -> int:
        return sum(SIZES.values())

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = self.tokens[index % len(self.tokens)]
        return {"input_ids": tokens, "labels": tokens}


def collate(samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Stack them."""
    return {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}


def train(run: Run, name: str, shape: tuple[int, ...], kind: str) -> None:
    """Time the steps of one trainer, after as many warm-up steps."""
    if run.written(model=name, trainer=kind):
        return
    import transformers

    from pycooldown import Mixture, schedules
    from pycooldown.huggingface import MixtureTrainer

    *_, classes, batch_size, length = shape
    steps = 2 if run.dry else 20
    marks = []

    class Clock(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            synchronize()
            marks.append(time.perf_counter())

    if ON_GPU:
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {
            "args": transformers.TrainingArguments(
                output_dir=folder,
                max_steps=2 * steps,
                per_device_train_batch_size=batch_size,
                bf16=True,
                report_to="none",
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
                use_cpu=not ON_GPU,
            ),
            "train_dataset": Sequences(classes, length),
            "data_collator": collate,
            "callbacks": [Clock()],
        }
        if kind == "MixtureTrainer":
            schedule = schedules.constant(Mixture.temperature_sampling(SIZES, 5))
            trainer = MixtureTrainer(model(shape), schedule=schedule, **options)
        else:
            trainer = transformers.Trainer(model(shape), **options)
        trainer.train()
    per_step = (marks[-1] - marks[steps - 1]) / steps
    run.write(
        model=name,
        trainer=kind,
        ms_per_step=None if run.dry else 1e3 * per_step,
        tokens_per_second=None if run.dry else batch_size * length / per_step,
        mib=torch.cuda.max_memory_allocated() / 2**20 if ON_GPU else None,
    )


def main() -> None:
    """Train each model with each trainer."""
    run, rest = parse(__doc__.splitlines()[0])
    if absent := missing("transformers", "accelerate", "tensorboard", "yaml"):
        run.write(skipped=absent)
        return
    for name, shape in (DRY if run.dry else MODELS).items():
        for kind in ("MixtureTrainer", "Trainer"):
            if not rest or rest == [name] or run.dry:
                train(run, name, shape, kind)


if __name__ == "__main__":
    main()
