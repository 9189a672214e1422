"""Measure the peak memory of training a Llama-style model with a vocabulary of 128k, with and without `fuse_loss`.

    pytest benchmarks/test_model_memory.py --benchmark-enable --benchmark-json=out.json

Each contender is a process of its own, which trains two steps on 4 x 512 tokens. extra_info has the resident memory of
the process at its peak above that before the first step, and the size of the logits, in MiB.
"""

import json
import subprocess
import sys
import time

import process_memory
import torch
import transformers

from pycooldown.huggingface import fuse_loss

VOCABULARY, WIDTH, BATCH, LENGTH, STEPS = 128 * 1024, 512, 4, 512, 2
LOGITS = BATCH * LENGTH * VOCABULARY * 4 / 2**20


def train(fuse):
    """Train one contender; return losses, seconds of the last step and growth of the process in MiB."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=8,
        use_cache=False,
        tie_word_embeddings=True,
    )
    model = transformers.LlamaForCausalLM(config).train()
    if fuse:
        fuse_loss(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before, losses = process_memory.resident() / 2**20, []
    for _ in range(STEPS):
        start = time.perf_counter()
        tokens = torch.randint(VOCABULARY, (BATCH, LENGTH))
        loss = model(tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return {"losses": losses, "seconds": time.perf_counter() - start, "growth": process_memory.peak() / 2**20 - before}


def test_training_needs_less_memory_by_the_logits(benchmark):
    def measure():
        outputs = {}
        for name in ("own", "fused"):
            process = subprocess.run([sys.executable, __file__, name], capture_output=True, text=True, check=True)
            outputs[name] = json.loads(process.stdout.splitlines()[-1])
        return outputs

    own, fused = (contender := benchmark.pedantic(measure, rounds=1))["own"], contender["fused"]
    benchmark.extra_info.update(
        logits_mib=round(LOGITS),
        own_mib=round(own["growth"]),
        fused_mib=round(fused["growth"]),
        saved_over_logits=round((own["growth"] - fused["growth"]) / LOGITS, 2),
        time_over_own=round(fused["seconds"] / own["seconds"], 3),
    )
    assert all(abs(a - b) <= 1e-5 * b for a, b in zip(fused["losses"], own["losses"], strict=True))
    assert own["growth"] - fused["growth"] >= LOGITS


if __name__ == "__main__":
    print(json.dumps(train(sys.argv[1] == "fused")))
