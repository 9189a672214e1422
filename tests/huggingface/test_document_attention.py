"""Models that keep documents in one row apart are accepted, and models that do not are refused."""

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from pycooldown import Mixture, schedules  # noqa: E402
from pycooldown.huggingface import MixtureTrainer, Probe, fuse_loss  # noqa: E402
from pycooldown.huggingface.document_attention import block_causal, for_packed, leak, restarts  # noqa: E402

SHAPES = {
    "llama": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0},
    "opt": {
        "hidden_size": 32,
        "ffn_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "word_embed_proj_dim": 32,
    },
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 2},
}


def tiny(kind, dtype=torch.float32):
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, vocab_size=64, **SHAPES[kind])
    return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "apart"), [("llama", True), ("gpt2", True), ("opt", False), ("bloom", False)])
def test_a_trial_finds_models_that_mix_documents(kind, apart, dtype):
    model = tiny(kind, dtype).train()
    before = torch.random.get_rng_state()
    found = leak(model)
    assert (found is None) == apart
    if not apart:
        assert type(model).__name__ in found
    assert model.training
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(p.grad is None for p in model.parameters())


class Rows:
    """Rows that each hold two documents, of 5 and 3 tokens."""

    def __init__(self, restart=True, mask=None):
        positions = [0, 1, 2, 3, 4, 0, 1, 2] if restart else list(range(8))
        self.row = {"input_ids": list(range(1, 9)), "labels": list(range(1, 9)), "position_ids": positions}
        if mask is not None:
            self.row["attention_mask"] = mask

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return self.row


def collate(samples):
    return {name: torch.tensor([sample[name] for sample in samples]) for name in samples[0]}


def trainer_of(tmp_path, kind, rows, wrap=lambda model: model):
    sizes = {"a": 6, "b": 6}
    args = transformers.TrainingArguments(
        str(tmp_path), max_steps=1, per_device_train_batch_size=4, report_to="none", use_cpu=True, save_strategy="no"
    )
    return MixtureTrainer(
        wrap(tiny(kind)),
        args,
        schedule=schedules.constant(Mixture.temperature_sampling(sizes, 1.0)),
        train_dataset={"a": rows, "b": rows},
        eval_dataset={"a": rows},
        data_collator=collate,
    )


def test_a_model_that_leaks_is_refused_with_the_way_out(tmp_path):
    with pytest.raises(ValueError, match=r"OPTForCausalLM attend to other documents.*mode=document.*intra_document"):
        trainer_of(tmp_path, "opt", Rows())
    trainer_of(tmp_path, "opt", Rows(restart=False)).train()  # one document in each row


class ForgetsPositions(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, position_ids=None, **inputs):
        return self.model(input_ids=input_ids, **inputs)


def prompted(model):
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(model, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))


def adapted(model):
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))


@pytest.mark.filterwarnings("ignore:Position ids are not supported")
@pytest.mark.parametrize(("wrap", "apart"), [(ForgetsPositions, False), (prompted, False), (adapted, True)])
def test_a_wrapper_that_drops_positions_is_refused(tmp_path, wrap, apart):
    if apart:
        trainer_of(tmp_path, "llama", Rows(), wrap)
        return
    with pytest.raises(ValueError, match=r"does not pass position_ids on.*mode=document"):
        trainer_of(tmp_path, "llama", Rows(), wrap)


@pytest.mark.parametrize("mask", [None, [1] * 8, [1] * 7 + [0]])
def test_losses_of_packed_rows_are_those_of_the_documents_alone(tmp_path, mask):
    trainer = trainer_of(tmp_path, "llama", Rows(mask=mask))
    trainer.model.config.use_cache = True
    trainer.train()
    loss = trainer.evaluate()["eval_loss/a"]
    model = trainer.model.eval()
    trainer.fused.undo()
    ids, positions = torch.arange(1, 9)[None], torch.arange(8)[None]
    with torch.no_grad():
        alone = [model(input_ids=part, use_cache=False).logits for part in (ids[:, :5], ids[:, 5:])]
        mixed = model(input_ids=ids, position_ids=positions, use_cache=False).logits
    targets = ids[0, 1:]
    expected = torch.nn.functional.cross_entropy(torch.cat(alone, 1)[0, :-1], targets)
    assert loss == pytest.approx(float(expected), rel=1e-5)
    assert loss != pytest.approx(float(torch.nn.functional.cross_entropy(mixed[0, :-1], targets)), rel=1e-5)


def test_masks_that_hide_more_than_padding_are_refused():
    positions = torch.tensor([[0, 0, 1, 0, 1]])
    inputs = {"position_ids": positions, "attention_mask": torch.tensor([[0, 1, 1, 1, 1]])}
    with pytest.raises(ValueError, match="leave the mask out"):
        for_packed(inputs, None)
    padded = {"position_ids": torch.tensor([[1, 1, 0, 1]]), "attention_mask": torch.tensor([[0, 0, 1, 1]])}
    assert not restarts(**padded)
    assert for_packed(padded, "it leaks") is padded  # one document with padding on the left


def test_the_mask_of_documents():
    mask = block_causal(torch.tensor([[0, 1, 0, 1, 0]]))[0, 0]
    assert mask.int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 0, 0, 1],
    ]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_probes_keep_documents_apart(attention):
    model = tiny("llama").eval()
    model.set_attn_implementation(attention)
    model.config.use_cache = False
    rows = [{**Rows().row, "input_ids": [(3 * i + k) % 64 for k in range(1, 9)]} for i in range(3)]
    gradients = []
    for row in rows:
        model.zero_grad()
        inputs = collate([row])
        model(**{**inputs, "labels": inputs["input_ids"]}, num_items_in_batch=1).loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    model.zero_grad()
    for row in rows:
        row["labels"] = row["input_ids"]
    with fuse_loss(model):
        measured = Probe({"a": rows}, ("a",), collate, size=3).measure(model, 0, [0], gradients=True)
    each = torch.stack(gradients).double()
    assert measured[2, 0] == pytest.approx(float(each.var(0).sum()), rel=1e-4)
    assert measured[3, 0] == pytest.approx(float(each.square().mean(0).sum()), rel=1e-4)
