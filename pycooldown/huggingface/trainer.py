"""`MixtureTrainer`: Hugging Face's Trainer, with a mixture deciding batches and loss weights."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import ProgressCallback, Trainer, TrainerControl, TrainingArguments
from transformers.trainer_utils import TrainOutput

from pycooldown.gradients.theory import variance_inflation
from pycooldown.huggingface.batches import EvaluationBatches, MicroBatches, Samples, WithDomains, load, seed_micro_batch
from pycooldown.huggingface.callbacks import MixtureProgress
from pycooldown.huggingface.checkpoints import complete_checkpoint, discard_incomplete, seal, unseal
from pycooldown.huggingface.checks import check_arguments, check_change, check_learning
from pycooldown.huggingface.fused_loss import fuse_loss
from pycooldown.huggingface.learning import Learner
from pycooldown.huggingface.probe import Probe
from pycooldown.huggingface.statistics import DomainSums, tokens_by_domain
from pycooldown.mixture import Mixture
from pycooldown.sampling.sampler import AllocationName, DomainBatchSampler
from pycooldown.schedules import AdaptiveSchedule, Schedule


class MixtureTrainer(Trainer):  # type: ignore[misc]
    """A Trainer for causal and encoder-decoder models whose batches and loss weights come from a mixture.

    The global batch of optimizer step t, ``per_device_train_batch_size * gradient_accumulation_steps * world_size``
    sequences, is planned as one and then sliced into ranks and micro-batches. Its loss is

        sum over valid tokens of loss_weights[domain] * cross-entropy / number of valid tokens,

    both over the whole global batch, so that ranks and accumulation do not change it, with
    ``args.label_smoothing_factor`` in training. Schedules with ``domain_means`` (DoReMi, Group DRO) have the sum over
    domains of target * mean cross-entropy of the domain's tokens in the global batch instead. The loss is computed
    without logits (`fuse_loss`). ``max_steps`` sets the length of training; epochs are counted per domain. Logged per
    domain: ``loss/``, ``samples/``, ``tokens/`` and ``epochs/`` (of it, so far), ``q/`` (sampling) and ``v/`` (loss
    weight), and ``tau``. Checkpoints hold the state of the data.

    Args:
        model: as `fuse_loss` takes it; it stays so.
        args: with ``max_steps`` > 0; ``data_seed`` (or else ``seed``) decides the order of samples.
        schedule: the mixture at each step.
        train_dataset: map-style; the domains laid end to end, in the order of the schedule's domains.
        data_collator: makes the model's inputs and ``labels`` (N, T) of samples; -100 marks tokens without a loss.
        eval_dataset: a map-style dataset for each domain to be evaluated, by name.
        allocation: see `pycooldown.DomainBatchSampler`.
        reference_model: whose losses DoReMi's excess is taken over.
        probe: examples that are kept out of training, for the schedules that learn from them.
        **kwargs: further arguments of Trainer.

    Raises:
        ValueError: for arguments that do not fit together, saying how to mend them.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        args: TrainingArguments,
        *,
        schedule: Schedule,
        train_dataset: Samples,
        data_collator: Any,
        eval_dataset: Mapping[str, Samples] | None = None,
        allocation: AllocationName = "multinomial",
        reference_model: torch.nn.Module | None = None,
        probe: Probe | None = None,
        **kwargs: Any,
    ) -> None:
        first = schedule.mixture(0)
        check_arguments(args, first, len(train_dataset), eval_dataset)
        self.schedule = schedule
        self.domains = first.domains
        self.allocation = allocation
        self._evaluation = EvaluationBatches(eval_dataset or {}, self.domains)
        super().__init__(
            model,
            args,
            train_dataset=WithDomains(train_dataset, first.sizes),
            eval_dataset=self._evaluation if eval_dataset else None,
            data_collator=data_collator,
            **kwargs,
        )
        if any(type(callback) is ProgressCallback for callback in self.callback_handler.callbacks):
            self.remove_callback(ProgressCallback)
            self.add_callback(MixtureProgress)
        # The loss is already a share of the global batch's, so Trainer must not divide it by the micro-batches.
        self.loss_is_scaled_for_ga = True
        self.fused = fuse_loss(self.model, label_smoothing=args.label_smoothing_factor)
        self._changes: list[tuple[Schedule, int]] = []
        self.sampler = self._new_sampler()
        self.control: TrainerControl
        self._weights: tuple[Mixture, torch.Tensor] | None = None
        self._domain_means = bool(getattr(schedule, "domain_means", False))
        self.sums = DomainSums(self.domains, self.accelerator)
        self._clipped: list[torch.Tensor] = []
        self._micro_batch = 0  # place of the next one in the global batch
        self._learner: Learner | None = None
        if isinstance(schedule, AdaptiveSchedule):
            check_learning(args, schedule, reference_model, allocation)
            self._untrained = schedule.state_dict()
            self._learner = Learner(schedule, len(self.domains), self.accelerator, reference_model, probe)
            self.callback_handler.callbacks.insert(0, self._learner)  # learns before others look

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> TrainOutput:
        """Trains, from the start or from a checkpoint.

        Args:
            resume_from_checkpoint: a checkpoint, or ``True`` for the newest complete one in ``args.output_dir``; one
                that was being written when its process died is discarded.
            **kwargs: further arguments of `Trainer.train`.

        Raises:
            ValueError: if there is no complete checkpoint, or it belongs to another mixture, saying what differs.
        """
        if self._learner is not None:
            self._learner.schedule.load_state_dict(self._untrained)
        self.sampler = self._new_sampler()
        checkpoint: str | None = None
        state: dict[str, Any] = {}
        if resume_from_checkpoint:
            path = None if resume_from_checkpoint is True else resume_from_checkpoint
            checkpoint, state = complete_checkpoint(self.args.output_dir, path)
            try:
                if self._learner is not None:
                    self._learner.schedule.load_state_dict(state.get("learned", {}))
                self.sampler.load_state_dict(state)
            except ValueError as error:
                raise ValueError(f"{checkpoint} cannot be resumed from: {error}") from error
            if self.args.should_save:
                discard_incomplete(self.args.output_dir)
        self.sums = DomainSums(self.domains, self.accelerator, state.get("tokens"))
        return super().train(resume_from_checkpoint=checkpoint, **kwargs)

    def set_schedule(self, schedule: Schedule, *, from_step: int) -> None:
        """Mixes by another schedule from a step on, whose batch no loader has asked for; see `DomainBatchSampler`.

        Call it before `train` or from a callback; a job that resumes from a later checkpoint makes the same call.

        Raises:
            ValueError: if the step is past, either schedule learns, or the domains or their sizes differ.
        """
        check_change(self.schedule, schedule, from_step)
        self.sampler.set_schedule(schedule, from_step=from_step)
        self._changes.append((schedule, from_step))

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Micro-batches of this rank; not sharded again by Accelerate."""
        micro_batches = MicroBatches(self.sampler, self.args.gradient_accumulation_steps)
        return load(self.train_dataset, micro_batches, self.data_collator, self.args)

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, torch.Tensor]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, torch.Tensor]], torch.Tensor | None]:
        """The micro-batches of one optimizer step and the valid tokens of each domain in its global batch, (K,)."""
        batches = list(itertools.islice(epoch_iterator, num_batches))
        if not batches:
            return batches, None
        self._micro_batch = self.args.process_index * len(batches)
        counts = [tokens_by_domain(self.fused, batch, len(self.domains)) for batch in batches]
        return batches, self.accelerator.reduce(torch.stack(counts).sum(dim=0).to(device), "sum")

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> Any:
        """This micro-batch's part of the loss of its global batch."""
        # Trainer takes the micro-batches of a step one after another and trains on them before it counts the step, so
        # the step they were planned for is the current one, however far the loader has read ahead.
        if (count := num_items_in_batch) is None:
            count = tokens_by_domain(self.fused, inputs, len(self.domains))
        weights = self._token_weights(self.state.global_step, count)
        weights = weights * self.accelerator.num_processes  # gradients are averaged over ranks
        seed_micro_batch(self.args.seed, self.state.global_step, self._micro_batch)
        self._micro_batch += 1
        if self._learner is not None and self._learner.reference is not None:
            outputs = self._outputs(model, inputs, torch.ones_like(weights), reduction="none")
            self._learner.add_excess(outputs.loss.detach(), inputs)
            loss = (outputs.loss.sum(dim=1) * weights[inputs["domain_ids"]]).sum()
        else:
            outputs = self._outputs(model, inputs, weights)
            loss = outputs.loss
        stats = torch.stack([outputs.domain_stats.loss_sum, outputs.domain_stats.token_count.double()])
        self.sums.add(stats)
        if self._learner is not None:
            self._learner.add(stats)
        return (loss, outputs) if return_outputs else loss

    def _clip_grad_norm(self, model: torch.nn.Module) -> Any:
        """Also notes whether the gradient was clipped, without waiting for the device."""
        norm = super()._clip_grad_norm(model)
        self._clipped.append(torch.as_tensor(norm > self.args.max_grad_norm))
        return norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds to the logs of training what was seen of each domain."""
        if "loss" in logs and self.state.global_step > 0:
            logs |= self._domain_logs()
        self.state.epoch = self.state.global_step / self.args.max_steps  # Trainer's starts again on resuming
        super().log(logs, start_time)

    @torch.no_grad()
    def evaluate(
        self, eval_dataset: None = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Mean loss of a token, unweighted, on each domain's evaluation set and over all of them.

        Returns:
            ``{prefix}_loss`` and ``{prefix}_loss/{domain}``, in nats.

        Raises:
            ValueError: if the trainer has no evaluation sets or others are given.
        """
        if eval_dataset is not None or not len(self._evaluation):
            raise ValueError("evaluation needs a dataset for each domain: pass eval_dataset={name: dataset} at first")
        args = self.args
        batches = self._evaluation.batches(args.eval_batch_size, args.process_index, args.world_size)
        loader = load(self._evaluation, batches, self.data_collator, args)
        self.callback_handler.eval_dataloader = loader
        was_training = self.model.training
        self.model.eval()
        sums = DomainSums(self.domains, self.accelerator)
        ones = torch.ones(len(self.domains), device=self.args.device)
        for inputs in loader:
            stats = self._outputs(self.model, self._prepare_inputs(inputs), ones).domain_stats
            sums.add(torch.stack([stats.loss_sum, stats.token_count.double()]))
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        self.model.train(was_training)
        metrics = {f"{metric_key_prefix}_{name}": loss for name, loss in sums.take_means().items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Writes the checkpoint and then, when it is whole, the data state that makes it one to resume from."""
        folder = f"{self._get_output_dir(trial)}/checkpoint-{self.state.global_step}"
        if self.args.should_save:
            unseal(folder)
        super()._save_checkpoint(model, trial)
        tokens = self.sums.tokens()
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            learned = {} if self._learner is None else {"learned": self._learner.schedule.state_dict()}
            seal(folder, self.sampler.state_dict(self.state.global_step) | learned | {"tokens": tokens})

    def _outputs(self, model: Any, inputs: dict[str, Any], weights: torch.Tensor, reduction: str = "sum") -> Any:
        """The model's outputs with loss and domain_stats."""
        options = {"domain_weights": weights, "reduction": reduction, "return_stats": True, "skip_logits": True}
        return model(**inputs, **options)

    def _token_weights(self, step: int, count: torch.Tensor) -> torch.Tensor:
        """Factors of the losses of tokens of each domain, (K,), for a global batch with so many of them (K,)."""
        mixture = self.sampler.mixture(step)
        if self._weights is None or self._weights[0] is not mixture:
            values = mixture.target if self._domain_means else mixture.loss_weights
            self._weights = mixture, torch.tensor(values, dtype=torch.float32, device=self.args.device)
        return self._weights[1] / (count if self._domain_means else count.sum()).clamp(min=1)

    def _domain_logs(self) -> dict[str, float]:
        step = self.state.global_step
        mixture, exposure = self.sampler.mixture(step - 1), self.sampler.exposure(step)
        logs = {name: loss for name, loss in self.sums.take_means().items() if name != "loss"}
        logs |= {f"tokens/{domain}": count for domain, count in self.sums.tokens().items()}
        columns = {
            "samples": exposure.draws,
            "epochs": exposure.epochs,
            "q": mixture.sampling,
            "v": mixture.loss_weights,
        }
        for name, values in columns.items():
            logs |= {f"{name}/{domain}": value for domain, value in zip(self.domains, values.tolist(), strict=True)}
        if self._clipped:
            logs["clip_fraction"] = torch.stack(self._clipped).float().mean().item()
            self._clipped.clear()
        logs["effective_sample_fraction"] = 1 / variance_inflation(mixture)
        return logs if mixture.tau is None else {**logs, "tau": mixture.tau}

    def _new_sampler(self) -> DomainBatchSampler:
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        sampler = DomainBatchSampler(
            self.schedule,
            batch_size=self.get_total_train_batch_size(self.args),
            seed=seed,
            num_steps=self.args.max_steps,
            rank=self.args.process_index,
            world_size=self.args.world_size,
            allocation=self.allocation,
        )
        for schedule, from_step in self._changes:
            sampler.set_schedule(schedule, from_step=from_step)
        return sampler
