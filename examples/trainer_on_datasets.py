"""Hugging Face Trainer on a `datasets.Dataset` whose column names the domain of each row.

python examples/trainer_on_datasets.py
torchrun --nproc-per-node 2 examples/trainer_on_datasets.py run     # a folder that the processes share
"""

import sys
import tempfile

from datasets import Dataset
from transformers import DataCollatorForLanguageModeling, LlamaConfig, LlamaForCausalLM, TrainingArguments

from pycooldown import schedules
from pycooldown.huggingface import MixtureTrainer


class Tokenizer:
    """Stands in for your tokenizer, of which the collator uses only this part."""

    mask_token, pad_token_id, padding_side = None, 0, "right"

    def pad(self, samples, **options):
        """Return the samples as one batch; they have equal lengths already."""
        import torch

        return {"input_ids": torch.tensor([sample["input_ids"] for sample in samples])}


def rows(language, count):
    """Stand in for tokenized text: each language counts in steps of its own."""
    stride = {"en": 1, "sw": 3}[language]
    return [{"input_ids": [1 + (i + stride * t) % 31 for t in range(16)], "language": language} for i in range(count)]


def main(folder):
    """Train, evaluate by domain, and continue from the last checkpoint."""
    config = LlamaConfig(
        vocab_size=32, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
    )
    arguments = TrainingArguments(
        folder,
        max_steps=20,  # a mixture has no single epoch
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        learning_rate=3e-3,
        logging_steps=10,
        save_steps=10,
        report_to="none",
        use_cpu=True,  # leave this out on GPUs
    )

    def make_trainer():
        return MixtureTrainer(
            LlamaForCausalLM(config),
            arguments,
            # A function, because the sizes come from the data.
            schedule=lambda sizes: schedules.cooldown(sizes, tau=5.0, final_tau=1.0, switch_step=15),
            train_dataset=Dataset.from_list(rows("en", 400) + rows("sw", 20)),
            domain_column="language",
            eval_dataset={name: Dataset.from_list(rows(name, 8)) for name in ("en", "sw")},
            data_collator=DataCollatorForLanguageModeling(Tokenizer(), mlm=False),
            allocation="quota",
        )

    trainer = make_trainer()
    trainer.train()
    losses = trainer.evaluate()
    print({name: losses[f"eval_loss/{name}"] for name in trainer.domains})
    print("epochs of each domain:", dict(zip(trainer.domains, trainer.sampler.exposure(20).epochs.tolist())))

    again = make_trainer()  # after a crash: from the newest complete checkpoint, with exactly the same batches
    again.train(resume_from_checkpoint=f"{folder}/checkpoint-10")
    print(f"goes on exactly: {again.evaluate()['eval_loss'] == losses['eval_loss']}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(sys.argv[1] if len(sys.argv) > 1 else temporary)
