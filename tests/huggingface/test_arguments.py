"""The table of Trainer's arguments and methods is complete for the installed transformers, and true."""

import ast
import dataclasses
import inspect
import textwrap

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from test_trainer import SIZES, collate, make_trainer, switching, tiny_model  # noqa: E402

from pycooldown.huggingface import MixtureTrainer  # noqa: E402
from pycooldown.huggingface.arguments import METHODS, OPTIONS, TRAINING_ARGUMENTS  # noqa: E402

torch.set_num_threads(1)

Trainer = transformers.Trainer


def fields():
    return {f.name for f in dataclasses.fields(transformers.Seq2SeqTrainingArguments) if f.init}


def public(kind):
    return {name for name in dir(kind) if not name.startswith("_")}


def test_the_table_has_all_that_the_installed_transformers_has():
    assert fields() - set(TRAINING_ARGUMENTS) == set()
    assert set(OPTIONS) == set(inspect.signature(Trainer.__init__).parameters) - {"self"}
    assert public(Trainer) - set(METHODS) == set()


def overridden(*, without_super):
    """Return the methods of Trainer that MixtureTrainer overrides, or only those that never call super()."""
    names = set()
    for kind in MixtureTrainer.__mro__[: MixtureTrainer.__mro__.index(Trainer)]:
        for name, function in vars(kind).items():
            if not (inspect.isfunction(function) and hasattr(Trainer, name)):
                continue
            tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
            calls = any(isinstance(node, ast.Name) and node.id == "super" for node in ast.walk(tree))
            if name == "compute_loss" or not (without_super and calls):
                names.add(name)
    return names


def test_the_table_says_which_methods_the_mixture_changes():
    mine = {name for name in overridden(without_super=False) if not name.startswith("_")}
    assert mine == {n for n, rule in METHODS.items() if rule.by != "trainer"} - {"loss_is_scaled_for_ga"}


def arguments_read(name):
    """Return the fields of ``self.args`` that a method of Trainer reads."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(getattr(Trainer, name))))
    attributes = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    return {
        node.attr
        for node in attributes
        if (isinstance(node.value, ast.Attribute) and node.value.attr == "args")
        or (isinstance(node.value, ast.Name) and node.value.id == "args")
    } & fields()


def test_replaced_methods_read_no_argument_that_is_left_to_trainer():
    lost = {(name, read) for name in overridden(without_super=True) for read in arguments_read(name)}
    assert lost  # some are replaced
    kept_elsewhere = {"n_gpu"}
    for name, read in lost:
        assert read in kept_elsewhere or TRAINING_ARGUMENTS[read].by != "trainer", (name, read)


REFUSED = {
    "max_steps": -1,
    "logging_strategy": "epoch",
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 1,
    "accelerator_config": {"dispatch_batches": True},
    "dataloader_in_order": False,
    "train_sampling_strategy": "group_by_length",
    "length_column_name": "size",
    "label_names": ["targets"],
    "auto_find_batch_size": True,
    "sortish_sampler": True,
    "predict_with_generate": True,
    "liger_kernel_config": {"rope": True},
    "fsdp": True,  # refused on CPUs
    # Fields that only some versions of transformers have:
    "group_by_length": True,
    "include_tokens_per_second": True,
    "per_gpu_train_batch_size": 2,
    "per_gpu_eval_batch_size": 2,
    "past_index": 1,
    "jit_mode_eval": True,
    "use_legacy_prediction_loop": True,
    "ray_scope": "all",
    "mp_parameters": None,
    # Fields whose refused values need more processes or packages than a test has:
    "average_tokens_across_devices": None,
    "parallelism_config": None,
    "use_liger_kernel": None,
}


def test_each_argument_that_can_be_refused_is_tried():
    assert {n for n, rule in TRAINING_ARGUMENTS.items() if rule.accepts} | {"predict_with_generate"} == set(REFUSED)


@pytest.mark.parametrize("name", [name for name, value in REFUSED.items() if value is not None and name in fields()])
def test_refused_arguments_say_why(tmp_path, name):
    kind = transformers.Seq2SeqTrainingArguments if name in ("sortish_sampler", "predict_with_generate") else None
    options = {"steps": REFUSED[name]} if name == "max_steps" else {name: REFUSED[name]}
    with pytest.raises(ValueError, match=rf"^{name} = .*; .*|^{name} = True, but this trainer does not generate"):
        make_trainer(tmp_path, switching(), evaluate=True, arguments_kind=kind, **options)


@pytest.mark.parametrize(
    ("name", "value", "args"),
    [
        ("average_tokens_across_devices", False, {"world_size": 2}),
        ("parallelism_config", type("Config", (), {"tp_size": 2}), {}),
        ("use_liger_kernel", True, {}),
    ],
)
def test_rules_for_several_processes(name, value, args):
    assert not TRAINING_ARGUMENTS[name].accepts(value, type("Arguments", (), args))


def test_refused_options_and_methods(tmp_path):
    class Sharded(transformers.LlamaForCausalLM):
        tp_size = 2

    with pytest.raises(ValueError, match=r"model = Sharded; it is sharded by tensor parallelism"):
        make_trainer(tmp_path, switching(), model=Sharded(tiny_model().config))
    with pytest.raises(ValueError, match=r"compute_loss_func = .*; the mixture computes the loss"):
        make_trainer(tmp_path, switching(), more={"compute_loss_func": len})
    trainer = make_trainer(tmp_path, switching())
    with pytest.raises(NotImplementedError, match=r"hyperparameter_search: each trial"):
        trainer.hyperparameter_search()
    with pytest.raises(NotImplementedError, match=r"hyperparameter_search: each trial"):
        trainer.train(trial={})


def test_arguments_of_a_newer_transformers_are_named_in_a_warning(tmp_path, monkeypatch):
    monkeypatch.delitem(TRAINING_ARGUMENTS, "weight_decay")
    with pytest.warns(UserWarning, match=r"weight_decay: this version of pycooldown does not know"):
        make_trainer(tmp_path, switching(), weight_decay=0.1)


HONOURED = {
    "compiled": {"torch_compile": True, "torch_compile_backend": "eager"},
    "checkpointed activations": {"gradient_checkpointing": True},
    "bfloat16": {"bf16": True, "bf16_full_eval": True},
    "workers": {"dataloader_num_workers": 1, "dataloader_persistent_workers": True, "dataloader_prefetch_factor": 1},
    "forked workers": {"dataloader_num_workers": 1, "dataloader_multiprocessing_context": "fork"},
    "non-blocking": {"accelerator_config": {"non_blocking": True}, "dataloader_pin_memory": True},
    "number of tokens": {"include_num_input_tokens_seen": "all"},
    "best model": {
        "save_strategy": "steps",
        "save_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss/small",
        "greater_is_better": False,
    },
}


@pytest.mark.parametrize("name", [name for name, options in HONOURED.items() if set(options) <= fields()])
def test_arguments_that_are_honoured_train_the_same(tmp_path, name):
    options = {"learning_rate": 0.0, "steps": 4, "evaluate": True}
    plain = make_trainer(tmp_path / "plain", switching(), **options)
    other = make_trainer(tmp_path / "other", switching(), **options, **HONOURED[name])
    history = []
    for trainer in (plain, other):
        trainer.train()
        logged = [entry for entry in trainer.state.log_history if "loss" in entry]
        history.append([entry["loss"] for entry in logged] + [trainer.evaluate()["eval_loss/big"]])
    assert history[1] == pytest.approx(history[0], rel=0.01 if name == "bfloat16" else 1e-5)
    if name == "best model":
        assert other.state.best_metric == pytest.approx(other.evaluate()["eval_loss/small"])
    if name == "number of tokens":
        assert logged[-1]["num_input_tokens_seen"] > 100
    if name == "bfloat16":
        assert next(other.model.parameters()).dtype == torch.bfloat16


def test_model_init_makes_the_model_that_is_trained(tmp_path):
    given = make_trainer(tmp_path, switching(), learning_rate=0.05)
    made = make_trainer(tmp_path, switching(), learning_rate=0.05, model=None, more={"model_init": tiny_model})
    for trainer in (given, made):
        trainer.train()
    for name, value in given.model.state_dict().items():
        assert torch.equal(value, made.model.state_dict()[name])


def test_public_methods_of_trainer_work(tmp_path):
    trainer = make_trainer(tmp_path, switching(), evaluate=True)
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    output = trainer.train()
    trainer.save_metrics("train", output.metrics)
    trainer.log_metrics("train", output.metrics)
    trainer.save_state()
    trainer.save_model()
    trainer.create_model_card()
    assert trainer.floating_point_ops(batch) > 0
    assert trainer.num_examples(trainer.get_train_dataloader()) == sum(SIZES.values())
    trainer.model.train()
    assert trainer.training_step(trainer.model, batch) > 0
    loss, outputs = trainer.compute_loss(trainer.model.eval(), batch, return_outputs=True)
    assert loss > 0
    assert outputs.logits.shape[:2] == batch["labels"].shape


def test_two_trainers_may_have_one_model(tmp_path):
    model = tiny_model()
    first = make_trainer(tmp_path, switching(), model=model, label_smoothing_factor=0.3, learning_rate=0.0)
    second = make_trainer(tmp_path, switching(), model=model, learning_rate=0.0)
    alone = make_trainer(tmp_path, switching(), learning_rate=0.0)
    for trainer in (first, second, alone):
        trainer.train()
    losses = [[e["loss"] for e in t.state.log_history if "loss" in e] for t in (first, second, alone)]
    assert losses[1] == losses[2]
    assert losses[0] != losses[2]


def test_collators_without_labels_are_named(tmp_path):
    trainer = make_trainer(tmp_path, switching(), collator=lambda rows: {"input_ids": collate(rows)["input_ids"]})
    with pytest.raises(ValueError, match=r"data_collator returns \['domain_ids', 'input_ids'\]; expected 'labels'"):
        trainer.train()
