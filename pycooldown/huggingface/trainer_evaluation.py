"""The trainer's evaluation: Trainer's own loop, with exact losses of each domain in addition to its metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader

from pycooldown.huggingface.batches import EvaluationBatches
from pycooldown.huggingface.document_attention import for_packed
from pycooldown.huggingface.fused_forward import LossOutput
from pycooldown.huggingface.sources import names_of_rows
from pycooldown.huggingface.statistics import DomainSums
from pycooldown.huggingface.trainer_loss import Inputs, LossPart


@dataclass
class _Evaluation:
    """The state of one evaluation.

    Attributes:
        sums: Losses and tokens of the domains and, last, of samples without a domain.
        domain_ids: Domain ids of the current batch.
        loss_only: Whether the current batch needs no logits.
        counted: Whether the losses of the current batch are in the sums.
    """

    sums: DomainSums
    domain_ids: torch.Tensor | None = None
    loss_only: bool = True
    counted: bool = False


class EvaluationPart(LossPart):
    """Evaluation and prediction, one part of `MixtureTrainerMixin`."""

    domains: tuple[str, ...]
    domain_column: str | None
    allow_non_finite_loss: bool
    _evaluation: _Evaluation | None = None

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval", **kw: Any
    ) -> dict[str, float]:
        """Return the mean loss per token, unweighted and without label smoothing, and Trainer's metrics.

        Args:
            eval_dataset: Datasets by domain, or a dataset without domains; by default the trainer's own.
            ignore_keys: Keys of the model's output that are no predictions.
            metric_key_prefix: Prefix of the metrics' names.
            **kw: Generation options of `Seq2SeqTrainer`.

        Returns:
            ``{prefix}_loss`` and ``{prefix}_loss/{domain}``, in nats, and the results of ``compute_metrics``.

        Raises:
            ValueError: If there is nothing to evaluate.
            FloatingPointError: If a loss is not finite, unless that is allowed.
        """
        if eval_dataset is None and self.eval_dataset is None:
            raise ValueError("eval_dataset is missing; pass a dataset, or {domain: dataset}")
        metrics: dict[str, float] = super().evaluate(
            self._evaluation_set(eval_dataset), ignore_keys=ignore_keys, metric_key_prefix=metric_key_prefix, **kw
        )
        return metrics

    def predict(
        self, test_dataset: Any, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test", **kw: Any
    ) -> Any:
        """Return predictions, labels and metrics, as Trainer does, for a dataset or for datasets by domain.

        Predictions are in the order of the samples: of the dataset, or of the datasets one after another.
        """
        dataset = self._evaluation_set(test_dataset)
        return super().predict(dataset, ignore_keys=ignore_keys, metric_key_prefix=metric_key_prefix, **kw)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Return Trainer's loader of a dataset, or of datasets by domain."""
        loader: DataLoader[Any] = super().get_eval_dataloader(self._evaluation_set(eval_dataset))
        return loader

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """Run Trainer's loop, and replace its mean over batches by exact means over tokens."""
        was_training, outer = self.model.training, self._evaluation
        sums = DomainSums((*self.domains, "(no domain)"), self.accelerator)
        self._evaluation = _Evaluation(sums)
        try:
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        finally:
            self._evaluation = outer
            self.model.train(was_training)
        if not self.allow_non_finite_loss:
            sums.check_finite()
        seen = sums.take()
        if seen.mean is not None:
            output.metrics[f"{metric_key_prefix}_loss"] = seen.mean
            for domain, count, mean in zip(self.domains, seen.tokens.tolist(), seen.means.tolist(), strict=False):
                if count:
                    output.metrics[f"{metric_key_prefix}_loss/{domain}"] = mean
        return output

    def prediction_step(
        self,
        model: torch.nn.Module,
        inputs: Inputs,
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
        **kw: Any,
    ) -> tuple[Any, Any, Any]:
        """Return loss, predictions and labels of a batch, as Trainer does, and add its losses to the domains' sums."""
        batch = self._evaluation or _Evaluation(DomainSums((*self.domains, "(no domain)"), self.accelerator))
        inputs = dict(self._prepare_inputs(inputs))
        batch.domain_ids = inputs.pop("domain_ids", None)  # generation does not accept this input
        batch.loss_only, batch.counted = prediction_loss_only, False
        result: tuple[Any, Any, Any] = super().prediction_step(
            model, inputs, prediction_loss_only, ignore_keys=ignore_keys, **kw
        )
        if inputs.get("labels") is not None and not batch.counted:  # a generating call does not compute the loss
            batch.loss_only = True
            with torch.no_grad(), self.compute_loss_context_manager():
                self._evaluation_loss(model, inputs)
        return result

    def _evaluation_loss(self, model: Any, inputs: Inputs) -> tuple[Any, Any]:
        options: Inputs
        batch = self._evaluation
        ids = inputs.get("domain_ids") if batch is None else batch.domain_ids
        if batch is None or inputs.get("labels") is None:
            options = {} if ids is None else {"domain_weights": torch.ones(len(self.domains), device=ids.device)}
            result: tuple[Any, Any] = self._loss_of_trainer(model, {**for_packed(inputs, self._leak), **options})
            return result
        labels = self._without_repeats(inputs["labels"])
        if ids is None:
            ids = torch.full((len(labels),), len(self.domains), device=labels.device)
        ones = torch.ones(len(self.domains) + 1, device=labels.device)
        options = {"domain_ids": ids, "skip_logits": batch.loss_only and not self.forms_logits}
        outputs = self._call(model, {**inputs, "labels": labels}, ones, **options)
        stats = torch.stack([outputs.domain_stats.loss_sum, outputs.domain_stats.token_count.double()])
        batch.sums.add(stats, step=self.state.global_step)
        batch.counted = True
        return outputs.loss, LossOutput(outputs.loss, outputs.logits)

    def _without_repeats(self, labels: torch.Tensor) -> torch.Tensor:
        """Return labels, with -100 for samples that Accelerate repeated to give all ranks a full batch."""
        state, size = self.accelerator.gradient_state, self.args.eval_batch_size
        repeats = self.accelerator.num_processes > 1 and self.args.accelerator_config.even_batches
        if not repeats or not state.end_of_dataloader or state.remainder <= 0:
            return labels
        real = state.remainder - self.accelerator.process_index * size
        if real >= size:
            return labels
        if len(labels) != size:
            raise ValueError(
                f"rows of shape {tuple(labels.shape)} hold {size} samples, some of which are repeated to fill the last "
                "batch, but it is not known which; evaluate with a collator that keeps one row per sample"
            )
        return torch.cat([labels[: max(real, 0)], torch.full_like(labels[max(real, 0) :], -100)])

    def _evaluation_set(self, dataset: Any) -> Any:
        """Return a dataset with domains, if a user passes datasets by domain; other datasets unchanged."""
        if dataset is None or isinstance(dataset, EvaluationBatches):
            return dataset
        if isinstance(dataset, str):
            raise ValueError(f"eval_dataset = {dataset!r}; expected a dataset, or datasets by domain")
        if isinstance(dataset, Mapping):
            parts = {str(name): self._model_columns(part) for name, part in dataset.items()}
            return EvaluationBatches.by_domain(parts, self.domains)
        column = self.domain_column
        if column is None or column not in (getattr(dataset, "column_names", None) or ()):
            return dataset
        return EvaluationBatches(self._model_columns(dataset), names_of_rows(dataset, column), self.domains)

    def _model_columns(self, dataset: Any) -> Any:
        """Return a `datasets.Dataset` without the columns that the model does not take; other datasets unchanged."""
        if not hasattr(dataset, "remove_columns"):
            return dataset
        dataset = self._remove_unused_columns(dataset, description="by domain")
        # The column of domains may have the name of an input, such as domain_ids.
        named = self.args.remove_unused_columns and self.domain_column in dataset.column_names
        return dataset.remove_columns(self.domain_column) if named else dataset

    def _get_collator_with_removed_columns(
        self, data_collator: Callable[..., Any], description: str | None = None
    ) -> Callable[..., Any]:
        """Return the collator itself: samples that are not rows of a `datasets.Dataset` keep all their fields."""
        return data_collator
