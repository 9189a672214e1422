"""`MixtureTrainer`: Hugging Face's Trainer, with a mixture deciding batches and loss weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader
from transformers import ProgressCallback, Seq2SeqTrainer, Trainer, TrainingArguments
from transformers.trainer_utils import TrainOutput

from pycooldown.huggingface.arguments import refuse_method
from pycooldown.huggingface.batches import WithDomains, load
from pycooldown.huggingface.callbacks import MixtureProgress
from pycooldown.huggingface.checkpoints import seal, unseal
from pycooldown.huggingface.checks import (
    check_arguments,
    check_learning,
    check_max_steps,
    check_schedule,
    check_sizes,
    check_unit,
)
from pycooldown.huggingface.document_attention import for_packed, leak
from pycooldown.huggingface.fused_loss import fuse_loss, fused_loss_of
from pycooldown.huggingface.learning import Learner
from pycooldown.huggingface.lengths import given_lengths, measure_lengths
from pycooldown.huggingface.micro_batches import MicroBatches
from pycooldown.huggingface.probe import Probe
from pycooldown.huggingface.resuming import agree_on_checkpoint, unnumber_cpu
from pycooldown.huggingface.sources import EndToEnd, by_domain, known_sizes, lay_out, resolve
from pycooldown.huggingface.statistics import DomainSums
from pycooldown.huggingface.trainer_sampler import SamplerPart, new_sampler
from pycooldown.huggingface.wrappers import ignored_prefix, inner_model
from pycooldown.sampling.sampler import AllocationName, StopRule
from pycooldown.schedules import AdaptiveSchedule, Schedule

_TRIED = 16  # domains whose samples are searched for documents that share a row


class MixtureTrainerMixin(SamplerPart):
    """A mixin that gives a Trainer batches and loss weights from a mixture. Put it before the Trainer's class.

        class MixtureSeq2SeqTrainer(MixtureTrainerMixin, Seq2SeqTrainer): ...

    The global batch of optimizer step t, ``per_device_train_batch_size * gradient_accumulation_steps * world_size``
    sequences, is planned as a whole and then sliced into ranks and micro-batches. Its loss is

        sum over valid tokens of loss_weights[domain] * cross-entropy / number of valid tokens.

    Sum and number are those of the whole global batch, so ranks and accumulation do not change the loss.
    ``args.label_smoothing_factor`` applies in training. For schedules with ``domain_means`` (DoReMi, Group DRO) the
    loss is instead the sum over domains of target * mean cross-entropy of the domain's tokens in the global batch. The
    loss is computed without logits (`fuse_loss`). ``max_steps`` sets the length of training; epochs are counted per
    domain. Logs contain, per domain, ``loss/``, ``samples/``, ``tokens/`` and ``epochs/`` (the latter three so far),
    ``q/`` (sampling), ``v/`` (loss weight), ``target/`` and ``share/`` (of the objective, by tokens and weights, since
    the last log), and ``tau``. Checkpoints hold the state of the data.

    A mixture of samples equals one of tokens only if the samples of all domains have the same mean length. With
    ``mixture_unit="tokens"`` the weights compensate for different lengths, exactly in expectation; see
    `pycooldown.huggingface.lengths` for the formula. `pycooldown.huggingface.arguments` lists which arguments of
    Trainer are honoured, by whom, and which are refused.

    Args:
        model: A model that `fuse_loss` accepts. It stays fused. A model that is fused already keeps its z-loss and
            label smoothing.
        args: With ``max_steps`` > 0; ``data_seed`` (or else ``seed``) decides the order of samples.
        schedule: The mixture at each step, or a function of {domain: size} that returns it.
        train_dataset: Map-style datasets by domain, a `datasets.Dataset` with ``domain_column``, a list of datasets in
            the order of the schedule's domains, or one with the domains laid end to end in this order.
        data_collator: Makes the model's inputs and ``labels`` (N, T) from samples; -100 marks tokens without a
            loss. It may also return ``domain_ids`` (N, T), for rows that hold samples of several domains.
        eval_dataset: A map-style dataset for each domain to be evaluated, by name, or one without domains.
        allocation: How a batch's samples are distributed over domains, see `pycooldown.DomainBatchSampler`.
        stop: Train one pass that ends by this rule, see `pycooldown.DomainBatchSampler`. It sets ``args.max_steps``.
        domain_column: The column of a `datasets.Dataset` that names each sample's domain.
        mixture_unit: Whether the mixture's target counts "samples" or "tokens".
        tokens_per_sample: Mean tokens with a loss in a sample, by domain, for a mixture of tokens; by default they
            are measured on up to 256 samples of each domain.
        allow_non_finite_loss: Whether to continue if a loss is not finite.
        reference_model: The model over whose losses DoReMi takes the excess.
        probe: Examples kept out of training, for the schedules that learn from them.
        **kwargs: Further arguments of Trainer.

    Raises:
        ValueError: For arguments that contradict each other or cannot be honoured, with the way to fix them.
    """

    def __init__(
        self,
        model: torch.nn.Module | None = None,
        args: TrainingArguments | None = None,
        *,
        schedule: Schedule | Callable[[dict[str, int]], Schedule],
        train_dataset: Any,
        data_collator: Any = None,
        eval_dataset: Any = None,
        allocation: AllocationName = "multinomial",
        stop: StopRule | None = None,
        domain_column: str | None = None,
        mixture_unit: Literal["samples", "tokens"] = "samples",
        tokens_per_sample: Mapping[str, float] | None = None,
        allow_non_finite_loss: bool = False,
        reference_model: torch.nn.Module | None = None,
        probe: Probe | None = None,
        **kwargs: Any,
    ) -> None:
        if args is None:
            raise ValueError("args is missing; expected TrainingArguments with max_steps")
        check_unit(mixture_unit, tokens_per_sample)
        parts = by_domain(train_dataset, domain_column)
        source = train_dataset if parts is None else EndToEnd(parts)
        self.schedule = resolve(schedule, known_sizes(source))
        check_schedule(self.schedule)
        first = self.schedule.mixture(0)
        source = lay_out(source, first.domains)
        check_sizes(source, first)
        named = eval_dataset if isinstance(eval_dataset, Mapping) else None
        if stop is not None:
            check_max_steps(args, stop, new_sampler(args, self.schedule, allocation, stop).num_steps)
        generates = isinstance(self, Seq2SeqTrainer)
        check_arguments(args, first, named, {**kwargs, "model": model}, generates=generates)
        self.domains = first.domains
        self.domain_column = domain_column
        self.allocation, self.stop = allocation, stop
        self.mixture_unit = mixture_unit
        self.allow_non_finite_loss = allow_non_finite_loss
        self._changes = []
        self._names, self.domain_values = {}, {}
        self._learner = self._lengths = None
        if data_collator is not None:
            kwargs["data_collator"] = data_collator
        train_dataset = self._for_trainer(source)
        super().__init__(model=model, args=args, train_dataset=train_dataset, eval_dataset=eval_dataset, **kwargs)

        # Trainer's own loss, label smoother and division by micro-batches must not change the mixture's loss.
        self.loss_is_scaled_for_ga = self.model_accepts_loss_kwargs = True
        self.label_smoother, self.label_names = None, ["labels"]
        if any(type(callback) is ProgressCallback for callback in self.callback_handler.callbacks):
            self.remove_callback(ProgressCallback)
            self.add_callback(MixtureProgress)
        self._fuse(self.model)
        self.data_collator = WithDomains.collator(self.data_collator)
        source = self._of_trainer(source)
        if isinstance(source, EndToEnd):
            self.schedule = resolve(schedule, source.sizes)  # preparation may have changed the sizes
            first = self.schedule.mixture(0)
            check_sizes(source, first)
            source = EndToEnd({name: self._model_columns(part) for name, part in source.datasets.items()})
        self.train_dataset = WithDomains(self._model_columns(source), first.sizes)
        self.eval_dataset = self._evaluation_set(self.eval_dataset)
        self._try_packing()
        self.sampler = self._new_sampler()
        self._follow_stop()
        self.sums = DomainSums(self.domains, self.accelerator)
        if tokens_per_sample is not None:
            self._lengths = given_lengths(tokens_per_sample, first)
        elif mixture_unit == "tokens":
            self._lengths = measure_lengths(self.train_dataset, first, self.data_collator, self._targets)
        if isinstance(self.schedule, AdaptiveSchedule):
            check_learning(args, self.schedule, reference_model, allocation)
            self._untrained = self.schedule.state_dict()
            self._learner = Learner(self.schedule, len(self.domains), self.accelerator, reference_model, probe)
            self.callback_handler.callbacks.insert(0, self._learner)  # before other callbacks read the schedule

    def train(self, resume_from_checkpoint: str | bool | None = None, trial: Any = None, **kwargs: Any) -> TrainOutput:
        """Train, from the start or from a checkpoint.

        Args:
            resume_from_checkpoint: A checkpoint, or ``True`` for the newest complete one in ``args.output_dir``.
                Newer ones that are damaged, or were not finished when their process died, are skipped with a
                warning.
            trial: A trial of a hyper-parameter search; these are refused.
            **kwargs: Further arguments of `Trainer.train`.

        Raises:
            ValueError: If there is no complete checkpoint, or it belongs to another mixture; the message names the
                difference.
            FloatingPointError: If a loss is not finite, unless that is allowed.
        """
        if trial is not None:
            refuse_method("hyperparameter_search")
        if self._learner is not None:
            self._learner.schedule.load_state_dict(self._untrained)
        checkpoint: str | None = None
        state: dict[str, Any] = {}
        if resume_from_checkpoint:
            path = None if resume_from_checkpoint is True else str(resume_from_checkpoint)
            checkpoint, state = agree_on_checkpoint(self.args, path)
            unnumber_cpu(self.args)
            try:
                self.sampler = self._new_sampler(state)
            except ValueError as error:
                raise ValueError(f"cannot resume from {checkpoint}: {error}") from error
        else:
            self.sampler = self._new_sampler()
        self.sums = DomainSums(self.domains, self.accelerator, state.get("tokens"))
        self._watch_clipping()
        output: TrainOutput = super().train(resume_from_checkpoint=checkpoint, **kwargs)
        self._check_finite(output.training_loss)
        return output

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return this rank's micro-batches, which Accelerate does not shard again."""
        micro_batches = MicroBatches(self.sampler, self.args.gradient_accumulation_steps, seed=self.args.seed)
        return load(self.train_dataset, micro_batches, self.data_collator, self.args)

    def call_model_init(self, trial: Any = None) -> torch.nn.Module:
        """Return a new model from ``model_init``, with its loss fused."""
        model: torch.nn.Module = super().call_model_init(trial)
        self._fuse(model)
        return model

    def hyperparameter_search(self, *args: Any, **kwargs: Any) -> Any:
        """Raise NotImplementedError, because each trial needs its own schedule and checkpoints."""
        refuse_method("hyperparameter_search")

    def _for_trainer(self, source: Any) -> Any:
        """Return the ``train_dataset`` of the base trainer."""
        return source

    def _of_trainer(self, source: Any) -> Any:
        """Return the training data as prepared by the base trainer."""
        return source

    def _fuse(self, model: torch.nn.Module) -> None:
        """Fuse a model's loss, unless the user or another trainer has fused it already."""
        self.fused = fused_loss_of(model) or fuse_loss(model)
        self._prefix, self._count_is_checked = ignored_prefix(model), False
        factor, own = self.args.label_smoothing_factor, self.fused.label_smoothing
        if factor and own and factor != own:
            raise ValueError(
                f"label_smoothing_factor = {factor}, but the model is fused with label_smoothing = {own}; leave one out"
            )

    def _try_packing(self) -> None:
        """If the collator returns position_ids, test whether the model keeps documents in one row apart."""
        ends, few = self.train_dataset.ends.tolist(), []
        for begin, end in list(zip([0, *ends], ends))[:_TRIED]:
            few += sorted({begin, (begin + end - 1) // 2})
        with torch.random.fork_rng([]):
            batch = self.data_collator(self.train_dataset.__getitems__(few))
        positions, config = batch.get("position_ids"), getattr(inner_model(self.model), "config", None)
        if positions is not None and not getattr(config, "is_encoder_decoder", False):
            self._leak = leak(self.model)
            for_packed(batch, self._leak)  # raises

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Write the checkpoint and then, once it is complete, the data state that seals it."""
        self._check_finite()
        folder = f"{self._get_output_dir(trial)}/checkpoint-{self.state.global_step}"
        if self.args.should_save:
            unseal(folder)
        super()._save_checkpoint(model, trial)
        tokens = self.sums.tokens()
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            learned = {} if self._learner is None else {"learned": self._learner.schedule.state_dict()}
            state = self.sampler.state_dict(self.state.global_step) | learned | {"tokens": tokens}
            seal(folder, state, model_only=self.args.save_only_model)


class MixtureTrainer(MixtureTrainerMixin, Trainer):  # type: ignore[misc]
    """A Trainer for causal and encoder-decoder models whose batches and loss weights come from a mixture.

    See `MixtureTrainerMixin` for its arguments and what it does.
    """
