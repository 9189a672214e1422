"""Texts and a tokenizer for the tests of tokenizing."""

import json
import random

import pytest


@pytest.fixture(scope="session")
def make_text():
    """Return a function that makes a text of the given number of words. It depends on the text's number alone."""

    def make(number, words=30):
        draw = random.Random(number)
        syllables = ["was", "ser", "Feu", "er", "ma", "ji", "水", "l'", "eau", "x9", "und", "ba", "to", "ri", "ke"]
        made = ("".join(draw.choices(syllables, k=draw.randint(1, 3))) for _ in range(words))
        return " ".join(made) + f" {number}"

    return make


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory, make_text):
    """Return a `tokenizer.json` of 400 ids with truncation, padding and a template, as tokenizers of others have."""
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((make_text(i) for i in range(50)), trainer)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding(length=16)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture
def corpus(tmp_path, make_text):
    """Write domains of 300, 12 and 3 documents into `<domain>/<file>.jsonl` and return the folder."""
    for domain, size in {"en": 300, "de": 12, "sw": 3}.items():
        (tmp_path / "data" / domain).mkdir(parents=True)
        lines = [json.dumps({"text": make_text(f"{domain}{i}")}, ensure_ascii=False) + "\n" for i in range(size)]
        for half, name in enumerate(("b", "a")):
            path = tmp_path / "data" / domain / f"{name}.jsonl"
            path.write_text("".join(lines[half * size // 2 : (half + 1) * size // 2]), encoding="utf-8")
    return tmp_path / "data"
