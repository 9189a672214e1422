"""`fuse_loss` trains with plain Trainer, with MixtureTrainer on encoder-decoders, and on models that ranks share."""

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from test_fuse_loss import VOCABULARY, batch, make, own_losses  # noqa: E402
from test_trainer import AS_LOGGED  # noqa: E402

from pycooldown import Mixture, schedules  # noqa: E402
from pycooldown.huggingface import MixtureTrainer, fuse_loss  # noqa: E402

torch.set_num_threads(1)

SIZES = {"a": 20, "b": 12}


class Pairs(torch.utils.data.Dataset):
    """Texts and labels of different lengths. Two domains lie end to end."""

    def __init__(self, size=32):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, i):
        tokens = [(i * k) % VOCABULARY for k in range(1, 4 + i % 4)]
        return {"input_ids": tokens, "labels": [-100, *tokens[1:]], "domain_ids": int(i >= SIZES["a"])}


def collate(samples):
    longest = max(len(sample["labels"]) for sample in samples)
    rows = {
        name: torch.tensor([[*s[name], *[fill] * (longest - len(s[name]))] for s in samples])
        for name, fill in (("input_ids", 0), ("labels", -100))
    }
    lengths = torch.tensor([len(s["input_ids"]) for s in samples])
    rows["attention_mask"] = (torch.arange(longest) < lengths.unsqueeze(1)).long()
    if "domain_ids" in samples[0]:
        rows["domain_ids"] = torch.tensor([s["domain_ids"] for s in samples])
    return rows


def inputs_of(rows):
    return {name: value for name, value in rows.items() if name != "domain_ids"}


def without_dropout(family):
    model = make(family)
    for module in model.modules():
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def train(output, model, kind=transformers.Trainer, *, accumulation=1, steps=3, size=32, rate=0.1, **more):
    args = transformers.TrainingArguments(
        output_dir=str(output),
        max_steps=steps,
        per_device_train_batch_size=8 // accumulation,
        gradient_accumulation_steps=accumulation,
        per_device_eval_batch_size=8,
        learning_rate=rate,
        logging_steps=1,
        save_strategy="no",
        optim="sgd",
        report_to="none",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        **more.pop("arguments", {}),
    )
    trainer = kind(model, args, **{"train_dataset": Pairs(size), "data_collator": collate, **more})
    trainer.train()
    return trainer, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("family", ["llama", "marian"])
def test_trainer_trains_as_with_the_models_own_loss(tmp_path, family):
    own, ours = without_dropout(family), without_dropout(family)
    _, expected = train(tmp_path, own)
    fuse_loss(ours, domain_weights=[1.0, 1.0])
    trainer, losses = train(tmp_path, ours, accumulation=2)
    assert losses == pytest.approx(expected, **AS_LOGGED)
    for mine, theirs in zip(ours.parameters(), own.parameters(), strict=True):
        assert (mine - theirs).abs().amax() <= 1e-5 * max(theirs.abs().amax(), 0.1)
    predicted = trainer.predict(Pairs(8))
    rows = collate([Pairs()[i] for i in range(8)])
    logits = predicted.predictions[0] if isinstance(predicted.predictions, tuple) else predicted.predictions
    assert logits.shape == (*rows["labels"].shape, VOCABULARY)
    assert predicted.metrics["test_loss"] == pytest.approx(own.eval()(**inputs_of(rows)).loss.item())


@pytest.mark.parametrize("accumulation", [1, 4])
def test_trainer_weighs_domains_by_a_column(tmp_path, accumulation):
    class Weighted(Pairs):
        """Samples of two domains in turn. All are in one batch, so that their order does not matter."""

        def __getitem__(self, i):
            return {**super().__getitem__(i), "domain_ids": i % 2}

    model, rows = without_dropout("llama"), collate([Weighted()[i] for i in range(8)])
    with fuse_loss(model):
        losses = own_losses(model, inputs_of(rows))
    fuse_loss(model, domain_weights=[0.5, 2.0])
    expected = (torch.tensor([0.5, 2.0])[rows["domain_ids"]].unsqueeze(1) * losses).sum() / (losses != 0).sum()
    _, logged = train(tmp_path, model, accumulation=accumulation, steps=1, train_dataset=Weighted(8))
    assert logged == [pytest.approx(expected.item(), **AS_LOGGED)]


@pytest.mark.parametrize("family", ["marian", "t5", "gemma2, capped"])
def test_mixture_trainer_trains_other_models_than_llama(tmp_path, family):
    schedule = schedules.constant(Mixture.scalarization(SIZES, 5.0))
    model = without_dropout(family)
    trainer, logged = train(tmp_path, model, MixtureTrainer, accumulation=2, rate=0.0, schedule=schedule)
    for step, loss in enumerate(logged):
        plan = trainer.sampler.plan(step)
        rows = collate([Pairs()[i] for i in plan.indices.tolist()])
        losses = own_losses(model, inputs_of(rows))
        weights = torch.tensor(plan.mixture.loss_weights[plan.domain_ids], dtype=torch.float32)
        assert loss == pytest.approx(float((weights.unsqueeze(1) * losses).sum() / (losses != 0).sum()), **AS_LOGGED)


def test_mixture_trainer_smooths_labels_in_training_only(tmp_path):
    schedule, seen = schedules.constant(Mixture.proportional(SIZES)), []
    for smoothing in (0.0, 0.3):
        model = without_dropout("llama")
        options = {
            "schedule": schedule,
            "eval_dataset": {"a": Pairs(8)},
            "arguments": {"label_smoothing_factor": smoothing},
        }
        trainer, logged = train(tmp_path, model, MixtureTrainer, rate=0.0, **options)
        seen.append((logged[0], trainer.evaluate()["eval_loss"]))
    (plain, evaluation), (smoothed, evaluation_too) = seen
    assert smoothed != pytest.approx(plain, rel=1e-3)
    assert evaluation_too == evaluation


KINDS = ["DDP", "FSDP2", "FSDP2 of the output layer alone"]


def shared(kind, family):
    """Return a model that ranks share, with its loss fused."""
    model = make(family).eval()
    fuse_loss(model, domain_weights=[0.5, 2.0])
    if kind == "DDP":
        return torch.nn.parallel.DistributedDataParallel(model)
    fully_shard = torch.distributed.fsdp.fully_shard
    for module in model.modules():
        if type(module).__name__.endswith(("DecoderLayer", "EncoderLayer")) or (
            "alone" in kind and module is model.get_output_embeddings()
        ):
            fully_shard(module)
    return fully_shard(model, reshard_after_forward=True)


def rank_of_two(rank, store):
    """Compare with one process the gradients of a batch that two ranks share, in two steps of accumulation."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    rows = {**batch(), "domain_ids": torch.tensor([0, 1, 1])}
    options = {"num_items_in_batch": torch.tensor(16), "skip_logits": True}
    mine = {name: value[:2] if rank == 0 else value[2:] for name, value in rows.items()}
    for family in ("llama", "marian"):
        one = make(family).eval()
        with fuse_loss(one, domain_weights=[0.5, 2.0]):
            one(**rows, **options).loss.backward()
        expected = {name: p.grad for name, p in one.named_parameters() if p.requires_grad}
        for kind in KINDS if family == "llama" else KINDS[:2]:
            model = shared(kind, family)
            for _ in range(2):
                model(**mine, **options).loss.backward()  # the mean over 2 ranks and the sum over 2 steps cancel
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    grad = parameter.grad if kind == "DDP" else parameter.grad.full_tensor()
                    theirs = expected[name.removeprefix("module.")]
                    assert (grad - theirs).abs().amax() <= 1e-5 * max(theirs.abs().amax(), 0.01), (kind, family, name)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_models_that_ranks_share(tmp_path):
    torch.multiprocessing.spawn(rank_of_two, (tmp_path / "store",), nprocs=2)
