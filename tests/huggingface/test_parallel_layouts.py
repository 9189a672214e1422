"""With tensor, context or pipeline parallelism the samples, sums and learned mixtures are those of one process."""

import itertools
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


def loss_of(hidden, head, target, ids, weights, group):
    """Return a sum of losses, and (2, K) sums and numbers of tokens by domain."""
    loss, stats = linear_cross_entropy(
        hidden, head, target.flatten(), domain_ids=ids, domain_weights=weights,
        reduction="sum", return_stats=True, process_group=group,
    )  # fmt: skip
    return loss / (BATCH * LENGTH), torch.stack([stats.loss_sum, stats.token_count.double()])


def in_two_stages(stage, other, hidden, head, *rest):
    """Return gradients by hidden states and head, and the sums. What the other stage computes is zero here."""
    if stage == 0:
        dist.send(hidden.detach(), other)
        gradient = torch.empty_like(hidden)
        dist.recv(gradient, other)
        return gradient, torch.zeros_like(head), torch.zeros(2, len(SIZES), dtype=torch.float64)
    received = torch.empty_like(hidden)
    dist.recv(received, other)
    loss, both = loss_of(received.requires_grad_(), head, *rest)
    gradients = torch.autograd.grad(loss, [received, head])
    dist.send(gradients[0], other)
    return torch.zeros_like(hidden), gradients[1], both


def train(data, ranks, *, vocabulary=slice(None), vocabulary_group=None, positions=slice(None), stage=None, other=None):
    """Train an embedding and an output layer.

    Args:
        data: The ranks that have different samples.
        ranks: The ranks over which sums are taken.
        vocabulary: This rank's slice of the vocabulary, under tensor parallelism.
        vocabulary_group: The ranks that share the vocabulary.
        positions: This rank's part of each sequence, under context parallelism.
        stage: 0 for the embedding or 1 for the head, under pipeline parallelism.
        other: The rank with the other stage.
    """
    generator = torch.Generator().manual_seed(0)
    embedding = torch.nn.Parameter(torch.randn(VOCABULARY, 8, generator=generator))
    head = torch.nn.Parameter(torch.randn(VOCABULARY, 8, generator=generator)[vocabulary].clone())
    schedule = OnlineDataMixing(Mixture.temperature_sampling(SIZES, 3.0))
    sampler = DomainBatchSampler(
        schedule, batch_size=BATCH, seed=3, num_steps=STEPS, rank=data.process_index, world_size=data.num_processes
    )
    sums, learner = DomainSums(tuple(SIZES), ranks), Learner(schedule, len(SIZES), ranks, None, None)
    batches = []
    for step, indices in enumerate(sampler):
        batches.append(indices)
        tokens = TOKENS[indices] % VOCABULARY
        inputs, target = tokens[:, :-1][:, positions], tokens[:, 1:][:, positions]
        ids = DOMAIN_IDS[indices].repeat_interleave(inputs.shape[1])
        weights = torch.tensor(sampler.mixture(step).loss_weights, dtype=torch.float32)
        hidden, rest = embedding[inputs].flatten(0, 1), (target, ids, weights, vocabulary_group)
        if stage is None:
            loss, both = loss_of(hidden, head, *rest)
            of_hidden, of_head = torch.autograd.grad(loss, [hidden, head], retain_graph=True)
        else:
            of_hidden, of_head, both = in_two_stages(stage, other, hidden, head, *rest)
        (of_embedding,) = torch.autograd.grad(hidden, embedding, of_hidden)
        with torch.no_grad():
            for parameter, gradient in zip([embedding, head], [of_embedding, of_head]):
                parameter -= ranks.reduce(gradient, "sum")
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


LAYOUTS = ("tp", "cp", "pp")


def of_rank(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=4)
    torch.set_num_threads(1)
    for layout in LAYOUTS:
        mesh = dist.device_mesh.init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", layout))
        place, group = mesh.get_local_rank(layout), mesh.get_group(layout)
        data, everyone = DataParallelRanks(mesh.get_group("dp")), DataParallelRanks(dist.group.WORLD)
        if layout == "tp":
            result = train(data, data, vocabulary=(slice(10), slice(10, None))[place], vocabulary_group=group)
        elif layout == "cp":
            result = train(data, everyone, positions=(slice(2), slice(2, None))[place])
        else:  # the stage without a loss adds zeros to the sums, so that it learns the same mixture
            result = train(data, everyone, stage=place, other=dist.get_global_rank(group, 1 - place))
        torch.save({**result, "coordinate": mesh.get_coordinate()}, f"{folder}/{layout}{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def meshes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("meshes")
    torch.multiprocessing.spawn(of_rank, (folder,), nprocs=4)
    results = {layout: {} for layout in LAYOUTS}
    for layout, rank in itertools.product(LAYOUTS, range(4)):
        result = torch.load(folder / f"{layout}{rank}.pt", weights_only=False)
        results[layout][tuple(result["coordinate"])] = result
    return results


@pytest.mark.slow  # starts four processes
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_mesh_of_data_and_model_parallel_ranks_trains_as_one_process(meshes, layout):
    ranks, one = meshes[layout], train(OneProcess(), OneProcess())
    for place in range(2):
        assert ranks[0, place]["batches"] == ranks[0, 0]["batches"]  # all parts of a model get the same samples
        slices = zip(ranks[0, place]["batches"], ranks[1, place]["batches"], strict=True)
        assert [first + second for first, second in slices] == one["batches"]
    assert sum(one["tokens"].values()) == STEPS * BATCH * LENGTH
    for result in ranks.values():
        assert result["tokens"] == one["tokens"]  # counted once, not for each part of a model
        assert (result["window"].tokens == one["window"].tokens).all()
        assert result["window"].loss == pytest.approx(one["window"].loss, rel=1e-6)
        assert result["window"].weighted == pytest.approx(one["window"].weighted, rel=1e-6)
        assert result["learned"] == pytest.approx(one["learned"], rel=1e-6)
        torch.testing.assert_close(result["embedding"], one["embedding"])
    heads = [ranks[0, 0]["head"], ranks[0, 1]["head"]]
    for head in [torch.cat(heads)] if layout == "tp" else heads:
        torch.testing.assert_close(head, one["head"])


@pytest.fixture
def alone(tmp_path):
    """Yield a group of one process."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def test_ranks_reduce_sums_only_and_unwrap_models(alone):
    ranks = DataParallelRanks(alone)
    with pytest.raises(ValueError, match="reduction = 'mean'; expected 'sum'"):
        ranks.reduce(torch.ones(2), "mean")
    wrapped = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(1, 1))
    assert ranks.unwrap_model(wrapped) is wrapped.module
    assert ranks.unwrap_model(wrapped.module) is wrapped.module
