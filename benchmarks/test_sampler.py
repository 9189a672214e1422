"""Draws and batch plans beside NumPy, torch and the limit of writing the result.

    pytest benchmarks/test_sampler.py --benchmark-enable --benchmark-json=out.json -s

Draws and plans run with every instruction set that the processor has, and print a row for each. `best` is the least of
many short runs, in ns of the process's own time, which a machine that others use too disturbs less.

Contenders take turns in one process and on one thread; extra_info has medians in ns per draw or sample, and ratios.
"Fill" allocates and fills an array as long as the draws, page faults and all, as each of the contenders does; the
"warm" figures draw pieces that stay in the cache, whose memory the allocator hands out again: the kernel alone.
"""

import json
import statistics
import time

import numpy as np
import pytest
import torch

from pycooldown import AliasTable, DomainBatchSampler, Mixture, _core, schedules

NUM_DRAWS, PIECE, PEER_DRAWS = 4_000_000, 1 << 13, 200_000
ROUNDS = 9
BATCH_SIZE, NUM_SAMPLES = 4_096, 1_000_000


def take_turns(benchmark, contenders):
    """Return the median ns of each contender, a pair of a function and the number of things it makes."""
    times = {name: [] for name in contenders}

    def turn():
        for name, (function, count) in contenders.items():
            begin = time.perf_counter()
            function()
            times[name].append((time.perf_counter() - begin) * 1e9 / count)

    benchmark.pedantic(turn, rounds=ROUNDS, warmup_rounds=1)
    return {name: statistics.median(values[1:] or values) for name, values in times.items()}


@pytest.fixture(params=["baseline", "avx2", "avx512"])
def isa(request, monkeypatch):
    monkeypatch.setenv("PYCOOLDOWN_ISA", request.param)
    try:
        return _core.isa()
    except ValueError:
        pytest.skip(f"this processor has no {request.param}")


def best(function, count):
    """Return the minimum ns of the process's own time per thing that a function makes, over 50 runs."""
    times = []
    for _ in range(50):
        begin = time.process_time_ns()
        function()
        times.append(time.process_time_ns() - begin)
    return min(times) / count


def report(benchmark, name, figures):
    """Print figures, and store them with the benchmark's."""
    benchmark.extra_info.update(figures)
    print(f"\n{name}: " + ", ".join(f"{key} {value:.3g}" for key, value in figures.items()))


@pytest.mark.parametrize("num_outcomes", [100, 10_000])
def test_draws(benchmark, num_outcomes, isa):
    torch.set_num_threads(1)
    weights = np.arange(1, num_outcomes + 1.0) ** -1.2
    p = weights / weights.sum()
    table, generator, probabilities = AliasTable(weights), np.random.default_rng(0), torch.tensor(p)

    def pieces():
        for offset in range(0, NUM_DRAWS, PIECE):
            table.draw(PIECE, seed=1, offset=offset, num_threads=1)

    def filled_pieces():
        for _ in range(0, NUM_DRAWS, PIECE):
            np.full(PIECE, 7, dtype=np.int32)

    medians = take_turns(
        benchmark,
        {
            "draw": (lambda: table.draw(NUM_DRAWS, seed=1, num_threads=1), NUM_DRAWS),
            "fill": (lambda: np.full(NUM_DRAWS, 7, dtype=np.int32), NUM_DRAWS),
            "warm_draw": (pieces, NUM_DRAWS),
            "warm_fill": (filled_pieces, NUM_DRAWS),
            "numpy": (lambda: generator.choice(num_outcomes, PEER_DRAWS, p=p), PEER_DRAWS),
            "torch": (lambda: torch.multinomial(probabilities, PEER_DRAWS, replacement=True), PEER_DRAWS),
        },
    )
    figures = {f"{name}_ns": value for name, value in medians.items()}
    figures["warm_draw_best_ns"] = best(pieces, NUM_DRAWS)
    figures |= {f"{peer}_over_draw": medians[peer] / medians["draw"] for peer in ("numpy", "torch")}
    figures["draw_over_fill"] = medians["draw"] / medians["fill"]
    report(benchmark, f"draws, {isa}, K = {num_outcomes}", figures)


@pytest.mark.parametrize("num_domains", [8, 100, 10_000])
def test_planning(benchmark, num_domains, isa):
    sizes = {f"d{i}": 10_000_000 // (i + 1) + BATCH_SIZE for i in range(num_domains)}
    mixture = Mixture.temperature_sampling(sizes, 5)
    drifts, contenders = {}, {}
    for allocation in ("multinomial", "systematic", "quota"):
        sampler = DomainBatchSampler(schedules.constant(mixture), batch_size=BATCH_SIZE, seed=0, allocation=allocation)
        num_steps = -(-NUM_SAMPLES // BATCH_SIZE)
        drawn = sampler.exposure(num_steps).draws
        drifts[allocation] = float(np.abs(drawn - num_steps * BATCH_SIZE * mixture.sampling).max())
        steps = iter(range(10**9))

        def plan(sampler=sampler, steps=steps):
            for _ in range(20):
                sampler.plan(next(steps))

        contenders[allocation] = (plan, 20 * BATCH_SIZE)
    generator = np.random.default_rng(0)
    contenders["numpy_choice"] = (lambda: generator.choice(num_domains, BATCH_SIZE, p=mixture.sampling), BATCH_SIZE)
    medians = take_turns(benchmark, contenders)
    figures = {f"{name}_ns_per_sample": value for name, value in medians.items()}
    figures |= {f"{name}_best_ns": best(*contenders[name]) for name in drifts}
    figures |= {f"{name}_drift_in_samples": value for name, value in drifts.items()}
    report(benchmark, f"planning, {isa}, K = {num_domains}", figures)


@pytest.mark.parametrize("allocation", ["multinomial", "systematic", "quota"])
@pytest.mark.parametrize("num_domains", [8, 100, 10_000])
def test_resume(benchmark, num_domains, allocation):
    """Measure milliseconds from a state's text at step 10^9 to the first batch, and the state's bytes per domain."""
    step = 10**9
    sizes = {f"d{i}": 10_000_000 // (i + 1) + BATCH_SIZE for i in range(num_domains)}
    schedule = schedules.constant(Mixture.temperature_sampling(sizes, 5))

    def make():
        return DomainBatchSampler(schedule, batch_size=BATCH_SIZE, seed=0, allocation=allocation)

    draws = np.full(num_domains, step * BATCH_SIZE // num_domains)
    draws[0] += step * BATCH_SIZE - draws.sum()
    state = make().state_dict()
    state |= {"step": step, "draws": dict(zip(sizes, draws.tolist(), strict=True))}
    if allocation == "quota":  # as far from zero as they get
        state["credits"] = dict(zip(sizes, np.resize([2**32 - 1, 1 - 2**32], num_domains).tolist(), strict=True))
    text = json.dumps(state, separators=(",", ":"))

    def resume(sampler):
        sampler.load_state_dict(json.loads(text))
        next(iter(sampler))

    benchmark.pedantic(resume, setup=lambda: ((make(),), {}), rounds=ROUNDS, warmup_rounds=1)
    benchmark.extra_info["milliseconds"] = benchmark.stats.stats.median * 1e3
    benchmark.extra_info["state_bytes_per_domain"] = len(text) / num_domains


@pytest.mark.parametrize("allocation", ["multinomial", "systematic", "quota"])
@pytest.mark.parametrize("num_domains", [100, 10_000])
def test_a_mixture_that_changes_at_every_step(benchmark, num_domains, allocation):
    """Measure microseconds per step: mixture, alias table and plan of 512 samples, beside a constant mixture's plan."""
    sizes = {f"d{i}": 10_000_000 // (i + 1) + BATCH_SIZE for i in range(num_domains)}
    schedule = schedules.anneal(sizes, tau=5, final_tau=1, num_steps=10**6)
    samplers = {
        "anneal": DomainBatchSampler(schedule, batch_size=512, seed=0, allocation=allocation),
        "constant": DomainBatchSampler(
            schedules.constant(schedule.mixture(0)), batch_size=512, seed=0, allocation=allocation
        ),
    }

    def twenty_steps(sampler):
        steps = iter(range(10**9))
        return lambda: [sampler.plan(next(steps)) for _ in range(20)]

    medians = take_turns(benchmark, {name: (twenty_steps(sampler), 20_000) for name, sampler in samplers.items()})
    figures = {f"{name}_us_per_step": value for name, value in medians.items()}
    report(benchmark, f"a mixture that changes at every step, {allocation}, K = {num_domains}", figures)


# recipes/paper/dense_*.yaml: sequences of 1,024 tokens of 2,733, 162, 39 and 1 billion tokens.
DENSE = {"en": 2_668_945_312, "it": 158_203_125, "zh": 38_085_937, "sw": 976_562}


@pytest.mark.parametrize("allocation", ["multinomial", "systematic", "quota"])
@pytest.mark.parametrize("kind", ["dense_linear", "dense_exponential", "cooldown", "anneal of 10", "cooldown of 10"])
def test_a_far_forecast(benchmark, kind, allocation):
    """Measure seconds for the exposure of 100,000 steps: 512 samples of the paper's mixture or 1,024 of ten domains."""
    dense = "of 10" not in kind
    sizes = DENSE if dense else {f"d{i}": 10_000_000 // (i + 1) + BATCH_SIZE for i in range(10)}
    if "cooldown" in kind:
        schedule = schedules.cooldown(sizes, switch_step=50_000)
    else:
        shape = "exponential" if "exponential" in kind else "linear"
        schedule = schedules.anneal(sizes, tau=5, final_tau=1, num_steps=100_000, shape=shape)

    def make():
        batch_size = 512 if dense else 1024
        sampler = DomainBatchSampler(schedule, batch_size=batch_size, seed=0, allocation=allocation)
        return (sampler,), {}

    benchmark.pedantic(lambda sampler: sampler.exposure(100_000), setup=make, rounds=3, warmup_rounds=1)
    report(benchmark, f"exposure(100_000), {kind}, {allocation}", {"seconds": benchmark.stats.stats.median})
