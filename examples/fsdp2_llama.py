"""A Llama under FSDP2 in a loop of your own: documents of several domains, bfloat16, accumulation, exact resume.

    pycooldown tokenize tokens texts --tokenizer tokenizer.json --eos '</s>'
    torchrun --nproc-per-node 2 examples/fsdp2_llama.py run tokens --config llama.json
    torchrun --nproc-per-node 4 examples/fsdp2_llama.py run tokens --config llama.json     # goes on where it was

Any number of processes can continue from a checkpoint, on the same samples. Trainer's `fsdp` needs GPUs, because
Accelerate does not shard on CPUs; this loop runs on both.
"""

import argparse
import json
import os
import shutil
from itertools import islice
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

from pycooldown import DomainBatchSampler, schedules
from pycooldown.data import TokenDataset
from pycooldown.huggingface import MicroBatches, fuse_loss

COLUMNS = ("input_ids", "labels", "position_ids", "domain_ids")  # positions that restart keep documents apart


def train(options, device):
    """Train on this process's share of each batch, from the newest checkpoint in the folder on."""
    rank, world_size, folder = dist.get_rank(), dist.get_world_size(), options.folder
    dataset = TokenDataset(options.data, options.length, columns=COLUMNS)
    config = LlamaConfig.from_json_file(options.config)
    config.vocab_size, config.use_cache = dataset.vocabulary_size, False
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(device)
    fuse_loss(model)
    for part in (*model.model.layers, model):
        fully_shard(part)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    schedule = schedules.cooldown(dataset.sizes, tau=5.0, final_tau=1.0, switch_step=options.steps // 2)
    sampler = DomainBatchSampler(
        schedule, batch_size=options.batch, seed=0, num_steps=options.steps, rank=rank, world_size=world_size
    )
    begin = 0
    if checkpoints := sorted(folder.glob("step-*")):
        weights, state = get_state_dict(model, optimizer)  # of this process's shards, for any number of writers
        dcp.load({"model": weights, "optimizer": state}, checkpoint_id=checkpoints[-1])
        set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state)
        sampler.load_state_dict(json.loads((checkpoints[-1] / "sampler.json").read_text()))
        begin = int(checkpoints[-1].name[5:])

    accumulation = options.batch // (options.micro_batch * world_size)
    micro_batches = MicroBatches(sampler, accumulation)
    batches = iter(DataLoader(dataset, batch_sampler=micro_batches, collate_fn=TokenDataset.collate, num_workers=1))
    for step in range(begin, options.steps):
        parts = [{name: x.to(device) for name, x in part.items()} for part in islice(batches, accumulation)]
        tokens = sum((part["labels"][:, 1:] != -100).sum() for part in parts)
        dist.all_reduce(tokens)  # of the global batch; FSDP averages gradients over processes
        weights = torch.tensor(sampler.mixture(step).loss_weights, dtype=torch.float32, device=device)
        scaled = weights * world_size / tokens
        sums = []
        for part in parts:
            with torch.autocast(device.type, torch.bfloat16):
                output = model(**part, domain_weights=scaled, reduction="sum", return_stats=True)
            output.loss.backward()
            sums.append(output.domain_stats.loss_sum)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

        of_ranks = [torch.empty_like(torch.stack(sums)) for _ in range(world_size)]
        dist.all_gather(of_ranks, torch.stack(sums))
        loss = sum(torch.cat(of_ranks)).sum().item() / tokens.item()  # added up in the order of the global batch
        if rank == 0:
            with open(folder / "losses.jsonl", "a") as file:
                file.write(json.dumps({"step": step + 1, "processes": world_size, "loss": loss}) + "\n")
        if (step + 1) % options.save_every == 0:
            save(folder, step + 1, model, optimizer, sampler)


def save(folder, step, model, optimizer, sampler):
    """Write a checkpoint that is either complete or absent."""
    if dist.get_rank() == 0:
        shutil.rmtree(folder / "new", ignore_errors=True)  # left by a process that died while writing
    dist.barrier()
    weights, state = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=folder / "new")
    if dist.get_rank() == 0:
        (folder / "new" / "sampler.json").write_text(json.dumps(sampler.state_dict(step)))
        os.replace(folder / "new", folder / f"step-{step:08d}")
    dist.barrier()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("data")
    parser.add_argument("--config", required=True)
    for name, default in {"steps": 100, "length": 1024, "batch": 8, "micro-batch": 1, "save-every": 10}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")
    dist.init_process_group(device_id=device if device.type == "cuda" else None)
    train(parser.parse_args(), device)
    dist.destroy_process_group()
