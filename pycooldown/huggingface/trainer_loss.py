"""The trainer's loss: the weights of a step's mixture, applied over its whole global batch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from accelerate.utils import send_to_device

from pycooldown.huggingface.document_attention import for_packed
from pycooldown.huggingface.fused_forward import FusedLoss
from pycooldown.huggingface.learning import Learner
from pycooldown.huggingface.lengths import token_weights
from pycooldown.huggingface.micro_batches import seed_micro_batch
from pycooldown.huggingface.statistics import DomainSums
from pycooldown.mixture import Mixture, Vector
from pycooldown.sampling.sampler import DomainBatchSampler

if TYPE_CHECKING:
    from transformers import Trainer as Base
else:
    Base = object

Inputs = dict[str, Any]


class LossPart(Base):  # type: ignore[misc]
    """The loss of a micro-batch, one part of `MixtureTrainerMixin`."""

    forms_logits = False  # for trainers whose metrics read the logits in training
    fused: FusedLoss
    sampler: DomainBatchSampler
    sums: DomainSums
    _learner: Learner | None
    _lengths: Vector | None  # tokens of a sample, of a mixture of tokens
    _weights: tuple[Mixture, int, torch.Tensor, float | None] | None = None
    _leak: str | None = None  # how the model confuses documents in one row
    _prefix = 0  # ignored labels that a wrapper puts before those of each row
    _count_is_checked = False
    _micro_batch = 0  # place of the next one in the global batch

    def get_batch_samples(
        self, epoch_iterator: Iterator[Inputs], num_batches: int, device: torch.device
    ) -> tuple[list[Inputs], torch.Tensor | None]:
        """Return the micro-batches of one optimizer step and the number of valid tokens in its global batch.

        The number is () int64, or (K,) by domain for schedules with ``domain_means``.
        """
        batches = list(itertools.islice(epoch_iterator, num_batches))
        if not batches:
            return batches, None
        if self.args.accelerator_config.non_blocking:
            batches = [send_to_device(batch, device, non_blocking=True) for batch in batches]
        self._micro_batch = self.args.process_index * len(batches)
        count = torch.stack([self._count(batch) for batch in batches]).sum(dim=0).to(device)
        return batches, self.accelerator.reduce(count, "sum")

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: Inputs,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> Any:
        """Return this micro-batch's part of its global batch's loss; in evaluation, the mean loss per token.

        Args:
            model: A model whose loss is fused.
            inputs: The model's inputs, with ``labels`` (N, T) and, in training, ``domain_ids`` (N,) or (N, T).
            return_outputs: Whether to return the model's outputs too.
            num_items_in_batch: As returned by `get_batch_samples`; by default the number in these inputs.
        """
        if not model.training:
            loss, outputs = self._evaluation_loss(model, inputs)
        else:
            loss, outputs = self._training_loss(model, inputs, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _training_loss(self, model: torch.nn.Module, inputs: Inputs, count: torch.Tensor | None) -> tuple[Any, Any]:
        # Trainer fetches the micro-batches of a step and trains on all of them before it counts the step. So the
        # current step is the one they were planned for, however far the loader has read ahead.
        step = self.state.global_step
        weights, divisor = self._loss_weights(step)
        seed_micro_batch(self.args.seed, step, self._micro_batch)
        self._micro_batch += 1
        if count is None:
            count = self._count(inputs)
        tokens = count.clamp(min=1) if divisor is None else divisor
        scaled = weights * self.accelerator.num_processes / tokens  # gradients are averaged over ranks
        learner = self._learner
        if learner is not None and learner.reference is not None:
            outputs = self._call(model, inputs, torch.ones_like(weights), reduction="none")
            ids = self.fused.domains_of_targets(self._labels(inputs), inputs["domain_ids"])
            learner.add_excess(outputs.loss.detach(), for_packed(inputs, self._leak), ids)
            loss, part = (outputs.loss * scaled[ids]).sum(), 0
        else:
            outputs = self._call(model, inputs, scaled, reduction="sum")
            loss, part = outputs.loss, 1
        if outputs.aux_loss is not None:  # a mean over micro-batches
            loss = loss + outputs.aux_loss * (1 / self.args.gradient_accumulation_steps - part)
        stats = torch.stack([outputs.domain_stats.loss_sum, outputs.domain_stats.token_count.double()])
        if not self._count_is_checked:
            self._check_count(inputs, int(stats[1].sum()))
        self.sums.add(stats, scaled if self._domain_means else weights, step=step)
        if learner is not None:
            learner.add(stats)
        return loss, outputs

    def _call(self, model: Any, inputs: Inputs, weights: torch.Tensor, **options: Any) -> Any:
        """Return the model's outputs with loss and domain_stats, through the base trainer's loss."""
        inputs = for_packed(inputs, self._leak)
        options = {"skip_logits": not self.forms_logits, **options, "domain_weights": weights, "return_stats": True}
        if self.args.label_smoothing_factor:
            options["label_smoothing"] = self.args.label_smoothing_factor
        loss, outputs = self._loss_of_trainer(model, {**inputs, **options})
        outputs["loss"] = loss
        return outputs

    def _loss_of_trainer(self, model: Any, inputs: Inputs, return_outputs: bool = True, count: Any = None) -> Any:
        """Return loss and outputs as the base trainer computes them; plain Trainer takes the model's own loss."""
        return super().compute_loss(model, inputs, return_outputs=return_outputs, num_items_in_batch=count)

    def _evaluation_loss(self, model: Any, inputs: Inputs) -> tuple[Any, Any]:
        raise NotImplementedError  # EvaluationPart implements it

    def _targets(self, inputs: Inputs) -> torch.Tensor:
        """Return the labels to be predicted, (N, T), -100 where there is none."""
        labels = self._labels(inputs)
        if self.fused.shifts and inputs.get("shift_labels") is not None:
            shifted: torch.Tensor = inputs["shift_labels"]
            return shifted
        return self.fused.targets(labels)

    def _labels(self, inputs: Inputs) -> torch.Tensor:
        """Return the labels (N, T) that reach the model inside its wrappers."""
        if "labels" not in inputs:
            raise ValueError(
                f"the data_collator returns {sorted(inputs)}; expected 'labels' (N, T) among them, with -100 where a "
                "token has no loss"
            )
        return F.pad(inputs["labels"], (self._prefix, 0), value=-100) if self._prefix else inputs["labels"]

    def _check_count(self, inputs: Inputs, seen: int) -> None:
        """Raise ValueError if a micro-batch's loss has other tokens than those counted before, which divide it."""
        counted = int((self._targets(inputs) != -100).sum())
        if counted != seen:
            raise ValueError(
                f"the labels of a micro-batch have {counted} tokens with a loss, but {type(self.model).__name__} "
                f"computes the loss of {seen}, so it changes the labels; let the data_collator set those to -100 that "
                "have no loss"
            )
        self._count_is_checked = True

    def _count(self, inputs: Inputs) -> torch.Tensor:
        """Return the number of tokens with a loss, (), or by domain (K,) if the loss averages each domain's tokens."""
        counted = self._targets(inputs) != -100
        if not self._domain_means:
            return counted.sum()
        ids = self.fused.domains_of_targets(self._labels(inputs), inputs["domain_ids"])
        return torch.bincount(ids[counted], minlength=len(self.sampler.domains))

    @property
    def _domain_means(self) -> bool:
        """Whether the loss is a weighted sum of the mean losses of each domain's tokens."""
        return bool(getattr(self.sampler.schedule, "domain_means", False))

    def _loss_weights(self, step: int) -> tuple[torch.Tensor, float | None]:
        """Return the weights (K,) of tokens' losses and the divisor of their sum, None for the number of tokens."""
        mixture, size = self.sampler.mixture(step), self.sampler.batch_size_at(step)
        if self._weights is None or self._weights[0] is not mixture or self._weights[1] != size:
            weights, length = self._weights_of(mixture)
            values = torch.as_tensor(weights, dtype=torch.float32)
            divisor = None if length is None else length * size
            self._weights = mixture, size, values.to(self.args.device), divisor
        return self._weights[2:]

    def _weights_of(self, mixture: Mixture) -> tuple[Vector, float | None]:
        """Return the weights (K,) and, for a mixture of tokens, the expected tokens of a sample; otherwise None."""
        if self._domain_means:  # independent of the lengths
            return mixture.target, None
        if self._lengths is None:
            return mixture.loss_weights, None
        return token_weights(mixture, self._lengths)
