"""A running job of the trainer takes another schedule or batch size, and rules can end it."""

import itertools

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from test_trainer import AS_LOGGED, SIZES, Sequences, losses, make_trainer, switching, tiny_model  # noqa: E402

from pycooldown import DomainBatchSampler, Mixture, adaptive, schedules  # noqa: E402
from pycooldown.huggingface import MicroBatches, MixtureTrainer  # noqa: E402

FIRST = schedules.constant(Mixture.scalarization(SIZES, 5.0))
SECOND = schedules.constant(Mixture.temperature_sampling(SIZES, 2.0))  # other draws and other loss weights


class Change(transformers.TrainerCallback):
    """Change the schedule in step 1, from step 3 on."""

    trainer = None

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 1:
            self.trainer.set_schedule(SECOND, from_step=3)


@pytest.mark.parametrize("when", ["before training", "in training"])
def test_a_changed_job_trains_and_resumes_as_if_it_had_been_planned(tmp_path, when):
    planned = make_trainer(tmp_path / "planned", switching())
    planned.train()
    changed = make_trainer(tmp_path / "changed", FIRST, save_strategy="steps", save_steps=4)
    if when == "before training":
        changed.set_schedule(SECOND, from_step=3)
    else:
        callback = Change()
        callback.trainer = changed
        changed.add_callback(callback)
    changed.train()
    assert losses(changed) == losses(planned)

    resumed = make_trainer(tmp_path / "changed", FIRST)
    with pytest.raises(ValueError, match=r"cannot resume from .*checkpoint-4: .* from step 3 on.* set_schedule\(\)"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "changed" / "checkpoint-4"))
    resumed.set_schedule(SECOND, from_step=3)
    resumed.train(resume_from_checkpoint=str(tmp_path / "changed" / "checkpoint-4"))
    assert losses(resumed) == losses(planned)


def test_impossible_changes_of_the_schedule_are_refused(tmp_path):
    learning = adaptive.GroupDRO(Mixture.proportional(SIZES), delay=1)
    grown = schedules.constant(Mixture.proportional(SIZES | {"small": 9}))
    trainer = make_trainer(tmp_path, FIRST)
    for schedule, message in [(learning, r"^GroupDRO\(.* learns from the job"), (grown, "other domains or sizes")]:
        with pytest.raises(ValueError, match=message):
            trainer.set_schedule(schedule, from_step=2)
    with pytest.raises(ValueError, match=r"^GroupDRO\(.* learns from the job"):
        make_trainer(tmp_path, learning).set_schedule(SECOND, from_step=2)


# ---- other batch sizes -----------------------------------------------------------------------------------------------


class Recording(MixtureTrainer):
    """Record the samples of each step."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        self.seen.setdefault(self.state.global_step, []).extend(inputs["input_ids"][:, 0].tolist())
        return super().compute_loss(model, inputs, *args, **kwargs)


def recording(folder, **options):
    trainer = make_trainer(folder, switching(), kind=Recording, accumulation=2, **options)
    trainer.seen = {}
    return trainer


def test_a_ramp_trains_on_the_planned_batches_and_resumes_with_another_size(tmp_path):
    ramp = [(0, 12), (2, 20), (4, 8)]
    plans = DomainBatchSampler(switching(), batch_size=ramp, seed=42)
    trainer = recording(tmp_path, save_strategy="steps", save_steps=3)
    for from_step, size in ramp[1:]:
        trainer.set_batch_size(size, from_step=from_step)
    trainer.train()
    assert trainer.seen == {step: plans.plan(step).indices.tolist() for step in range(6)}
    checkpoint = str(tmp_path / "checkpoint-3")

    same = recording(tmp_path)
    for from_step, size in ramp[1:]:
        same.set_batch_size(size, from_step=from_step)
    same.train(resume_from_checkpoint=checkpoint)
    assert losses(same) == losses(trainer)

    other = recording(tmp_path)
    with pytest.raises(ValueError, match=r"cannot resume from .*: .* batch sizes .* calls of set_batch_size\(\)"):
        other.train(resume_from_checkpoint=checkpoint)
    other.set_batch_size(20, from_step=2)
    other.set_batch_size(24, from_step=5)  # the checkpoint's job has size 8 from step 4 on
    with pytest.raises(ValueError, match=r"cannot resume from .*: .* batch sizes .* calls of set_batch_size\(\)"):
        other.train(resume_from_checkpoint=checkpoint)

    late = recording(tmp_path / "late", save_strategy="steps", save_steps=3)
    late.train()
    late = recording(tmp_path / "late")
    late.set_batch_size(16, from_step=3)  # a change at the checkpoint's step needs no record there
    late.train(resume_from_checkpoint=str(tmp_path / "late" / "checkpoint-3"))
    changed = DomainBatchSampler(switching(), batch_size=[(0, 12), (3, 16)], seed=42)
    assert late.seen == {step: changed.plan(step).indices.tolist() for step in range(3, 6)}
    past = recording(tmp_path / "late")
    past.set_batch_size(16, from_step=2)
    with pytest.raises(ValueError, match=r"cannot resume from .*: from_step = 2, but batches before step 3"):
        past.train(resume_from_checkpoint=str(tmp_path / "late" / "checkpoint-3"))


def test_samples_per_second_count_the_samples_of_all_batches(tmp_path):
    trainer = make_trainer(tmp_path, SECOND)
    trainer.set_batch_size(24, from_step=2)
    metrics = trainer.train().metrics
    samples = metrics["train_samples_per_second"] * metrics["train_runtime"]
    assert samples == pytest.approx(2 * 12 + 4 * 24, rel=0.01)  # both factors are rounded


def test_the_loss_of_a_mixture_of_tokens_is_divided_by_the_tokens_of_its_batch(tmp_path):
    """The loss is divided by the expected number of tokens, so a larger batch does not weigh more."""
    lengths = {"big": 4.0, "mid": 5.0, "small": 6.0}
    trainer = recording(
        tmp_path, learning_rate=0.0, steps=5, more={"mixture_unit": "tokens", "tokens_per_sample": lengths}
    )
    trainer.set_batch_size(24, from_step=3)
    trainer.train()
    model = tiny_model().eval()
    for step, loss in enumerate(losses(trainer)):
        plan, expected = trainer.sampler.plan(step), 0.0
        weights = plan.mixture.loss_weights / list(lengths.values())
        for i, domain in zip(plan.indices.tolist(), plan.domain_ids.tolist()):
            row = torch.tensor([Sequences()[i]])
            with torch.no_grad():
                expected += weights[domain] * float(model(row, labels=row).loss) * (row.shape[1] - 1)
        assert loss == pytest.approx(expected / (12 if step < 3 else 24), **AS_LOGGED)


def test_impossible_batch_sizes_are_refused(tmp_path):
    trainer = recording(tmp_path)
    with pytest.raises(
        ValueError, match=r"batch_size = 1; expected at least 2, one sample for each of 1 processes x 2"
    ):
        trainer.set_batch_size(1, from_step=2)
    with pytest.raises(ValueError, match="would draw domain 'small'"):
        trainer.set_batch_size(400, from_step=3)
    trainer.train()
    assert [len(samples) for samples in trainer.seen.values()] == [12] * 6


# ---- rules that end a pass -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", ["first_exhausted", "all_exhausted", "all_exhausted_without_replacement"])
def test_a_rule_sets_the_length_of_training(tmp_path, stop):
    plans = DomainBatchSampler(SECOND, batch_size=12, seed=42, stop=stop)
    trainer = make_trainer(tmp_path, SECOND, kind=Recording, steps=-1, more={"stop": stop}, save_steps=1)
    trainer.seen = {}
    trainer.args.save_strategy = "steps"
    trainer.train()
    assert trainer.seen == dict(enumerate(plans))
    assert trainer.state.max_steps == trainer.state.global_step == len(plans)
    if stop == "all_exhausted_without_replacement":
        assert sorted(itertools.chain(*trainer.seen.values())) == list(range(sum(SIZES.values())))
    resumed = make_trainer(tmp_path, SECOND, kind=Recording, steps=-1, more={"stop": stop})
    resumed.seen = {}
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert resumed.seen == {step: samples for step, samples in trainer.seen.items() if step > 0}


def test_a_last_batch_that_is_too_small_for_its_micro_batches_is_refused_before_training(tmp_path):
    more = {"stop": "all_exhausted_without_replacement"}  # 64 samples
    with pytest.raises(ValueError, match=r"1 samples are left for the last batch .*at least 3, one for each of 1 proc"):
        make_trainer(tmp_path, SECOND, batch_size=21, accumulation=3, steps=-1, more=more)
    trainer = make_trainer(tmp_path, SECOND, batch_size=12, accumulation=3, steps=-1, more=more)  # 4 are left
    trainer.train()
    trainer = make_trainer(tmp_path, SECOND, batch_size=12, accumulation=3, steps=-1, more=more)
    with pytest.raises(ValueError, match="1 samples are left"):
        trainer.set_batch_size(17, from_step=1)  # 64 = 12 + 3 * 17 + 1
    sampler = DomainBatchSampler(SECOND, batch_size=21, seed=0, stop="all_exhausted_without_replacement")
    with pytest.raises(ValueError, match="a batch of 1 samples cannot be cut into 3 micro-batches"):
        list(MicroBatches(sampler, 3))


def test_changes_move_the_end_of_a_rule_before_training_only(tmp_path):
    with pytest.raises(ValueError, match="stop = 'all_exhausted' sets max_steps, but max_steps = 6 is given too"):
        make_trainer(tmp_path, SECOND, more={"stop": "all_exhausted"})
    with pytest.raises(ValueError, match="trains one pass, but num_train_epochs = 2"):
        make_trainer(tmp_path, SECOND, steps=-1, more={"stop": "all_exhausted"}, num_train_epochs=2)
    trainer = make_trainer(tmp_path, SECOND, steps=-1, more={"stop": "all_exhausted_without_replacement"})
    assert trainer.args.max_steps == 6
    trainer.set_batch_size(24, from_step=1)
    assert trainer.args.max_steps == 4
    callback = Change()
    callback.trainer = trainer
    trainer.add_callback(callback)
    with pytest.raises(ValueError, match="has set the length of this training, which the change would alter"):
        trainer.train()
