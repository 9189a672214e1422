"""A batch of the domain batch sampler depends on (seed, schedule, step) alone, and the sampler resumes exactly."""

import contextlib
import json
import math
from itertools import islice

import numpy as np
import pytest

from pycooldown import DomainBatchSampler, Mixture, schedules, temperature

SIZES = {"zh": 1500, "de": 700, "gl": 90, "fa": 17}
ALLOCATIONS = ("multinomial", "systematic", "quota")
SCHEDULES = {
    "constant": schedules.constant(Mixture.temperature_sampling(SIZES, 5)),
    "scalarization": schedules.constant(Mixture.scalarization(SIZES, 5)),
    "cooldown": schedules.cooldown(SIZES, switch_step=23),
    "anneal": schedules.anneal(SIZES, tau=5, final_tau=1, num_steps=40, shape="cosine"),
}
OFFSETS = np.concatenate([[0], np.cumsum(list(SIZES.values()))])


def make(schedule="cooldown", **options):
    return DomainBatchSampler(SCHEDULES[schedule], **({"batch_size": 30, "seed": 3, "num_steps": 60} | options))


def domain_of(indices):
    return np.searchsorted(OFFSETS, indices, side="right") - 1


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("schedule", SCHEDULES)
class TestContract:
    """Properties of every allocation and schedule."""

    def test_plan_is_consistent(self, schedule, allocation):
        sampler = make(schedule, allocation=allocation)
        for step, batch in enumerate(sampler):
            plan = make(schedule, allocation=allocation).plan(step) if step % 20 == 7 else sampler.plan(step)
            assert plan.indices.tolist() == batch
            assert np.array_equal(domain_of(plan.indices), plan.domain_ids)
            assert plan.mixture == SCHEDULES[schedule].mixture(step)

    def test_each_epoch_of_a_domain_is_a_permutation_of_it(self, schedule, allocation):
        sampler = make(schedule, allocation=allocation, num_steps=400)
        plans = [sampler.plan(step) for step in range(400)]
        indices, epochs = (np.concatenate([getattr(p, name) for p in plans]) for name in ("indices", "epochs"))
        assert epochs.max() >= 2  # the rarest domain begins a third epoch
        for domain, size in enumerate(SIZES.values()):
            mine = domain_of(indices) == domain
            for epoch in range(epochs[mine].max()):
                seen = indices[mine & (epochs == epoch)] - OFFSETS[domain]
                assert np.array_equal(np.sort(seen), np.arange(size))
            last = indices[mine & (epochs == epochs[mine].max())]
            assert len(np.unique(last)) == len(last)

    @pytest.mark.parametrize("world_size", [1, 2, 3, 7])
    def test_ranks_slice_the_global_batch(self, schedule, allocation, world_size):
        ranks = [make(schedule, allocation=allocation, rank=r, world_size=world_size) for r in range(world_size)]
        whole = make(schedule, allocation=allocation)
        for step, parts in enumerate(zip(*ranks, strict=True)):
            assert [i for part in parts for i in part] == whole.plan(step).indices.tolist()
            assert max(map(len, parts)) - min(map(len, parts)) <= 1

    @pytest.mark.parametrize("stop", [0, 1, 22, 23, 59, 60])
    def test_resumes_exactly_on_another_world_size(self, schedule, allocation, stop):
        first = make(schedule, allocation=allocation, world_size=2)
        assert len(list(islice(first, stop))) == stop
        state = json.loads(json.dumps(first.state_dict()))
        second = make(schedule, allocation=allocation)
        second.load_state_dict(state)
        assert len(second) == 60
        assert list(second) == [make(schedule, allocation=allocation).plan(t).indices.tolist() for t in range(stop, 60)]

    def test_exposure_forecasts_what_happens(self, schedule, allocation):
        sampler = make(schedule, allocation=allocation)
        forecast = sampler.exposure()
        drawn = np.bincount(domain_of(np.concatenate(list(sampler))), minlength=4)
        assert np.array_equal(forecast.draws, drawn)
        assert forecast.epochs == pytest.approx(drawn / np.array(list(SIZES.values())))
        assert sampler.exposure(0).draws.sum() == 0
        assert sampler.exposure(23).draws.sum() == 23 * 30

    def test_state_of_an_earlier_step(self, schedule, allocation):
        """The state of an earlier step can be taken, since a DataLoader reads ahead of the consumed batches."""
        ahead = make(schedule, allocation=allocation)
        batches = list(islice(ahead, 30))
        late = make(schedule, allocation=allocation)
        late.load_state_dict(ahead.state_dict(step=21))
        assert list(islice(late, 9)) == batches[21:]
        assert next(iter(ahead)) == make(schedule, allocation=allocation).plan(30).indices.tolist()

    def test_is_unbiased(self, schedule, allocation):
        counts = np.zeros(4)
        steps = 4_000
        sampler = make(schedule, allocation=allocation, num_steps=None)
        target = np.zeros(4)
        for step in range(40, 40 + steps):
            plan = sampler.plan(step)
            counts += np.bincount(plan.domain_ids, minlength=4)
            target += 30 * plan.mixture.sampling
        assert np.all(np.abs(counts - target) <= 4.5 * np.sqrt(target))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_systematic_gives_floor_or_ceil(schedule):
    sampler = make(schedule, allocation="systematic")
    for step in range(60):
        plan = sampler.plan(step)
        wanted = 30 * plan.mixture.sampling
        counts = np.bincount(plan.domain_ids, minlength=4)
        assert counts.sum() == 30
        assert np.all(counts >= np.floor(wanted - 1e-6))
        assert np.all(counts <= np.ceil(wanted + 1e-6))


def random_schedule(rng, num_domains, kind):
    sizes = {f"d{i}": int(n) + 40 for i, n in enumerate(10 ** rng.uniform(1, 6, num_domains))}
    if kind == "anneal":
        return schedules.anneal(sizes, tau=5, final_tau=1, num_steps=150, shape=rng.choice(["linear", "exponential"]))
    starts = [0, *np.cumsum(rng.integers(1, 60, 12)).tolist()]
    names, n = list(sizes), list(sizes.values())
    mixtures = [Mixture(names, n, q, q) for q in rng.dirichlet(np.full(num_domains, 0.3), len(starts))]
    return schedules.staircase(list(zip(starts, mixtures, strict=True)))


@pytest.mark.parametrize("kind", ["staircase", "anneal"])
@pytest.mark.parametrize("case", range(12))
def test_quota_stays_within_one_sample(kind, case):
    """Draws stay within one sample of the expectation after every batch, under any schedule."""
    rng = np.random.default_rng(case)
    num_domains, batch_size = [(2, 7), (5, 1), (9, 64), (60, 16), (300, 13), (1_000, 256)][case % 6]
    schedule = random_schedule(rng, num_domains, kind)
    sampler = DomainBatchSampler(schedule, batch_size=batch_size, seed=case, allocation="quota")
    earned, drawn, worst = np.zeros(num_domains), np.zeros(num_domains), 0.0
    for step in range(200):
        plan = sampler.plan(step)
        earned += batch_size * plan.mixture.sampling
        drawn += np.bincount(plan.domain_ids, minlength=num_domains)
        worst = max(worst, np.abs(earned - drawn).max())
    assert worst < 1 + 1e-6 * num_domains  # sampling probabilities are rounded to multiples of 2^-32


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_each_slot_has_the_same_mixture(allocation):
    """Each slot of a batch has the same mixture, since ranks take slices of it."""
    sampler = DomainBatchSampler(SCHEDULES["constant"], batch_size=8, seed=1, allocation=allocation)
    ids = np.array([sampler.plan(t).domain_ids for t in range(20_000)])
    q = temperature(list(SIZES.values()), 5)
    for domain in range(4):
        share = (ids == domain).mean(axis=0)
        assert np.all(np.abs(share - q[domain]) < 4.5 * math.sqrt(q[domain] / 20_000))


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("num_domains", [1, 2, 10_000])
def test_any_number_of_domains(allocation, num_domains):
    sizes = {f"d{i}": 50_000 // (i + 1) + 5 for i in range(num_domains)}
    schedule = schedules.cooldown(sizes, switch_step=3)
    sampler = DomainBatchSampler(schedule, batch_size=4096, seed=0, num_steps=6, allocation=allocation)
    batches = list(sampler)
    assert np.bincount(np.concatenate(batches)).max() <= 2
    assert np.array_equal(sampler.exposure(6).draws, make_counts(batches, sizes))


def make_counts(batches, sizes):
    edges = np.cumsum(list(sizes.values()))
    return np.bincount(np.searchsorted(edges, np.concatenate(batches), side="right"), minlength=len(sizes))


def test_seed_and_shuffle():
    base = make().plan(5).indices
    assert not np.array_equal(base, make(seed=4).plan(5).indices)
    in_order = make(shuffle=False, schedule="constant")
    seen = np.concatenate([in_order.plan(t).indices for t in range(20)])
    assert np.array_equal(seen[domain_of(seen) == 0], np.arange((domain_of(seen) == 0).sum()))


VARIED = {"a": 10**7, "b": 3 * 10**4, "c": 5_000, "d": 63, "e": 3, "f": 1}
# Sizes at which permutations take another number of rounds, or the parts of an index another number of bits.
ROUND = {str(n): n for n in (2**61 - 1, 2**33 + 5, 2**32, 2**31 + 1, 2**31, 8193, 4097, 4096, 4095, 65, 64, 63, 5, 2)}


@pytest.mark.parametrize("sizes", [SIZES, VARIED, ROUND], ids=["few", "varied", "round"])
def test_same_batches_on_every_instruction_set(monkeypatch, sizes):
    """Batches agree for domains whose permutations take different numbers of rounds, and across epochs."""
    mixture = Mixture.temperature_sampling(sizes, math.inf) if sizes is ROUND else Mixture.proportional(sizes)
    schedule, steps = schedules.constant(mixture), range(40)

    def plans():
        batch_size = min(sum(sizes.values()), 27 if sizes is ROUND else 5_001)
        sampler = DomainBatchSampler(schedule, batch_size=batch_size, seed=9, allocation="quota")
        return [plan.indices.tolist() for plan in map(sampler.plan, steps)]

    by_isa = {}
    for isa in ("baseline", "avx2", "avx512"):
        monkeypatch.setenv("PYCOOLDOWN_ISA", isa)
        with contextlib.suppress(ValueError):  # this processor lacks the instruction set
            by_isa[isa] = plans()
    assert all(plan == by_isa["baseline"] for plan in by_isa.values())


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_order_does_not_depend_on_workers(num_workers):
    torch = pytest.importorskip("torch")
    loader = torch.utils.data.DataLoader(
        torch.arange(sum(SIZES.values())), batch_sampler=make(num_steps=12), num_workers=num_workers
    )
    assert [batch.tolist() for batch in loader] == list(make(num_steps=12))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size = 0"),
        ({"seed": -1}, "seed = -1"),
        ({"seed": 2**64}, "expected an integer in"),
        ({"num_steps": -1}, "num_steps = -1"),
        ({"rank": 2, "world_size": 2}, "rank = 2 of world_size = 2"),
        ({"world_size": 31}, "world_size = 31 is above batch_size = 30"),
        ({"allocation": "greedy"}, "'greedy'; expected one of 'multinomial', 'systematic'"),
        ({"batch_size": 120}, r"domain 'fa' 1\d\.\d times .* but it has 17 samples"),
    ],
)
def test_bad_arguments_are_named(options, message):
    if "batch_size" in options and options["batch_size"] == 120:
        options = options | {"schedule": "constant"}
    with pytest.raises(ValueError, match=message):
        make(**options)


@pytest.mark.parametrize("num_steps", [1_000, None])
def test_a_batch_that_will_not_fit_late_in_the_run_is_refused(num_steps):
    rising = schedules.anneal({"a": 100_000, "b": 10}, tau=1, final_tau=100, num_steps=1_000)
    with pytest.raises(ValueError, match=r"domain 'b' \d\d\.\d times .* but it has 10 samples"):
        DomainBatchSampler(rising, batch_size=64, seed=0, num_steps=num_steps)


def test_arguments_of_a_wrong_type():
    for name, value in {"batch_size": 1.0, "seed": 1.5, "num_steps": "7", "rank": None, "world_size": 2.0}.items():
        with pytest.raises(TypeError, match=rf"{name} = {value!r}, a \w+; expected an integer"):
            make(**{name: value})
    assert list(make(batch_size=np.int64(30), num_steps=np.uint8(3))) == list(make(num_steps=3))
    with pytest.raises(TypeError, match="schedule is a Mixture"):
        DomainBatchSampler(Mixture.proportional(SIZES), batch_size=3, seed=0)
    with pytest.raises(TypeError, match="no end"):
        len(make(num_steps=None))


def test_a_notebook_shows_exposure_as_a_table():
    sampler = DomainBatchSampler(
        schedules.constant(Mixture.proportional({"en": 30, "sw": 10})), batch_size=4, seed=0, allocation="quota"
    )
    page = sampler.exposure(10)._repr_html_()
    for text in ("40 draws", ">30<", ">0.7500<", ">1.00<"):
        assert text in page
