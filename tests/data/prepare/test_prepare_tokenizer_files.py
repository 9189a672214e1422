"""Tokenizers of three kinds give the ids of their own library, between the requested BOS and EOS."""

import base64
import json
import subprocess
import sys

import pytest

tokenizers = pytest.importorskip("tokenizers")

from pycooldown.data.prepare.inputs import find_files  # noqa: E402
from pycooldown.data.prepare.options import Options, TokenizerOptions  # noqa: E402
from pycooldown.data.prepare.parts import divide  # noqa: E402
from pycooldown.data.prepare.sentencepiece_training import train_sentencepiece  # noqa: E402
from pycooldown.data.prepare.tokenizer_files import load_encoder, prepare_tokenizer  # noqa: E402
from pycooldown.data.prepare.tokenizer_training import balanced_sample, train_tokenizer  # noqa: E402

TEXTS = ["Feuer und wasser 12", "  spaces\n\n and 水 🎉", "a </s> that is text", ""]
PATTERN = r"\s*\S+|\s+"


@pytest.fixture
def sentencepiece_file(tmp_path, make_text):
    pytest.importorskip("sentencepiece")
    path = tmp_path / "own.model"
    path.write_bytes(train_sentencepiece((make_text(i) for i in range(100)), 400))
    return path


@pytest.fixture
def tiktoken_file(tmp_path):
    pytest.importorskip("tiktoken")
    path = tmp_path / "own.tiktoken"
    tokens = [*(bytes([i]) for i in range(256)), b"un", b"und", b"Fe"]
    path.write_text("".join(f"{base64.b64encode(token).decode()} {i}\n" for i, token in enumerate(tokens)))
    return path


def test_hugging_face_ids_are_whole_and_without_the_template(tmp_path, tokenizer_file):
    spec = prepare_tokenizer(tokenizer_file, tmp_path / "t")
    assert (spec.eos_id, spec.bos_id, spec.vocabulary_size) == (1, None, 400)
    own = tokenizers.Tokenizer.from_file(str(tokenizer_file))
    own.no_truncation()
    own.no_padding()
    own.encode_special_tokens = True
    long = " ".join(TEXTS) * 20
    encoder = load_encoder(spec)
    found = [ids.tolist() for ids in encoder.encode([*TEXTS, long])]
    assert found == [own.encode(text, add_special_tokens=False).ids for text in [*TEXTS, long]]
    assert len(found[-1]) > 16
    assert [encoder.decode(ids) for ids in found] == [*TEXTS, long]


def test_spellings_of_special_tokens_are_text_by_default(tmp_path, tokenizer_file):
    """By default the spelling of a special token in a document is tokenized as text."""
    as_text = load_encoder(prepare_tokenizer(tokenizer_file, tmp_path / "a")).encode(["a </s> b"])[0]
    parsed = load_encoder(prepare_tokenizer(tokenizer_file, tmp_path / "b", parse_special_tokens=True))
    assert 1 not in as_text
    assert 1 in parsed.encode(["a </s> b"])[0]


def test_sentencepiece_ids(tmp_path, sentencepiece_file):
    import sentencepiece

    spec = prepare_tokenizer(sentencepiece_file, tmp_path / "t", bos="auto")
    assert (spec.bos_id, spec.eos_id, spec.vocabulary_size) == (1, 2, 400)
    own = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_file))
    encoder = load_encoder(spec)
    found = [ids.tolist() for ids in encoder.encode(TEXTS)]
    assert found == own.encode(TEXTS)
    assert [encoder.decode(ids) for ids in found] == TEXTS
    with pytest.raises(ValueError, match="'parse' is for Hugging Face tokenizers"):
        prepare_tokenizer(sentencepiece_file, tmp_path / "t", parse_special_tokens=True)


def test_tiktoken_ids(tmp_path, tiktoken_file):
    spec = prepare_tokenizer(tiktoken_file, tmp_path / "t", eos=300, pattern=PATTERN)
    assert (spec.eos_id, spec.vocabulary_size) == (300, 301)
    encoder = load_encoder(spec)
    found = [ids.tolist() for ids in encoder.encode(TEXTS)]
    assert found[0][:1] == [258]  # "Fe"
    assert 257 in found[0]  # "und", without the space before it
    assert [encoder.decode(ids) for ids in found] == TEXTS
    with pytest.raises(ValueError, match="needs pattern"):
        prepare_tokenizer(tiktoken_file, tmp_path / "t", eos=300)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [({"eos": None}, (None, None)), ({"eos": "<s>", "bos": "</s>"}, (0, 1)), ({"eos": 7, "bos": 399}, (7, 399))],
)
def test_bos_and_eos_as_asked(tmp_path, tokenizer_file, asked, expected):
    spec = prepare_tokenizer(tokenizer_file, tmp_path / "t", **asked)
    assert (spec.eos_id, spec.bos_id) == expected


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"eos": "<end>"}, "eos = '<end>' is no token of"),
        ({"bos": "auto"}, "bos = 'auto', but .* does not say"),
        ({"eos": -1}, "eos = -1; expected a token id"),
        ({"pattern": "x"}, "pattern is for .tiktoken files"),
    ],
)
def test_special_tokens_that_are_refused(tmp_path, tokenizer_file, asked, message):
    with pytest.raises(ValueError, match=message):
        prepare_tokenizer(tokenizer_file, tmp_path / "t", **asked)


def test_a_folder_says_which_token_ends(tmp_path, tokenizer_file):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes(tokenizer_file.read_bytes())
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<s>"}, "bos_token": "</s>"}))
    spec = prepare_tokenizer(folder, tmp_path / "t", bos="auto")
    assert (spec.eos_id, spec.bos_id) == (0, 1)
    assert sorted(path.name for path in (tmp_path / "t").iterdir()) == ["tokenizer.json", "tokenizer_config.json"]


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe"])
@pytest.mark.parametrize("name", ["a.json", "a.model", "a.tiktoken", "a.txt"])
def test_files_that_are_no_tokenizers(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        prepare_tokenizer(tmp_path / name, tmp_path / "t", pattern=PATTERN if name == "a.tiktoken" else None)


def test_without_a_tokenizer_the_error_says_how_to_get_one(tmp_path):
    with pytest.raises(ValueError, match=r"'tokenizer.json' does not exist .* --train-tokenizer bpe .* trains one"):
        prepare_tokenizer("tokenizer.json", tmp_path / "t")


def test_a_changed_copy_is_not_used(tmp_path, tokenizer_file):
    spec = prepare_tokenizer(tokenizer_file, tmp_path / "t")
    (tmp_path / "t" / "tokenizer.json").write_text("{}")
    load_encoder.cache_clear()
    with pytest.raises(ValueError, match="it has changed"):
        load_encoder(spec)


@pytest.mark.parametrize("kind", ["bpe", "sentencepiece"])
def test_training_is_deterministic_and_spells_everything(tmp_path, make_text, kind):
    texts = [make_text(i) for i in range(200)]
    path = train_tokenizer(kind, texts, 500, tmp_path)
    code = (
        "import json, pathlib, sys; from pycooldown.data.prepare.tokenizer_training import train_tokenizer\n"
        "train_tokenizer(sys.argv[1], json.load(sys.stdin), 500, pathlib.Path(sys.argv[2]))"
    )
    other = tmp_path / "other"
    other.mkdir()
    subprocess.run([sys.executable, "-c", code, kind, str(other)], input=json.dumps(texts), text=True, check=True)
    assert path.read_bytes() == (other / path.name).read_bytes()
    spec = prepare_tokenizer(path, tmp_path / "t")
    assert spec.vocabulary_size <= 500
    assert spec.eos_id is not None
    encoder = load_encoder(spec)
    assert [encoder.decode(ids.tolist()) for ids in encoder.encode(TEXTS)] == TEXTS


def test_sample_is_balanced_by_temperature_and_has_no_validation(corpus):
    found, _ = find_files({domain: str(corpus / domain) for domain in ("en", "de", "sw")})
    options = Options(shard_bytes=4000)
    parts = {domain: divide(domain, files, options) for domain, files in found.items()}

    def held_out(data):
        return data.endswith(b"7")

    for tau in (1.0, 100.0):
        sample = list(balanced_sample(parts, options, tau=tau, num_bytes=60_000, is_validation=held_out))
        size = dict.fromkeys(parts, 0)
        for text in sample:
            for domain in parts:
                size[domain] += len(text.encode()) if f" {domain}" in text else 0
        assert not any(text.encode().endswith(b"7") for text in sample)
        weights = {d: sum(part.weight for part in p) ** (1 / tau) for d, p in parts.items()}
        for domain in parts:  # a text that is cut off may lack the domain's name, so the bound is loose
            assert size[domain] == pytest.approx(60_000 * weights[domain] / sum(weights.values()), rel=0.2, abs=400)


def test_tokenizer_options_are_one_or_the_other():
    with pytest.raises(ValueError, match="expected exactly one of source"):
        TokenizerOptions()
    with pytest.raises(ValueError, match="expected exactly one of source"):
        TokenizerOptions(source="tokenizer.json", train="bpe")
