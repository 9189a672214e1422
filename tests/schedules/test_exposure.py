"""Cooldown by exposure switches at the step that gives the requested passes."""

import warnings

import pytest

from pycooldown import DomainBatchSampler, schedules

SIZES = {"de": 5200, "ro": 52}


@pytest.mark.parametrize("epochs", [3, 15, 20.5])
@pytest.mark.parametrize("tau", [2, 5])
def test_the_switch_is_at_the_first_step_with_the_requested_passes(epochs, tau):
    schedule = schedules.cooldown_by_exposure(SIZES, batch_size=32, epochs=epochs, tau=tau)
    switch = schedule.next_change(0)
    passes = float(schedule.mixture(0).expected_epochs(32)[1])
    assert passes * (switch - 1) < epochs <= passes * switch * (1 + 1e-12)
    assert schedule.mixture(switch - 1).tau == tau
    assert schedule.mixture(switch).tau == 1
    assert schedule.describe() == schedules.cooldown(SIZES, tau=tau, switch_step=switch).describe()
    sampler = DomainBatchSampler(schedule, batch_size=32, seed=0, num_steps=switch, allocation="quota")
    assert sampler.exposure().epochs[1] == pytest.approx(epochs, abs=passes + 1 / 52)


def test_an_exact_number_of_passes_is_not_rounded_up():
    schedule = schedules.cooldown_by_exposure({"a": 10, "b": 10}, batch_size=10, epochs=3, tau=5)
    assert schedule.next_change(0) == 6


def test_a_switch_beyond_the_run_is_warned_of():
    with pytest.warns(UserWarning, match=r"'ro' is passed through 1\.75 times in 10 steps"):
        schedules.cooldown_by_exposure(SIZES, batch_size=32, num_steps=10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schedules.cooldown_by_exposure(SIZES, batch_size=32, num_steps=420)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"epochs": 0}, "epochs = 0"), ({"batch_size": 0}, "batch_size = 0"), ({"tau": 0}, "tau = 0")],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        schedules.cooldown_by_exposure(SIZES, **{"batch_size": 32, **options})
