"""A mixture for TRL's SFTTrainer, which computes the losses of tokens in its own output layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from pycooldown.huggingface.batches import EvaluationBatches
from pycooldown.huggingface.micro_batches import seed_micro_batch
from pycooldown.huggingface.output_layer import next_tokens
from pycooldown.huggingface.sources import EndToEnd, by_domain
from pycooldown.huggingface.statistics import DomainSums
from pycooldown.huggingface.trainer import MixtureTrainerMixin
from pycooldown.huggingface.trainer_loss import Inputs
from pycooldown.losses._statistics import sum_by_domain


class _CausalTargets:
    """A substitute for `FusedLoss` when TRL computes the loss of a causal model."""

    shifts = True
    label_smoothing = 0.0

    @staticmethod
    def targets(labels: torch.Tensor) -> torch.Tensor:
        return next_tokens(labels)


class _Weighted:
    """A model whose tokens' log-probabilities, from which SFTTrainer computes its loss, are multiplied by weights.

    Args:
        model: A model with TRL's fused output layer.
        weigh: Return the weights (N, T - 1) for the model's outputs.
    """

    def __init__(self, model: Any, weigh: Callable[[Any], torch.Tensor]) -> None:
        self._model = model
        self._weigh = weigh

    def __call__(self, *args: Any, **inputs: Any) -> Any:
        outputs = self._model(*args, **inputs)
        if inputs.get("fused_lm_head"):
            outputs.log_probs = outputs.log_probs * self._weigh(outputs)
        return outputs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


class MixtureSFTMixin(MixtureTrainerMixin):
    """A mixin that gives TRL's SFTTrainer batches and loss weights from a mixture. Put it before that class.

        class MixtureSFTTrainer(MixtureSFTMixin, trl.SFTTrainer): ...

    Each domain is tokenized and packed by itself, so every row belongs to one domain. Sizes are known only after that,
    so ``schedule`` should be a function of sizes. Entropy, accuracy and numbers of tokens are logged as by SFTTrainer.

    Args:
        *args: See `MixtureTrainerMixin`, whose other arguments are taken by name.
        **kwargs: These and further arguments of SFTTrainer. ``train_dataset`` is by domain, or has ``domain_column``.

    Raises:
        ValueError: For options that SFTTrainer's loss does not allow: methods that learn from a reference or probes,
            label smoothing, and ``loss_type`` other than "nll".
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        for name in ("reference_model", "probe"):
            if kwargs.get(name) is not None:
                raise ValueError(f"{name} is not supported with SFTTrainer; learn the mixture with MixtureTrainer")
        given: Any = kwargs.get("args", args[1] if len(args) > 1 else None)
        if getattr(kwargs.get("schedule"), "domain_means", False):
            raise ValueError(
                "the schedule averages the tokens of each domain, but SFTTrainer's loss does not; learn the mixture "
                "with MixtureTrainer"
            )
        if getattr(given, "loss_type", "nll") != "nll":
            raise ValueError(
                f"loss_type = {given.loss_type!r}; expected 'nll', because weights would change other losses"
            )
        if getattr(given, "label_smoothing_factor", 0.0):
            raise ValueError(f"label_smoothing_factor = {given.label_smoothing_factor}; expected 0 with SFTTrainer")
        column, evaluated = kwargs.get("domain_column"), kwargs.get("eval_dataset")
        if _has_column(evaluated, column):  # packing would drop the column
            kwargs["eval_dataset"] = by_domain(evaluated, column)
        self._raw: dict[str, Any] = {}
        self._prepared: dict[str, Any] = {}
        super().__init__(*args, **kwargs)

    def compute_loss(
        self, model: Any, inputs: Inputs, return_outputs: bool = False, num_items_in_batch: torch.Tensor | None = None
    ) -> Any:
        """Return SFTTrainer's loss, multiplied by the mixture's weights in training."""
        step, batch, training = self.state.global_step, self._evaluation, model.training
        inputs = dict(inputs)
        ids, labels = inputs.pop("domain_ids", None), inputs["labels"]
        if training:
            weights, divisor = self._loss_weights(step)
            seed_micro_batch(self.args.seed, step, self._micro_batch)
            self._micro_batch += 1
            count = (self._targets(inputs) != -100).sum() if num_items_in_batch is None else num_items_in_batch
            count = count if divisor is None else torch.tensor(divisor, device=labels.device)
            sums: DomainSums | None = self.sums
            real = labels
        else:
            ids = ids if batch is None else batch.domain_ids
            weights, count = torch.ones(len(self.domains) + 1, device=labels.device), None
            sums, real = None if batch is None else batch.sums, self._without_repeats(labels)
        if ids is None:
            ids = torch.full((len(labels),), len(self.domains), device=labels.device)

        def weigh(outputs: Any) -> torch.Tensor:
            domains = (ids if ids.shape == labels.shape else ids.unsqueeze(1).expand(labels.shape))[:, 1:]
            counted = outputs.label_mask & (real[:, 1:] != -100)
            losses = -(outputs.log_probs.detach() * counted)
            each = (sum_by_domain(values.flatten(), domains.flatten(), len(weights)) for values in (losses, counted))
            stats = torch.stack(list(each))
            if sums is not None:
                sums.add(stats, weights if training else None, step=step)
            if training and self._learner is not None:
                self._learner.add(stats)
            if batch is not None:
                batch.counted = True
            return weights[domains]

        return self._loss_of_trainer(_Weighted(model, weigh), inputs, return_outputs, count)

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """Tokenize and pack each domain by itself."""
        packed = "seq_lengths" in (getattr(dataset, "column_names", None) or ())
        if isinstance(dataset, EvaluationBatches) or packed:  # packed again, a row would become one document
            return dataset
        if dataset is not self._concatenated:
            return super()._prepare_dataset(dataset, *args, **kwargs)
        for name, part in self._raw.items():
            self._prepared[name] = super()._prepare_dataset(part, *args, **kwargs)
        return _concatenated(self._prepared)

    def _for_trainer(self, source: Any) -> Any:
        if not isinstance(source, EndToEnd):
            raise ValueError("SFTTrainer needs the datasets by domain; pass {domain: dataset}, or domain_column")
        self._raw, self._concatenated = source.datasets, _concatenated(source.datasets)
        return self._concatenated

    def _of_trainer(self, source: Any) -> Any:
        return EndToEnd(self._prepared) if self._prepared else source  # without preparation the source is used

    def _evaluation_set(self, dataset: Any) -> Any:
        packing = self.args.packing if self.args.eval_packing is None else self.args.eval_packing
        options = (self.processing_class, self.args, packing, self._formatting_func)
        column = self.domain_column if _has_column(dataset, self.domain_column) else None
        if isinstance(dataset, (EvaluationBatches, str)) or self._skip_prepare_dataset:
            pass
        elif column is not None and not packing and "input_ids" not in dataset.column_names:
            dataset = self._prepare_dataset(dataset, *options, "eval")  # keeps the column, and the order
        elif (column is not None and packing) or isinstance(dataset, Mapping):
            parts = by_domain(dataset, column) or {}
            dataset = {name: self._prepare_dataset(part, *options, name) for name, part in parts.items()}
        return super()._evaluation_set(dataset)

    def _fuse(self, model: torch.nn.Module) -> None:
        self.fused: Any = _CausalTargets()  # the output layer is TRL's


def _has_column(dataset: Any, column: str | None) -> bool:
    """Return whether this is one `datasets.Dataset` with a column of domains."""
    return column is not None and not isinstance(dataset, Mapping) and column in getattr(dataset, "column_names", ())


def _concatenated(parts: dict[str, Any]) -> Any:
    from datasets import concatenate_datasets

    return concatenate_datasets(list(parts.values()))
