"""TRL: supervised fine-tuning with packing, where each domain is packed by itself.

python examples/trl_sft.py
"""

import tempfile

import trl
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pycooldown import Mixture, schedules
from pycooldown.huggingface import MixtureSFTMixin


class MixtureSFTTrainer(MixtureSFTMixin, trl.SFTTrainer):
    """SFTTrainer with batches and loss weights from a mixture; packing, logs and loss are SFTTrainer's own."""


def make_tokenizer():
    """Stand in for your tokenizer: the words "0" to "29"."""
    words = ["<pad>", "<eos>", *map(str, range(30))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def texts(stride, count):
    """Stand in for your texts: a language counts in steps of its own."""
    return Dataset.from_list(
        [{"text": " ".join(str((i + stride * t) % 30) for t in range(5 + i % 9))} for i in range(count)]
    )


def main(folder):
    """Fine-tune a small model and evaluate it by domain."""
    config = LlamaConfig(
        vocab_size=32, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
    )
    arguments = trl.SFTConfig(
        folder,
        max_steps=20,
        per_device_train_batch_size=8,
        max_length=32,
        packing=True,
        eval_packing=False,
        learning_rate=3e-3,
        logging_steps=10,
        bf16=False,
        use_cpu=True,  # leave these two out on GPUs
        report_to="none",
    )
    trainer = MixtureSFTTrainer(
        LlamaForCausalLM(config),
        arguments,
        train_dataset={"en": texts(1, 600), "sw": texts(7, 60)},
        eval_dataset={"en": texts(1, 8), "sw": texts(7, 8)},
        # A function: how many packed rows a domain has is known only after packing.
        schedule=lambda sizes: schedules.constant(Mixture.temperature_sampling(sizes, tau=3.0)),
        processing_class=make_tokenizer(),
    )
    trainer.train()
    losses = trainer.evaluate()
    print({name: losses[f"eval_loss/{name}"] for name in trainer.domains})
    print("epochs of each domain:", dict(zip(trainer.domains, trainer.sampler.exposure(20).epochs.tolist())))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(temporary)
