"""Token files in Megatron-LM's format: sequences of any length, mixed by tokens, without converting anything.

    python examples/megatron_tokens.py

`token_sources` also opens files written by datatrove, dolma, nanoGPT, llm.c and litdata.
"""

import struct
import tempfile

import numpy as np
import torch
from torch.utils.data import DataLoader

from pycooldown import DomainBatchSampler, schedules
from pycooldown.data import TokenDataset, token_sources
from pycooldown.losses import LinearCrossEntropyLoss

VOCABULARY, LENGTH, BATCH, STEPS = 64, 32, 8, 20


def write_megatron(prefix, documents):
    """Write tokens to .bin, and lengths and places of documents to .idx, as Megatron-LM's preprocess_data.py does."""
    lengths = np.array([len(document) for document in documents], np.int32)
    np.concatenate(documents).astype("<u2").tofile(prefix + ".bin")
    with open(prefix + ".idx", "wb") as index:
        index.write(b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, len(lengths), len(lengths) + 1))  # 8: uint16
        index.write(lengths.tobytes())
        index.write((2 * (np.cumsum(lengths, dtype=np.int64) - lengths)).tobytes())
        index.write(np.arange(len(lengths) + 1, dtype=np.int64).tobytes())


def main():
    """Train a small model on sequences of two domains."""
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        sources = {}
        for domain, (stride, count) in {"en": (1, 200), "sw": (3, 12)}.items():
            prefix = f"{folder}/{domain}_text_document"
            lengths = random.integers(20, 80, count)
            write_megatron(prefix, [(i + stride * np.arange(n)) % VOCABULARY for i, n in enumerate(lengths)])
            sources[domain] = token_sources.megatron(prefix)

        # shift_labels: the token after each position, also across the ends of sequences, so that none is left out.
        columns = ("input_ids", "shift_labels", "domain_ids")
        dataset = TokenDataset(sources, LENGTH, columns=columns, vocabulary_size=VOCABULARY)
        print(f"sequences {dataset.sizes}, tokens {dataset.tokens}")
        schedule = schedules.unimax(dataset.sizes, budget=STEPS * BATCH, max_epochs=4)
        sampler = DomainBatchSampler(schedule, batch_size=BATCH, seed=0, num_steps=STEPS, allocation="quota")
        print("epochs to come:", dict(zip(sampler.domains, sampler.exposure().epochs.round(2).tolist())))

        torch.manual_seed(0)
        embedding = torch.nn.Embedding(VOCABULARY, 32)
        # The output layer and its loss in one: the logits of a whole batch never exist.
        head = LinearCrossEntropyLoss(32, VOCABULARY, bias=False, return_stats=True)
        optimizer = torch.optim.AdamW([*embedding.parameters(), *head.parameters()], lr=1e-2)
        loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=TokenDataset.collate, num_workers=1)
        for step, batch in enumerate(loader):
            weights = torch.tensor(sampler.mixture(step).loss_weights, dtype=torch.float32)
            hidden = embedding(batch["input_ids"]).flatten(0, 1)
            loss, stats = head(
                hidden,
                batch["shift_labels"].flatten(),
                domain_ids=batch["domain_ids"].repeat_interleave(LENGTH),  # of each token
                domain_weights=weights,
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print("losses:", dict(zip(sampler.domains, (stats.loss_sum / stats.token_count).tolist())))


if __name__ == "__main__":
    main()
