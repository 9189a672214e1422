"""Tokenizing on a real Ray cluster, of two cores of this machine, gives the same bytes (`nox -s ray`)."""

import hashlib

import pytest

pytest.importorskip("ray")

from pycooldown.data.prepare import Options, TokenizerOptions, parse_inputs, tokenize


def contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file() and "lock" not in path.name)
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.name != "plan.json"  # it holds the paths, which are absolute on Ray
    }


@pytest.mark.parametrize("validation", [0.1, 10])
def test_the_same_bytes_on_ray(corpus, tokenizer_file, tmp_path, validation, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = (parse_inputs(["data"]), TokenizerOptions(source=tokenizer_file))
    options = Options(shard_bytes=6000, validation=validation)
    manifest = tokenize("ray", *arguments, options, workers=2, ray="local")
    assert tokenize("one", *arguments, options) == manifest
    assert contents(tmp_path / "ray") == contents(tmp_path / "one")


def test_a_failing_task_is_the_error_of_its_line(corpus, tokenizer_file, tmp_path):
    path = corpus / "en" / "b.jsonl"
    path.write_bytes(path.read_bytes() + b'{"text": 17}\n')
    arguments = (parse_inputs([str(corpus)]), TokenizerOptions(source=tokenizer_file), Options(shard_bytes=6000))
    with pytest.raises(ValueError, match=r"en/b\.jsonl:151 has int 17"):
        tokenize(tmp_path / "out", *arguments, workers=2, ray="local")
    assert not (tmp_path / "out" / "manifest.json").exists()
    path.write_bytes(path.read_bytes().removesuffix(b'{"text": 17}\n'))
    tokenize(tmp_path / "out", *arguments, workers=2, ray="local")
    tokenize(tmp_path / "one", *arguments)
    assert contents(tmp_path / "out") == contents(tmp_path / "one")


def test_objects_on_both_sides(corpus, make_store, tokenizer_file, tmp_path):
    """Inputs, tokenizer, validation documents and results may all be in a store, so that workers share nothing else."""
    obstore = pytest.importorskip("obstore")
    from pycooldown.data.prepare.result_folder import open_output

    url = make_store("s3")
    store = obstore.store.from_url(url)
    for path in corpus.rglob("*.jsonl"):
        obstore.put(store, path.relative_to(tmp_path).as_posix(), path.read_bytes())
    obstore.put(store, "tokenizer.json", tokenizer_file.read_bytes())
    options = Options(shard_bytes=6000, validation=10)
    asked = TokenizerOptions(source=f"{url}/tokenizer.json")
    manifest = tokenize(f"{url}/out", parse_inputs([f"{url}/data"]), asked, options, workers=2, ray="local")
    local = tokenize(tmp_path / "one", parse_inputs([str(corpus)]), TokenizerOptions(source=tokenizer_file), options)
    assert manifest == local
    output, here = open_output(f"{url}/out"), open_output(tmp_path / "one")
    names = [name for name in here.names("") if not name.startswith(".prepare/")]
    assert [name for name in output.names("") if not name.startswith(".prepare/")] == names
    assert all(output.read(name) == here.read(name) for name in names)
