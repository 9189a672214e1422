"""Files that other tools tokenized are read, and damaged ones refused.

The writers of these tools run where they are installed. The `test` extra lacks them, since they have heavy dependencies
or pins that conflict with ours. To run all tests: `pip install --no-deps --target peers megatron-core==0.16.* datatrove
litdata`, then pytest with `PYTHONPATH=peers`.
"""

import json
import struct

import numpy as np
import pytest
from token_files import (
    make_documents,
    write_datatrove,
    write_flat,
    write_litdata,
    write_llm_c,
    write_megatron,
    write_npy,
)

from pycooldown.data import TokenDataset, token_sources

DOCUMENTS = make_documents([5, 1, 700, 30, 64])


def contents(sources):
    """Return the tokens of each document."""
    dataset = TokenDataset({"a": sources}, 1000, "document")
    batch = dataset.__getitems__(range(len(dataset)))
    return [ids[marks > 0].tolist() for ids, marks in zip(batch["input_ids"], batch["segment_ids"])]


EXPECTED = [document.tolist() for document in DOCUMENTS]


class TestOwnWriters:
    def test_megatron(self, tmp_path):
        torch = pytest.importorskip("torch")
        indexed = pytest.importorskip("megatron.core.datasets.indexed_dataset", exc_type=ImportError)
        builder = indexed.IndexedDatasetBuilder(str(tmp_path / "m.bin"), dtype=np.uint16)
        for document in DOCUMENTS[:3]:
            builder.add_document(torch.from_numpy(document), [len(document)])
        builder.add_item(torch.from_numpy(DOCUMENTS[3][:10]))  # a document of two sequences
        builder.add_item(torch.from_numpy(DOCUMENTS[3][10:]))
        builder.end_document()
        builder.add_document(torch.from_numpy(DOCUMENTS[4]), [len(DOCUMENTS[4])])
        builder.finalize(str(tmp_path / "m.idx"))
        assert contents(token_sources.megatron(tmp_path / "m")) == EXPECTED

    @pytest.mark.parametrize("size", [2, 4])
    def test_datatrove(self, tmp_path, size):
        tokenizer = pytest.importorskip("datatrove.pipeline.tokens.tokenizer", exc_type=ImportError)
        file = tokenizer.TokenizedFile(str(tmp_path), "d.ds", save_final_metadata=True, token_size=size)
        for document in DOCUMENTS:
            file.write(document.tolist(), None)
        file.close()
        assert contents(token_sources.datatrove(tmp_path / "d.ds")) == EXPECTED

    @pytest.mark.parametrize("kind", ["tensor", "array"])
    def test_litdata(self, tmp_path, kind):
        torch = pytest.importorskip("torch")
        streaming = pytest.importorskip("litdata.streaming.writer", exc_type=ImportError)
        from litdata.streaming.item_loader import TokensLoader

        writer = streaming.BinaryWriter(str(tmp_path), chunk_bytes=500, item_loader=TokensLoader())
        for number, document in enumerate(DOCUMENTS):
            tokens = document.astype(np.int32)
            writer[number] = torch.from_numpy(tokens) if kind == "tensor" else tokens
        writer.done()
        writer.merge()
        sources = token_sources.litdata(tmp_path)
        assert len(sources) > 1
        assert contents(sources) == EXPECTED


def test_sequences_of_megatron_need_not_lie_end_to_end(tmp_path):
    """Documents may be in another order than in the file, with a gap between them, and may be empty."""
    write_megatron(tmp_path, DOCUMENTS, "int32")
    tokens = np.concatenate([[0] * 7, *DOCUMENTS[::-1]]).astype("<i4")
    (tmp_path / "m.bin").write_bytes(tokens.tobytes())
    order = [*DOCUMENTS, []]
    starts = {0: 7 + 64 + 30 + 700 + 1, 1: 7 + 64 + 30 + 700, 2: 7 + 64 + 30, 3: 7 + 64, 4: 7, 5: 0}
    (tmp_path / "m.idx").write_bytes(
        b"MMIDIDX\0\0"
        + struct.pack("<QBQQ", 1, 4, 6, 7)
        + np.array([len(document) for document in order], "<i4").tobytes()
        + np.array([4 * starts[number] for number in range(6)], "<i8").tobytes()
        + np.arange(7, dtype="<i8").tobytes()
        + np.zeros(6, "i1").tobytes()  # modes
    )
    source = token_sources.megatron(tmp_path / "m")
    assert contents(source) == EXPECTED
    assert TokenDataset({"a": source}, 50).tokens == {"a": 800}


def test_documents_that_begin_with_a_token(tmp_path):
    """With `bos_id` documents begin with a token, as llm.c and the speedruns of nanoGPT write them."""
    documents = [np.roll(document, 1) for document in DOCUMENTS]
    np.concatenate(documents).astype("<u2").tofile(tmp_path / "f.bin")
    source = token_sources.flat(tmp_path / "f.bin", "uint16", bos_id=3)
    assert contents(source) == [document.tolist() for document in documents]
    without_end = token_sources.flat(tmp_path / "f.bin", "uint16", eos_id=3)
    assert without_end.document_ends().tolist() == [1, 6, 7, 707, 737, 800]
    assert token_sources.flat(tmp_path / "f.bin", "uint16").document_ends().tolist() == [800]


def test_separators_are_found_in_every_part_of_a_long_file(tmp_path):
    tokens = np.full(9_000_001, 7, "<u2")
    places = [0, 2**22 - 1, 2**22, 2**23 - 1, 2**23, 9_000_000]
    tokens[places] = 3
    tokens.tofile(tmp_path / "f.bin")
    assert token_sources.flat(tmp_path / "f.bin", "uint16", eos_id=3).document_ends().tolist() == [
        p + 1 for p in places
    ]
    bos = token_sources.flat(tmp_path / "f.bin", "uint16", bos_id=3).document_ends().tolist()
    assert bos == [*places[1:], 9_000_001]


def test_datatrove_without_metadata(tmp_path):
    write_datatrove(tmp_path, DOCUMENTS, "uint16")
    (tmp_path / "d.ds.metadata").unlink()
    assert contents(token_sources.datatrove(tmp_path / "d.ds", "uint16")) == EXPECTED
    with pytest.raises(ValueError, match="pass dtype='uint16' or 'uint32'"):
        token_sources.datatrove(tmp_path / "d.ds")
    with pytest.raises(ValueError, match="it has 400 tokens, but its last document ends at 800"):
        token_sources.datatrove(tmp_path / "d.ds", "uint32")


WRITERS = {
    "megatron": (write_megatron, ["m.bin", "m.idx"]),
    "datatrove": (write_datatrove, ["d.ds", "d.ds.index", "d.ds.metadata"]),
    "npy": (write_npy, ["f.npy"]),
    "llm_c": (write_llm_c, ["l.bin"]),
    "litdata": (write_litdata, ["index.json", "chunk-0-0.bin", "chunk-0-1.bin"]),
}


def reopen(kind, folder):
    return {
        "megatron": lambda: token_sources.megatron(folder / "m"),
        "datatrove": lambda: token_sources.datatrove(folder / "d.ds"),
        "npy": lambda: token_sources.flat(folder / "f.npy", "uint16", eos_id=3),
        "llm_c": lambda: token_sources.llm_c(folder / "l.bin", eos_id=3),
        "litdata": lambda: token_sources.litdata(folder),
    }[kind]()


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, (_, names) in WRITERS.items() for name in names])
def test_files_that_were_cut_off_are_refused(tmp_path, kind, name):
    WRITERS[kind][0](tmp_path, DOCUMENTS, "uint16")
    whole = (tmp_path / name).read_bytes()
    sizes = {*range(0, min(len(whole), 300)), *range(0, len(whole), 97), len(whole) - 1, len(whole) - 2, len(whole) - 8}
    for size in sorted(sizes):
        if whole[:size].startswith(b"gpt2|2\n800") or (kind == "npy" and size < 6):
            continue  # the third line is not read; without its magic, a NumPy file cannot be recognised
        (tmp_path / name).write_bytes(whole[:size])
        with pytest.raises(ValueError, match=str(tmp_path)):
            TokenDataset({"a": reopen(kind, tmp_path)}, 64)


@pytest.mark.parametrize("kind", WRITERS)
def test_altered_headers_are_refused_or_read_within_the_files(tmp_path, kind):
    """Altered bytes of a header give an error that names the file, or tokens from within the file."""
    writer, names = WRITERS[kind]
    writer(tmp_path, DOCUMENTS, "uint16")
    messages = []
    for name in names:
        whole = (tmp_path / name).read_bytes()
        for at in [*range(min(len(whole), 48)), *range(48, min(len(whole), 160), 5)]:
            for value in (0, 0x7F, 0xFF):
                (tmp_path / name).write_bytes(whole[:at] + bytes([value]) + whole[at + 1 :])
                try:
                    dataset = TokenDataset({"a": reopen(kind, tmp_path)}, 64)
                    dataset.__getitems__(range(len(dataset)))
                except (ValueError, OSError) as error:
                    messages.append(str(error))
        (tmp_path / name).write_bytes(whole)
    assert len(messages) > 25
    assert [text for text in messages if str(tmp_path) not in text and "domain 'a' has no sequence" not in text] == []


@pytest.mark.parametrize(
    ("open_it", "message"),
    [
        (lambda f: token_sources.flat(f / "f.bin", "float32"), "expected int8 to int64 or uint8 to uint32"),
        (lambda f: token_sources.flat(f / "f.bin", ">u2"), "little endian"),
        (lambda f: token_sources.flat(f / "f.bin", "uint64"), "expected int8 to int64 or uint8 to uint32"),
        (lambda f: token_sources.flat(f / "f.bin", "uint16", eos_id=3, bos_id=4), "eos_id and bos_id are both given"),
        (
            lambda f: token_sources.flat(f / "f.bin", "uint16", eos_id=70_000),
            "eos_id = 70000 does not fit dtype uint16",
        ),
        (lambda f: token_sources.flat(f / "f.bin", "int64", offset=3), "bytes of tokens, no multiple of 8"),
        (lambda f: token_sources.flat(f / "f.bin", "uint16", offset=10_000), "bytes of tokens"),
        (lambda f: token_sources.flat(f / "f.npy", "uint32"), r"holds uint16 of shape \(800,\); expected uint32"),
        (lambda f: token_sources.flat(f / "f.npy", "uint16", offset=128), "has a NumPy header; leave out offset"),
    ],
)
def test_flat_files_that_do_not_fit_their_options_are_refused(tmp_path, open_it, message):
    write_flat(tmp_path, DOCUMENTS, "uint16")
    write_npy(tmp_path, DOCUMENTS, "uint16")
    with pytest.raises(ValueError, match=message):
        open_it(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data_format": ["no_header_tensor:0"]}, "expected vectors of integers"),  # tensors of float32
        ({"data_format": ["tensor"]}, "expected vectors of integers"),
        ({"data_format": ["int", "no_header_tensor:20"]}, "expected vectors of integers"),
        ({"data_format": None}, "is not an index of litdata"),
        ({"compression": "zstd"}, "compressed or encrypted"),
        ({"filename": "../x.bin"}, "expected a file in its own folder"),
        ({"dim": None}, "item_loader=TokensLoader"),
        ({"dim": 1}, "is damaged"),
        ({"chunk_size": 2**31}, "is damaged"),
    ],
)
def test_items_of_litdata_that_are_no_documents_are_refused(tmp_path, change, message):
    write_litdata(tmp_path, DOCUMENTS, "uint16")
    index = json.loads((tmp_path / "index.json").read_text())
    for key, value in change.items():
        (index["config"] if key in ("data_format", "compression") else index["chunks"][0])[key] = value
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=message):
        token_sources.litdata(tmp_path)
