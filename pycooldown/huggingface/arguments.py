"""Every argument and public method of Trainer, and who honours it: Trainer itself, the mixture, or nobody.

The trainer uses this table to refuse arguments that nobody honours, so no argument is ignored silently. The table lists
the arguments of all supported versions of transformers. A test compares it with the installed version.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from transformers import Seq2SeqTrainingArguments, TrainingArguments


@dataclass(frozen=True)
class Rule:
    """Who honours an argument.

    Attributes:
        by: "trainer": Trainer's own code, which the mixture leaves alone; "mixture": this package; "refused": nobody.
        note: How the argument is honoured, or why it is not.
        accepts: Return whether a value can be honoured. None if all values can, or if the argument is always refused.
    """

    by: Literal["trainer", "mixture", "refused"]
    note: str = ""
    accepts: Callable[[Any, TrainingArguments], bool] | None = None


def _among(*values: Any) -> Callable[[Any, TrainingArguments], bool]:
    return lambda value, args: str(getattr(value, "value", value)) in map(str, values)


def _no_sharded_batch(value: Any, args: TrainingArguments) -> bool:
    return all((getattr(value, f"{kind}_size", None) or 1) == 1 for kind in ("tp", "cp", "sp", "ep"))


def _no_split(value: Any, args: TrainingArguments) -> bool:
    return not (value.split_batches or value.dispatch_batches) and value.use_seedable_sampler is not False


def _each(names: str, rule: Rule) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


_TRAINER = Rule("trainer")
_ORDER = "the schedule and the seed decide which samples a batch holds; leave it at its default"
_NO_EPOCH = Rule("mixture", "a mixture has no single epoch; expected 'steps' or 'no'", _among("no", "steps", "best"))

TRAINING_ARGUMENTS: dict[str, Rule] = {
    **_each(
        """output_dir learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps optim optim_args weight_decay
        adam_beta1 adam_beta2 adam_epsilon optim_target_modules max_grad_norm bf16 fp16 bf16_full_eval fp16_full_eval
        tf32 activation_checkpointing activation_checkpointing_kwargs gradient_checkpointing
        gradient_checkpointing_kwargs torch_compile torch_compile_backend torch_compile_mode use_cache
        neftune_noise_alpha torch_empty_cache_steps logging_steps logging_first_step log_on_each_node
        logging_nan_inf_filter include_num_input_tokens_seen log_level log_level_replica report_to run_name project
        trackio_space_id trackio_bucket_id trackio_static_space_id eval_steps eval_delay per_device_eval_batch_size
        prediction_loss_only eval_on_start eval_do_concat_batches eval_use_gather_object eval_accumulation_steps
        include_for_metrics batch_eval_metrics save_steps save_on_each_node enable_jit_checkpoint push_to_hub hub_token
        hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision load_best_model_at_end
        metric_for_best_model greater_is_better restore_callback_states_from_checkpoint full_determinism
        ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout
        fsdp_config deepspeed debug skip_memory_metrics""",
        _TRAINER,
    ),
    **dict.fromkeys(
        ["do_train", "do_eval", "do_predict", "resume_from_checkpoint", "local_rank"],
        Rule("trainer", "for scripts; Trainer does not read it"),
    ),
    "num_train_epochs": Rule("trainer", "max_steps, which is required, overrides it"),
    "logging_strategy": _NO_EPOCH,
    "eval_strategy": _NO_EPOCH,
    "save_strategy": _NO_EPOCH,
    "max_steps": Rule("mixture", "a mixture has no single epoch; expected a number > 0", lambda n, args: n > 0),
    "per_device_train_batch_size": Rule("mixture", "a part of the global batch, which is planned as one"),
    "gradient_accumulation_steps": Rule("mixture", "the parts into which a rank's share of the global batch is cut"),
    "average_tokens_across_devices": Rule(
        "mixture",
        "the loss is a mean over the tokens of the global batch, on all ranks; leave it True",
        lambda value, args: value or args.world_size == 1,
    ),
    "label_smoothing_factor": Rule("mixture", "in training"),
    "disable_tqdm": Rule("mixture", "the bar shows loss and temperature"),
    "save_only_model": Rule("mixture", "training cannot resume from such checkpoints"),
    "save_total_limit": Rule(
        "mixture",
        "expected at least 2, or None: an older checkpoint is removed before the newer one is known to be complete",
        lambda value, args: value is None or value >= 2,
    ),
    "ignore_data_skip": Rule("mixture", "always set to True: the loader itself continues from the right place"),
    "seed": Rule("mixture", "also seeds the dropout of each micro-batch"),
    "data_seed": Rule("mixture", "seeds the order of samples"),
    "use_cpu": Rule("mixture", "needed for several processes on CPUs"),
    "remove_unused_columns": Rule("mixture", "applies to a datasets.Dataset; collators get other samples whole"),
    "dataloader_drop_last": Rule("mixture", "in evaluation; training has no smaller last batch"),
    **_each(
        """dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor
        dataloader_multiprocessing_context""",
        Rule("mixture", "applies to the training loader too"),
    ),
    "fsdp": Rule(
        "trainer",
        "on CPUs Accelerate ignores it without a warning; leave it out, or shard the model in your own training loop",
        lambda value, args: not value or args.device.type != "cpu",
    ),
    "accelerator_config": Rule(
        "mixture",
        "the mixture slices batches by rank itself; expected split_batches=False, dispatch_batches=None and "
        "use_seedable_sampler=True",
        _no_split,
    ),
    "parallelism_config": Rule(
        "mixture",
        "the ranks of a tensor-, context- or expert-parallel group would get different samples; use data parallelism "
        "alone",
        _no_sharded_batch,
    ),
    "dataloader_in_order": Rule("mixture", "micro-batches are planned for their step; leave it True", _among(True)),
    "train_sampling_strategy": Rule("refused", _ORDER, _among("random")),
    "length_column_name": Rule("refused", _ORDER, _among("length")),
    "label_names": Rule(
        "refused",
        "the loss is computed from 'labels'; have the data_collator use this name",
        _among(None, ["labels"]),
    ),
    "auto_find_batch_size": Rule(
        "refused", "it would change the mixture's batches; set the batch size and leave it off", _among(False)
    ),
    "use_liger_kernel": Rule("refused", "its forward pass would replace the fused loss; leave it off", _among(False)),
    "liger_kernel_config": Rule("refused", "use_liger_kernel is refused", _among(None)),
    # Arguments of Seq2SeqTrainingArguments.
    "sortish_sampler": Rule("refused", _ORDER, _among(False)),
    # Arguments of transformers before 5.15.
    **_each(
        """warmup_ratio logging_dir no_cuda use_mps_device fp16_backend half_precision_backend fp16_opt_level adafactor
        torchdynamo tpu_num_cores tpu_metrics_debug fsdp_min_num_params fsdp_transformer_layer_cls_to_wrap
        include_inputs_for_metrics push_to_hub_model_id push_to_hub_organization push_to_hub_token""",
        _TRAINER,
    ),
    "overwrite_output_dir": Rule("trainer", "for scripts; Trainer does not read it"),
    "save_safetensors": Rule("trainer", "in the checkpoint of a model"),
    "group_by_length": Rule("refused", _ORDER, _among(False)),
    "include_tokens_per_second": Rule(
        "refused",
        "it reads all data before training; logs have tokens by domain, and include_num_input_tokens_seen counts them",
        _among(False),
    ),
    "per_gpu_train_batch_size": Rule("refused", "set per_device_train_batch_size", _among(None)),
    "per_gpu_eval_batch_size": Rule("refused", "set per_device_eval_batch_size", _among(None)),
    "past_index": Rule("refused", "the mixture's loss does not pass hidden states on; leave it at -1", _among(-1)),
    "jit_mode_eval": Rule("refused", "a traced model has no fused loss; leave it off", _among(False)),
    "use_legacy_prediction_loop": Rule("refused", "it does not sum losses by domain; leave it off", _among(False)),
    "mp_parameters": Rule("refused", "its processes would get different samples; leave it out", _among("")),
    "ray_scope": Rule("refused", "belongs to hyperparameter_search, which is refused", _among("last")),
    "generation_max_length": _TRAINER,
    "generation_num_beams": _TRAINER,
    "generation_config": _TRAINER,
    "predict_with_generate": _TRAINER,
}

OPTIONS: dict[str, Rule] = {
    **dict.fromkeys(["args", "data_collator", "train_dataset", "eval_dataset"], Rule("mixture")),
    "model": Rule(
        "mixture",
        "it is sharded by tensor parallelism, whose ranks would get different samples; use data parallelism alone",
        lambda model, args: (getattr(model, "tp_size", None) or 1) == 1,
    ),
    **_each(
        """processing_class compute_metrics callbacks optimizers optimizer_cls_and_kwargs
        preprocess_logits_for_metrics""",
        _TRAINER,
    ),
    "model_init": Rule("mixture", "each model that it makes is fused"),
    "compute_loss_func": Rule(
        "refused",
        "the mixture computes the loss; change the model's loss, or override compute_loss",
        lambda value, args: value is None,
    ),
}

METHODS: dict[str, Rule] = {
    **_each(
        """autocast_smart_context_manager compute_loss_context_manager create_accelerator_and_postprocess
        create_model_card create_optimizer create_optimizer_and_scheduler create_scheduler end floating_point_ops
        get_cp_size get_decay_parameter_names get_learning_rates get_num_trainable_parameters
        get_optimizer_cls_and_kwargs get_optimizer_group get_sp_size get_test_dataloader get_total_train_batch_size
        get_tp_size init_hf_repo propagate_args_to_deepspeed compare_trainer_and_checkpoint_args tokenizer
        is_local_process_zero is_world_process_zero log_metrics metrics_format num_examples
        pop_callback push_to_hub remove_callback save_metrics save_model save_state set_initial_training_values
        store_flos training_step""",
        _TRAINER,
    ),
    **_each(
        """add_callback call_model_init compute_loss evaluate evaluation_loop get_batch_samples get_eval_dataloader
        get_train_dataloader log predict prediction_step train""",
        Rule("mixture"),
    ),
    "loss_is_scaled_for_ga": Rule("mixture", "set"),
    **dict.fromkeys(
        ["num_tokens", "prediction_loop", "torch_jit_model_eval"],
        Rule("trainer", "used before version 5.5, for arguments that are refused"),
    ),
    "hyperparameter_search": Rule(
        "refused", "each trial needs its own schedule and checkpoints; make one trainer per trial"
    ),
}


def refuse(args: TrainingArguments, options: Mapping[str, Any], *, generates: bool) -> None:
    """Raise ValueError for the first argument that cannot be honoured; warn about arguments missing from the table.

    Args:
        args: The trainer's arguments.
        options: Further arguments of ``Trainer.__init__``.
        generates: Whether the trainer is a Seq2SeqTrainer.
    """
    unknown = []
    of_transformers = {
        f.name for kind in (TrainingArguments, Seq2SeqTrainingArguments) for f in dataclasses.fields(kind)
    }
    for field in dataclasses.fields(args):
        if not field.init or field.name not in of_transformers:  # a subclass checks the arguments that it adds
            continue
        value = getattr(args, field.name)
        if field.name not in TRAINING_ARGUMENTS:
            unknown += [field.name] if value != field.default and field.default is not dataclasses.MISSING else []
            continue
        _check(field.name, value, TRAINING_ARGUMENTS[field.name], args)
    if getattr(args, "predict_with_generate", False) and not generates:
        raise ValueError(
            "predict_with_generate = True, but this trainer does not generate; derive yours from MixtureTrainerMixin "
            "and transformers.Seq2SeqTrainer, in this order"
        )
    for name, value in options.items():
        if name in OPTIONS:
            _check(name, value, OPTIONS[name], args)
    if unknown:
        warnings.warn(
            f"{', '.join(unknown)}: this version of pycooldown does not know these arguments of transformers and "
            "leaves them to Trainer",
            stacklevel=4,
        )


def refuse_method(name: str) -> None:
    """Raise NotImplementedError for a method that is refused."""
    raise NotImplementedError(f"{name}: {METHODS[name].note}")


def _check(name: str, value: Any, rule: Rule, args: TrainingArguments) -> None:
    if rule.accepts is not None and not (value is None and rule.by == "mixture") and not rule.accepts(value, args):
        shown = type(value).__name__ if name in OPTIONS else repr(value)
        raise ValueError(f"{name} = {shown}; {rule.note}")
