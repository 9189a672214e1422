"""Adaptive schedules in MixtureTrainer learn the same on any number of ranks, and resume exactly."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from pycooldown import Mixture  # noqa: E402
from pycooldown.adaptive import ERMA, FGLS, DoReMi, GroupDRO, OnlineDataMixing, PiKE, VarianceAware  # noqa: E402
from pycooldown.huggingface import MixtureTrainer, fuse_loss  # noqa: E402
from pycooldown.huggingface.checks import warn_of_lengths  # noqa: E402
from pycooldown.huggingface.probe import Probe  # noqa: E402
from pycooldown.recipes.methods.static import OrderMattersOptions  # noqa: E402

torch.set_num_threads(1)

SIZES = {"big": 40, "mid": 24, "small": 12}
VOCABULARY = 16
UNIFORM = Mixture.temperature_sampling(SIZES, math.inf)
SCHEDULES = {
    "group_dro": lambda: GroupDRO(UNIFORM, step_size=0.5, delay=3),
    "doremi": lambda: DoReMi(UNIFORM, delay=3),
    "odm": lambda: OnlineDataMixing(UNIFORM, delay=3),
    "fgls": lambda: FGLS(UNIFORM, interval=2, delay=3),
    "erma": lambda: ERMA(UNIFORM, interval=2, variance_rate=1.0, delay=3),
    "pike": lambda: PiKE(UNIFORM, batch_size=8, gradient_rate=1.0, interval=2, delay=3),
    "va": lambda: VarianceAware(UNIFORM, interval=2, delay=3),
    "fgls_va": lambda: VarianceAware(FGLS(UNIFORM, interval=2, delay=3), interval=2, delay=3),
}


class Sequences(torch.utils.data.Dataset):
    """Texts of a domain. The larger the domain's number, the more random are its tokens."""

    def __init__(self, domain, size, seed):
        rng = np.random.default_rng([domain, seed])
        length = rng.integers(4, 9, size)
        self.rows = [(np.arange(n) * 3 + rng.integers(0, 1 + 7 * domain, n)) % VOCABULARY for n in length]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index].tolist()


def collate(samples):
    longest = max(map(len, samples))
    labels = torch.tensor([[*s, *[-100] * (longest - len(s))] for s in samples])
    return {"input_ids": labels.clamp(min=0), "labels": labels}


def tiny_model(seed=0, dropout=0.0):
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        attention_dropout=dropout,
        use_cache=False,
    )
    return transformers.LlamaForCausalLM(config)


def make_probe(**options):
    datasets = {name: Sequences(i, 9, seed=1) for i, name in enumerate(SIZES)}
    return Probe(datasets, tuple(SIZES), collate, **{"size": 4, **options})


def make_trainer(
    output, schedule, *, steps=8, accumulation=1, batch_size=12, reference=True, probe=True, dropout=0.0, **options
):
    args = transformers.TrainingArguments(
        output_dir=str(output),
        max_steps=steps,
        per_device_train_batch_size=batch_size // accumulation,
        gradient_accumulation_steps=accumulation,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        **{"save_strategy": "steps", "save_steps": 2, "learning_rate": 0.02, **options},
    )
    return MixtureTrainer(
        tiny_model(dropout=dropout),
        args,
        schedule=schedule,
        train_dataset=torch.utils.data.ConcatDataset([Sequences(i, n, 0) for i, n in enumerate(SIZES.values())]),
        data_collator=collate,
        reference_model=tiny_model(1) if reference else None,
        probe=make_probe() if probe else None,
    )


def history(trainer):
    keys = ("loss", *(f"{x}/{d}" for x in "qv" for d in SIZES))
    return [[entry[key] for key in keys] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("method", SCHEDULES)
def test_resume_is_exact(tmp_path, method):
    whole = make_trainer(tmp_path / "whole", SCHEDULES[method]())
    whole.train()
    assert whole.schedule.num_updates == 8
    assert history(whole)[-1][1:] != history(whole)[0][1:]  # the mixture has changed
    last = [entry for entry in whole.state.log_history if "loss" in entry][-1]
    assert last["clip_fraction"] == (last["grad_norm"] > whole.args.max_grad_norm)
    v, q = (np.array([last[f"{name}/{d}"] for d in SIZES]) for name in "vq")
    assert last["effective_sample_fraction"] == pytest.approx(1 / (q * v**2).sum())
    shutil.copytree(tmp_path / "whole/checkpoint-4", tmp_path / "part/checkpoint-4")
    resumed = make_trainer(tmp_path / "part", SCHEDULES[method]())
    resumed.train(resume_from_checkpoint=True)
    assert history(resumed) == history(whole)
    assert resumed.schedule.state_dict() == whole.schedule.state_dict()
    weights = whole.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in resumed.model.state_dict().items())
    resumed.train()  # a new training from step 0
    assert resumed.schedule.num_updates == 8


@pytest.mark.parametrize("method", ["doremi", "fgls_va"])
def test_what_is_learned_does_not_depend_on_accumulation_or_workers(tmp_path, method):
    states = []
    for i, options in enumerate([{}, {"accumulation": 3}, {"accumulation": 2, "dataloader_num_workers": 1}]):
        trainer = make_trainer(tmp_path / str(i), SCHEDULES[method](), save_strategy="no", **options)
        trainer.train()
        states.append(trainer.schedule.current)
    for other in states[1:]:
        assert np.allclose(other.target, states[0].target, rtol=1e-3)
        assert np.allclose(other.sampling, states[0].sampling, rtol=1e-3)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """Train each method on two processes, all in one start, and return the folder of the runs."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    ranks = subprocess.run([*command, str(folder)], env=environment, capture_output=True, text=True, check=False)
    assert ranks.returncode == 0, ranks.stderr
    return folder


@pytest.mark.slow  # the fixture trains all methods on two ranks
@pytest.mark.parametrize("method", SCHEDULES)
def test_one_process_goes_on_from_two_bit_for_bit(tmp_path, two_ranks, method):
    """One process resumes bit for bit: rank r's slice is its micro-batch r, and a sum of two has no order."""
    expected, weights = json.loads((two_ranks / f"{method}.json").read_text()), two_ranks / method / "weights.pt"
    options = {"accumulation": 2, "dropout": 0.1}
    whole = make_trainer(tmp_path / "one", SCHEDULES[method](), save_strategy="no", **options)
    whole.train()
    shutil.copytree(two_ranks / method / "checkpoint-4", tmp_path / "part/checkpoint-4")
    resumed = make_trainer(tmp_path / "part", SCHEDULES[method](), **options)
    resumed.train(resume_from_checkpoint=True)
    for trainer in (whole, resumed):
        assert json.loads(json.dumps([history(trainer), trainer.schedule.state_dict()])) == expected
        for name, value in torch.load(weights, weights_only=True).items():
            assert torch.equal(value, trainer.model.state_dict()[name])


def test_doremi_learns_from_the_excess_of_each_token(tmp_path):
    seen = []

    class Recording(DoReMi):
        def update(self, step, stats):
            seen.append(stats)
            super().update(step, stats)

    trainer = make_trainer(tmp_path, Recording(UNIFORM, delay=1), steps=1, save_strategy="no", accumulation=2)
    trainer.train()
    batch = DomainBatch(trainer)
    losses = [batch.losses(model) for model in (tiny_model(), tiny_model(1))]
    excess = [(a - b).clamp(min=0).sum() for a, b in zip(*losses)]
    expected = [sum(e for e, d in zip(excess, batch.domain_ids) if d == i) for i in range(3)]
    assert seen[0].excess_loss_sum == pytest.approx([float(e) for e in expected], rel=1e-5)


class DomainBatch:
    """The samples of a trainer's first step, as single rows."""

    def __init__(self, trainer):
        plan = trainer.sampler.plan(0)
        self.domain_ids = plan.domain_ids.tolist()
        self.rows = [torch.tensor([trainer.train_dataset.dataset[i]]) for i in plan.indices.tolist()]

    def losses(self, model):
        with torch.no_grad():
            return [
                torch.nn.functional.cross_entropy(model(r).logits[0, :-1], r[0, 1:], reduction="none")
                for r in self.rows
            ]


def test_probe_measures_losses_and_gradients_of_single_examples():
    model, probe = tiny_model().train(), make_probe(parameters="layers|lm_head")
    fuse_loss(model)
    measured = probe.measure(model, 5, [0, 2], gradients=True)
    assert model.training
    assert not measured[:, 1].any()
    assert torch.equal(measured, probe.measure(model, 5, [0, 2], gradients=True))
    assert not torch.equal(measured, probe.measure(model, 6, [0, 2], gradients=True))
    for i in (0, 2):
        inputs, losses, gradients = probe._draw(5, i), [], []
        for row in inputs["labels"]:
            row = row[row != -100][None]
            model.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(row).logits[0, :-1], row[0, 1:], reduction="sum")
            loss.backward()
            losses.append(loss.item() / (row.shape[1] - 1))
            chosen = [p.grad.flatten() for n, p in model.named_parameters() if "layers" in n or "lm_head" in n]
            gradients.append(torch.cat(chosen).double())
        assert float(measured[0, i]) == pytest.approx(np.mean(losses), rel=1e-5)
        assert float(measured[1, i]) == pytest.approx(np.var(losses, ddof=1), rel=1e-4)
        assert float(measured[2, i]) == pytest.approx(float(torch.stack(gradients).var(0).sum()), rel=1e-4)
        assert float(measured[3, i]) == pytest.approx(float(torch.stack(gradients).square().sum(1).mean()), rel=1e-4)


@pytest.mark.parametrize("directions", [0, 2])
def test_probes_leave_a_module_under_two_names_as_it_was(directions):
    """Encoder and decoder may have the same embeddings, in which torch's functional_call leaves other parameters."""
    model = tiny_model()
    alone = make_probe(directions=directions)
    with fuse_loss(model):
        expected = alone.measure(model, 5, [0, 2], gradients=True)
    model.twin = model.model.embed_tokens
    before = dict(model.named_parameters(remove_duplicate=False))
    with fuse_loss(model):
        measured = alone.measure(model, 5, [0, 2], gradients=True)
    after = dict(model.named_parameters(remove_duplicate=False))
    assert all(after[name] is parameter for name, parameter in before.items())
    torch.testing.assert_close(measured, expected, rtol=1e-5, atol=0)


def test_projected_gradients_are_those_along_random_directions(monkeypatch):
    model = tiny_model()
    with fuse_loss(model):
        measured = make_probe(directions=2).measure(model, 5, [0, 2], gradients=True)
        assert torch.equal(measured, make_probe(directions=2).measure(model, 5, [0, 2], gradients=True))
        assert not torch.equal(measured, make_probe(directions=2, seed=1).measure(model, 5, [0, 2], gradients=True))
        # Along a known direction, the sum of all coordinates, the projection has a value to compare with.
        monkeypatch.setattr(torch, "randn", lambda shape, **_: torch.ones(shape))
        measured = make_probe(directions=2).measure(model, 5, [0], gradients=True)
    sums = []
    for row in make_probe()._draw(5, 0)["labels"]:
        row = row[row != -100][None]
        model.zero_grad()
        torch.nn.functional.cross_entropy(model(row).logits[0, :-1], row[0, 1:], reduction="sum").backward()
        sums.append(sum(p.grad.double().sum() for p in model.parameters()))
    assert float(measured[2, 0]) == pytest.approx(float(torch.stack(sums).var()), rel=1e-4)
    assert float(measured[3, 0]) == pytest.approx(float(torch.stack(sums).square().mean()), rel=1e-4)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_doremi_and_group_dro_average_the_tokens_of_each_domain(tmp_path, accumulation):
    """A step of SGD follows the gradient of sum_i target_i * (mean loss of domain i's tokens)."""
    schedule = GroupDRO(UNIFORM, delay=3)
    trainer = make_trainer(
        tmp_path, schedule, steps=1, accumulation=accumulation, optim="sgd", learning_rate=1.0, max_grad_norm=0
    )
    plan, data = trainer.sampler.plan(0), trainer.train_dataset.dataset
    model, sums, counts = tiny_model(), [0, 0, 0], [0, 0, 0]
    for index, domain in zip(plan.indices.tolist(), plan.domain_ids.tolist(), strict=True):
        row = torch.tensor([data[index]])
        logits = model(row).logits[0, :-1]
        sums[domain] = sums[domain] + torch.nn.functional.cross_entropy(logits, row[0, 1:], reduction="sum")
        counts[domain] += row.shape[1] - 1
    sum(p * s / max(n, 1) for p, s, n in zip(UNIFORM.target, sums, counts, strict=True)).backward()
    trainer.train()
    for before, after in zip(model.parameters(), trainer.model.parameters(), strict=True):
        assert torch.allclose(before - before.grad, after, atol=1e-6)


def test_a_schedule_for_another_allocation_is_refused(tmp_path):
    schedule = VarianceAware(UNIFORM, allocation="quota", interval=2, delay=3)
    with pytest.raises(ValueError, match=r"allocation = 'multinomial', but the schedule learns .* for 'quota'"):
        make_trainer(tmp_path, schedule)


@pytest.mark.parametrize("reset", [True, False])
def test_order_matters_starts_optimizer_and_learning_rate_again(tmp_path, reset):
    method = OrderMattersOptions(switch_at=0.5, reset_optimizer=reset, reset_lr=reset)
    trainer = make_trainer(tmp_path, method.schedule(SIZES, 8, 12), save_strategy="no", warmup_steps=2)
    for callback in method.callbacks(8):
        trainer.add_callback(callback)
    trainer.train()
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    counts = {int(state["step"]) for state in trainer.optimizer.state.values()}
    assert counts == ({4} if reset else {8})
    assert (rates[4] == rates[0]) == reset
    if reset:  # the linear schedule of 8 steps, 2 of them warm-up, takes 4 steps
        assert rates[4:8] == pytest.approx([0.02 * rate for rate in (0, 1, 2 / 3, 1 / 3)])


def test_the_learning_rate_after_a_restart_ends_as_low_and_is_resumed(tmp_path):
    def make(folder):
        method = OrderMattersOptions(switch_at=0.5, reset_optimizer=True, reset_lr=True)
        decay = {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1}}
        trainer = make_trainer(folder, method.schedule(SIZES, 40, 12), steps=40, save_steps=15, **decay)
        for callback in method.callbacks(40):
            trainer.add_callback(callback)
        return trainer

    def rates(trainer):
        return [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]

    whole = make(tmp_path / "whole")
    whole.train()
    assert rates(whole)[20] == rates(whole)[0] == 0.02
    # The rate of two steps before the end. Without rescaling it would be more than half of the highest rate.
    assert rates(whole)[39] == pytest.approx(0.02 * (0.1 + 0.9 * (1 + math.cos(math.pi * 38 / 40)) / 2))
    shutil.copytree(tmp_path / "whole/checkpoint-30", tmp_path / "part/checkpoint-30")
    resumed = make(tmp_path / "part")
    resumed.train(resume_from_checkpoint=True)
    assert rates(resumed) == rates(whole)


def test_a_mixture_of_samples_that_differs_in_tokens_is_warned_of():
    with pytest.warns(UserWarning, match=r"'a' has 30 tokens on average, one of 'b' 10\. .* weighs 3\.0 times"):
        warn_of_lengths({"a": 2, "b": 5, "c": 1}, {"a": 60, "b": 50, "c": 15})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: make_trainer(path, SCHEDULES["doremi"](), reference=False), "pass reference_model"),
        (lambda path: make_trainer(path, SCHEDULES["va"](), probe=False), "pass probe"),
        (
            lambda path: make_trainer(path, SCHEDULES["odm"](), dataloader_num_workers=2),
            r"delay = 3, but 2 workers read 4 micro-batches ahead.* at least 5",
        ),
        (lambda path: make_probe(size=1), "size = 1"),
        (
            lambda path: make_probe(parameters="nothing").measure(
                fuse_loss(tiny_model()).model, 0, [0], gradients=True
            ),
            "matches no",
        ),
        (lambda path: Probe({"a": Sequences(0, 1, 0)}, ("a",), collate), "fewer than 2 examples of domain 'a'"),
    ],
)
def test_settings_that_a_method_cannot_learn_from_are_refused(tmp_path, make, message):
    with pytest.raises(ValueError, match=message):
        make(tmp_path)


if __name__ == "__main__":  # one of two processes that torch.distributed.run starts in a fixture above
    for name, make in SCHEDULES.items():
        of_rank = make_trainer(Path(sys.argv[1]) / name, make(), batch_size=6, dropout=0.1, save_steps=4)
        of_rank.train()
        everyone = [None, None]
        torch.distributed.all_gather_object(everyone, of_rank.schedule.state_dict())
        assert everyone[0] == everyone[1]
        if of_rank.is_world_process_zero():
            outcome = [history(of_rank), of_rank.schedule.state_dict()]
            (Path(sys.argv[1]) / f"{name}.json").write_text(json.dumps(outcome))
            torch.save(of_rank.model.state_dict(), Path(sys.argv[1]) / name / "weights.pt")
    torch.distributed.destroy_process_group()
