"""Cooldown: a high temperature, then a low one from a step on, or once the rarest domain was passed through often."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping

from pycooldown.mixture import Mixture
from pycooldown.schedules.protocol import Schedule
from pycooldown.schedules.staircase import Staircase


def cooldown(sizes: Mapping[str, int], *, tau: float = 5.0, final_tau: float = 1.0, switch_step: int) -> Schedule:
    """Return temperature sampling with ``tau`` until ``switch_step``, with ``final_tau`` from there on.

    Source: Li et al. (NAACL 2025), section 4: from 5 to 1 at half of the steps.

    Args:
        sizes: Number of samples of each domain.
        tau: Temperature before the switch, > 0.
        final_tau: Temperature from the switch on, > 0.
        switch_step: First step with ``final_tau``, > 0.

    Raises:
        ValueError: If a temperature or ``switch_step`` is not positive.
    """
    if switch_step <= 0:
        raise ValueError(f"switch_step = {switch_step}; expected a step > 0; use constant() for a single temperature")
    mixtures = tuple(Mixture.temperature_sampling(sizes, t) for t in (tau, final_tau))
    return Staircase(
        (0, switch_step),
        mixtures,
        f"cooldown(tau={float(tau)}, final_tau={float(final_tau)}, switch_step={switch_step})",
    )


def cooldown_by_exposure(
    sizes: Mapping[str, int],
    *,
    batch_size: int,
    epochs: float = 15.0,
    tau: float = 5.0,
    final_tau: float = 1.0,
    num_steps: int | None = None,
) -> Schedule:
    """Sample with ``tau`` until the rarest domain has been passed through ``epochs`` times, then with ``final_tau``.

    It is `cooldown` with switch_step = ceil(epochs * n / (batch_size * p)), where n is the size of the rarest domain
    and p its probability under ``tau``. Li et al. (NAACL 2025) set the switch by hand, at half of the steps. Scarce
    data in a mixture can reportedly be repeated 15 to 20 times before that does harm (arXiv 2605.12715).

    Args:
        sizes: Number of samples of each domain.
        batch_size: Samples in a global batch, >= 1.
        epochs: Passes through the rarest domain before the switch, > 0.
        tau: Temperature before the switch, > 0.
        final_tau: Temperature from the switch on, > 0.
        num_steps: Number of steps of the run; if it is given, a switch that the run never reaches gives a warning.

    Raises:
        ValueError: If a number is not positive and finite, or a temperature is not positive.

    Warns:
        UserWarning: If the switch is not within ``num_steps``.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size = {batch_size}; expected at least 1 sample")
    if not 0 < epochs < math.inf:
        raise ValueError(f"epochs = {epochs}; expected a finite number of passes > 0")
    mixture = Mixture.temperature_sampling(sizes, tau)
    rarest = int(mixture.sizes.argmin())
    passes = float(mixture.expected_epochs(batch_size)[rarest])  # in one step
    switch_step = math.ceil(epochs / passes * (1 - 1e-12))
    if num_steps is not None and switch_step >= num_steps:
        warnings.warn(
            f"{mixture.domains[rarest]!r} is passed through {passes * num_steps:.3g} times in {num_steps} steps, so it "
            f"never reaches epochs = {epochs:g}, and tau stays {tau:g}; lower epochs to have a switch",
            stacklevel=2,
        )
    return cooldown(sizes, tau=tau, final_tau=final_tau, switch_step=switch_step)
