"""Recipes on documents tokenize, plan and train a user's folders, and refuse what does not fit."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
pytest.importorskip("typer")

from typer.testing import CliRunner  # noqa: E402

from pycooldown import cli  # noqa: E402
from pycooldown.recipes import load_recipe, plan, train  # noqa: E402
from pycooldown.recipes.build import RecipeTrainer  # noqa: E402
from pycooldown.recipes.corpus import open_corpus  # noqa: E402
from pycooldown.recipes.gradient_variance import RunGradients  # noqa: E402
from pycooldown.recipes.history import Run  # noqa: E402
from pycooldown.recipes.models import build_model, load_model  # noqa: E402
from pycooldown.recipes.proxy import proxy_recipe  # noqa: E402
from pycooldown.recipes.schema import Model  # noqa: E402
from pycooldown.recipes.trainer_arguments import DECIDED, arguments  # noqa: E402

torch.set_num_threads(1)

DOCUMENTS = {"large": 3_000, "middle": 300, "small": 3}
RECIPE = """
data: {path: out, length: 512}
model: {config: {model_type: llama, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1,
                 num_attention_heads: 2, num_key_value_heads: 2}}
mixture: {method: cooldown, tau: 5, final_tau: 1, switch_at: 0.5}
training: {steps: 4, batch_size: 4, warmup: 1, log_every: 1, eval_every: 2, save_every: 2}
"""


def invoke(*arguments):
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


@pytest.fixture(scope="module")
def tokenized(tmp_path_factory):
    """Return a folder with a user's JSONL files and tokenizer.json, which `user` tokenizes by the command."""
    folder = tmp_path_factory.mktemp("user")
    rng = np.random.default_rng(0)
    words = np.array([f"w{i}" for i in range(200)])
    for number, (domain, count) in enumerate(DOCUMENTS.items()):
        (folder / "texts" / domain).mkdir(parents=True)
        with open(folder / "texts" / domain / "part.jsonl", "w") as file:
            for _ in range(count):
                text = " ".join(words[rng.integers(0, 60 * (number + 1), rng.integers(20, 120))])
                file.write(json.dumps({"text": text}) + "\n")
    own = tokenizers.Tokenizer(tokenizers.models.WordLevel(unk_token="<unk>"))
    own.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    own.train_from_iterator([" ".join(words)], tokenizers.trainers.WordLevelTrainer(special_tokens=["<unk>", "</s>"]))
    own.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def user(tmp_path, tokenized, monkeypatch):
    out = tokenized / "out"
    if not out.exists():
        options = ("--tokenizer", tokenized / "tokenizer.json", "--eos", "</s>", "--validation", 20)
        invoke("tokenize", out, tokenized / "texts", *options)
    (tmp_path / "out").symlink_to(out)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_three_commands_train_on_a_users_documents(user):
    """`tokenize` (in the fixture), `plan` and `train` work on 1000:1 documents with sequences of 512 tokens."""
    assert "small" in invoke("plan", "recipe.yaml")
    invoke("train", "recipe.yaml", "--output", "run")
    summary = json.loads(Path("run/summary.json").read_text())
    sizes = open_corpus(load_recipe("recipe.yaml").data).sizes
    assert {name: entry["size"] for name, entry in summary["domains"].items()} == sizes
    assert sizes["large"] > 100 * sizes["small"] == 100
    tokens = sum(entry["tokens"] for entry in summary["domains"].values())
    assert tokens > 0.5 * 4 * 4 * 512
    own = tokenizers.Tokenizer.from_file(str(Path("out/tokenizer/tokenizer.json")))
    saved = transformers.AutoTokenizer.from_pretrained("run/model", local_files_only=True)
    assert saved("w7 w30 w7", add_special_tokens=False)["input_ids"] == own.encode("w7 w30 w7").ids
    assert (saved.eos_token, len(saved)) == ("</s>", 202)
    config = json.loads(Path("run/model/config.json").read_text())
    assert config["vocab_size"] == 202
    resolved = json.loads(Path("run/recipe.json").read_text())["data"]
    assert (resolved["mode"], resolved["intra_document_attention"]) == ("concat", True)
    assert "report" in invoke("report", "run", "--figures", "figures") or Path("figures").exists()


def test_a_proxy_repeats_its_domains_as_often(user):
    """A proxy with a quarter of the draws takes a quarter of the data, spread evenly over each domain."""
    whole = load_recipe("recipe.yaml", ["training.steps=40", "data.domains=[large, middle]"])
    Path("whole.yaml").write_text(json.dumps(whole.to_dict()))
    assert "share of the data: 0.25" in invoke("proxy", "whole.yaml", "--steps", "10", "--output", "small.yaml")
    small = load_recipe("small.yaml")
    assert (small.data.share, small.training.steps) == (0.25, 10)
    epochs = [plan(recipe)[-1].mixture.expected_epochs(4 * recipe.training.steps) for recipe in (whole, small)]
    assert epochs[0] == pytest.approx(epochs[1], rel=0.05)
    full, cut = open_corpus(whole.data), open_corpus(small.data)
    dataset, everything = cut.train(), full.train()
    assert len(dataset) == sum(cut.sizes.values())
    size, count = full.sizes["middle"], cut.sizes["middle"]
    assert count == round(size / 4)
    for place in range(count):
        taken, source = dataset[cut.sizes["large"] + place], everything[full.sizes["large"] + place * size // count]
        assert np.array_equal(taken["input_ids"], source["input_ids"])
    by_domain = load_recipe("whole.yaml", ["data.share={large: 0.5}"])
    assert open_corpus(by_domain.data).sizes == {"large": round(full.sizes["large"] / 2), "middle": size}
    Path("whole.yaml").write_text(json.dumps(by_domain.to_dict()))
    assert proxy_recipe("whole.yaml", 10)[1].data.share == {"large": 0.125, "middle": 0.25}
    with pytest.raises(ValueError, match=r"data.share has 'larg'; expected some of large, middle"):
        open_corpus(load_recipe("whole.yaml", ["data.share={larg: 0.5}"]).data)
    with pytest.raises(ValueError, match=r"data.share is 0; expected a number > 0"):
        load_recipe("whole.yaml", ["data.share=0"])
    with pytest.raises(ValueError, match="the proxy draws 164 samples, more than the 160"):
        proxy_recipe("whole.yaml", 41)
    with pytest.raises(ValueError, match=r"data.share = 0.001 leaves nothing of the 406 sequences of 'large'"):
        open_corpus(load_recipe("whole.yaml", ["data.share=0.001"]).data)


@pytest.mark.parametrize("page", ["README.md", "docs/tokenize.md"])
def test_the_recipe_that_a_page_shows_fits_the_rarest_domain(user, page):
    """The recipe's batch does not repeat the only row of 512 tokens of the rarest domain."""
    text = (Path(__file__).parents[2] / page).read_text()
    shown = re.search(r"```yaml\n(data: \{path: \w+, length: 512\}.*?)```", text, re.DOTALL)[1]
    Path("shown.yaml").write_text(shown.replace("path: tokens", "path: out"))
    assert plan(load_recipe("shown.yaml"))[0].mixture.sizes.tolist()[-1] == 1


def test_plans_of_documents_need_no_torch(user):
    code = "import sys; sys.modules['torch'] = None\nfrom pycooldown import recipes\n"
    code += "print(recipes.plan(recipes.load_recipe('recipe.yaml'))[-1].mixture.sizes.tolist())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(result.stdout) == list(open_corpus(load_recipe("recipe.yaml").data).sizes.values())


@pytest.mark.parametrize("steps", [1, 3])
def test_losses_that_are_not_finite_say_how_a_recipe_allows_them(user, steps):
    """The error names the recipe's key. With one step, only the last evaluation sees the changed weights."""
    text = RECIPE.replace("{method: cooldown, tau: 5, final_tau: 1, switch_at: 0.5}", "{method: temperature, tau: 3}")
    (user / "recipe.yaml").write_text(text)
    changes = [f"training.steps={steps}", "training.learning_rate=1e38", "training.warmup=0"]
    with pytest.raises(FloatingPointError, match=r"not finite.*in a recipe: training\.allow_non_finite=true"):
        train(load_recipe("recipe.yaml", changes), "run", progress=False)


class Killed(Exception):
    pass


class Kill(transformers.TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise Killed


def train_until_killed(monkeypatch, recipe, output):
    """Train and interrupt the run after its third step."""
    created = RecipeTrainer.train

    def interrupted(self, *args, **kwargs):
        self.add_callback(Kill())
        return created(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(RecipeTrainer, "train", interrupted)
        with pytest.raises(Killed):
            train(recipe, output, progress=False)


@pytest.mark.parametrize("mode", ["concat", "document", "best_fit"])
def test_resuming_is_exact(user, mode, monkeypatch):
    recipe = load_recipe("recipe.yaml", [f"data.mode={mode}", "data.length=64"])
    whole = train(recipe, "whole", progress=False)
    train_until_killed(monkeypatch, recipe, "part")
    part = train(recipe, "part", resume=True, progress=False)
    assert part.summary["resumed_at"] == 2
    for name, weights in load_model(whole.path).state_dict().items():
        assert torch.equal(weights, load_model(part.path).state_dict()[name]), name
    assert [e["eval_loss"] for e in whole.evaluations] == [e["eval_loss"] for e in part.evaluations]
    losses = RunGradients.load("whole").losses(load_model(whole.path), [RunGradients.load("whole").dataset[0]])
    assert torch.isfinite(losses).all()


def test_a_run_of_one_pass_goes_on_with_another_batch_size(user, monkeypatch):
    rule = ["training.steps=all_exhausted_without_replacement", "data.length=2048", "data.domains=[middle, small]"]
    rule += ["mixture={method: temperature, tau: 2}"]
    recipe = load_recipe("recipe.yaml", rule)
    sizes = open_corpus(recipe.data).sizes
    train_until_killed(monkeypatch, recipe, "run")
    early = load_recipe("recipe.yaml", [*rule, "training.batch_size=[[0, 4], [1, 6]]"])
    with pytest.raises(ValueError, match=r"cannot resume from .*: from_step = 1, but batches before step 2"):
        train(early, "run", resume=True, progress=False)
    with pytest.raises(ValueError, match=r"another recipe: training.batch_size is 4 there and 8 here"):
        train(load_recipe("recipe.yaml", [*rule, "training.batch_size=8"]), "run", resume=True, progress=False)
    larger = load_recipe("recipe.yaml", [*rule, "training.batch_size=[[0, 4], [2, 6]]"])
    run = train(larger, "run", resume=True, progress=False)
    assert {name: entry["draws"] for name, entry in run.summary["domains"].items()} == sizes
    assert run.summary["steps"] == 2 + -(-(sum(sizes.values()) - 8) // 6)
    assert run.train[-1]["step"] == run.summary["steps"]


def test_models_that_mix_documents_are_refused_unless_that_is_accepted(user):
    opt = "model.config={model_type: opt, hidden_size: 16, ffn_dim: 32, num_hidden_layers: 1, num_attention_heads: 2, "
    overrides = [opt + "word_embed_proj_dim: 16}", "data.length=64"]
    with pytest.raises(ValueError, match=r"OPTForCausalLM attend to other documents.*intra_document_attention=false"):
        train(load_recipe("recipe.yaml", overrides), "leaks", progress=False)
    for number, way_out in enumerate(("data.intra_document_attention=false", "data.mode=document")):
        train(load_recipe("recipe.yaml", [*overrides, way_out]), f"run{number}", progress=False)


def test_training_starts_from_a_models_folder_or_with_an_adapter(user):
    pytest.importorskip("peft")
    first = load_recipe("recipe.yaml", ["data.length=64"])
    model = build_model(first.model, open_corpus(first.data))
    model.save_pretrained("base")
    text = RECIPE.split("model:")[0] + "model: {folder: base}\nmixture:" + RECIPE.split("mixture:")[1]
    Path("folder.yaml").write_text(text)
    options = ["data.length=64", "training.learning_rate=0"]
    same = train(load_recipe("folder.yaml", options), "same", progress=False)
    for name, weights in load_model(same.path).state_dict().items():
        assert torch.equal(weights, model.state_dict()[name])
    adapted = load_recipe(
        "folder.yaml", ["data.length=64", "peft.type=lora", "peft.r=2", "peft.target_modules=[q_proj]"]
    )
    run = train(adapted, "adapted", progress=False)
    assert any("lora" in name for name, _ in load_model(run.path).named_parameters())
    with pytest.raises(ValueError, match=r"peft.rr is unknown to LoraConfig"):
        train(load_recipe("folder.yaml", ["data.length=64", "peft.type=lora", "peft.rr=2"]), "no", progress=False)
    with pytest.raises(ValueError, match=r"peft.type is 'lorra'.*did you mean lora"):
        train(load_recipe("folder.yaml", ["data.length=64", "peft.type=lorra"]), "no", progress=False)
    shutil.rmtree("base")
    wider = Model(layers=1, width=32, heads=2, mlp_width=32)
    build_model(wider, open_corpus(first.data)).save_pretrained("base")
    with pytest.raises(ValueError, match="another recipe: model_fingerprint differs"):
        train(load_recipe("folder.yaml", options), "same", progress=False)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.max_length=32", "max_length is for packed pairs"),
        ("model.config={model_type: lama}", "model_type is 'lama'.*did you mean"),
        ("model.config={model_type: llama, hiden_size: 3}", "hiden_size is unknown to LlamaConfig; did you mean"),
        ("model.config={model_type: llama, vocab_size: 100}", "has 100 token ids, but the data's tokenizer 202"),
        ("model.config={model_type: llama, max_position_embeddings: 100}", "max_position_embeddings = 100"),
        ("model.config={model_type: t5}", "an encoder-decoder needs pairs"),
        ("trainer.gradient_checkpoint=true", "trainer.gradient_checkpoint is unknown.*mean gradient_checkpointing"),
        ("trainer.learning_rate=1", "trainer.learning_rate is decided by other keys .*: set training"),
        ("trainer.use_liger_kernel=true", "trainer.use_liger_kernel: its forward"),
        ("trainer.logging_dir=charts", "trainer.logging_dir is decided by other keys .*: events for TensorBoard"),
        ("trainer.do_eval=false", "trainer.do_eval is decided by other keys .*: set training.eval_every"),
        ("trainer.optim=adamm", "trainer: .*adamm"),
        ("data.domains=[large, none]", "data.domains has 'none'"),
        ("data.path=nowhere", "nowhere/manifest.json is missing"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(user, override, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train(load_recipe("recipe.yaml", [override]), "run", progress=False)
    assert not Path("run/summary.json").exists()


def test_arguments_of_trainer_pass_through(user):
    path = Path("arguments.yaml")
    given = "gradient_checkpointing: true, optim: sgd, lr_scheduler_type: constant, report_to: [tensorboard]"
    path.write_text(RECIPE + f"trainer: {{{given}}}\n")
    # The last step is then evaluated after training, with transformers before 5.
    overrides = ["data.length=64", "training.warmup=0", "training.eval_every=3", "training.save_every=3"]
    run = train(load_recipe(path, overrides), "run", progress=False)
    assert {path.parent for path in Path("run").rglob("events.*")} == {Path("run/tensorboard")}
    assert {entry["learning_rate"] for entry in run.train} == {2e-3}
    args = torch.load("run/checkpoint-4/training_args.bin", weights_only=False)
    assert args.gradient_checkpointing
    assert args.optim == "sgd"
    assert not args.bf16  # the default on a CPU
    assert set(DECIDED) - {"overwrite_output_dir", "warmup_ratio", "logging_dir", "local_rank"} <= set(vars(args)) | {
        "logging_strategy"
    }


def test_options_of_the_decay_alone_keep_the_decay(user):
    given = "trainer={lr_scheduler_kwargs: {min_lr_rate: 0.5}}"
    args = arguments(load_recipe("recipe.yaml", [given]), Path("run"), progress=False)
    assert str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)) == "cosine_with_min_lr"
    assert args.lr_scheduler_kwargs == {"min_lr_rate": 0.5}


def test_tokens_of_other_projects_are_trained_on(user):
    rng = np.random.default_rng(0)
    for name, count in (("a", 3_000), ("b", 500), ("v", 400)):
        rng.integers(0, 50, count).astype(np.uint16).tofile(f"{name}.bin")
    options = "dtype: uint16, eos_id: 0}"
    a, b, v = (f"{{flat: {name}.bin, {options}" for name in "abv")
    data = f"data: {{length: 64, vocabulary_size: 50, sources: {{a: {a}, b: [{b}]}}, validation_sources: {{a: {v}}}}}\n"
    Path("other.yaml").write_text(data + RECIPE.split("\n", 2)[2])
    recipe = load_recipe("other.yaml")
    assert plan(recipe)[0].mixture.sizes.tolist() == [47, 8]
    with pytest.warns(UserWarning, match="b: no validation documents"):
        run = train(recipe, "run", progress=False)
    assert "loss" in run.summary["domains"]["a"]
    assert "loss" not in run.summary["domains"]["b"]
    assert train(recipe, "run", progress=False).summary == run.summary  # the run is finished
    invoke("report", "run", "--figures", "figures")
    Path("other.yaml").write_text(Path("other.yaml").read_text().replace("flat: b.bin, dtype", "flat: b.bin, dtipe"))
    with pytest.raises(ValueError, match=r"sources.b.dtipe is unknown.*did you mean dtype"):
        plan(load_recipe("other.yaml"))


def test_a_proxy_may_have_another_size(user):
    proxy = "{layers: 1, width: 8, heads: 2, mlp_width: 8}"
    mixture = f"mixture={{method: doremi, proxy_model: {proxy}}}"
    Path("doremi.yaml").write_text(RECIPE.replace(RECIPE.splitlines()[4], mixture.replace("mixture=", "mixture: ")))
    run = train(load_recipe("doremi.yaml", ["data.length=64"]), "run", progress=False)
    small, reference = Run.read("run-proxy"), Run.read("run-reference")
    assert small.summary["parameters"] == reference.summary["parameters"] != run.summary["parameters"]
    assert small.recipe["model"]["width"] == 8


def test_methods_that_probe_gradients_see_documents_apart(user):
    """Probes work on rows of several documents, although vmap cannot read the values of positions."""
    mixture = "mixture: {method: fgls, variance_aware: true, interval: 2, probe_size: 2, hold_out: 0.5}"
    Path("probes.yaml").write_text(RECIPE.replace(RECIPE.splitlines()[4], mixture))
    overrides = ["data.length=64", "data.domains=[large, middle]"]
    run = train(load_recipe("probes.yaml", overrides), "run", progress=False)
    assert set(run.summary["learned"]["target"]) == {"large", "middle"}
