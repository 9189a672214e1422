"""Every sequence of TokenDataset is a slice of the documents, in every mode and for every kind of file."""

import os
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from token_files import KINDS, make_documents, write_datatrove, write_flat, write_folder, write_prepared

from pycooldown import _core
from pycooldown.data import TokenDataset, token_sources


def check(dataset, domains, length, rows_of_tokens, cross=False):
    """Check all arrays of all sequences, given the (domain, document, place) of each token of each row."""
    batch = dataset.__getitems__(range(len(dataset)))
    assert len(dataset) == len(rows_of_tokens)
    for row, tokens in enumerate(rows_of_tokens):
        ids = [domains[k][d][p] for k, d, p in tokens]
        firsts = [i for i, (k, d, p) in enumerate(tokens) if i == 0 or tokens[i - 1] != (k, d, p - 1)]
        positions = [i - max(first for first in firsts if first <= i) for i in range(len(tokens))]
        segments = [sum(first <= i for first in firsts) for i in range(len(tokens))]
        shift_labels = []
        for k, d, p in tokens:
            after = domains[k][d][p + 1 :] or ([t for doc in domains[k][d + 1 :] for t in doc] if cross else [])
            shift_labels.append(after[0] if after else -100)
        labels = [-100 if i in (firsts if not cross else [0]) else ids[i] for i in range(len(tokens))]
        pad = length - len(tokens)
        for name, values, fill in (
            ("input_ids", ids, 9),
            ("position_ids", positions, 0),
            ("segment_ids", segments, 0),
            ("labels", labels, -100),
            ("shift_labels", shift_labels, -100),
        ):
            if name in dataset.columns:
                np.testing.assert_array_equal(batch[name][row], values + [fill] * pad, err_msg=f"{name} of row {row}")
        assert batch["domain_ids"][row] == tokens[0][0]


def places(domains, length, mode, remainder="pad", long_documents="split"):
    """Return the (domain, document, place) of each token of each row. best_fit is not covered."""
    rows = []
    for k, documents in enumerate(domains):
        streams = [[(k, d, p) for p in range(len(ids))] for d, ids in enumerate(documents)]
        if mode == "concat":
            streams = [[place for stream in streams for place in stream]]
        for stream in streams:
            cut = [stream[i : i + length] for i in range(0, len(stream), length)]
            if mode == "concat":
                rows += [row for row in cut if remainder == "pad" or len(row) == length]
            elif len(cut) > 1 and long_documents == "drop":
                continue
            else:
                rows += cut[:1] if long_documents == "truncate" else cut
    return rows


lengths_of_documents = st.lists(st.integers(1, 20), min_size=1, max_size=12)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20)
@given(data=st.data())
def test_sequences_are_slices_of_the_documents(tmp_path_factory, kind, data):
    writer, dtype = KINDS[kind]
    folder = tmp_path_factory.mktemp("tokens")
    domains = []
    sources = {}
    for name in ("a", "b"):
        (folder / name).mkdir()
        documents = make_documents(data.draw(lengths_of_documents))
        sources[name] = writer(folder / name, documents, dtype)
        domains.append([document.tolist() for document in documents])
    length = data.draw(st.integers(1, 24))
    mode = data.draw(st.sampled_from(["concat", "document"]))
    columns = data.draw(st.sets(st.sampled_from(["position_ids", "segment_ids", "labels", "shift_labels"])))
    options = {
        "columns": {"input_ids", "domain_ids", *columns},
        "dtype": data.draw(st.sampled_from(["int32", "int64"])),
        "pad_id": 9,
    }
    if mode == "concat":
        options["cross_document_labels"] = bool({"labels", "shift_labels"} & columns) and data.draw(st.booleans())
        dataset = TokenDataset(sources, length, mode, **options)
        rows = places(domains, length, mode)
        assert sum(len(row) for row in rows) == sum(dataset.tokens.values())  # every token comes once
    else:
        policy = data.draw(st.sampled_from(["split", "truncate"]))
        dataset = TokenDataset(sources, length, mode, long_documents=policy, **options)
        rows = places(domains, length, mode, long_documents=policy)
    check(dataset, domains, length, rows, options.get("cross_document_labels", False))
    for name, array in dataset.__getitems__([0]).items():
        of_ids = name in ("input_ids", "labels", "shift_labels")
        assert array.dtype == (options["dtype"] if of_ids else "int64" if name == "domain_ids" else "int32")
    assert dataset.__getitems__([0]).keys() == options["columns"]


def in_order(dataset):
    """Return the tokens of each row, without padding."""
    batch = dataset.__getitems__(range(len(dataset)))
    return [ids[marks > 0].tolist() for ids, marks in zip(batch["input_ids"], batch["segment_ids"])]


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=40), length=st.integers(1, 30))
@settings(max_examples=50)
def test_best_fit_packs_each_piece_once(tmp_path_factory, lengths, length):
    documents = make_documents(lengths)
    paths = write_prepared(tmp_path_factory.mktemp("tokens"), documents, "uint16")
    dataset = TokenDataset({"a": paths}, length, "best_fit")
    batch = dataset.__getitems__(range(len(dataset)))
    found, left = [], []
    for ids, segments, positions in zip(batch["input_ids"], batch["segment_ids"], batch["position_ids"]):
        assert (np.diff(segments[segments > 0]) >= 0).all()
        parts = [ids[segments == segment].tolist() for segment in range(1, segments.max() + 1)]
        assert positions[segments > 0].tolist() == [i for part in parts for i in range(len(part))]
        left.append(length - sum(map(len, parts)))
        found += parts
    pieces = [d[i : i + length].tolist() for d in documents for i in range(0, len(d), length)]
    assert sorted(found) == sorted(pieces)
    assert dataset.padding["a"] == pytest.approx(sum(left) / (length * len(left)))
    # A row is only opened for a piece that fits into no earlier row.
    firsts = (batch["segment_ids"] == 1).sum(1)
    assert all(firsts[j] > left[i] for i in range(len(left)) for j in range(i + 1, len(left)))


def test_best_fit_is_the_textbook_example(tmp_path):
    """In rows of 10, a document of 23 fills two rows, and the others fit best as 7 + 3, 5 + 5 and 3."""
    documents = make_documents([5, 7, 23, 3, 5])
    dataset = TokenDataset({"a": write_prepared(tmp_path, documents, "uint16")}, 10, "best_fit")
    five, seven, long, three, other = (document.tolist() for document in documents)
    assert in_order(dataset) == [long[:10], long[10:20], seven + long[20:], five + other, three]
    assert dataset.padding == {"a": pytest.approx(7 / 50)}


@pytest.mark.parametrize(
    ("mode", "options", "sizes", "tokens"),
    [
        ("concat", {}, {"a": 5, "b": 1}, {"a": 17, "b": 3}),
        ("concat", {"remainder": "drop", "sources": "a"}, {"a": 4}, {"a": 16}),
        ("document", {}, {"a": 6, "b": 1}, {"a": 17, "b": 3}),
        ("document", {"long_documents": "truncate"}, {"a": 4, "b": 1}, {"a": 10, "b": 3}),
        ("document", {"long_documents": "drop"}, {"a": 3, "b": 1}, {"a": 6, "b": 3}),
        ("best_fit", {}, {"a": 5, "b": 1}, {"a": 17, "b": 3}),
    ],
)
def test_sizes_and_tokens(tmp_path, mode, options, sizes, tokens):
    """Domains have documents of 11, 2, 1 and 3 tokens, and of 3, in sequences of 4."""
    options = dict(options)
    files = {}
    for name in options.pop("sources", "ab"):
        (tmp_path / name).mkdir()
        files[name] = write_flat(tmp_path / name, make_documents({"a": [11, 2, 1, 3], "b": [3]}[name]), "uint16")
    dataset = TokenDataset(files, 4, mode, **options)
    assert (dataset.sizes, dataset.tokens, len(dataset)) == (sizes, tokens, sum(sizes.values()))
    assert dataset.left_out == {name: {"a": 17, "b": 3}[name] - tokens[name] for name in tokens}
    assert sum(map(len, in_order(dataset))) == sum(tokens.values())


def test_folder_of_tokens(tmp_path):
    """A folder gives its domains and shards in order, for the split that is named."""
    parts = {
        (d, s): [make_documents([5, 4], seed=i), make_documents([8], seed=i + 1)]
        for i, (d, s) in enumerate((d, s) for d in ("b", "a") for s in ("train", "validation"))
    }
    folder = write_folder(tmp_path, {d: {s: parts[d, s] for s in ("train", "validation")} for d in ("b", "a")})
    for split in ("train", "validation"):
        dataset = TokenDataset(folder, 17, split=split)
        assert dataset.domains == ("b", "a")
        assert dataset.sizes == {"b": 1, "a": 1}
        assert in_order(dataset) == [
            np.concatenate([x for shard in parts[d, split] for x in shard]).tolist() for d in ("b", "a")
        ]
    assert TokenDataset(folder, 17, domains=["a"]).sizes == {"a": 1}
    assert in_order(TokenDataset(folder, 17, domains=["a", "b"])) == in_order(TokenDataset(folder, 17))[::-1]
    with pytest.raises(ValueError, match=r"split = 'test'; .* has train, validation of 'b'"):
        TokenDataset(folder, 17, split="test")


def test_a_split_without_documents_of_some_domain_is_refused(tmp_path):
    """A domain without documents in a split is named, and can be left out."""
    parts = {"en": {"train": [make_documents([9])], "validation": [make_documents([8])]}}
    folder = write_folder(tmp_path, {**parts, "is": {"train": [make_documents([9])], "validation": []}})
    with pytest.raises(
        ValueError, match="domain 'is' has no sequence: it does not have a token; leave it out of domains"
    ):
        TokenDataset(folder, 8, split="validation")
    assert TokenDataset(folder, 8, split="validation", domains=["en"]).tokens == {"en": 8}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"domains": ["b"]}, r"domains = \['b'\]; expected some of a, each once"),
        ({"domains": ["a", "a"]}, "expected some of a, each once"),
        ({"domains": "a"}, "domains = 'a'; expected some of a"),
        ({"domains": []}, "expected some of a"),
        ({"mode": "packed"}, "mode = 'packed'; expected one of"),
        ({"length": 0}, "length = 0; expected at least 1"),
        ({"dtype": "float32"}, "dtype = float32; expected int64 or int32"),
        ({"pad_id": -1}, "pad_id = -1; expected a token id"),
        ({"pad_id": 200, "vocabulary_size": 128}, "pad_id = 200; expected one of the 128 ids"),
        ({"columns": ["labels"]}, "expected some of .*, input_ids among them"),
        ({"columns": ["input_ids", "tokens"]}, "expected some of .*, input_ids among them"),
        ({"columns": ["input_ids"], "cross_document_labels": True}, "cross_document_labels needs labels"),
        (
            {"mode": "best_fit", "cross_document_labels": True},
            "expected mode 'concat', where documents follow each other",
        ),
        ({"mode": "document", "remainder": "drop"}, "for mode 'document' pass long_documents"),
        ({"long_documents": "drop"}, "leave it out"),
        ({"mode": "document", "long_documents": "cut"}, "long_documents = 'cut'; expected one of"),
        ({"remainder": "keep"}, "remainder = 'keep'; expected 'pad' or 'drop'"),
        ({"split": "validation"}, "sources by domain have no splits"),
        ({"length": 100, "remainder": "drop"}, "domain 'a' has no sequence: it does not have 100 tokens"),
        ({"mode": "document", "length": 4, "long_documents": "drop"}, "none that is kept"),
        ({"mode": "best_fit", "length": 4, "long_documents": "raise"}, "has 9 tokens, more than length = 4"),
    ],
)
def test_arguments_are_honoured_or_refused(tmp_path, options, message):
    source = write_flat(tmp_path, make_documents([9]), "uint16")
    with pytest.raises(ValueError, match=message):
        TokenDataset({"a": source}, **options)


def test_sources_that_are_no_shards_say_how_to_open_them(tmp_path):
    with pytest.raises(ValueError, match=r"is no \.tar; open files of other projects by .*token_sources"):
        TokenDataset({"a": tmp_path / "text_document.bin"})


@pytest.mark.parametrize(
    ("dtype", "wrong"), [("uint16", 60000), ("int16", -2), ("int32", -1), ("int64", -(2**40)), ("uint32", 2**31)]
)
def test_ids_out_of_the_vocabulary_are_refused(tmp_path, dtype, wrong):
    """An id out of the vocabulary is found at any place of a row, whatever its dtype."""
    tokens = np.full(1001, 7)
    tokens[777] = wrong
    tokens.astype(dtype).tofile(tmp_path / "f.bin")
    dataset = TokenDataset(
        {"a": token_sources.flat(tmp_path / "f.bin", dtype)}, 200, vocabulary_size=50_000, dtype="int32"
    )
    dataset.__getitems__([0, 1, 2, 4])
    with pytest.raises(ValueError, match=rf"f.bin has token id {wrong}; expected ids in \[0, "):
        dataset[3]


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_instruction_sets_agree(tmp_path, monkeypatch, isa):
    source = write_flat(tmp_path, make_documents([100, 1, 333, 64, 7]), "uint16")
    dataset = TokenDataset({"a": source}, 97)
    expected = dataset.__getitems__(range(len(dataset)))
    monkeypatch.setenv("PYCOOLDOWN_ISA", isa)
    try:
        found = dataset.__getitems__(range(len(dataset)))
    except ValueError as error:
        pytest.skip(str(error))
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def test_indices_out_of_range_and_of_other_types_are_refused(tmp_path):
    dataset = TokenDataset({"a": write_flat(tmp_path, make_documents([20]), "uint16")}, 6)
    rows = in_order(dataset)
    assert dataset[-1]["input_ids"][:2].tolist() == dataset[3]["input_ids"][:2].tolist() == rows[3]
    assert dataset.__getitems__([])["input_ids"].shape == (0, 6)
    for index in (4, -5, 2**63, 2**64 - 1):
        with pytest.raises(IndexError, match=f"index {index} is out of range: the dataset has 4 sequences"):
            dataset[index]
    with pytest.raises(TypeError, match="expected a list of integers"):
        dataset.__getitems__([0.5])


def test_damaged_ends_are_refused(tmp_path):
    write_datatrove(tmp_path, make_documents([4] * 6), "uint16")
    source = token_sources.datatrove(tmp_path / "d.ds")
    np.array([4, 8, 3, 16, 20, 24], "<u8").tofile(tmp_path / "d.ds.index")
    with pytest.raises(ValueError, match=r"d\.ds is damaged: the ends of its documents do not ascend at document 2"):
        TokenDataset({"a": source}, 4)


@pytest.mark.parametrize("ends", [[], [24] * 6, [4, 8, 3, 16, 20, 24], [28, 24, 20, 16, 12, 8], [2**63] * 6, [0, 24]])
def test_reader_stays_within_the_file_whatever_the_ends_are(ends):
    """The reader stays within the tokens although others may write to the file with the ends."""
    reader = _core.TokenReader()
    tokens = np.arange(24, dtype="<u2")
    block = {"block_offsets": np.array([0], "<u8"), "block_ends": np.array([24], "<u8")}
    reader.add(
        "t",
        bytes=tokens.view(np.uint8),
        dtype="uint16",
        vocabulary_size=24,
        ends=np.array(ends, "<u8"),
        ends_path=None,
        **block,
    )
    arrays = {name: np.zeros((6, 4), np.int32) for name in ("input_ids", "position_ids", "segment_ids", "labels")}
    rows = {"pieces": np.arange(7), "begins": np.arange(0, 24, 4), "limits": np.full(6, 24)}
    for whole_documents in (False, True):
        try:
            reader.fill(
                **rows, **arrays, shift_labels=None, whole_documents=whole_documents, across_documents=False, pad_id=0
            )
        except ValueError as error:
            assert re.search("t is damaged: the ends of its documents do not ascend", str(error))  # noqa: PT017
        else:
            assert (arrays["input_ids"] < 24).all()
            assert (arrays["position_ids"] < 4).all()


@pytest.mark.parametrize("name", ["0.tar", "0.tar.ends"])
@pytest.mark.parametrize("change", ["cut", "touch"])
def test_files_that_change_in_use_are_refused(tmp_path, name, change):
    dataset = TokenDataset({"a": write_prepared(tmp_path, make_documents([8, 8, 8, 8]), "uint16")}, 8)
    path = tmp_path / name
    if change == "cut":
        os.truncate(path, 3)
    else:
        os.utime(path, (1, 1))
    dataset.__getitems__([2, 3])  # rows of the other file
    with pytest.raises(OSError, match=rf"{name} has changed since it was mapped"):
        dataset.__getitems__([3, 0])


def test_files_that_are_replaced_or_deleted_are_still_readable(tmp_path):
    dataset = TokenDataset({"a": write_prepared(tmp_path, make_documents([8, 8, 8, 8]), "uint16")}, 8)
    rows = in_order(dataset)
    write_prepared(tmp_path, make_documents([5, 5]), "uint16")
    (tmp_path / "1.tar").unlink()
    assert in_order(dataset) == rows
