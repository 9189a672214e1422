"""Two gloo ranks with bfloat16 resume exactly: the trainer under DDP, and a hand-written loop under FSDP2."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch.distributed.checkpoint as dcp  # noqa: E402
from test_trainer import Sequences, collate, losses, make_trainer, switching, tiny_model  # noqa: E402
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict  # noqa: E402
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard  # noqa: E402

from pycooldown import DomainBatchSampler  # noqa: E402
from pycooldown.huggingface import WithDomains, fuse_loss  # noqa: E402

torch.set_num_threads(1)
STEPS, SAVE_AT = 6, 2


def trainer_of(folder):
    return make_trainer(
        folder, switching(), batch_size=6, accumulation=2, bf16=True, save_strategy="steps", save_steps=2
    )


def sharded_losses(folder, *, resume):
    """Train a model whose parameters, gradients and optimizer state the ranks share, and return the losses."""
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    model = tiny_model()
    fuse_loss(model)
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for layer in (*model.model.layers, model):
        fully_shard(layer, mp_policy=policy)
    assert all(type(parameter).__name__ == "DTensor" for parameter in model.parameters())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    sampler = DomainBatchSampler(switching(), batch_size=12, seed=1, num_steps=STEPS, rank=rank, world_size=world_size)
    dataset, collator = WithDomains(Sequences(), sampler.sizes), WithDomains.collator(collate)
    if resume:
        weights, state = get_state_dict(model, optimizer)
        dcp.load({"model": weights, "optimizer": state}, checkpoint_id=folder)
        set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state)
        sampler.load_state_dict(json.loads((folder / "sampler.json").read_text()))
    found = []
    for step, indices in enumerate(sampler, start=SAVE_AT if resume else 0):
        inputs = collator(dataset.__getitems__(indices))
        count = (inputs["labels"][:, 1:] != -100).sum()
        torch.distributed.all_reduce(count)
        weights = torch.tensor(sampler.mixture(step).loss_weights, dtype=torch.float32) * world_size / count
        loss = model(**inputs, domain_weights=weights, reduction="sum").loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        torch.distributed.all_reduce(total := loss.detach() / world_size)
        found.append(total.item())
        if step + 1 == SAVE_AT and not resume:
            weights, state = get_state_dict(model, optimizer)
            dcp.save({"model": weights, "optimizer": state}, checkpoint_id=folder)
            (folder / "sampler.json").write_text(json.dumps(sampler.state_dict(SAVE_AT)))
    return found


def of_rank(folder):
    whole, resumed = trainer_of(folder / "whole"), trainer_of(folder / "whole")
    whole.train()
    resumed.train(resume_from_checkpoint=str(folder / "whole" / f"checkpoint-{SAVE_AT}"))
    found = {"whole": losses(whole), "resumed": losses(resumed)}
    for name, resume in (("sharded", False), ("sharded, resumed", True)):
        found[name] = sharded_losses(folder / "sharded", resume=resume)
    if whole.is_world_process_zero():
        (folder / "found.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_resume_exactly_and_train_as_one_process(tmp_path):
    (tmp_path / "sharded").mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    ranks = subprocess.run([*command, str(tmp_path)], env=environment, capture_output=True, text=True, check=False)
    assert ranks.returncode == 0, ranks.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["resumed"] == found["whole"]  # bit for bit
    assert found["sharded, resumed"] == found["sharded"][SAVE_AT:]
    one = make_trainer(tmp_path / "one", switching(), batch_size=12, accumulation=4, bf16=True)
    one.train()
    assert found["whole"] == pytest.approx(losses(one), rel=1e-3)  # gradients are summed in another order


if __name__ == "__main__":
    of_rank(Path(sys.argv[1]))
