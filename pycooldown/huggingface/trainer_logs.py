"""The trainer's logs: a bounded number of values for each domain."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pycooldown import domain_log
from pycooldown.gradients.theory import variance_inflation
from pycooldown.huggingface.checkpoints import finite
from pycooldown.huggingface.checks import warn_of_lengths
from pycooldown.huggingface.reporters import SHOWN_DOMAINS, group
from pycooldown.huggingface.trainer_evaluation import EvaluationPart
from pycooldown.mixture import Vector

# Up to this many domains are logged one by one. Of more, the log has those with the largest target, and a file all.
LOGGED_DOMAINS = 64
# This many samples of a domain estimate its mean length well enough to warn about it.
_FEW_SAMPLES = 32


class LogPart(EvaluationPart):
    """Logging, one part of `MixtureTrainerMixin`.

    Attributes:
        domain_values: The newest values of each domain, including evaluations, (K,) each. Keys are the part of the
            log's name before the slash. Missing values are NaN.
        newest_values: The values in the newest log only: of training, of an evaluation, or none.
    """

    mixture_unit: str
    data_collator: Any
    eval_dataset: Any
    domain_values: dict[str, Vector]
    newest_values: dict[str, Vector]
    _clipped: torch.Tensor | int = 0  # steps since the last log whose gradients were clipped
    _clippable = 0  # steps since the last log
    _names: dict[str, list[str]]  # of what is logged by domain: the same strings in each log
    _warned_of_lengths = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        group(self.callback_handler.callbacks, self)

    def add_callback(self, callback: Any) -> None:
        """Add a callback. Replace those of TensorBoard and Weights & Biases by ones that group values by domain."""
        super().add_callback(callback)
        group(self.callback_handler.callbacks, self)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, and add the values of each domain to training logs.

        With more than 64 domains, the log has values by domain only for the 16 with the largest target. `domain_values`
        has all, and files in ``args.output_dir`` hold their history (`pycooldown.domain_log`). If a loss that is not
        finite is allowed, it is null in the log's history, which is JSON.

        Raises:
            FloatingPointError: If a loss was not finite, unless that is allowed.
        """
        if "loss" in logs and self.state.global_step > 0:
            self._check_finite(logs["loss"])
            logs |= self._domain_logs()
            self._keep(domain_log.TRAINING, self.newest_values)
        else:
            self.newest_values = self._evaluated(logs)
            if "eval_loss" in self.newest_values:
                self._keep(domain_log.EVALUATION, {"eval_loss": self.newest_values["eval_loss"]})
        self.domain_values |= self.newest_values
        if "train_samples_per_second" in logs:  # Trainer's own takes all batches for equally large
            samples = sum(map(self.sampler.batch_size_at, range(self.state.max_steps)))
            logs["train_samples_per_second"] = round(samples / logs["train_runtime"], 3)
        self.state.epoch = self.state.global_step / self.args.max_steps  # Trainer's own epoch restarts on resuming
        shown = self._bounded(logs)
        super().log(shown, start_time)
        logs |= {name: value for name, value in shown.items() if name not in logs}
        if self.state.log_history:
            self.state.log_history[-1] = finite(self.state.log_history[-1])

    def _clip_grad_norm(self, model: torch.nn.Module) -> Any:
        """Clip gradients, and record whether they were clipped, without waiting for the device."""
        return self._note_clipping(super()._clip_grad_norm(model))

    def _note_clipping(self, norm: Any) -> Any:
        if norm is not None:  # DeepSpeed does not know it before its first step
            self._clipped = self._clipped + torch.as_tensor(norm > self.args.max_grad_norm)
            self._clippable += 1
        return norm

    def _watch_clipping(self) -> None:
        """Record clipping with transformers before 5.5 too, whose loop calls Accelerate directly."""
        if hasattr(super(), "_clip_grad_norm") or "clip_grad_norm_" in vars(self.accelerator):
            return
        clip = self.accelerator.clip_grad_norm_
        self.accelerator.clip_grad_norm_ = lambda *args, **kwargs: self._note_clipping(clip(*args, **kwargs))

    def _check_finite(self, loss: float | None = None) -> None:
        if self.allow_non_finite_loss:
            return
        self.sums.check_finite()
        if loss is not None and not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss} at step {self.state.global_step - 1} or before, but the loss of each domain is "
                "finite, so a loss weight or the auxiliary loss is not; lower the learning rate, or continue anyway "
                "with allow_non_finite_loss=True (in a recipe: training.allow_non_finite=true)"
            )

    def _domain_logs(self) -> dict[str, float]:
        step = self.state.global_step
        mixture, exposure = self.sampler.mixture(step - 1), self.sampler.exposure(step)
        seen = self.sums.take()
        tokens = self.sums.taken
        if self.mixture_unit == "samples" and not (self._domain_means or self._warned_of_lengths):
            self._warn_of_lengths(exposure.draws, tokens)
        values = {
            "loss": seen.means,
            "tokens": tokens,
            "samples": exposure.draws.astype(np.float64),
            "epochs": exposure.epochs,
            "q": mixture.sampling,
            "v": mixture.loss_weights if self._domain_means else self._weights_of(mixture)[0],
            "target": mixture.target,
            "share": seen.shares,
        }
        self.newest_values = values
        logs: dict[str, float] = {}
        logged = self._logged()
        for name, found in values.items():
            entries = _counted(name, found)
            for i in logged:
                if not (name == "loss" and np.isnan(found[i]) and not seen.tokens[i]):
                    logs[self._name(name, i)] = entries[i].item()
        if self._clippable:
            logs["clip_fraction"] = int(self._clipped) / self._clippable
            self._clipped = self._clippable = 0
        logs["effective_sample_fraction"] = 1 / variance_inflation(mixture)
        return logs if mixture.tau is None else {**logs, "tau": mixture.tau}

    def _evaluated(self, logs: dict[str, float]) -> dict[str, Vector]:
        """Return the losses of an evaluation, (K,), by the part of their name before the slash."""
        positions = {domain: i for i, domain in enumerate(self.domains)}
        found: dict[str, Vector] = {}
        for key, value in logs.items():
            name, _, domain = key.partition("/")
            if name.endswith("_loss") and domain in positions:
                found.setdefault(name, np.full(len(self.domains), np.nan))[positions[domain]] = value
        return found

    def _keep(self, file: str, values: dict[str, Vector]) -> None:
        """Append the values of all domains to a file, if the log omits some."""
        if len(self.domains) > LOGGED_DOMAINS and self.args.should_save:
            folder = Path(self.args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            counted = {name: _counted(name, found) for name, found in values.items()}
            domain_log.append(folder / file, self.state.global_step, counted)

    def largest_domains(self, most: int) -> list[int]:
        """Return the positions of the ``most`` domains with the largest target, in the mixture's order."""
        target = self.sampler.mixture(max(self.state.global_step - 1, 0)).target
        return sorted(np.argsort(-target, kind="stable")[:most].tolist())

    def _logged(self) -> list[int]:
        """Return the positions of the domains that are logged one by one."""
        most = len(self.domains) if len(self.domains) <= LOGGED_DOMAINS else SHOWN_DOMAINS
        return self.largest_domains(most)

    def _name(self, name: str, position: int) -> str:
        if name not in self._names:
            self._names[name] = [f"{name}/{domain}" for domain in self.domains]
        return self._names[name][position]

    def _bounded(self, logs: dict[str, float]) -> dict[str, float]:
        """Return logs (of training or an evaluation) without values of domains beyond the limit."""
        if len(self.domains) <= LOGGED_DOMAINS:
            return logs
        shown = {self.domains[i] for i in self._logged()}
        hidden = set(self.domains) - shown
        return {name: value for name, value in logs.items() if name.partition("/")[2] not in hidden}

    def _warn_of_lengths(self, draws: Any, tokens: Vector) -> None:
        """Warn once if the samples seen so far differ much in length between domains."""
        known = [i for i, n in enumerate(draws.tolist()) if n >= _FEW_SAMPLES and tokens[i] > 0]
        if len(known) > 1:
            samples = {self.domains[i]: int(draws[i]) for i in known}
            self._warned_of_lengths = warn_of_lengths(samples, {self.domains[i]: int(tokens[i]) for i in known})


def _counted(name: str, values: Vector) -> Any:
    """Return values, as integers if they are counts."""
    return values.astype(np.int64) if name in ("tokens", "samples") else values
