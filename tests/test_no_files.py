"""A pipe or folder instead of a file raises an error that names it. Nothing waits for a pipe's writer."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


def tar(path):
    from pycooldown.data import TarDataset

    TarDataset({"a": path})


def mixed(path):
    from pycooldown import Mixture, schedules
    from pycooldown.data import mix

    next(iter(mix({"a": [str(path)]}, schedules.constant(Mixture.proportional({"a": 4})), batch_size=2, seed=0)))


def token_shard(path):
    from pycooldown.data.token_shards import open_token_shard

    open_token_shard(path)


def sidecar(path):
    from pycooldown.data.token_shard_writer import write_token_shard
    from pycooldown.data.token_shards import open_token_shard

    shard = path.with_suffix("")
    write_token_shard(shard, [[1, 2, 3]], 8)
    replace(Path(f"{shard}.ends"), path)
    open_token_shard(shard)


def replace(path, other):
    """Replace a file by the one at another path."""
    path.unlink()
    os.rename(other, path)


def flat(path):
    from pycooldown.data import token_sources

    token_sources.flat(path, "uint16")


def megatron(path):
    from pycooldown.data import token_sources

    path.with_suffix(".bin").touch()
    token_sources.megatron(path.with_suffix(""))


def datatrove(path):
    from pycooldown.data import token_sources

    token_sources.datatrove(path, "uint16")


def datatrove_metadata(path):
    from pycooldown.data import token_sources

    source = path.with_suffix("")
    source.touch()
    Path(f"{source}.index").touch()
    token_sources.datatrove(source)


def llm_c(path):
    from pycooldown.data import token_sources

    token_sources.llm_c(path)


def litdata(path):
    from pycooldown.data import token_sources

    token_sources.litdata(path.parent)


def packed_manifest(path):
    from pycooldown.data.manifest import load_manifest

    load_manifest(path.parent)


def token_manifest(path):
    from pycooldown.data.token_manifest import load_token_manifest

    load_token_manifest(path.parent)


def recipe(path):
    from pycooldown.recipes import load_recipe

    load_recipe(path)


def recipes_data(path):
    from pycooldown.recipes.corpus import open_corpus
    from pycooldown.recipes.schema import Data

    open_corpus(Data(path=str(path.parent)))


def sizes(path):
    from pycooldown.recipes.sizes import read_sizes

    read_sizes(path)


def pairs(path):
    from pycooldown.data.jsonl import read_rows

    next(read_rows(path))


def inputs(path):
    from pycooldown.data.prepare import parse_inputs

    parse_inputs([str(path)])


def tokenizer(path):
    from pycooldown.data.prepare.tokenizer_files import prepare_tokenizer

    prepare_tokenizer(path, path.parent / "prepared")


def run(path):
    from pycooldown.recipes.history import Run

    (path.parent / "recipe.json").write_text('{"sizes": {}}')
    Run.read(path.parent)


CASES = [
    (tar, "shard.tar"),
    (mixed, "shard.tar"),
    (token_shard, "shard.tar"),
    (sidecar, "shard.tar.ends.other"),
    (flat, "tokens.bin"),
    (megatron, "tokens.idx"),
    (datatrove, "tokens.ds"),
    (datatrove_metadata, "tokens.ds.metadata"),
    (llm_c, "tokens.bin"),
    (litdata, "index.json"),
    (packed_manifest, "manifest.json"),
    (token_manifest, "manifest.json"),
    (recipe, "recipe.yaml"),
    (recipes_data, "manifest.json"),
    (sizes, "sizes.yaml"),
    (sizes, "sizes.csv"),
    (pairs, "train.jsonl"),
    (inputs, "inputs.yaml"),
    (tokenizer, "tokenizer.json"),
    (run, "summary.json"),
]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["pipe", "folder"])
@pytest.mark.parametrize(("read", "name"), CASES, ids=lambda value: getattr(value, "__name__", value))
def test_pipes_and_folders_in_place_of_files_are_named(tmp_path, read, name, kind):
    for module in ("torch", "pydantic", "yaml", "orjson", "tokenizers", "webdataset"):
        pytest.importorskip(module)
    path = tmp_path / name
    if kind == "pipe" and read is mixed:
        pytest.skip("streams may be read from pipes")
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises((OSError, ValueError)) as caught:
        read(path)
    message = str(caught.value)
    assert name.removesuffix(".other").split(".")[0] in message
    assert re.search(
        "no regular file|is a folder|Is a directory|is of no known kind|is not there|is damaged|holds no|no domains",
        message,
    )
    assert "Illegal seek" not in message


@pytest.mark.slow  # the command imports torch
@pytest.mark.timeout(60)
def test_a_command_ends_at_once_with_the_reason(tmp_path):
    pytest.importorskip("torch")
    os.mkfifo(tmp_path / "recipe.yaml")
    command = [sys.executable, "-m", "pycooldown.cli", "train", tmp_path / "recipe.yaml", "--output", tmp_path / "run"]
    child = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert child.returncode != 0
    assert "no regular file" in child.stderr
    assert "Traceback" not in child.stderr
