"""TokenDataset works with the sampler in loaders, and models take its arrays."""

import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import transformers
from token_files import make_documents, write_datatrove, write_folder, write_prepared
from torch.utils.data import ConcatDataset, DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from pycooldown import DomainBatchSampler, schedules
from pycooldown.data import TokenDataset, token_sources
from pycooldown.huggingface import MixtureTrainer

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

LENGTHS = {"en": [30, 70, 9, 300, 44, 80, 5], "de": [100, 33, 60], "sw": [20, 40]}
NUM_STEPS = 9
COLUMNS = ("input_ids", "position_ids", "segment_ids", "labels", "domain_ids")


@pytest.fixture(params=["concat", "best_fit"])
def dataset(tmp_path, request):
    domains = {name: {"train": [make_documents(sizes)]} for name, sizes in LENGTHS.items()}
    return TokenDataset(write_folder(tmp_path, domains), 16, request.param, columns=COLUMNS)


def make_sampler(dataset):
    schedule = schedules.cooldown(dataset.sizes, switch_step=4)
    return DomainBatchSampler(schedule, batch_size=6, seed=5, num_steps=NUM_STEPS, allocation="quota")


def same(batches, expected):
    batches = list(batches)
    assert len(batches) == len(expected)
    for batch, other in zip(batches, expected):
        assert batch.keys() == other.keys()
        for name, tensor in batch.items():
            assert isinstance(tensor, torch.Tensor)
            torch.testing.assert_close(tensor, torch.from_numpy(other[name]), rtol=0, atol=0)


@pytest.fixture
def expected(dataset):
    return [dataset.__getitems__(batch) for batch in make_sampler(dataset)]


def load(dataset, **options):
    return DataLoader(dataset, batch_sampler=make_sampler(dataset), collate_fn=TokenDataset.collate, **options)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_sampler(dataset, expected, workers):
    same(load(dataset, num_workers=workers, multiprocessing_context="fork" if workers else None), expected)
    plans = map(make_sampler(dataset).plan, range(NUM_STEPS))
    assert all((batch["domain_ids"] == plan.domain_ids).all() for batch, plan in zip(expected, plans))


@pytest.mark.parametrize("dataset", ["best_fit"], indirect=True)
def test_spawned_workers(dataset, expected):
    same(load(dataset, num_workers=1, multiprocessing_context="spawn"), expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_stateful_data_loader_goes_on_in_mid_pass(dataset, expected, workers):
    def make():
        return StatefulDataLoader(
            dataset, batch_sampler=make_sampler(dataset), num_workers=workers, collate_fn=TokenDataset.collate
        )

    first, second = make(), make()
    iterator = iter(first)
    seen = [next(iterator) for _ in range(5)]
    second.load_state_dict(first.state_dict())
    same([*seen, *second], expected)


def test_single_sequences_are_collated_to_the_same_batch(dataset):
    """Sequences that are read one by one, as ConcatDataset does, are collated to the same batch."""
    both = ConcatDataset([dataset, dataset])
    indices = [3, len(dataset) + 1, 0]
    batch = TokenDataset.collate([both[i] for i in indices])
    same([batch], [dataset.__getitems__([3, 1, 0])])


def test_pickles_do_not_grow_with_the_documents(tmp_path):
    """Pickles are small, since each process maps tokens and ends of documents itself."""
    documents = make_documents(np.full(8_000, 3))
    (tmp_path / "d").mkdir()
    sources = {
        "prepared": write_prepared(tmp_path, documents, "uint16"),
        "datatrove": write_datatrove(tmp_path / "d", documents, "uint16"),
    }
    dataset = TokenDataset({"datatrove": sources["datatrove"]}, 8)
    copy = pickle.loads(content := pickle.dumps(dataset))
    assert len(content) < 3000
    np.testing.assert_array_equal(copy[777]["position_ids"], dataset[777]["position_ids"])
    whole = TokenDataset(sources, 8)  # its blocks of seven tokens take 16 bytes each in the pickle
    assert len(pickle.dumps(whole)) < 16 * 8_000


def test_threads_read_at_once(dataset, expected):
    batches = list(make_sampler(dataset)) * 20
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(dataset.__getitems__, batches))
    for batch, other in zip(found, expected * 20):
        for name, array in batch.items():
            np.testing.assert_array_equal(array, other[name])


def test_reading_needs_nothing_but_numpy(tmp_path):
    paths = [str(path) for path in write_prepared(tmp_path, make_documents([9, 9]), "uint16")]
    code = f"""
import sys
for name in ("torch", "numba", "webdataset", "transformers"): sys.modules[name] = None
from pycooldown.data import TokenDataset
print(TokenDataset({{"a": {paths}}}, 6)[2]["position_ids"].tolist())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[0, 1, 2, 3, 4, 5]"


def test_files_stay_mapped_but_not_open(dataset):
    before = len(os.listdir("/proc/self/fd"))
    copies = [pickle.loads(pickle.dumps(dataset)) for _ in range(5)]
    assert len(os.listdir("/proc/self/fd")) == before
    with open("/proc/self/maps") as maps:
        assert "train-000000.tar" in maps.read()
    assert len(copies[0]) == len(dataset)


def test_a_file_that_was_cut_off_is_refused_by_a_new_worker(tmp_path):
    path = tmp_path / "d.ds"
    write_datatrove(tmp_path, make_documents([8, 9]), "uint16")
    content = pickle.dumps(TokenDataset({"a": token_sources.datatrove(path)}, 4))
    os.truncate(path, 8)
    with pytest.raises(OSError, match=r"d\.ds is no longer a file of 34 bytes"):
        pickle.loads(content)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    # With a cache, even an empty one, these models do not separate documents by positions. Trainer turns it off.
    config = transformers.LlamaConfig(vocab_size=128, max_position_embeddings=64, use_cache=False, **sizes)
    return transformers.LlamaForCausalLM(config).double().eval()


@pytest.mark.parametrize("mode", ["concat", "document", "best_fit"])
def test_loss_of_a_hugging_face_model_is_that_of_each_document_alone(tmp_path, model, mode):
    """Positions keep attention within documents, and labels keep the loss there. Padding has no loss."""
    documents = make_documents([5, 11, 2, 30, 7])
    columns = ("input_ids", "position_ids", "labels", "segment_ids")
    dataset = TokenDataset({"a": write_prepared(tmp_path, documents, "uint16")}, 16, mode, columns=columns)
    batch = TokenDataset.collate(dataset.__getitems__(range(len(dataset))))
    segments = batch.pop("segment_ids")
    with torch.no_grad():
        found = model(**batch).loss
        losses = []
        for ids, marks in zip(batch["input_ids"], segments):
            for segment in range(1, int(marks.max()) + 1):
                alone = ids[marks == segment][None]
                logits = model(input_ids=alone).logits[0, :-1]
                losses.append(torch.nn.functional.cross_entropy(logits, alone[0, 1:], reduction="none"))
    torch.testing.assert_close(found, torch.cat(losses).mean().float(), rtol=1e-5, atol=0)


def test_shift_labels_predict_the_next_row_too(tmp_path, model):
    """With `shift_labels` every token but the first of the domain is predicted once."""
    documents = make_documents([5, 11, 2, 30, 7])
    columns = ("input_ids", "labels", "shift_labels")
    source = {"a": write_prepared(tmp_path, documents, "uint16")}
    dataset = TokenDataset(source, 16, columns=columns, cross_document_labels=True)
    batch = TokenDataset.collate(dataset.__getitems__(range(len(dataset))))
    targets = batch["shift_labels"]
    assert targets[targets != -100].tolist() == np.concatenate(documents)[1:].tolist()
    with torch.no_grad():
        output = model(**batch)
        expected = torch.nn.functional.cross_entropy(output.logits.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(output.loss, expected.float(), rtol=1e-5, atol=0)


def test_mixture_trainer(tmp_path):
    """The trainer has the domains of the mixture in training and evaluation, and the loss of the model."""
    parts = {"en": [30, 70, 9, 300], "sw": [20, 40]}
    domains = {d: {s: [make_documents(n)] for s in ("train", "validation")} for d, n in parts.items()}
    folder = write_folder(tmp_path, domains)
    columns = ("input_ids", "position_ids", "labels")
    dataset = TokenDataset(folder, 16, columns=columns)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=128, **sizes))
    trainer = MixtureTrainer(
        model=model,
        args=transformers.TrainingArguments(
            output_dir=str(tmp_path / "run"),
            max_steps=3,
            per_device_train_batch_size=4,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_steps=1,
        ),
        schedule=schedules.cooldown(dataset.sizes, switch_step=2),
        train_dataset=dataset,
        eval_dataset={
            d: TokenDataset(folder, 16, split="validation", domains=[d], columns=columns) for d in dataset.domains
        },
        data_collator=TokenDataset.collate,
    )
    trainer.train()
    logged = trainer.state.log_history[2]
    rows = [batch for step in range(3) for batch in trainer.sampler.plan(step).indices.tolist()]
    labels = TokenDataset(folder, 16).__getitems__(rows)["labels"].reshape(3, -1)
    assert logged["tokens/en"] + logged["tokens/sw"] == (labels != -100).sum()
    metrics = trainer.evaluate()
    assert {"eval_loss/en", "eval_loss/sw"} <= metrics.keys()
