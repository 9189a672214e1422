"""Cost of a probe beside a training step: the demo's model, 10 domains of 8 examples, batches of 48, 32 tokens.

Run it with `pytest benchmarks/test_probe.py --benchmark-enable --benchmark-only` on a quiet machine.
"""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pycooldown.huggingface import fuse_loss
from pycooldown.huggingface.probe import Probe

DOMAINS, LENGTH, VOCABULARY = 10, 32, 4000
KINDS = {
    "whole gradients": {},
    "the last layer": {"parameters": r"layers\.2|model\.norm"},
    "4 random directions": {"directions": 4},
    "16 random directions": {"directions": 16},
    "losses alone": None,
}


class Tokens(torch.utils.data.Dataset):
    """Rows of random tokens."""

    def __len__(self):
        return 64

    def __getitem__(self, index):
        return torch.randint(VOCABULARY, (LENGTH,), generator=torch.Generator().manual_seed(index))


def collate(samples):
    return {"input_ids": torch.stack(samples), "labels": torch.stack(samples)}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    shape = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=VOCABULARY, tie_word_embeddings=True, use_cache=False, **shape)
    model = LlamaForCausalLM(config)
    fuse_loss(model)
    return model


def test_a_step_of_training(benchmark, model):
    batch = collate([Tokens()[i] for i in range(48)])

    def step():
        model.train().zero_grad()
        model(**batch).loss.backward()

    benchmark.pedantic(step, rounds=5, warmup_rounds=1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_probe(benchmark, model, kind):
    names = [str(i) for i in range(DOMAINS)]
    probe = Probe({name: Tokens() for name in names}, names, collate, size=8, **(KINDS[kind] or {}))
    arguments = (model, 0, range(DOMAINS))
    gradients = {"gradients": KINDS[kind] is not None}
    benchmark.pedantic(probe.measure, args=arguments, kwargs=gradients, rounds=3, warmup_rounds=1)
