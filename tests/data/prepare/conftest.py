"""Texts, a tokenizer and object stores for the tests of tokenizing."""

import hashlib
import json
import random

import pytest
import store_servers


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


@pytest.fixture(scope="session")
def moto_port():
    """Return the port of an S3 server in memory."""
    with store_servers.moto() as port:
        yield port


@pytest.fixture(scope="session")
def azurite_port():
    """Return the port of a server of Azure's blobs in memory."""
    with store_servers.azurite() as port:
        yield port


@pytest.fixture
def make_store(monkeypatch, request):
    """Return a function that makes an empty bucket for this test, in a store of the given scheme, and returns its URL.

    Clients read the environment once, so all tests with stores use the same address.
    """

    def make(scheme, number=0):
        name = "b" + hashlib.sha256(f"{request.node.name} {number}".encode()).hexdigest()[:20]
        port = request.getfixturevalue("azurite_port" if scheme == "az" else "moto_port")
        if scheme == "az":
            store_servers.use_azure(monkeypatch, port)
            store_servers.make_container(port, name)
        else:
            use = store_servers.use_s3 if scheme == "s3" else store_servers.use_google
            use(monkeypatch, f"http://127.0.0.1:{port}")
            store_servers.make_bucket(port, name)
        return f"{scheme}://{name}"

    return make
