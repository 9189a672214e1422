"""Recipes are read with typed overrides. Each mistake has its error, and hostile files are bounded."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pydantic")

from pycooldown.recipes import load_recipe
from pycooldown.recipes.schema import Model, Training, json_schema

ROOT = Path(__file__).parents[2]
GOOD = """
data: {path: packed}
mixture: {method: cooldown}
training: {steps: 100, batch_size: 8}
"""


def load(tmp_path, text, overrides=()):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return load_recipe(path, overrides)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("steps: 100", "stepz: 100", "training.stepz is unknown; expected steps, batch_size"),
        (
            "steps: 100",
            "max_tokens: 100",
            "set batch_size to the tokens per step divided by data.length",
        ),
        ("steps: 100, ", "", "training.steps is missing"),
        ("steps: 100", "steps: 0", "training.steps is 0; expected a number >= 1"),
        ("steps: 100", "steps: 1.5", r"training.steps is 1.5 \(float\); expected a whole number"),
        ("steps: 100", "steps: true", r"training.steps is True \(bool\); expected a whole number"),
        ("steps: 100", "steps: 100, save_every: 15", "save_every = 15 is no multiple of log_every = 10"),
        ("steps: 100", "steps: 100, allocation: magic", "allocation is 'magic'.*expected one of 'multinomial'"),
        ("path: packed", "path: packed, domains: [de, no]", "domains.1. is False.*put it in quotes"),
        ("path: packed", "path: packed, domains: de", "data.domains is 'de'.*expected a list"),
        (
            "method: cooldown",
            "method: magic",
            "mixture.method is 'magic'.*expected one of ado, anneal, .*cooldown, .*doremi",
        ),
        ("method: cooldown", "method: temperature", "mixture.tau is missing"),
        ("method: cooldown", "method: cooldown, taw: 3", "mixture.taw is unknown; expected tau, final_tau, switch_at"),
        ("method: cooldown", "method: cooldown, tau: high", "mixture.tau is 'high'.*expected a number"),
        ("data: {path: packed}", "data: packed", "data is 'packed'.*expected keys path"),
        ("data: {path: packed}", "dta: {path: packed}", "dta is unknown; expected data, training, mixture, model"),
        ("data: {path: packed}", "data:", "data is empty; expected keys path"),
        (
            "data: {path: packed}",
            "data: {path: packed, 3: x}",
            r"data has the key 3 \(int\); expected a text: put it in",
        ),
        ("data: {path: packed}", "no: 3", r"it has the key False \(bool\); expected a text: put it in quotes"),
        ("path: packed", "path: 2020-01-01", r"data.path is .*\(date\); expected a text: put it in quotes"),
        ("{method: cooldown}", "cooldown", r"mixture is 'cooldown' \(str\); expected keys method and its options"),
        ("steps: 100", "steps: 99999999999999999999", "expected a number <= 1e\\+12"),
        ("steps: 100", "steps: 100, seed: 4294967296", "expected a number < 4294967296"),
        ("steps: 100", "steps: 100, learning_rate: true", r"learning_rate is True \(bool\); expected a number"),
        ("steps: 100", "steps: 100, learning_rate: .inf", "learning_rate is inf.*expected a finite number"),
        ("steps: 100", "steps: 100, betas: [0.9]", r"betas is \[0.9\].*expected a list of 2 values"),
        ("steps: 100", "steps: 100, betas: [1, 2, 3]", r"betas is \[1, 2, 3\].*expected a list of 2 values"),
        ("steps: 100", "steps: 100, allocation: multinominal", r"did you mean multinomial\?"),
        ("method: cooldown", "method: cooldonw", r"did you mean cooldown\?"),
        ("method: cooldown", "method: [cooldown]", r"mixture.method is \['cooldown'\]"),
        ("method: cooldown", "method: cooldown, switch_at: 1", "mixture.switch_at is 1; expected a number < 1"),
        ("method: cooldown", "method: cooldown, tau: 0", "mixture.tau is 0; expected a number > 0"),
        ("method: cooldown", "method: cooldown, tau: .nan", "mixture.tau is nan; expected a number > 0"),
        (
            "method: cooldown",
            "method: staircase, stages: [[0, 5], [0.5]]",
            r"mixture.stages\[1\] is \[0.5\].*expected a list of 2 values",
        ),
        (
            "method: cooldown",
            "method: staircase, stages: [[0, 5], {start: 0.5, tua: 1}]",
            r"mixture.stages\[1\].tua is unknown; expected start, tau, domains, weights; did you mean tau\?",
        ),
        ("steps: 100", "steps: 100, steps: 200", "key 'steps' is repeated"),
        (GOOD, "- 1", "expected sections data"),
        (GOOD, "a: [", "is not YAML"),
    ],
)
def test_mistakes_name_file_and_key_and_what_is_accepted(tmp_path, old, new, message):
    assert old in GOOD
    with pytest.raises(ValueError, match=message) as error:
        load(tmp_path, GOOD.replace(old, new))
    assert "recipe.yaml" in str(error.value)


def test_overrides_are_typed_like_the_file(tmp_path):
    recipe = load(tmp_path, GOOD, ["training.learning_rate=1e-3", "data.domains=[de, fr]", "model.layers=2"])
    assert recipe.training.learning_rate == 1e-3
    assert recipe.data.domains == ("de", "fr")
    assert recipe.model.layers == 2


def test_overrides_reach_any_depth(tmp_path):
    overrides = [
        "model.config.model_type=llama",
        "model.config.rope_parameters.rope_theta=5.0e+5",
        "trainer.bf16=true",
    ]
    recipe = load(tmp_path, GOOD.partition("model:")[0], overrides)
    assert recipe.model.config == {"model_type": "llama", "rope_parameters": {"rope_theta": 5e5}}
    assert recipe.trainer == {"bf16": True}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.steps.more=1", r"training.steps is 100 \(int\); expected a section of keys"),
        ("mixture.tau.a.b=1", r"mixture.tau is \{'a': \{'b': 1\}\} \(dict\); expected a number"),
        ("data.pathh.x=1", r"data.pathh is unknown; .*did you mean path"),
        ("training..steps=1", r"override 'training..steps=1': expected section.key=value"),
        ("training.=1", r"override 'training.=1': expected section.key=value"),
    ],
)
def test_overrides_that_lead_nowhere(tmp_path, override, message):
    with pytest.raises(ValueError, match=message):
        load(tmp_path, GOOD, [override])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "steps=all",
            r"training.steps is 'all' \(str\); expected one of a whole number, first_exhausted",
        ),
        ("steps=[1]", r"training.steps is \[1\] \(list\); expected a whole number"),
        ("steps=0", r"training.steps is 0; expected a number >= 1"),
        ("batch_size=[[1, 8]]", r"training.batch_size: its pairs start at steps \[1\]; expected 0 and then"),
        ("batch_size=[[0, 8], [5, 4], [5, 6]]", r"pairs start at steps \[0, 5, 5\]; expected 0 and then increasing"),
        ("batch_size=[[0, 0]]", r"training.batch_size.*is 0; expected a number >= 1"),
        ("batch_size=eight", r"training.batch_size is 'eight' \(str\); expected a whole number"),
    ],
)
def test_impossible_rules_and_ramps_are_refused(tmp_path, override, message):
    with pytest.raises(ValueError, match=message):
        load(tmp_path, GOOD, [f"training.{override}"])


def test_rules_and_ramps_are_read(tmp_path):
    recipe = load(tmp_path, GOOD, ["training.steps=all_exhausted", "training.batch_size=[[0, 8], [5, 16]]"])
    assert recipe.training.steps == "all_exhausted"
    assert recipe.training.batch_sizes == ((0, 8), (5, 16))
    assert load(tmp_path, json.dumps(recipe.to_dict())) == recipe


def test_one_error_lists_all_mistakes(tmp_path):
    text = GOOD.replace("steps: 100", "stepz: 100, warmup: -1").replace("path: packed", "path: packed, domians: [de]")
    with pytest.raises(ValueError, match=r"recipe.yaml with mixture.tau=high has 5 mistakes:") as error:
        load(tmp_path, text, ["mixture.tau=high"])
    lines = [line.strip() for line in str(error.value).splitlines()[1:]]
    expected = [
        "data.domians is unknown; expected path, sources, validation_sources, vocabulary_size, domains, share, length, "
        "mode, "
        "intra_document_attention, max_length, eval_samples; did you mean domains?",
        "training.steps is missing",
        "training.warmup is -1; expected a number >= 0",
        "training.stepz is unknown; expected steps, batch_size, learning_rate",
        "mixture.tau is 'high' (str); expected a number",
    ]
    assert len(lines) == len(expected)
    for wanted in expected:
        assert any(line.startswith(wanted) for line in lines), wanted
    assert any(line.endswith("did you mean steps?") for line in lines)


def test_values_made_in_python_are_checked_too():
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        Training(steps=0, batch_size=8)
    with pytest.raises(ValueError, match="width = 190 cannot be cut into 4 heads"):
        Model(width=190)


def bomb(levels):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (bomb(30), "more than 100,000 values, counting what aliases repeat"),
        ("data: &a [*a]", r"alias \*a is used before the end of its anchor"),
        ("data: " + "[" * 5000, "nests deeper than 20 levels"),
        ("data: " + "{a: " * 5000, "nests deeper than 20 levels"),
        ("# " + "x" * 2_000_000, "more than 1,048,576 bytes"),
        ("data: {" + ", ".join(f"k{i}: 0" for i in range(60_000)) + "}", "more than 100,000 values"),
        ("data: " + "9" * 5_000, "4300 digits|is not YAML|data is"),
        ("data: \x07", "is not YAML"),
    ],
)
def test_hostile_files_are_bounded(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as error:
        load(tmp_path, text)
    assert len(str(error.value)) < 1_000
    if len(text) < 100_000:
        with pytest.raises(ValueError, match=r"override|recipe.yaml") as error:
            load(tmp_path, GOOD, [f"data.domains={text.partition('data: ')[2] or '[' * 5000}"])
        assert len(str(error.value)) < 1_000


def test_a_file_that_is_not_text_is_an_error(tmp_path):
    (tmp_path / "recipe.yaml").write_bytes(b"data: \xff\xfe")
    with pytest.raises(ValueError, match=r"recipe.yaml: it is not UTF-8"):
        load_recipe(tmp_path / "recipe.yaml")


def test_aliases_of_a_moderate_size_are_written_out(tmp_path):
    text = "data: &d {path: packed, domains: [de, fr]}\nmixture: {method: order_matters, high_resource: &h [de]}\n"
    recipe = load(tmp_path, text + "training: &t {steps: 10, batch_size: 8}\n")
    assert recipe.data.domains == ("de", "fr")
    base = "training: {<<: {steps: 10, batch_size: 8}, steps: 20}\n"  # a merge key does not count as a repeated key
    assert load(tmp_path, text + base).training.steps == 20


def test_infinite_values_are_valid_json(tmp_path):
    recipe = load(tmp_path, GOOD, ["mixture.method=temperature", "mixture.tau=inf"])
    text = json.dumps(recipe.to_dict(), allow_nan=False)
    assert load(tmp_path, text) == recipe


@pytest.mark.parametrize("path", sorted(ROOT.glob("recipes/**/*.yaml")), ids=lambda p: p.stem)
def test_recipes_of_the_repository_can_be_read(path):
    recipe = load_recipe(path)
    sizes = {"en": 2_700_000_000, "it": 160_000_000, "zh": 38_000_000, "sw": 1_000_000}
    for stage in getattr(recipe.mixture, "stages", ()):  # the weights of stages may name domains
        sizes = dict.fromkeys(getattr(stage, "domains", None) or sizes, 10**6)
    recipe.mixture.schedule(sizes, recipe.training.steps, recipe.training.batch_size)
    schema = path.read_text().splitlines()[0].partition("$schema=")[2]
    assert (path.parent / schema).resolve() == ROOT / "recipes/schema.json"


def test_the_schema_has_each_key_with_a_description():
    schema = json_schema()
    for section in (*schema["$defs"].values(), *schema["properties"]["mixture"]["oneOf"]):
        assert section["description"]
        for name, key in section["properties"].items():
            assert name == "method" or key.get("description"), f"{section['title']}.{name} has no description"


def test_the_schema_beside_the_recipes_is_current():
    """If this fails, run `pycooldown schema > recipes/schema.json`."""
    result = subprocess.run([sys.executable, "-m", "pycooldown", "schema"], capture_output=True, text=True, check=True)
    assert json.loads(result.stdout) == json.loads((ROOT / "recipes/schema.json").read_text())


def test_training_without_its_extra_says_what_to_install():
    code = "import sys; sys.modules['transformers'] = None\nfrom pycooldown.recipes import load_recipe, plan, train"
    error = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr
    assert "pip install 'pycooldown[train]'" in error.splitlines()[-1]
