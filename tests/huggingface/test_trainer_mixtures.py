"""MixtureTrainer mixes tokens or samples, packed rows and sources by domain, with experts and many domains."""

import json
import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from test_trainer import (  # noqa: E402
    AS_LOGGED,
    SIZES,
    VOCABULARY,
    Sequences,
    collate,
    losses,
    make_trainer,
    switching,
    tiny_model,
)

from pycooldown import DomainBatchSampler, Mixture, schedules  # noqa: E402
from pycooldown.adaptive import FGLS, DoReMi, LearnedSchedule  # noqa: E402
from pycooldown.huggingface import WithDomains, fuse_loss  # noqa: E402
from pycooldown.huggingface.trainer_logs import LOGGED_DOMAINS  # noqa: E402

torch.set_num_threads(1)

UNEVEN = {"long": 20, "short": 20}
HALF = Mixture(tuple(UNEVEN), np.array([20, 20]), np.array([0.5, 0.5]), np.array([0.5, 0.5]))
LENGTHS = {"long": 47.0, "short": 3.0}  # with equal shares of samples, 94 % of the tokens are of "long"


class Uneven(torch.utils.data.Dataset):
    """Samples with 46 to 48 tokens to predict in one domain, and 2 to 4 in the other."""

    def __len__(self):
        return 40

    def __getitem__(self, i):
        length = (47 if i < 20 else 3) + (0, 1, -1, 0)[i % 4]
        return [(i * k) % VOCABULARY for k in range(1, length + 2)]


def domain_means(indices=range(40)):
    """Return the mean loss of a token and the number of tokens of each domain."""
    model, sums = tiny_model().eval(), np.zeros((2, 2))
    for i in indices:
        row = torch.tensor([Uneven()[i]])
        with torch.no_grad():
            loss = float(model(row, labels=row).loss)
        sums[int(i >= 20)] += (loss * (row.shape[1] - 1), row.shape[1] - 1)
    return sums[:, 0] / sums[:, 1], sums[:, 1]


def uneven_trainer(path, mixture=HALF, **more):
    # 40 samples in 5 steps of 8, drawn by quota, are one pass through each domain.
    options = {"steps": 5, "batch_size": 8, "learning_rate": 0.0, "dataset": Uneven()}
    return make_trainer(path, schedules.constant(mixture), **options, more={"allocation": "quota", **more})


def test_the_share_of_tokens_of_a_mixture_of_samples_is_logged_and_warned_of(tmp_path):
    trainer = uneven_trainer(tmp_path)
    trainer.args.max_steps = 20
    with pytest.warns(UserWarning, match=r"'long' has 47 tokens on average, one of 'short' 3\. .*mixture_unit"):
        trainer.train()
    last = trainer.state.log_history[-2]
    assert (last["target/long"], last["target/short"]) == (0.5, 0.5)
    assert last["share/long"] == pytest.approx(0.94, abs=0.01)
    assert last["share/long"] + last["share/short"] == pytest.approx(1)


@pytest.mark.parametrize("given", [None, LENGTHS], ids=["measured", "given"])
@pytest.mark.parametrize("tau", [math.inf, 1.0], ids=["sampling", "weights"])
def test_a_mixture_of_tokens_has_the_objective_that_the_target_says(tmp_path, given, tau, recwarn):
    target = np.array([0.2, 0.8])
    sampling = target if tau == 1.0 else np.array([0.5, 0.5])
    mixture = Mixture(tuple(UNEVEN), np.array([20, 20]), target, sampling)
    trainer = uneven_trainer(tmp_path, mixture, mixture_unit="tokens", tokens_per_sample=given)
    trainer.train()
    assert not [w for w in recwarn if "tokens on average" in str(w.message)]
    means, tokens = domain_means()
    logged = losses(trainer)
    if tau == 1.0:  # domain 1 repeats samples, so each step is compared with the formula
        sampler = DomainBatchSampler(schedules.constant(mixture), batch_size=8, seed=42, allocation="quota")
        for step, loss in enumerate(logged):
            plan = sampler.plan(step)
            expected = 0.0
            for i, d in zip(plan.indices.tolist(), plan.domain_ids.tolist()):
                mean, count = domain_means([i])
                expected += mean[d] * count[d] / (47, 3)[d] / 8
            assert loss == pytest.approx(expected, **AS_LOGGED)
    else:  # one pass through all samples, whose mean is the expectation
        assert np.mean(logged) == pytest.approx((target * means).sum(), **AS_LOGGED)
        assert trainer.state.log_history[-2]["share/short"] == pytest.approx(0.8, abs=0.05)
    assert tokens.tolist() == [940, 60]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"mixture_unit": "bytes"}, "mixture_unit = 'bytes'; expected"),
        ({"tokens_per_sample": LENGTHS}, "tokens_per_sample has no effect on a mixture of samples"),
        ({"mixture_unit": "tokens", "tokens_per_sample": {"long": 47.0}}, "domain 'short' is only in one"),
        ({"mixture_unit": "tokens", "tokens_per_sample": {**LENGTHS, "short": 0.0}}, "'short' have 0 tokens"),
    ],
)
def test_units_that_do_not_fit_are_refused(tmp_path, more, message):
    with pytest.raises(ValueError, match=message):
        uneven_trainer(tmp_path, **more)


def pack(samples):
    """Pack all samples into one row, with the domain of each token. A sample's first token shows its domain."""
    tokens = [token for sample in samples for token in sample]
    labels = [label for sample in samples for label in (-100, *sample[1:])]
    ids = [d for s in samples for d in [int(np.searchsorted([40, 56], s[0], side="right"))] * len(s)]
    places = [place for sample in samples for place in range(len(sample))]
    rows = {"input_ids": tokens, "labels": labels, "domain_ids": ids, "position_ids": places}
    return {name: torch.tensor([values]) for name, values in rows.items()}


@pytest.mark.parametrize("reference", [False, True])
def test_packed_rows_keep_the_domain_of_each_token(tmp_path, reference):
    def schedule():
        start = Mixture.scalarization(SIZES, 5.0)
        return DoReMi(start, delay=1) if reference else schedules.constant(start)

    options = {"learning_rate": 0.0, "steps": 3, "batch_size": 6}
    more = {"reference_model": tiny_model()} if reference else {}
    packed = make_trainer(tmp_path, schedule(), collator=pack, more=more, **options)
    more = {"reference_model": tiny_model()} if reference else {}
    padded = make_trainer(tmp_path, schedule(), more=more, **options)
    for trainer in (packed, padded):
        trainer.train()
    assert losses(packed) == pytest.approx(losses(padded), **AS_LOGGED)
    assert packed.sums.tokens() == padded.sums.tokens()
    if reference:
        assert packed.schedule.state_dict()["learned"] == padded.schedule.state_dict()["learned"]


class Rows(Sequences):
    def __getitem__(self, index):
        return {"input_ids": super().__getitem__(index)}


def test_rows_of_a_padding_free_collator_get_the_domain_of_each_token(tmp_path):
    options = {"learning_rate": 0.0, "steps": 3}
    padded = make_trainer(tmp_path, switching(), **options)
    flat = transformers.DataCollatorWithFlattening()
    free = make_trainer(tmp_path, switching(), dataset=Rows(), collator=flat, **options)
    for trainer in (padded, free):
        trainer.train()
    assert losses(free) == pytest.approx(losses(padded), **AS_LOGGED)
    assert free.sums.tokens() == padded.sums.tokens()
    with pytest.raises(ValueError, match=r"rows of shape \(1, \d+\) of \d+ samples, so that the domains of tokens"):
        make_trainer(tmp_path, switching(), dataset=Rows(), collator=lambda rows: flat(rows[:-1]), **options)


def mixed_experts():
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=4,
        use_cache=False,
        output_router_logits=True,
        router_aux_loss_coef=0.5,
    )
    return transformers.MixtralForCausalLM(config)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_experts_are_balanced_once_a_step(tmp_path, accumulation):
    options = {"learning_rate": 0.0, "steps": 2, "accumulation": accumulation, "model": mixed_experts}
    trainer = make_trainer(tmp_path, schedules.constant(Mixture.proportional(SIZES)), **options)
    trainer.train()
    model = mixed_experts()
    for step, loss in enumerate(losses(trainer)):
        samples = [Sequences()[i] for i in trainer.sampler.plan(step).indices.tolist()]
        size, total, balance = len(samples) // accumulation, 0.0, 0.0
        for begin in range(0, len(samples), size):
            rows = collate(samples[begin : begin + size])
            with torch.no_grad():
                output = model(**rows)
            count = int((rows["labels"][:, 1:] != -100).sum())
            total += float(output.loss - 0.5 * output.aux_loss) * count
            balance += 0.5 * float(output.aux_loss) / accumulation
        tokens = sum(len(sample) - 1 for sample in samples)
        assert loss == pytest.approx(total / tokens + balance, **AS_LOGGED)


class Poison(transformers.TrainerCallback):
    """Make the embedding of token 60 NaN. Only the domain "small" has this token."""

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == 3:
            with torch.no_grad():
                model.model.embed_tokens.weight[60] = math.nan


def with_60(index):
    return [60, 60, 60] if index >= 56 else [1, 2, 3]


class Marked(Sequences):
    def __getitem__(self, index):
        return with_60(index)


def poisoned_trainer(path, **options):
    more = {"callbacks": [Poison()], **options.pop("more", {})}
    schedule = schedules.constant(Mixture.temperature_sampling(SIZES, math.inf))
    return make_trainer(path, schedule, dataset=Marked(), learning_rate=0.0, steps=8, more=more, **options)


@pytest.mark.parametrize("logging", [1, 5, 100])
def test_a_loss_that_is_not_finite_is_an_error_with_step_and_domain(tmp_path, logging):
    trainer = poisoned_trainer(tmp_path, logging_steps=logging, save_strategy="steps", save_steps=4)
    with pytest.raises(FloatingPointError, match="the loss of 'small' was not finite at step 3: "):
        trainer.train()
    assert not list(tmp_path.glob("checkpoint-*"))


def test_a_loss_that_is_not_finite_may_be_allowed_and_is_null_in_json(tmp_path):
    trainer = poisoned_trainer(
        tmp_path,
        save_strategy="steps",
        save_steps=8,
        more={"allow_non_finite_loss": True},
        logging_nan_inf_filter=False,
    )
    trainer.train()
    last = [entry for entry in trainer.state.log_history if "loss" in entry][-1]
    assert (last["loss"], last["loss/small"]) == (None, None)

    def refuse(constant):
        raise AssertionError(f"{constant} is not valid JSON")

    text = (tmp_path / "checkpoint-8" / "trainer_state.json").read_text()
    json.loads(text, parse_constant=refuse)


def test_an_evaluation_that_is_not_finite_is_an_error_too(tmp_path):
    trainer = make_trainer(tmp_path, switching(), more={"eval_dataset": {"small": Marked(0, 60), "big": Marked(0, 9)}})
    with torch.no_grad():
        trainer.model.model.embed_tokens.weight[60] = math.nan
    with pytest.raises(FloatingPointError, match="the loss of 'small' was not finite"):
        trainer.evaluate()


def test_a_model_that_is_fused_already_keeps_its_regularisers(tmp_path):
    model = tiny_model()
    fuse_loss(model, z_loss=0.1, label_smoothing=0.2)
    options = {"learning_rate": 0.0, "steps": 2}
    plain = make_trainer(tmp_path, switching(), label_smoothing_factor=0.2, **options)
    regular = make_trainer(tmp_path, switching(), model=model, **options)
    for trainer in (plain, regular):
        trainer.train()
    assert losses(regular)[0] > losses(plain)[0] + 0.5  # the z-loss adds about 0.1 * log(64)^2 = 1.7
    with pytest.raises(ValueError, match=r"label_smoothing_factor = 0\.1, but the model is fused with"):
        make_trainer(tmp_path, switching(), model=model, label_smoothing_factor=0.1)


def parts():
    starts = np.cumsum([0, *SIZES.values()])
    return {domain: Sequences(starts[i], size) for i, (domain, size) in enumerate(SIZES.items())}


def rows(index, domain):
    sample = Sequences()[index]
    return {"input_ids": sample, "labels": sample, "note": "not for the model", "source": domain}


def collate_rows(samples):
    assert set(samples[0]) == {"input_ids", "labels"}
    return collate([sample["input_ids"] for sample in samples])


def column_of_names(datasets, kind):
    names = [domain for domain, size in SIZES.items() for _ in range(size)]
    data = datasets.Dataset.from_list([rows(i, name) for i, name in enumerate(names)])
    if kind == "class labels":
        data = data.class_encode_column("source")
    return data if kind == "in order" else data.select(sorted(range(VOCABULARY), key=lambda i: (i % 5, i)))


@pytest.mark.parametrize(
    ("kind", "by_sizes"),
    [
        ("dict", False),
        ("dict", True),
        ("list", False),
        ("end to end", True),
        ("in order", True),
        ("scattered", False),
        ("class labels", True),
        ("DatasetDict", False),
    ],
)
def test_sources_by_domain_train_the_same(tmp_path, kind, by_sizes):
    options, more = {"learning_rate": 0.05, "steps": 3}, {}
    expected = make_trainer(tmp_path, schedules.constant(Mixture.temperature_sampling(SIZES, 5.0)), **options)
    expected.train()
    if kind == "dict":
        options["dataset"] = dict(reversed(parts().items()))  # the schedule defines the order
    elif kind == "list":
        options["dataset"] = list(parts().values())
    elif kind == "end to end":
        options["dataset"] = KnownSizes(SIZES)
    else:
        datasets = pytest.importorskip("datasets")
        data = column_of_names(datasets, kind)
        if kind == "DatasetDict":
            data = datasets.DatasetDict({d: data.filter(lambda row, d=d: row["source"] == d) for d in SIZES})
            data = datasets.DatasetDict({d: sort_by_first(data[d]) for d in SIZES})
        else:
            more["domain_column"] = "source"
        options |= {"dataset": data, "collator": collate_rows}
    if by_sizes:
        schedule = lambda sizes: schedules.constant(  # noqa: E731
            Mixture.temperature_sampling({d: sizes[d] for d in SIZES}, 5.0)
        )
    else:
        schedule = schedules.constant(Mixture.temperature_sampling(SIZES, 5.0))
    trainer = make_trainer(tmp_path, schedule, more=more, **options)
    trainer.train()
    if kind in ("scattered", "class labels"):  # orders within a domain differ, numbers of samples agree
        assert trainer.sampler.exposure(3).draws.tolist() == expected.sampler.exposure(3).draws.tolist()
    else:
        assert losses(trainer) == losses(expected)


class KnownSizes(Sequences):
    """Domains laid end to end, whose names and sizes are known as those of `TarDataset` are."""

    def __init__(self, sizes):
        super().__init__()
        self.sizes = sizes


def sort_by_first(data):
    return data.select(sorted(range(len(data)), key=lambda i: data[i]["input_ids"][0]))


@pytest.mark.parametrize(
    ("dataset", "more", "message"),
    [
        ({"big": Sequences(0, 40)}, {}, "domain 'mid' is only in the schedule"),
        ({**parts(), "new": Sequences(0, 3)}, {}, "domain 'new' is only in train_dataset"),
        ([Sequences(0, 40)], {}, "lists 1 datasets; expected one for each of 3"),
        ({**parts(), "big": Sequences(0, 39), "mid": Sequences(39, 17)}, {}, "'big' has 39 samples in .* but 40 in"),
        (list(parts().values())[::-1], {}, "domain 'big' has 8 samples in train_dataset but 40 in the schedule"),
        (torch.utils.data.ConcatDataset(list(parts().values())[::-1]), {}, r"datasets of \[8, 16, 40\] samples, but"),
        (KnownSizes(dict(sorted(SIZES.items(), reverse=True))), {}, "has 'small' where the schedule has 'big'"),
        (
            {"train": Sequences(0, 40), "test": Sequences(40, 4)},
            {},
            r"the splits \['test', 'train'\], which are no dom",
        ),
        (parts(), {"domain_column": "source"}, "given by domain already; leave domain_column out"),
        (Sequences(), {"domain_column": "source"}, "domain_column = 'source'; expected a column"),
        (iter([]), {}, "train_dataset is a list_iterator; expected map-style"),
    ],
)
def test_sources_that_do_not_fit_are_refused(tmp_path, dataset, more, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make_trainer(tmp_path, switching(), dataset=dataset, more=more)


def test_sizes_that_do_not_add_up_to_the_dataset_are_refused():
    with pytest.raises(ValueError, match="the dataset has 64 samples, but sizes add up to 60"):
        WithDomains(Sequences(), np.array([40, 20]))


def test_a_column_with_the_name_of_the_ids_does_not_replace_them(tmp_path):
    datasets = pytest.importorskip("datasets")
    names = ["2", "10", "0"]  # the mixture's order is another one
    data = datasets.Dataset.from_list([{"domain_ids": int(names[i % 3]), **rows(i, "")} for i in range(30)])
    more = {"domain_column": "domain_ids"}
    mixture = Mixture.proportional(dict.fromkeys(names, 10))
    trainer = make_trainer(tmp_path, schedules.constant(mixture), dataset=data, collator=collate_rows, more=more)
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["domain_ids"].tolist() == [int(i) % 3 for i in batch["input_ids"][:, 0]]


def test_ids_of_a_collator_that_are_not_those_of_its_samples_are_refused(tmp_path):
    def swapped(samples):
        batch = collate(samples)
        return {**batch, "domain_ids": (batch["input_ids"][:, 0] < SIZES["big"]).long()}

    with pytest.raises(ValueError, match="rename the column domain_ids"):
        make_trainer(tmp_path, switching(), collator=swapped).train()


class HalfLearned:
    """A schedule that learns, but does not declare how far ahead it is known."""

    def mixture(self, step):
        return Mixture.proportional(SIZES)

    def next_change(self, step):
        return None

    def describe(self):
        return "half"

    def update(self, step, stats):
        """Learn nothing."""


@pytest.mark.parametrize(
    ("schedule", "error", "message"),
    [
        (lambda sizes: switching(), ValueError, "function of the domains' sizes, but this train_dataset does not"),
        ("constant", TypeError, "schedule is a str; expected"),
        (HalfLearned(), TypeError, r"HalfLearned has update\(\) but not delay, statistics, needs, state_dict"),
    ],
)
def test_incomplete_schedules_are_refused(tmp_path, schedule, error, message):
    with pytest.raises(error, match=message):
        make_trainer(tmp_path, schedule)


def test_needs_are_declared_and_not_sampled(tmp_path):
    schedule = FGLS(Mixture.proportional(SIZES), interval=1500)
    with pytest.raises(ValueError, match=r"examples kept out of training; pass probe$"):
        make_trainer(tmp_path, schedule)

    class Undeclared(LearnedSchedule):
        def settings(self):
            return {}

        def needs(self, step):
            return frozenset({"probe_loss"})

        def _learn(self, step, stats):
            return self.current

    with pytest.raises(TypeError, match="Undeclared defines needs"):
        make_trainer(tmp_path, Undeclared(Mixture.proportional(SIZES), delay=1))


def test_logs_of_many_domains_are_bounded_and_all_values_are_kept_as_arrays(tmp_path):
    sizes = {f"d{i}": 2 + i % 3 for i in range(LOGGED_DOMAINS + 36)}
    mixture = Mixture.proportional(sizes)
    few = Mixture.proportional(dict(list(sizes.items())[:LOGGED_DOMAINS]))
    counts = []
    for chosen in (mixture, few):
        data = [[i % VOCABULARY, 1, 2] for i in range(int(chosen.sizes.sum()))]
        evaluation = {domain: [[1, 2, 3]] for domain in chosen.domains}
        trainer = make_trainer(
            tmp_path, schedules.constant(chosen), dataset=data, steps=2, more={"eval_dataset": evaluation}
        )
        trainer.train()
        metrics = trainer.evaluate()
        assert len([name for name in metrics if name.startswith("eval_loss/")]) == chosen.num_domains
        counts.append(max(len(entry) for entry in trainer.state.log_history))
        assert trainer.domain_values["share"].shape == (chosen.num_domains,)
        assert trainer.domain_values["samples"].sum() == 24
    assert counts[0] < 7 * 16 + 20 < counts[1]


def adapted():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    return peft.get_peft_model(tiny_model(), config)


def test_adapters_are_trained_and_resumed(tmp_path):
    schedule = schedules.constant(Mixture.scalarization(SIZES, 5.0))
    options = {"steps": 4, "learning_rate": 0.05, "save_strategy": "steps", "save_steps": 2, "model": adapted}
    trainer = make_trainer(tmp_path, schedule, evaluate=True, **options)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    changed = {n for n, value in trainer.model.state_dict().items() if not torch.equal(value, before[n])}
    assert changed
    assert all("lora" in name for name in changed)
    assert trainer.evaluate()["eval_loss"] < math.log(VOCABULARY) + 0.5
    (tmp_path / "checkpoint-4").rename(tmp_path / "last")
    resumed = make_trainer(tmp_path, schedule, **options)
    resumed.train(resume_from_checkpoint=True)
    assert losses(resumed) == losses(trainer)
    for name in changed:
        assert torch.equal(resumed.model.state_dict()[name], trainer.model.state_dict()[name])


def test_the_loss_of_prompt_tuning_is_a_mean_over_all_its_tokens(tmp_path):
    """Its virtual tokens predict the first token of each row too, so there are as many targets as tokens."""

    def prompted():
        peft = pytest.importorskip("peft")
        config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
        return peft.get_peft_model(tiny_model(), config)

    schedule = schedules.constant(Mixture.proportional(SIZES))
    model = prompted()
    trainer = make_trainer(tmp_path, schedule, model=model, learning_rate=0.0, steps=2, accumulation=2)
    trainer.train()
    trainer.fused.undo()
    for step, loss in enumerate(losses(trainer)):
        rows = [torch.tensor([Sequences()[i]]) for i in trainer.sampler.plan(step).indices.tolist()]
        with torch.no_grad():
            total = sum(float(model.eval()(input_ids=row, labels=row).loss) * row.shape[1] for row in rows)
        assert loss == pytest.approx(total / sum(row.shape[1] for row in rows), **AS_LOGGED)


class HidesLabels(torch.nn.Module):
    """A wrapper that takes the first tokens of each row out of the loss."""

    def __init__(self):
        super().__init__()
        self.model = tiny_model()
        self.config = self.model.config

    def forward(self, labels=None, **inputs):
        hidden = None if labels is None else labels.clone().index_fill_(1, torch.arange(2), -100)
        return self.model(labels=hidden, **inputs)


def test_a_wrapper_that_changes_the_number_of_targets_is_refused(tmp_path):
    trainer = make_trainer(tmp_path, switching(), model=HidesLabels)
    with pytest.raises(ValueError, match=r"HidesLabels computes the loss of .* it changes the labels"):
        trainer.train()
    assert trainer.state.global_step == 0
