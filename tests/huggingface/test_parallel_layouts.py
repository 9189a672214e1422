"""Ranks laid out as data by tensor parallelism: the samples, sums and learned mixtures are those of one process."""

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch.distributed as dist  # noqa: E402

from pycooldown import DomainBatchSampler, Mixture  # noqa: E402
from pycooldown.adaptive import OnlineDataMixing  # noqa: E402
from pycooldown.huggingface import DataParallelRanks, DomainSums  # noqa: E402
from pycooldown.huggingface.learning import Learner  # noqa: E402
from pycooldown.losses import linear_cross_entropy  # noqa: E402

SIZES = {"en": 60, "de": 20, "sw": 10}
VOCABULARY, LENGTH, BATCH, STEPS = 24, 6, 9, 5
TOKENS = torch.arange(sum(SIZES.values()))[:, None] * 5 + torch.arange(LENGTH + 1) ** 2
DOMAIN_IDS = torch.repeat_interleave(torch.arange(len(SIZES)), torch.tensor(list(SIZES.values())))


class OneProcess:
    """A stand-in for an Accelerator of one rank."""

    device, process_index, num_processes = torch.device("cpu"), 0, 1

    def reduce(self, tensor, reduction):
        return tensor.clone()

    def gather(self, tensor):
        return tensor


def train(ranks, vocabulary=slice(None), vocabulary_group=None):
    """Trains an embedding and an output layer, of which this rank has a slice of the vocabulary."""
    generator = torch.Generator().manual_seed(0)
    embedding = torch.nn.Parameter(torch.randn(VOCABULARY, 8, generator=generator))
    head = torch.nn.Parameter(torch.randn(VOCABULARY, 8, generator=generator)[vocabulary].clone())
    schedule = OnlineDataMixing(Mixture.temperature_sampling(SIZES, 3.0))
    sampler = DomainBatchSampler(
        schedule, batch_size=BATCH, seed=3, num_steps=STEPS, rank=ranks.process_index, world_size=ranks.num_processes
    )
    sums, learner = DomainSums(tuple(SIZES), ranks), Learner(schedule, len(SIZES), ranks, None, None)
    batches = []
    for step, indices in enumerate(sampler):
        batches.append(indices)
        tokens, ids = TOKENS[indices] % VOCABULARY, DOMAIN_IDS[indices].repeat_interleave(LENGTH)
        weights = torch.tensor(sampler.mixture(step).loss_weights, dtype=torch.float32)
        loss, stats = linear_cross_entropy(
            embedding[tokens[:, :-1]].flatten(0, 1), head, tokens[:, 1:].flatten(), domain_ids=ids,
            domain_weights=weights, reduction="sum", return_stats=True, process_group=vocabulary_group,
        )  # fmt: skip
        gradients = torch.autograd.grad(loss / (BATCH * LENGTH), [embedding, head])
        with torch.no_grad():
            for parameter, gradient in zip([embedding, head], gradients):
                parameter -= ranks.reduce(gradient, "sum")
        both = torch.stack([stats.loss_sum, stats.token_count.double()])
        sums.add(both, weights, step=step)
        learner.add(both)
        learner.on_step_end(None, SimpleNamespace(global_step=step + 1), None)
    sums.check_finite()
    return {
        "batches": batches,
        "tokens": sums.tokens(),
        "window": sums.take(),
        "learned": schedule.mixture(STEPS).sampling,
        "embedding": embedding.detach(),
        "head": head.detach(),
    }


def of_rank(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=4)
    torch.set_num_threads(1)
    mesh = dist.device_mesh.init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    slices = (slice(0, 10), slice(10, None))
    result = train(DataParallelRanks(mesh.get_group("dp")), slices[mesh.get_local_rank("tp")], mesh.get_group("tp"))
    torch.save({**result, "coordinate": mesh.get_coordinate()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow  # four processes
def test_a_mesh_of_data_and_tensor_parallel_ranks_trains_as_one_process(tmp_path):
    torch.multiprocessing.spawn(of_rank, (tmp_path,), nprocs=4)
    one = train(OneProcess())
    ranks = {}
    for rank in range(4):
        result = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        ranks[tuple(result["coordinate"])] = result
    for tp in range(2):
        assert ranks[0, tp]["batches"] == ranks[0, 0]["batches"]  # the same samples within a tensor-parallel group
        slices = zip(ranks[0, tp]["batches"], ranks[1, tp]["batches"], strict=True)
        assert [first + second for first, second in slices] == one["batches"]
    assert sum(one["tokens"].values()) == STEPS * BATCH * LENGTH
    for result in ranks.values():
        assert result["tokens"] == one["tokens"]  # not once for each tensor-parallel rank
        assert (result["window"].tokens == one["window"].tokens).all()
        assert result["window"].loss == pytest.approx(one["window"].loss, rel=1e-6)
        assert result["window"].weighted == pytest.approx(one["window"].weighted, rel=1e-6)
        assert result["learned"] == pytest.approx(one["learned"], rel=1e-6)
        torch.testing.assert_close(result["embedding"], one["embedding"])
    whole = torch.cat([ranks[0, 0]["head"], ranks[0, 1]["head"]])
    torch.testing.assert_close(whole, one["head"])


@pytest.fixture
def alone(tmp_path):
    """A group of one process."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def test_sums_only(alone):
    ranks = DataParallelRanks(alone)
    with pytest.raises(ValueError, match="reduction = 'mean'; expected 'sum'"):
        ranks.reduce(torch.ones(2), "mean")
    wrapped = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(1, 1))
    assert ranks.unwrap_model(wrapped) is wrapped.module
    assert ranks.unwrap_model(wrapped.module) is wrapped.module
