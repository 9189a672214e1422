"""`fuse_loss` gives models of many families their own loss and gradients, without logits."""

import copy
import inspect
import itertools
import math
import sys
import warnings

import pytest

torch = pytest.importorskip("torch")
t = pytest.importorskip("transformers")
F = torch.nn.functional

from pycooldown.huggingface import fuse_loss  # noqa: E402

torch.set_num_threads(1)  # the models are tiny

VOCABULARY = 40
DECODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "use_cache": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16, "use_cache": False}
ENCODER_DECODER = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 16,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
T5 = {"vocab_size": VOCABULARY, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
FAMILIES = {
    "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**DECODER)),
    "gpt2, tied": lambda: t.GPT2LMHeadModel(t.GPT2Config(**GPT2, bos_token_id=1, eos_token_id=2)),
    "gemma2, capped": lambda: t.Gemma2ForCausalLM(t.Gemma2Config(**DECODER, head_dim=8, final_logit_softcapping=0.5)),
    "cohere, multiplied": lambda: t.CohereForCausalLM(t.CohereConfig(**DECODER, logit_scale=0.3)),
    "granite, divided": lambda: t.GraniteForCausalLM(t.GraniteConfig(**DECODER, logits_scaling=7.0)),
    "phi, biased": lambda: t.PhiForCausalLM(t.PhiConfig(**DECODER)),
    "marian": lambda: t.MarianMTModel(t.MarianConfig(**ENCODER_DECODER)),
    "bart": lambda: t.BartForConditionalGeneration(t.BartConfig(**ENCODER_DECODER)),
    "m2m100": lambda: t.M2M100ForConditionalGeneration(t.M2M100Config(**ENCODER_DECODER)),
    "t5": lambda: t.T5ForConditionalGeneration(t.T5Config(**T5, decoder_start_token_id=0)),
}


def make(family):
    """Return a model in training mode whose logits, and the biases added to them, are far from 0."""
    torch.manual_seed(0)
    model = FAMILIES[family]().train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
        if hasattr(model, "final_logits_bias"):
            model.final_logits_bias.normal_()
    return model


def batch(seed=1):
    torch.manual_seed(seed)
    labels = torch.randint(3, VOCABULARY, (3, 7))
    labels[1, 4:] = labels[0, 0] = -100
    return {"input_ids": torch.randint(3, VOCABULARY, (3, 7)), "labels": labels}


def outcome(model, inputs, seed=2):
    """Return loss, gradients and output, with the same dropout each time."""
    model.zero_grad()
    torch.manual_seed(seed)
    output = model(**inputs)
    output.loss.backward()
    return output.loss.detach(), [p.grad for p in model.parameters() if p.grad is not None], output


def assert_agree(ours, theirs, tolerance=2e-5):
    torch.testing.assert_close(ours[0], theirs[0].to(ours[0].dtype), rtol=tolerance, atol=0)
    assert len(ours[1]) == len(theirs[1])
    for got, expected in zip(ours[1], theirs[1], strict=True):
        assert (got - expected).abs().amax() <= tolerance * max(expected.abs().amax(), 0.01)


def own_losses(model, inputs):
    """Return the losses of tokens (N, T) at the positions of the labels, from the model's own logits."""
    labels = inputs["labels"]
    logits = model(**inputs, skip_logits=False).logits.detach().transpose(1, 2)
    if model.config.is_encoder_decoder:
        return F.cross_entropy(logits, labels, reduction="none")
    return F.pad(F.cross_entropy(logits[..., :-1], labels[:, 1:], reduction="none"), (1, 0))


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_the_models_own(family):
    model = make(family)
    own = outcome(model, batch())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fused = fuse_loss(model)
    assert fused.obstacle is None
    assert fused.shifts != model.config.is_encoder_decoder
    ours = outcome(model, batch())
    assert_agree(ours, own)
    assert ours[2].logits is None
    model.eval()
    with_logits, without = (model(**batch(), skip_logits=skip) for skip in (False, True))
    torch.testing.assert_close(with_logits.loss, without.loss)
    fused.undo()
    assert torch.equal(model(**batch()).logits, with_logits.logits)
    torch.testing.assert_close(model(**batch()).loss, without.loss)


def checkpoint_activations(model):
    """Turn activation checkpointing on, under the name that the installed transformers has for it."""
    name = "activation_checkpointing_enable"
    getattr(model, name if hasattr(model, name) else "gradient_checkpointing_enable")()


MODES = {
    "gradient checkpointing": lambda model: checkpoint_activations(model),
    "bfloat16": lambda model: model.bfloat16(),
    "autocast": lambda model: None,
    "compiled": lambda model: model.compile(backend="aot_eager", fullgraph=True),
}


@pytest.mark.parametrize(
    ("family", "mode"),
    [*itertools.product(["llama", "marian"], MODES), ("gpt2, tied", "autocast")],
)
def test_modes_of_training(family, mode):
    """The fused loss agrees with the model's own in each mode. The model's own is not compiled."""
    if (family, mode) == ("marian", "compiled") and "torch.rand([])" in inspect.getsource(
        sys.modules[t.MarianMTModel.__module__]
    ):
        pytest.skip("the forward of Marian draws random numbers in this transformers, so it is no single graph")
    outcomes = []
    for fuse in (False, True):
        model = make(family)
        if fuse:
            fuse_loss(model)
        if fuse or mode != "compiled":
            MODES[mode](model)
        with torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"):
            outcomes.append(outcome(model, batch()))
    half = mode in ("bfloat16", "autocast")
    assert_agree(*outcomes[::-1], tolerance=0.03 if half else 2e-5)


@pytest.mark.parametrize("family", ["llama", "marian"])
@pytest.mark.parametrize("per", ["sequence", "token"])
def test_domains_are_weighed_and_counted(family, per):
    model, inputs = make(family).eval(), batch()
    weights = torch.tensor([0.5, 2.0, 0.0])
    fused = fuse_loss(model, domain_weights=weights.tolist())
    ids = torch.tensor([1, 0, 2]) if per == "sequence" else torch.arange(21).reshape(3, 7) % 3
    each = (ids.unsqueeze(1) if per == "sequence" else ids).expand(3, 7)
    losses = own_losses(model, inputs)
    counted = losses != 0
    total = (weights[each] * losses).sum()
    options = {"domain_ids": ids, "skip_logits": True}
    torch.testing.assert_close(model(**inputs, **options).loss, total / counted.sum())
    torch.testing.assert_close(model(**inputs, **options, num_items_in_batch=torch.tensor(50)).loss, total / 50)
    torch.testing.assert_close(model(**inputs, **options, reduction="sum").loss, total)
    torch.testing.assert_close(model(**inputs, num_items_in_batch=50).loss, losses.sum() / 50)
    unreduced = model(**inputs, **options, reduction="none").loss
    torch.testing.assert_close(unreduced.sum(1), (weights[each] * losses).sum(1))
    fused.domain_weights = weights + 1
    output = model(**inputs, **options, return_stats=True)
    torch.testing.assert_close(output.loss, ((weights + 1)[each] * losses).sum() / counted.sum())
    assert output.logits is None
    expected = [losses[each == d].sum().double() for d in range(3)]
    torch.testing.assert_close(output.domain_stats.loss_sum, torch.stack(expected), rtol=1e-5, atol=0)
    assert output.domain_stats.token_count.tolist() == [int(counted[each == d].sum()) for d in range(3)]


def test_regularisers_are_for_training():
    model, inputs = make("llama"), batch()
    fuse_loss(model, label_smoothing=0.2, z_loss=0.01)
    logits = model(**inputs, skip_logits=False).logits[:, :-1].flatten(0, 1)
    labels = inputs["labels"][:, 1:].flatten()
    plain, smooth = (F.cross_entropy(logits, labels, label_smoothing=x) for x in (0.0, 0.2))
    torch.testing.assert_close(model(**inputs).loss, smooth + 0.01 * logits.logsumexp(1).square()[labels >= 0].mean())
    torch.testing.assert_close(model.eval()(**inputs, skip_logits=True).loss, plain)


def test_a_collator_may_shift_the_labels():
    model, inputs = make("llama"), batch()
    fuse_loss(model)
    shifted = torch.cat([inputs["labels"][:, 1:], torch.full((3, 1), 5)], dim=1)
    logits = model(**inputs, skip_logits=False).logits
    expected = F.cross_entropy(logits.flatten(0, 1), shifted.flatten())
    torch.testing.assert_close(model(**inputs, shift_labels=shifted).loss, expected)


def test_calls_of_other_forms():
    model, inputs = make("llama"), batch()
    fuse_loss(model)
    loss = model(**inputs).loss
    position = list(inspect.signature(model.forward).parameters).index("labels")
    positional = model(inputs["input_ids"], *[None] * (position - 1), inputs["labels"])
    torch.testing.assert_close(positional.loss, loss)
    as_tuple = model(**inputs, return_dict=False)
    assert as_tuple[0] == loss
    assert model(input_ids=inputs["input_ids"]).logits.shape == (3, 7, VOCABULARY)
    assert model.eval().generate(inputs["input_ids"], max_new_tokens=2, do_sample=False).shape == (3, 9)


def test_undoing_restores_all():
    model = make("bart")
    before = {name: dict(module.__dict__) for name, module in model.named_modules()}
    state = torch.get_rng_state()
    with fuse_loss(model):
        assert "domain_ids" in inspect.signature(model.forward).parameters
    assert {name: dict(module.__dict__) for name, module in model.named_modules()} == before
    assert torch.equal(torch.get_rng_state(), state)


def test_undoing_works_below_a_wrapper_of_forward():
    model = make("llama")
    fused, inputs = fuse_loss(model), batch()
    inner = model.forward
    model.forward = lambda **kwargs: inner(**kwargs)
    fused.undo()
    assert model(**inputs).logits is not None
    with fuse_loss(model):  # fused again, above the wrapper
        assert model(**inputs).logits is None
    assert model(**inputs).logits is not None


def test_a_copy_has_a_loss_of_its_own():
    model = make("llama")
    fuse_loss(model)
    other = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.data.zero_()
    assert model(**batch()).loss.item() == pytest.approx(math.log(VOCABULARY))
    assert other(**batch()).loss > 1.1 * math.log(VOCABULARY)


class Scaled(t.LlamaForCausalLM):
    """A model that changes its logits in a way that its configuration does not show."""

    def forward(self, labels=None, **inputs):
        output = super().forward(**inputs)
        output.logits = output.logits * 1.01
        if labels is not None:
            output.loss = self.loss_function(output.logits, labels, VOCABULARY)
        return output


class Reshaped(t.LlamaForCausalLM):
    def forward(self, input_ids, labels=None, **inputs):
        output = super().forward(input_ids, **inputs)
        output.logits = output.logits.reshape(*input_ids.shape, VOCABULARY)
        if labels is not None:
            output.loss = self.loss_function(output.logits, labels, VOCABULARY)
        return output


class Adapter(torch.nn.Module):
    def __init__(self, linear):
        super().__init__()
        self.linear, self.more = linear, torch.nn.Linear(16, VOCABULARY)

    def forward(self, hidden):
        return self.linear(hidden) + self.more(hidden)


def adapted():
    model = FAMILIES["llama"]()
    model.lm_head = Adapter(model.lm_head)
    return model


@pytest.mark.parametrize(
    ("build", "obstacle"),
    [
        (lambda: Scaled(t.LlamaConfig(**DECODER)), "a way that is not known here"),
        (lambda: Reshaped(t.LlamaConfig(**DECODER)), "logits in their full shape"),
        (adapted, "Adapter, not torch.nn.Linear"),
    ],
    ids=["scaled", "reshaped", "adapted"],
)
def test_logits_are_formed_where_the_loss_needs_them(build, obstacle):
    torch.manual_seed(0)
    model = build().train()
    own = outcome(model, batch())
    with pytest.warns(UserWarning, match=f"logits will be formed for the loss of .*: .*{obstacle}"):
        fused = fuse_loss(model)
    assert_agree(outcome(model, batch()), own)
    fused.undo()
    assert_agree(outcome(model, batch()), own)


class Prefix(t.LlamaForCausalLM):
    def forward(self, input_ids, labels=None, **inputs):
        return super().forward(input_ids if labels is None else labels.clamp(min=0), labels=labels, **inputs)


class Penalised(t.LlamaForCausalLM):
    def forward(self, input_ids, labels=None, **inputs):
        output = super().forward(input_ids, labels=labels, **inputs)
        if labels is not None:
            output.loss = output.loss + 0.1
        return output


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Penalised(t.LlamaConfig(**DECODER)), "not the mean cross-entropy .*output_router_logits"),
        (lambda: Prefix(t.LlamaConfig(**DECODER)), "labels change the logits of Prefix"),
    ],
    ids=["penalty", "prefix"],
)
def test_other_losses_are_refused_and_the_model_left_alone(build, message):
    model = build()
    with pytest.raises(ValueError, match=message):
        fuse_loss(model)
    assert "forward" not in model.__dict__
    assert "forward" not in model.lm_head.__dict__


def test_weights_without_domains_are_refused_in_training():
    model = make("llama")
    fuse_loss(model, domain_weights=[1.0, 2.0])
    with pytest.raises(ValueError, match="domain_weights are set but domain_ids are missing"):
        model(**batch())
    assert model.eval()(**batch()).loss > 0
