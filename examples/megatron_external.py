"""Megatron-LM with `--dataloader-type external`: its micro-batches and its loss, with a mixture.

    python examples/megatron_external.py

A sketch of a job: in pretrain_gpt.py let the provider return `micro_batches(...), None, None`, and use `loss_func` from
here. The loss mask carries the weights. Megatron's loop needs GPUs, so 4 processes, two by two, call its parts.
"""

import tempfile
from functools import partial

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import mpu, tensor_parallel
from megatron.core.pipeline_parallel.schedules import backward_step, forward_step
from megatron.core.rerun_state_machine import RerunDataIterator
from megatron.core.transformer import TransformerConfig
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.utils.data import DataLoader

from pycooldown import DomainBatchSampler, Mixture, schedules
from pycooldown.data import TokenDataset, token_sources

VOCABULARY, BATCH, MICRO_BATCH = 32, 8, 2


def micro_batches(dataset, schedule, *, global_batch_size, micro_batch_size, seed, consumed_samples=0):
    """Yield micro-batches of this data-parallel rank; arguments are the schedule and Megatron's own."""
    sampler = DomainBatchSampler(
        schedule, batch_size=global_batch_size, seed=seed, allocation="quota",
        rank=mpu.get_data_parallel_rank(), world_size=mpu.get_data_parallel_world_size(),
    )  # fmt: skip
    first, rest = divmod(consumed_samples, global_batch_size)
    if rest:
        raise ValueError(f"{consumed_samples} samples are not whole batches; give the sampler a ramp as batch_size")
    sampler.load_state_dict(sampler.state_dict(first))
    loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=TokenDataset.collate, num_workers=1)
    for step, rows in enumerate(loader, first):
        weights = torch.tensor(sampler.mixture(step).loss_weights, dtype=torch.float32)[rows["domain_ids"].long()]
        tokens, labels = rows["input_ids"].long(), rows["shift_labels"].long()
        batch = {"tokens": tokens, "labels": labels.clamp(min=0), "loss_mask": weights[:, None] * (labels >= 0)}
        batch["position_ids"] = torch.arange(dataset.length).expand_as(tokens)
        parts = {name: column.split(micro_batch_size) for name, column in batch.items()}
        yield from (dict(zip(parts, micro_batch)) for micro_batch in zip(*parts.values(), strict=True))


def loss_func(loss_mask, losses):
    """Return the weighted sum of losses, the number of tokens (not the sum of their weights), and the values to log."""
    loss, tokens = (losses * loss_mask).sum(), (loss_mask > 0).sum().int()
    return loss, tokens, {"lm loss": (loss / tokens).item()}


class Bigrams(torch.nn.Module):
    """A small model, whose vocabulary is cut into slices for the ranks of a tensor-parallel group."""

    def __init__(self, config):
        super().__init__()
        options = {"config": config, "init_method": torch.nn.init.normal_}
        self.config, self.embedding = config, tensor_parallel.VocabParallelEmbedding(VOCABULARY, 32, **options)
        self.set_input_tensor = lambda tensors: None  # there is no earlier pipeline stage
        self.output = tensor_parallel.ColumnParallelLinear(32, VOCABULARY, bias=False, gather_output=False, **options)

    def forward(self, batch):
        """Return the loss of each token."""
        logits = self.output(self.embedding(batch["tokens"]))[0]
        return tensor_parallel.vocab_parallel_cross_entropy(logits, batch["labels"])


def forward(iterator, model):
    """Do the work of get_batch and forward_step in pretrain_gpt.py."""
    batch = [next(iterator) if mpu.get_tensor_model_parallel_rank() == 0 else None]
    dist.broadcast_object_list(batch, mpu.get_tensor_model_parallel_src_rank(), mpu.get_tensor_model_parallel_group())
    return model(batch[0]), partial(loss_func, batch[0]["loss_mask"])


def train(model, iterator, steps):
    """Return the loss of each step on this rank."""
    losses, count = [], BATCH // MICRO_BATCH // mpu.get_data_parallel_world_size()
    for _ in range(steps):
        logged = []
        for _ in range(count):
            output, _ = forward_step(forward, iterator, model, count, None, logged, model.config, cp_group_size=1)
            backward_step(None, output, None, None, model.config)
        for weights in model.parameters():
            dist.all_reduce(weights.grad, group=mpu.get_data_parallel_group())
            weights.data -= weights.grad / mpu.get_data_parallel_world_size()
            weights.grad = None
        losses.append(sum(log["lm loss"] for log in logged) / count)
    return losses


def work(rank, folder):
    """Train, and continue from the middle."""
    dist.init_process_group("gloo", rank=rank, world_size=4, init_method=f"file://{folder}/store")
    mpu.initialize_model_parallel(tensor_model_parallel_size=2)
    sources = {name: token_sources.flat(f"{folder}/{name}.bin", "uint16") for name in ("en", "sw")}
    dataset = TokenDataset(sources, 16, columns=("input_ids", "shift_labels", "domain_ids"))
    schedule = schedules.constant(Mixture.scalarization(dataset.sizes, tau=5.0))
    options = {"global_batch_size": BATCH, "micro_batch_size": MICRO_BATCH, "seed": 0}
    first, again = (micro_batches(dataset, schedule, **options, consumed_samples=n) for n in (0, 12 * BATCH))
    sizes = {"num_layers": 1, "hidden_size": 32, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = Bigrams(TransformerConfig(**sizes, tensor_model_parallel_size=2, use_cpu_initialization=True))
    losses = train(model, first := RerunDataIterator(first), 12)
    saved = parameters_to_vector(model.parameters()).detach().clone()
    losses += train(model, first, 8)
    vector_to_parameters(saved, model.parameters())
    same = train(model, RerunDataIterator(again), 8) == losses[12:]
    if rank == 0:
        print(f"losses {losses[0]:.4f}, {losses[-1]:.4f}; goes on exactly: {same}")
    dist.destroy_process_group()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        for name, stride, count in (("en", 1, 9000), ("sw", 3, 500)):
            (stride * np.arange(count) % VOCABULARY).astype(np.uint16).tofile(f"{temporary}/{name}.bin")
        torch.multiprocessing.spawn(work, (temporary,), nprocs=4)
