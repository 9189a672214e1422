"""MixtureTrainer trains each step on the planned samples and weights, and resumes from whole checkpoints only."""

import inspect
import itertools
import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from pycooldown import DomainBatchSampler, Mixture, schedules  # noqa: E402
from pycooldown.huggingface import MixtureTrainer  # noqa: E402
from pycooldown.huggingface.checkpoints import complete_checkpoint  # noqa: E402
from pycooldown.huggingface.checks import check_arguments, check_launcher  # noqa: E402

torch.set_num_threads(1)  # the model is tiny

# Trainer of transformers before 5 rounds logged losses to four decimals.
_ROUNDS = "round(tr_loss_scalar" in inspect.getsource(transformers.trainer)
AS_LOGGED = {"rel": 1e-5, "abs": 1.1e-4 if _ROUNDS else 0.0}

SIZES = {"big": 40, "mid": 16, "small": 8}
VOCABULARY = sum(SIZES.values())


class Sequences(torch.utils.data.Dataset):
    """Samples of different lengths. Sample i starts with token i, so that a batch shows which samples it holds."""

    def __init__(self, begin=0, size=VOCABULARY):
        self.begin, self.size = begin, size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        i = self.begin + index
        return [(i * k) % VOCABULARY for k in (1, *range(2, 4 + i % 5))]


def collate(samples):
    longest = max(map(len, samples))
    labels = torch.tensor([[*s, *[-100] * (longest - len(s))] for s in samples])
    return {"input_ids": labels.clamp(min=0), "labels": labels}


def tiny_model():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        use_cache=False,
    )
    return transformers.LlamaForCausalLM(config)


def make_trainer(
    output,
    schedule,
    *,
    steps=6,
    batch_size=12,
    accumulation=1,
    evaluate=False,
    kind=None,
    arguments_kind=None,
    model=tiny_model,
    dataset=None,
    collator=collate,
    more=None,
    **options,
):
    """Return a trainer. ``more`` are its own arguments, and ``options`` are fields of TrainingArguments."""
    args = (arguments_kind or transformers.TrainingArguments)(
        output_dir=str(output),
        max_steps=steps,
        per_device_train_batch_size=batch_size // accumulation,
        gradient_accumulation_steps=accumulation,
        per_device_eval_batch_size=5,
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        **{"report_to": "none", "logging_steps": 1, "save_strategy": "no", "learning_rate": 0.01, **options},
    )
    starts = dict(zip(SIZES, np.cumsum([0, *SIZES.values()])))
    return (kind or MixtureTrainer)(
        model() if callable(model) and not isinstance(model, torch.nn.Module) else model,
        args,
        schedule=schedule,
        train_dataset=Sequences() if dataset is None else dataset,
        data_collator=collator,
        **(
            {"eval_dataset": {d: Sequences(starts[d], n) for d, n in SIZES.items()} if evaluate else None}
            | (more or {})
        ),
    )


def switching():
    """Return a schedule whose sampling and weights both change at step 3."""
    return schedules.staircase([(0, Mixture.scalarization(SIZES, 5.0)), (3, Mixture.temperature_sampling(SIZES, 2.0))])


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize(("accumulation", "workers"), [(1, 0), (3, 0), (2, 2)])
def test_every_step_trains_on_its_planned_global_batch(tmp_path, accumulation, workers):
    seen = {}

    class Recording(MixtureTrainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            seen.setdefault(self.state.global_step, []).append(
                list(zip(inputs["input_ids"][:, 0].tolist(), inputs["domain_ids"].tolist()))
            )
            return super().compute_loss(model, inputs, *args, **kwargs)

    trainer = make_trainer(
        tmp_path, switching(), accumulation=accumulation, kind=Recording, dataloader_num_workers=workers, data_seed=7
    )
    trainer.train()
    plans = DomainBatchSampler(switching(), batch_size=12, seed=7)
    assert sorted(seen) == list(range(6))
    for step, micro_batches in seen.items():
        plan = plans.plan(step)
        assert len(micro_batches) == accumulation
        assert list(itertools.chain(*micro_batches)) == list(zip(plan.indices.tolist(), plan.domain_ids.tolist()))


@pytest.mark.parametrize("accumulation", [1, 3])
def test_loss_weighs_tokens_by_the_mixture_of_their_step_over_the_tokens_of_the_global_batch(tmp_path, accumulation):
    trainer = make_trainer(tmp_path, switching(), accumulation=accumulation, learning_rate=0.0, data_seed=3)
    trainer.train()
    model, data = tiny_model().double(), Sequences()
    sampler = DomainBatchSampler(switching(), batch_size=12, seed=3)
    for step, loss in enumerate(losses(trainer)):
        plan, expected, tokens = sampler.plan(step), 0.0, 0
        for index, domain in zip(plan.indices.tolist(), plan.domain_ids.tolist()):
            row = torch.tensor([data[index]])
            with torch.no_grad():
                logits = model(row).logits[0, :-1]
            expected += plan.mixture.loss_weights[domain] * torch.nn.functional.cross_entropy(
                logits, row[0, 1:], reduction="sum"
            )
            tokens += row.shape[1] - 1
        assert loss == pytest.approx(float(expected / tokens), **AS_LOGGED)


def test_weights_do_not_depend_on_accumulation(tmp_path):
    states = []
    for accumulation in (1, 2, 4):
        trainer = make_trainer(tmp_path, switching(), accumulation=accumulation, learning_rate=0.05, optim="sgd")
        trainer.train()
        states.append(trainer.model.state_dict())
    start = tiny_model().state_dict()
    for name, value in states[0].items():
        moved = (value - start[name]).abs().max()
        for other in states[1:]:
            assert (other[name] - value).abs().max() <= 1e-4 * moved


@pytest.mark.slow
def test_weights_do_not_depend_on_the_number_of_processes(tmp_path):
    options = {"accumulation": 2, "learning_rate": 0.05, "optim": "sgd", "evaluate": True}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    ranks = subprocess.run([*command, str(tmp_path)], env=environment, capture_output=True, text=True, check=False)
    assert ranks.returncode == 0, ranks.stderr
    one = make_trainer(tmp_path / "one", switching(), **options)
    one.train()
    assert json.loads((tmp_path / "losses.json").read_text()) == pytest.approx(
        [*losses(one), one.evaluate()["eval_loss"]]
    )
    start, two = tiny_model().state_dict(), torch.load(tmp_path / "two.pt", weights_only=True)
    for name, value in one.model.state_dict().items():
        assert (two[name] - value).abs().max() <= 1e-4 * (value - start[name]).abs().max()


def test_logs_and_evaluation_by_domain(tmp_path):
    trainer = make_trainer(tmp_path, switching(), steps=4, evaluate=True, learning_rate=0.0, data_seed=1)
    trainer.train()
    last = [entry for entry in trainer.state.log_history if "loss" in entry][-1]
    exposure = DomainBatchSampler(switching(), batch_size=12, seed=1).exposure(4)
    mixture = switching().mixture(3)
    sampler, data, tokens = DomainBatchSampler(switching(), batch_size=12, seed=1), Sequences(), [0] * len(SIZES)
    for step in range(4):
        for index, domain in zip(sampler.plan(step).indices, sampler.plan(step).domain_ids):
            tokens[domain] += len(data[int(index)]) - 1
    for i, domain in enumerate(SIZES):
        assert last[f"samples/{domain}"] == exposure.draws[i]
        assert last[f"epochs/{domain}"] == exposure.draws[i] / SIZES[domain]
        assert last[f"q/{domain}"] == mixture.sampling[i]
        assert last[f"tokens/{domain}"] == tokens[i]
        assert last[f"v/{domain}"] == mixture.loss_weights[i]
    assert last["tau"] == 2.0

    metrics, model = trainer.evaluate(), tiny_model()
    total, tokens, start = 0.0, 0, 0
    for domain, size in SIZES.items():
        rows = [torch.tensor([Sequences(start, size)[i]]) for i in range(size)]
        with torch.no_grad():
            sums = [float(model(r, labels=r).loss) * (r.shape[1] - 1) for r in rows]
        count = sum(r.shape[1] - 1 for r in rows)
        assert metrics[f"eval_loss/{domain}"] == pytest.approx(sum(sums) / count, rel=1e-5)
        total, tokens, start = total + sum(sums), tokens + count, start + size
    assert metrics["eval_loss"] == pytest.approx(total / tokens, rel=1e-5)


SAVING = {"save_strategy": "steps", "save_steps": 2}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    trainer = make_trainer(folder, switching(), steps=8, **SAVING)
    trainer.train()
    return folder, losses(trainer), trainer.model.state_dict(), trainer.sums.tokens()


def damage_nothing(checkpoint):
    return checkpoint


def damage_unsealed(checkpoint):
    (checkpoint / "data_state.json").unlink()


def damage_cut_short(checkpoint):
    path = checkpoint / "optimizer.pt"
    path.write_bytes(path.read_bytes()[:-1])


def damage_removed(checkpoint):
    (checkpoint / "model.safetensors").unlink()


def damage_seal(checkpoint):
    (checkpoint / "data_state.json").write_text("[1]")


def flip(checkpoint, name):
    """Change one bit in the middle of a file."""
    content = bytearray((checkpoint / name).read_bytes())
    content[len(content) // 2] ^= 4
    (checkpoint / name).write_bytes(content)


def flip_weights(checkpoint):
    flip(checkpoint, "model.safetensors")


def flip_optimizer(checkpoint):
    flip(checkpoint, "optimizer.pt")


def flip_trainer_state(checkpoint):
    flip(checkpoint, "trainer_state.json")


def change_seal(checkpoint):
    """Change the draws in the state of the data, as valid JSON."""
    path = checkpoint / "data_state.json"
    content = json.loads(path.read_text())
    content["sampler"]["draws"]["big"] += 1
    path.write_text(json.dumps(content))


def seal_as_version_0_1(checkpoint):
    """Replace the seal by that of version 0.1, which is still accepted."""
    path = checkpoint / "data_state.json"
    content = json.loads(path.read_text())
    sizes = {name: entry["size"] for name, entry in content["files"].items()}
    path.write_text(json.dumps({"sampler": content["sampler"], "files": sizes}))


DAMAGES = {
    damage_unsealed: "it has no data_state.json",
    damage_cut_short: r"its optimizer\.pt has \d+ bytes of \d+",
    damage_removed: r"it lacks model\.safetensors",
    damage_seal: r"its data_state\.json cannot be read",
    flip_weights: r"its model\.safetensors has changed",
    flip_optimizer: r"its optimizer\.pt has changed",
    flip_trainer_state: r"its trainer_state\.json has changed",
    change_seal: r"its data_state\.json has changed",
}


def copies(folder, target, *steps):
    for step in steps:
        shutil.copytree(folder / f"checkpoint-{step}", target / f"checkpoint-{step}")


def assert_resumed(trainer, uninterrupted):
    _, expected, weights, tokens = uninterrupted
    assert losses(trainer) == expected
    assert trainer.sums.tokens() == tokens
    assert all(torch.equal(value, weights[name]) for name, value in trainer.model.state_dict().items())
    assert trainer.state.global_step == 8
    assert complete_checkpoint(trainer.args.output_dir)[0].endswith("checkpoint-8")


def test_the_share_of_clipped_steps_is_that_since_the_last_log(tmp_path):
    options = {"learning_rate": 0.0}  # so that the limit does not change the gradients
    free = make_trainer(tmp_path, switching(), max_grad_norm=1e9, **options)
    free.train()
    norms = [entry["grad_norm"] for entry in free.state.log_history if "grad_norm" in entry]
    limit = float(np.median(norms))
    clipped = [norm > limit for norm in norms]
    assert 0 < sum(clipped) < 6
    trainer = make_trainer(tmp_path, switching(), max_grad_norm=limit, logging_steps=3, **options)
    trainer.train()
    logged = [entry["clip_fraction"] for entry in trainer.state.log_history if "clip_fraction" in entry]
    assert logged == [sum(clipped[:3]) / 3, sum(clipped[3:]) / 3]


def masked_at_random(samples):
    """Take tokens out of the loss at random, by the generators of torch, NumPy and Python."""
    batch = collate(samples)
    shape = batch["labels"].shape
    kept = (torch.rand(shape) < 0.7) & torch.from_numpy(np.random.rand(*shape) < 0.9)  # noqa: NPY002
    return {**batch, "labels": batch["labels"].where(kept & torch.tensor(random.random() < 0.9), -100)}


@pytest.mark.parametrize("workers", [0, 2])
def test_random_numbers_of_collators_resume(tmp_path, workers):
    options = {"steps": 4, "accumulation": 2, "collator": masked_at_random, "dataloader_num_workers": workers}
    trainer = make_trainer(tmp_path, switching(), save_strategy="steps", save_steps=2, **options)
    trainer.train()
    resumed = make_trainer(tmp_path, switching(), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert losses(resumed) == losses(trainer)
    counts = [entry["tokens/big"] for entry in trainer.state.log_history if "tokens/big" in entry]
    assert len(set(np.diff(counts))) > 1


@pytest.mark.parametrize(("damage", "workers"), [(damage_nothing, 0), (damage_nothing, 2), (seal_as_version_0_1, 0)])
def test_resume_is_exact(tmp_path, uninterrupted, damage, workers):
    copies(uninterrupted[0], tmp_path, 6)
    damage(tmp_path / "checkpoint-6")
    trainer = make_trainer(tmp_path, switching(), steps=8, dataloader_num_workers=workers, **SAVING)
    trainer.train(resume_from_checkpoint=True)
    assert_resumed(trainer, uninterrupted)


@pytest.mark.parametrize("damage", DAMAGES)
def test_only_whole_checkpoints_are_trusted_and_an_older_one_is_taken(tmp_path, uninterrupted, damage):
    copies(uninterrupted[0], tmp_path, 4, 6)
    damage(tmp_path / "checkpoint-6")
    trainer = make_trainer(tmp_path, switching(), steps=8, **SAVING)
    message = rf"resuming from checkpoint-4, because newer ones are not complete: checkpoint-6: {DAMAGES[damage]}"
    with pytest.warns(UserWarning, match=message):
        assert complete_checkpoint(tmp_path)[0] == str(tmp_path / "checkpoint-4")
    with pytest.raises(ValueError, match=rf"checkpoint-6 is not a complete checkpoint: {DAMAGES[damage]}"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    with pytest.warns(UserWarning, match=message):
        trainer.train(resume_from_checkpoint=True)
    assert_resumed(trainer, uninterrupted)
    assert (tmp_path / "damaged-checkpoint-6").exists() == (damage.__name__ in KEPT)


KEPT = ("damage_seal", "flip_weights", "flip_optimizer", "flip_trainer_state", "change_seal")


def test_checkpoints_of_the_model_alone_are_not_resumed_from(tmp_path):
    trainer = make_trainer(tmp_path, switching(), steps=4, save_only_model=True, **SAVING)
    trainer.train()
    with pytest.raises(ValueError, match="checkpoint-4: it has no optimizer state, as save_only_model=True"):
        make_trainer(tmp_path, switching(), steps=8).train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("schedule", "options", "message"),
    [
        (schedules.constant(Mixture.proportional(SIZES)), {}, "schedule is 'staircase"),
        (switching(), {"data_seed": 5}, "seed is 42 in the state and 5 here"),
        (switching(), {"batch_size": 10}, "batch_size is 12 in the state and 10 here"),
    ],
)
def test_checkpoint_of_another_mixture_is_refused(uninterrupted, schedule, options, message):
    folder = uninterrupted[0]
    with pytest.raises(ValueError, match=message):
        make_trainer(folder, schedule, steps=8, **options).train(resume_from_checkpoint=True)


def test_no_whole_checkpoint_is_an_error_that_says_why(tmp_path, uninterrupted):
    with pytest.raises(ValueError, match="there is none"):
        make_trainer(tmp_path, switching()).train(resume_from_checkpoint=True)
    copy = tmp_path / "checkpoint-6"
    shutil.copytree(uninterrupted[0] / "checkpoint-6", copy)
    damage_removed(copy)
    for path in (True, str(copy)):
        with pytest.raises(ValueError, match=r"lacks model\.safetensors"):
            make_trainer(tmp_path, switching()).train(resume_from_checkpoint=path)


def test_a_checkpoint_holds_the_state_of_its_own_step_however_far_workers_read_ahead(tmp_path):
    trainer = make_trainer(tmp_path, switching(), steps=8, dataloader_num_workers=2, **SAVING)
    trainer.train()
    for step in (2, 8):
        state = json.loads((tmp_path / f"checkpoint-{step}" / "data_state.json").read_text())["sampler"]
        exposure = DomainBatchSampler(switching(), batch_size=12, seed=42).exposure(step)
        assert state["step"] == step
        assert list(state["draws"].values()) == exposure.draws.tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": -1}, "max_steps = -1; .*expected a number > 0"),
        ({"save_total_limit": 1}, "save_total_limit = 1; expected at least 2"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size = True; it would change"),
    ],
)
def test_arguments_that_cannot_work_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, switching(), **options)


def test_processes_that_do_not_know_of_each_other_are_refused(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, switching())
    monkeypatch.setenv("WORLD_SIZE", "2")  # torchrun sets it; Trainer ignores it without use_cpu or a GPU
    with pytest.raises(ValueError, match=r"torchrun started 2 processes but Trainer knows about 1.*pass use_cpu=True"):
        check_arguments(trainer.args, switching().mixture(0), None)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"SLURM_NTASKS": "4"}, "Slurm has 4 tasks .SLURM_NTASKS., but Trainer knows about 1.*torchrun"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "Open MPI has 2 tasks"),
        ({"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1"}, "on CPUs it starts only one; use torchrun"),
        ({"SLURM_NTASKS": "1", "OMPI_COMM_WORLD_SIZE": "1", "ACCELERATE_USE_CPU": "True"}, None),
        ({"SLURM_NTASKS": "4", "WORLD_SIZE": "1"}, None),  # torchrun within an allocation counts the job's processes
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_a_launcher_with_more_processes_than_the_trainer_is_warned_of(monkeypatch, recwarn, environment, message):
    for name in ("WORLD_SIZE", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "ACCELERATE_USE_CPU", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    check_launcher(1)
    warned = [str(warning.message) for warning in recwarn]
    assert len(warned) == (message is not None)
    assert all(re.search(message, text) for text in warned)


def test_dataset_must_be_the_schedules_domains(tmp_path):
    other = schedules.constant(Mixture.proportional({"big": 3, "small": 2}))
    with pytest.raises(ValueError, match=f"train_dataset has {VOCABULARY} samples but the schedule's domains have 5"):
        make_trainer(tmp_path, other)


if __name__ == "__main__":  # one of two processes that torch.distributed.run starts in a test above
    folder = Path(sys.argv[1])
    of_rank = make_trainer(
        folder / "two", switching(), batch_size=6, accumulation=2, learning_rate=0.05, optim="sgd", evaluate=True
    )
    of_rank.train()
    evaluation = of_rank.evaluate()["eval_loss"]
    if of_rank.is_world_process_zero():
        (folder / "losses.json").write_text(json.dumps([*losses(of_rank), evaluation]))
        torch.save(of_rank.model.state_dict(), folder / "two.pt")
    torch.distributed.destroy_process_group()
