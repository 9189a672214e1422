"""Another schedule for a trainer's running job."""

import pytest

transformers = pytest.importorskip("transformers")

from test_trainer import SIZES, losses, make_trainer, switching  # noqa: E402

from pycooldown import Mixture, adaptive, schedules  # noqa: E402

FIRST = schedules.constant(Mixture.scalarization(SIZES, 5.0))
SECOND = schedules.constant(Mixture.temperature_sampling(SIZES, 2.0))  # other draws and other loss weights


class Change(transformers.TrainerCallback):
    """Decides in step 1 that step 3 shall have another mixture."""

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
    with pytest.raises(ValueError, match=r"checkpoint-4 cannot be resumed from: .* from step 3 on.* set_schedule\(\)"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "changed" / "checkpoint-4"))
    resumed.set_schedule(SECOND, from_step=3)
    resumed.train(resume_from_checkpoint=str(tmp_path / "changed" / "checkpoint-4"))
    assert losses(resumed) == losses(planned)


def test_what_a_trainer_cannot_change_to(tmp_path):
    learning = adaptive.GroupDRO(Mixture.proportional(SIZES), delay=1)
    grown = schedules.constant(Mixture.proportional(SIZES | {"small": 9}))
    trainer = make_trainer(tmp_path, FIRST)
    for schedule, message in [(learning, r"^GroupDRO\(.* learns from the job"), (grown, "other domains or sizes")]:
        with pytest.raises(ValueError, match=message):
            trainer.set_schedule(schedule, from_step=2)
    with pytest.raises(ValueError, match=r"^GroupDRO\(.* learns from the job"):
        make_trainer(tmp_path, learning).set_schedule(SECOND, from_step=2)
