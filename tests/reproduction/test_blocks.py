"""R8 has sizes by proportion, blocks from a folder of tokens, results that survive their file, and its claims."""

import numpy as np
import pytest

pytest.importorskip("torch")

from pycooldown import temperature
from pycooldown.data.prepare import Options, TokenizerOptions, tokenize
from reproduction import blocks, evidence, regimes, verdicts
from reproduction.rules import COOLDOWN, TAU_1, TAU_5, TAU_100
from reproduction.translation import TrainedSystem, systems

LANGUAGES = [name for name, _ in blocks.PROPORTIONS]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Return tokens of documents in two languages that share no letters."""
    folder = tmp_path_factory.mktemp("blocks")
    rng = np.random.default_rng(0)
    for name, letters, documents in (("en", "abcdef", 60), ("sw", "uvwxyz", 12)):
        lines = ["".join(rng.choice(list(letters), 600)) for _ in range(documents)]
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    options = TokenizerOptions(train="bpe", vocabulary_size=300)
    sources = {name: folder / f"{name}.txt" for name in ("en", "sw")}
    tokenize(folder / "out", sources, options, Options(text_documents="line", validation=3))
    return folder / "out"


def trainings(offsets):
    found = {}
    for k, (system, losses) in enumerate(offsets.items()):
        rng = np.random.default_rng(k)
        found[system] = [
            TrainedSystem(
                system,
                seed,
                [120, 240],
                {d: [9.0, 4 + seed + x + 0.01 * rng.normal()] for d, x in zip(LANGUAGES, losses, strict=True)},
                dict.fromkeys(LANGUAGES, 1.0),
            )
            for seed in range(8)
        ]
    return found


def test_sizes_have_the_proportions_and_the_passes():
    regime = blocks.block_regime()
    sizes = regime.sizes
    assert list(sizes) == ["en", "it", "zh", "sw"]
    assert [size / sizes["sw"] for size in sizes.values()] == [2733, 162, 39, 1]
    share = temperature([2733, 162, 39, 1], 5)[3]
    assert share * regime.draws / sizes["sw"] == pytest.approx(5, rel=0.01)
    assert set(regime.systems) <= set(systems(8, 8, 10))
    own = blocks.block_regime({"sw": 1, "en": 20}, passes=8, steps=60)
    assert (own.name, list(own.sizes)) == ("20:1, 8 passes", ["en", "sw"])
    with pytest.raises(ValueError, match="two or more languages"):
        blocks.block_regime({"en": 1})


def test_blocks_are_those_of_the_data(data):
    texts = blocks.choose_blocks(data, {"en": 40, "sw": 5}, seed=1)
    assert texts.sizes == {"en": 40, "sw": 5}
    assert all(tokens.shape == (blocks.LENGTH,) and prefix == 0 for tokens, prefix in texts.train)
    english = {token for tokens, _ in texts.train[:40] for token in tokens.tolist()}
    swahili = {token for tokens, _ in texts.train[40:] for token in tokens.tolist()}
    assert len(english & swahili) <= 1  # they share only the end of a document
    assert max(english | swahili) < texts.vocabulary_size
    again, other = (blocks.choose_blocks(data, {"en": 40, "sw": 5}, seed=seed) for seed in (1, 2))
    assert texts.fingerprint == again.fingerprint != other.fingerprint
    for a, b in zip(texts.validation["sw"], other.validation["sw"], strict=True):
        assert (a[0] == b[0]).all()
    with pytest.raises(ValueError, match="9,999 are needed"):
        blocks.choose_blocks(data, {"en": 9_999, "sw": 5}, seed=1)


def test_a_training_survives_its_file(data, tmp_path):
    regime = blocks.BlockRegime(4, 5, 8, (TAU_5,), (("en", 4), ("sw", 1)))
    done = []
    options = {"seeds": [0], "results": tmp_path / "results", "job": blocks.job_of}
    regimes.train_regimes(data, tmp_path, [regime], progress=lambda place, found: done.append(found), **options)
    ((read, found),) = blocks.read_results(tmp_path / "results").items()
    assert (read.sizes, read.name) == (regime.sizes, regime.name)
    assert found[TAU_5][0].losses["sw"] == pytest.approx(done[0].losses["sw"], abs=1e-5)


@pytest.mark.parametrize(
    ("cooled", "expected"),
    [
        ((-0.3, -0.3, -0.3, -0.3), "reproduced"),
        ((-0.3, -0.3, -0.3, 0.2), "not reproduced"),  # the rarest language is worse
        ((0.3, -0.3, -0.3, -0.3), "not reproduced"),  # the largest language is worse
    ],
)
def test_every_language_counts(cooled, expected):
    found = trainings({TAU_1: (0.0,) * 4, TAU_5: (0.0,) * 4, TAU_100: (0.0,) * 4, COOLDOWN: cooled})
    judged = {j.claim.name: j.verdict for j in verdicts.judge(found, blocks.CLAIMS)}
    assert judged == dict.fromkeys(("R8", "R8b", "R8c"), expected)  # R8d needs other systems


def test_the_page_has_the_section(tmp_path):
    found = trainings({TAU_1: (0.0,) * 4, TAU_5: (0.0,) * 4, TAU_100: (0.0,) * 4, COOLDOWN: (-0.3,) * 4})
    text = evidence.page(evidence.Evidence({}, {}, {blocks.block_regime(): found}), {})
    assert "### 2733 : 162 : 39 : 1, 5 passes" in text
    assert "* R8 (Table 4): Against tau = 5 Cooldown gains on every language: **reproduced**." in text
