"""Learning methods keep one contract, and each update rule gives known answers."""

import json
import math
import warnings

import numpy as np
import pytest
from scipy import optimize

from pycooldown import DomainBatchSampler, Mixture, schedules, theory
from pycooldown.adaptive import (
    ADO,
    ERMA,
    FGLS,
    DoReMi,
    GroupDRO,
    OnlineDataMixing,
    PiKE,
    Statistics,
    VarianceAware,
)
from pycooldown.adaptive._updates import exponentiated_gradient
from pycooldown.adaptive.erma import erma_step
from pycooldown.adaptive.fgls import aitken_weights
from pycooldown.adaptive.group_dro import worst_share
from pycooldown.adaptive.odm import exp3, exploration_rate
from pycooldown.adaptive.variance_aware import best_sampling

SIZES = {"zh": 1500, "de": 700, "gl": 90, "fa": 40}
UNIFORM = Mixture.temperature_sampling(SIZES, math.inf)
METHODS = {
    "group_dro": lambda start=UNIFORM, **o: GroupDRO(start, step_size=0.1, **o),
    "doremi": lambda start=UNIFORM, **o: DoReMi(start, **o),
    "odm": lambda start=UNIFORM, **o: OnlineDataMixing(start, **o),
    "odm_momentum": lambda start=UNIFORM, **o: OnlineDataMixing(start, momentum=0.9, **o),
    "group_dro_normalized": lambda start=UNIFORM, **o: GroupDRO(start, step_size=0.1, normalize_losses=True, **o),
    "group_dro_worst": lambda start=UNIFORM, **o: GroupDRO(start, worst=0.3, least=0.1, **o),
    "erma_printed": lambda start=UNIFORM, **o: ERMA(start, interval=3, variance_rate=0.5, normalization="printed", **o),
    "va_systematic": lambda start=UNIFORM, **o: VarianceAware(start, interval=3, allocation="systematic", **o),
    "ado": lambda start=UNIFORM, **o: ADO(start, warmup=4, interval=4, **o),
    "ado_shared": lambda start=UNIFORM, **o: ADO(start, warmup=0, interval=5, shared_count=True, **o),
    "pike": lambda start=UNIFORM, **o: PiKE(start, batch_size=12, gradient_rate=0.1, interval=3, **o),
    "fgls": lambda start=UNIFORM, **o: FGLS(start, interval=3, warmup=6, **o),
    "erma": lambda start=UNIFORM, **o: ERMA(start, interval=3, variance_rate=0.5, **o),
    "va": lambda start=UNIFORM, **o: VarianceAware(start, interval=3, **o),
    "fgls_va": lambda start=UNIFORM, **o: VarianceAware(FGLS(start, interval=3, **o), interval=6, **o),
    "erma_va": lambda start=UNIFORM, **o: VarianceAware(ERMA(start, interval=3, **o), interval=3, **o),
}


def statistics(step, domains=tuple(SIZES), alike=False):
    """Return statistics of one step, which depend on the domains' names, not their order. Some batches lack gl."""
    values = {}
    for domain in domains:
        rng = np.random.default_rng([step, 0 if alike else list(SIZES).index(domain)])
        count = 0 if domain == "gl" and step % 4 == 1 and not alike else 10
        values[domain] = (count * rng.uniform(1, 3), count, count * rng.uniform(0, 0.3), *rng.uniform(1, 3, 4))
    return Statistics(*np.array(list(values.values())).T)


def train(schedule, first, last, **options):
    """Train the steps and return the mixture of each at the time of its training."""
    mixtures = []
    for step in range(first, last):
        mixtures.append(schedule.mixture(step))
        schedule.update(step, statistics(step, schedule.start.domains, **options))
    return mixtures


@pytest.mark.filterwarnings("ignore:FGLS starts with a target")
@pytest.mark.parametrize("method", METHODS)
class TestContract:
    def test_a_decided_mixture_never_changes_and_an_undecided_one_is_an_error(self, method):
        schedule, delay = METHODS[method](delay=5), 5
        seen = {}
        for step in range(40):
            for ahead in range(delay):
                mixture = schedule.mixture(step + ahead)
                assert seen.setdefault(step + ahead, mixture) is mixture
            with pytest.raises(LookupError, match=rf"step {step + delay} depends on the statistics of step {step}"):
                schedule.mixture(step + delay)
            schedule.update(step, statistics(step))
        assert all(seen[step] == UNIFORM for step in range(delay))
        assert seen[39] != UNIFORM

    def test_the_delay_only_shifts_the_mixtures_of_methods_that_do_not_depend_on_their_draws(self, method):
        if method.startswith(("odm", "ado")):
            pytest.skip("the rewards depend on the probabilities of the draws")
        now, later = (train(METHODS[method](delay=delay), 0, 40) for delay in (1, 7))
        assert now[:-6] == later[6:]

    def test_next_change(self, method):
        schedule = METHODS[method](delay=3)
        for step in range(30):
            changes = [s for s in range(step + 1, step + 3) if schedule.mixture(s) != schedule.mixture(s - 1)]
            assert schedule.next_change(step) == (changes[0] if changes else step + 3)
            schedule.update(step, statistics(step))

    @pytest.mark.parametrize("stop", [1, 11, 12])
    def test_resumes_to_the_bit_through_json_also_in_another_order_of_domains(self, method, stop):
        whole = train(METHODS[method](delay=4), 0, 30)
        first = METHODS[method](delay=4)
        train(first, 0, stop)
        state = json.loads(json.dumps(first.state_dict(), allow_nan=False))
        resumed = METHODS[method](delay=4)
        resumed.load_state_dict(state)
        assert train(resumed, stop, 30) == whole[stop:]
        reordered = METHODS[method](Mixture.temperature_sampling(dict(reversed(SIZES.items())), math.inf), delay=4)
        reordered.load_state_dict(state)
        for theirs, mine in zip(whole[stop:], train(reordered, stop, 30), strict=True):
            assert np.allclose(mine.target[::-1], theirs.target, rtol=1e-12)
            assert np.allclose(mine.sampling[::-1], theirs.sampling, rtol=1e-12)

    def test_identical_domains_stay_put(self, method):
        if method == "group_dro_worst":
            pytest.skip("the update depends on the sizes of the domains")
        for mixture in train(METHODS[method](delay=1), 0, 200, alike=True):
            assert np.allclose(mixture.target, 0.25, atol=1e-12)
            assert np.allclose(mixture.sampling, 0.25, atol=1e-12)

    @pytest.mark.filterwarnings("ignore:.* of the target after")
    @pytest.mark.parametrize("scale", [1e-200, 1e-3, 1e3, 1e200])
    def test_weights_neither_overflow_nor_vanish_together(self, method, scale):
        schedule = METHODS[method](delay=1)
        for step in range(60):
            values = {
                name: x if name == "token_count" else scale * np.asarray(x)
                for name, x in vars(statistics(step)).items()
            }
            schedule.update(step, Statistics(**values))
            mixture = schedule.mixture(step + 1)
            assert np.isfinite(mixture.loss_weights).all()
            assert np.isclose(mixture.target.sum(), 1)
            assert (mixture.sampling > 0).all()
        json.dumps(schedule.state_dict(), allow_nan=False)

    @pytest.mark.parametrize("allocation", ["multinomial", "systematic", "quota"])
    def test_a_prefetching_sampler_draws_the_same_whatever_its_lead_and_resumes(self, method, allocation):
        def run(lead, first=0, last=30, state=None):
            schedule = METHODS[method](delay=6)
            sampler = DomainBatchSampler(schedule, batch_size=12, seed=1, num_steps=30, allocation=allocation)
            if state:
                schedule.load_state_dict(state[0])
                sampler.load_state_dict(state[1])
            batches, read = iter(sampler), []
            for step in range(first, last):
                while len(read) < min(step + lead, 30) - first:
                    read.append(next(batches))
                schedule.update(step, statistics(step))
            return read[: last - first], json.loads(json.dumps([schedule.state_dict(), sampler.state_dict(last)]))

        whole, _ = run(1)
        assert run(6)[0] == whole
        start, state = run(6, last=17)
        assert start + run(3, first=17, state=state)[0] == whole

    @pytest.mark.parametrize(
        ("step", "change", "message"),
        [
            (1, {}, "update of step 1; expected step 0"),
            (0, {"loss_sum": [1, 2, 3]}, r"loss_sum has shape \(3,\); expected one value for each of 4"),
            (0, {"loss_sum": [1, np.nan, 1, 1]}, "loss_sum of domain 'de' is nan at step 0"),
            (0, {"token_count": [1, 1, -1, 1]}, "token_count of domain 'gl' is -1.0"),
        ],
    )
    def test_bad_statistics_change_nothing(self, method, step, change, message):
        schedule = METHODS[method]()
        before = schedule.state_dict()
        with pytest.raises(ValueError, match=message):
            schedule.update(step, Statistics(**{**vars(statistics(0)), **change}))
        assert schedule.state_dict() == before

    def test_missing_statistics_are_named(self, method):
        schedule = METHODS[method](delay=1)
        for step in range(12):
            for name in schedule.needs(step):
                with pytest.raises(ValueError, match=f"the statistics of step {step} lack '{name}'"):
                    schedule.update(step, Statistics(**{**vars(statistics(step)), name: None}))
            schedule.update(step, statistics(step))

    def test_states_of_other_jobs_are_refused(self, method):
        schedule, state = METHODS[method](delay=2), METHODS[method](delay=2).state_dict()
        others = {
            "settings": METHODS[method](delay=3).state_dict(),
            "method": {**state, "method": "Other"},
            "are only in one of the two": {**state, "mixtures": [{"step": 0, "target": {"x": 1}, "sampling": {}}]},
            "lacks": {},
        }
        for message, other in others.items():
            with pytest.raises(ValueError, match=message):
                schedule.load_state_dict(other)

    def test_damaged_states_are_refused_and_change_nothing(self, method):
        schedule = METHODS[method](delay=2)
        train(schedule, 0, 20)
        state, fresh = schedule.state_dict(), METHODS[method](delay=2)
        before, last = fresh.state_dict(), state["mixtures"][-1]
        damaged = [
            *({"num_updates": n} for n in (-1, 1.5, None, "3", True, 2**70)),
            *({"learned": x} for x in (None, [], {"other": {}})),
            *({"learned": state["learned"] | {name: [1]}} for name in state["learned"]),
            *({"mixtures": x} for x in (None, [], {}, [None], [[]], [{}], [last, last])),
            *({"mixtures": [last | {"step": n}]} for n in (-1, 1.5, None, 22, 2**70)),
            *({"mixtures": [last | {"target": x}]} for x in (None, 3, {}, dict.fromkeys(SIZES, "0.25"))),
            *({"mixtures": [last | {"sampling": dict.fromkeys(SIZES, x)}]} for x in (None, -1, 2, True, 10**400)),
            *({"objective": x} for x in (None, {}, []) if "objective" in state),
        ]
        for change in damaged:
            with pytest.raises(ValueError):  # noqa: PT011
                fresh.load_state_dict(state | change)
            assert fresh.state_dict() == before, change
        for no_state in (None, [], "state"):
            with pytest.raises(ValueError, match="expected a value of"):
                fresh.load_state_dict(no_state)

    def test_is_a_schedule(self, method):
        schedule = METHODS[method](delay=2)
        assert isinstance(schedule, schedules.AdaptiveSchedule)
        assert schedule.describe() == METHODS[method](delay=2).describe() != METHODS[method](delay=3).describe()
        with pytest.raises(ValueError, match="delay = 0"):
            METHODS[method](delay=0)


def stats(loss, count=1, **more):
    loss = np.asarray(loss, float)
    return Statistics(loss * count, np.broadcast_to(count, loss.shape), **more)


def test_exponentiated_gradient():
    assert np.allclose(exponentiated_gradient(np.array([0.5, 0.5]), np.log([3, 1]), 1.0), [0.75, 0.25])
    assert np.allclose(exponentiated_gradient(np.array([0.5, 0.5]), np.array([1e6, 0]), 1.0, 0.1), [0.95, 0.05])
    present = np.array([True, True, False])  # an absent domain keeps its weight, whatever the others do
    assert np.allclose(
        exponentiated_gradient(np.array([0.25, 0.25, 0.5]), np.array([np.log(3), 0, np.nan]), 1.0, 0.0, present),
        [0.375, 0.125, 0.5],
    )


def test_doremi_rises_for_excess_loss_and_not_for_entropy():
    """DoReMi raises b, where the reference is better, not a, which is hard for both. Group DRO raises a."""
    schedule = DoReMi(Mixture.temperature_sampling({"a": 1, "b": 1}, 1), step_size=1.0, smoothing=0.0, delay=1)
    for step in range(10):
        schedule.update(step, stats([8.0, 1.0], count=100, excess_loss_sum=[5.0, 30.0]))
    t = np.arange(1, 11)  # after t steps the odds of b are exp(t (0.3 - 0.05))
    share = 1 / (1 + np.exp(-0.25 * t))
    assert np.allclose(schedule.current.target[1], share[-1])
    assert np.allclose(schedule.average.target[1], share.mean())
    assert (schedule.average.sampling == schedule.average.target).all()
    ema = 0.5
    for x in share:
        ema = 0.99 * ema + 0.01 * x
    assert np.allclose(schedule.moving_average.target[1], ema)
    worst_group = GroupDRO(Mixture.temperature_sampling({"a": 1, "b": 1}, 1), step_size=0.1, delay=1)
    worst_group.update(0, stats([8.0, 1.0]))
    assert np.allclose(worst_group.current.target[0], 1 / (1 + np.exp(-0.7)))


def test_loss_weights_keep_the_sampling_of_the_start():
    start = Mixture.proportional(SIZES)
    schedule = GroupDRO(start, step_size=1.0, delay=1)
    schedule.update(0, stats([3, 1, 2, 2]))
    assert (schedule.mixture(1).sampling == start.sampling).all()
    assert np.allclose(schedule.mixture(1).loss_weights * start.sampling, schedule.mixture(1).target)


def test_warns_when_one_domain_takes_all():
    schedule = GroupDRO(UNIFORM, step_size=10.0, delay=1)
    with pytest.warns(UserWarning, match=r"gives domain 'fa' 1\.000 of the target after 1 steps"):
        schedule.update(0, stats([0, 0, 0, 9]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schedule.update(1, stats([0, 0, 0, 9]))  # the warning comes once


def test_exp3():
    assert exploration_rate(4, 1) == 0.25
    assert exploration_rate(4, 100) == math.sqrt(math.log(4) / 400)
    rewards, t = np.array([30.0, 0.0, 10.0, 10.0]), 50
    now, before = exploration_rate(4, t), exploration_rate(4, t - 1)
    weights = np.exp(before * rewards)
    assert np.allclose(exp3(rewards, t), (1 - 4 * now) * weights / weights.sum() + now)
    assert np.allclose(exp3(rewards, 1), 0.25)  # the first step only explores


def test_odm_rewards_are_importance_weighted():
    """A batch of one domain gives loss / probability, as in the paper. A mixed batch gives about the losses."""
    start = Mixture.temperature_sampling(SIZES, 5)
    one = OnlineDataMixing(start, delay=1)
    one.update(0, Statistics([0, 20, 0, 0], [0, 10, 0, 0]))
    rewards = list(one.state_dict()["learned"]["rewards"].values())
    assert np.allclose(rewards, [0, 2 / start.sampling[1] / 10, 0, 0])
    mixed = OnlineDataMixing(start, delay=1)
    losses, counts = np.array([1, 2, 3, 4]), 1e6 * start.sampling
    mixed.update(0, Statistics(losses * counts, counts))
    assert np.allclose(list(mixed.state_dict()["learned"]["rewards"].values()), losses / 10)


def test_odm_smoothed_mean_is_that_of_the_public_code():
    """The moving average equals that of the public code, written out here, for 3,000 steps of constant losses."""
    start = Mixture.temperature_sampling(dict.fromkeys("abcde", 10), 1)
    losses, drawn = np.array([1.0, 3, 5, 7, 9]), np.random.default_rng(0)
    schedule = OnlineDataMixing(start, momentum=0.9, delay=1)
    rewards = np.zeros(5)
    for step in range(3000):
        present = drawn.random(5) < 0.9
        present[step % 5] = True
        schedule.update(step, Statistics(losses * 7 * present, 7 * present))
        rewards[present] = 0.9 * rewards[present] + 0.1 * np.exp(losses[present])
        epsilon = min(1 / 5, math.sqrt(math.log(5) / (5 * (step + 1))))
        expected = (1 - 5 * epsilon) * rewards / rewards.sum() + epsilon
        assert np.allclose(schedule.current.sampling, expected, rtol=1e-9)
    assert np.allclose(schedule.current.sampling, [0.011, 0.012, 0.025, 0.121, 0.830], atol=5e-4)
    assert (schedule.current.target == schedule.current.sampling).all()


def test_odm_learns_nothing_while_it_warms_up():
    for momentum in (None, 0.9):
        schedule = OnlineDataMixing(UNIFORM, momentum=momentum, warmup=6, delay=1)
        for step in range(9):
            schedule.update(step, stats([1, 2, 3, 4]))
            assert (schedule.current is schedule.start) == (step < 6)
        late = OnlineDataMixing(UNIFORM, momentum=momentum, delay=1)
        late.num_updates = 6  # the exploration rate counts the warm-up
        for step in range(6, 9):
            late.update(step, stats([1, 2, 3, 4]))
        assert late.current == schedule.current


def test_group_dro_options():
    """The options give the steps of the authors' public code, which is written out here."""
    start = Mixture.proportional({"a": 900, "b": 90, "c": 10})
    loss = np.array([1.0, 2.0, 4.0])
    schedule = GroupDRO(start, step_size=0.3, adjustment=5.0, normalize_losses=True, delay=1)
    schedule.update(0, stats(loss, count=3))
    adjusted = loss + 5.0 / np.sqrt(start.sizes)
    q = start.target * np.exp(0.3 * adjusted / adjusted.sum())
    assert np.allclose(schedule.current.target, q / q.sum())


def test_the_worst_share_is_the_conditional_value_at_risk():
    rng = np.random.default_rng(0)
    for _ in range(30):
        losses, fractions, share = rng.normal(size=5), rng.dirichlet(np.ones(5)), rng.uniform(0.05, 1)
        best = optimize.linprog(-losses, A_eq=[np.ones(5)], b_eq=[1], bounds=[(0, f / share) for f in fractions])
        assert np.allclose(worst_share(losses, fractions, share), best.x, atol=1e-9)
    start = Mixture.proportional({"a": 700, "b": 200, "c": 100})
    schedule = GroupDRO(start, worst=0.25, decay=0.5, least=0.2, delay=1)
    schedule.update(0, Statistics([1.0, 4.0, 0.0], [1, 1, 0]))
    assert schedule.current is start  # c has not been seen yet
    schedule.update(1, stats([1.0, 2.0, 5.0]))  # averages 1, 3, 5
    assert np.allclose(schedule.current.target, 0.2 * np.array([0.7, 0.2, 0.1]) + 0.8 * np.array([0, 0.6, 0.4]))


def test_fgls_is_generalized_least_squares_where_the_target_is_the_share_of_samples():
    """The exact mean squared error of weighted least squares is checked for 900 and 100 samples of equal noise."""
    x = np.random.default_rng(0).normal(size=(1000, 5))
    sizes = np.array([900, 100])

    def error(pi):
        weights = np.repeat(pi * aitken_weights(pi, np.ones(2)) / sizes, sizes)
        solve = np.linalg.solve(x.T @ (weights[:, None] * x), x.T * weights)
        return (solve**2).sum()

    uniform, proportional = error(np.array([0.5, 0.5])), error(sizes / 1000)
    assert proportional == pytest.approx(np.trace(np.linalg.inv(x.T @ x)))  # the best linear unbiased estimator
    assert uniform / proportional == pytest.approx(0.01380 / 0.00508, rel=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FGLS(Mixture.proportional({"a": 900, "b": 100}))


def test_fgls_fixed_point_is_aitken():
    variance = np.array([9.0, 1.0, 0.25, 4.0])
    with pytest.warns(UserWarning, match="a target of 0.0781 for domain 'fa', which has 0.0172 of the samples"):
        schedule = FGLS(Mixture.temperature_sampling(SIZES, 2), interval=1, warmup=5, delay=1)
    pi = schedule.start.target
    for step in range(100):
        schedule.update(step, stats([1] * 4, probe_loss=variance * (2 if step < 10 else 1)))
        if step < 4:
            assert schedule.current is schedule.start
    weights = schedule.current.target / pi
    assert np.allclose(weights, aitken_weights(pi, variance))
    assert np.allclose(weights * variance, weights[0] * variance[0])
    assert np.isclose((pi * weights).sum(), 1)
    assert np.isfinite(aitken_weights(pi, np.array([0.0, 1, 1, 1]))).all()


def test_erma_fixed_points():
    pi, loss = np.array([0.1, 0.2, 0.3, 0.4]), np.array([1.0, 2.0, 0.5, 1.5])
    variance = np.array([8.0, 1.0, 0.5, 2.0])

    def fixed_point(bias_rate, variance_rate):
        weights = np.ones(4)
        for _ in range(20_000):
            weights = erma_step(weights, pi, loss, variance, bias_rate, variance_rate)
        return weights

    weights = fixed_point(0.0, 0.05)
    assert np.isclose((pi * weights).sum(), 1)
    assert np.allclose(weights * variance, (weights * variance)[0], rtol=1e-8)

    def objective(w):
        return 0.5 * ((pi * (1 - w) * loss).sum()) ** 2 + 0.5 * 5.0 * (pi * w**2 * variance).sum()

    best = optimize.minimize(
        objective,
        np.ones(4),
        constraints={"type": "eq", "fun": lambda w: pi @ w - 1},
        bounds=[(0, None)] * 4,
        tol=1e-14,
    )
    assert np.allclose(fixed_point(0.01, 0.05), best.x, atol=1e-5)


def test_erma_as_printed_has_another_fixed_point():
    pi, ones, found = np.array([0.8, 0.2]), np.ones(2), {}
    for normalization in ("printed", "projected"):
        weights = np.ones(2)
        for _ in range(20_000):
            weights = erma_step(weights, pi, ones, ones, 0.0, 0.05, normalization)
        found[normalization] = weights
    assert np.allclose(found["printed"], [0.625, 2.5])
    assert np.allclose(found["projected"], [1, 1])
    one = erma_step(ones, pi, ones, np.array([2.0, 1.0]), 0.0, 0.1, "printed")
    grown = np.exp(-0.1 * pi * [2, 1])
    assert np.allclose(one, grown / (pi @ grown))


def test_erma_step_is_bounded():
    weights = erma_step(np.ones(2), np.array([0.5, 0.5]), np.array([1.0, 1.0]), np.array([1e9, 1.0]), 0.0, 1.0)
    assert np.allclose(weights.max() / weights.min(), math.e, rtol=0.7)
    assert (weights > 0).all()


def test_variance_aware_is_neyman():
    rng = np.random.default_rng(0)
    for _ in range(50):
        pi, v = rng.dirichlet(np.ones(5)), rng.lognormal(0, 2, 5)
        q = best_sampling(pi, v)
        assert np.allclose(q, pi * np.sqrt(v) / (pi * np.sqrt(v)).sum())
        assert np.isclose((pi**2 * v / q).sum(), (pi * np.sqrt(v)).sum() ** 2)
        bounded = best_sampling(pi, v, least=0.1)
        assert np.isclose(bounded.sum(), 1)
        assert bounded.min() >= 0.1 - 1e-12
        for _ in range(20):  # no other feasible allocation has a smaller variance
            other = 0.1 + 0.5 * rng.dirichlet(np.ones(5) / 3)
            assert (pi**2 * v / bounded).sum() <= (pi**2 * v / other).sum() * (1 + 1e-9)
    assert np.allclose(best_sampling(np.array([0.5, 0.5, 0]), np.array([0.0, 1, 1]), 0.01), [0.01, 0.99, 0])
    assert np.allclose(best_sampling(np.array([0.3, 0.7]), np.zeros(2), 0.01), [0.3, 0.7])


@pytest.mark.filterwarnings("ignore:FGLS starts with a target")
def test_variance_aware_follows_its_objective():
    options = {"interval": 1, "decay": 0.0, "delay": 2}
    schedule = VarianceAware(FGLS(UNIFORM, **options), allocation="quota", **options)
    assert schedule.needs(0) == {"probe_loss", "probe_gradient_variance"}
    error, variance = np.array([4.0, 1, 1, 1]), np.array([1.0, 1, 16, 1])
    schedule.update(0, stats([1] * 4, probe_loss=error, probe_gradient_variance=variance))
    mixture = schedule.mixture(2)
    target = (1 / error) / (1 / error).sum()
    assert np.allclose(mixture.target, target)
    assert np.allclose(mixture.sampling, target * np.sqrt(variance) / (target * np.sqrt(variance)).sum())
    with pytest.raises(ValueError, match="delay = 4, but objective has 2"):
        VarianceAware(FGLS(UNIFORM, delay=2))


def test_variance_aware_is_best_for_the_allocation_that_it_was_given():
    """The closed form of the gradient's variance is compared for two domains with unequal noise."""
    pi, traces, means = np.array([0.5, 0.5]), np.array([0.01, 1.0]), np.array([[2.0, 0.0], [0.0, 2.0]])
    start = Mixture(("a", "b"), np.array([500, 500]), pi, pi)
    moments = {"probe_gradient_variance": traces, "probe_gradient_second_moment": traces + 4}
    variance = {}
    for allocation in ("multinomial", "systematic", "quota"):
        schedule = VarianceAware(start, allocation=allocation, interval=1, delay=1)
        schedule.update(0, stats([1, 1], **{name: moments[name] for name in schedule.needs(0)}))
        variance[allocation] = {
            form: theory.gradient_variance(schedule.current, means, traces, 48, form)
            for form in ("multinomial", "stratified")
        }
    assert theory.gradient_variance(start, means, traces, 48) == pytest.approx(0.0522, abs=5e-5)
    assert variance["multinomial"]["multinomial"] == pytest.approx(0.0519, abs=5e-5)
    assert variance["systematic"]["multinomial"] == pytest.approx(
        0.217, abs=5e-4
    )  # much worse: systematic allocation uses the other moment
    assert variance["systematic"]["stratified"] < variance["multinomial"]["stratified"]
    assert variance["quota"] == variance["systematic"]


def test_a_probe_of_one_example_is_refused():
    schedule = VarianceAware(UNIFORM, interval=1, allocation="systematic")
    alone = np.array([1, 1, np.nan, 1])  # one example has no variance
    with pytest.raises(ValueError, match=r"probe_gradient_variance of domain 'gl' is nan .* at least two examples"):
        schedule.update(0, stats([1] * 4, probe_gradient_variance=alone))
    assert schedule.num_updates == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GroupDRO(UNIFORM, step_size=0), "step_size = 0"),
        (lambda: DoReMi(UNIFORM, smoothing=1), "smoothing = 1"),
        (lambda: DoReMi(UNIFORM, decay=1), "decay = 1"),
        (lambda: OnlineDataMixing(UNIFORM, momentum=2), "momentum = 2"),
        (lambda: OnlineDataMixing(UNIFORM, momentum=0.5, reward_scale=3), "reward_scale = 3 is not used with momentum"),
        (lambda: OnlineDataMixing(UNIFORM, reward_scale=0), "reward_scale = 0"),
        (lambda: OnlineDataMixing(UNIFORM, warmup=-1), "warmup = -1"),
        (lambda: GroupDRO(UNIFORM, adjustment=-1), "adjustment = -1"),
        (lambda: GroupDRO(UNIFORM, worst=0), r"worst = 0; expected a share of the data in \(0, 1\]"),
        (lambda: GroupDRO(UNIFORM, least=0.1), "least = 0.1 is used only with worst"),
        (lambda: GroupDRO(UNIFORM, worst=0.1, smoothing=0.1), "are not used with worst"),
        (lambda: ERMA(UNIFORM, normalization="own"), "normalization = 'own'"),
        (lambda: VarianceAware(UNIFORM, allocation="own"), "allocation = 'own'"),
        (lambda: FGLS(UNIFORM, interval=0), "interval = 0"),
        (lambda: FGLS(UNIFORM, warmup=-1), "warmup = -1"),
        (lambda: ERMA(UNIFORM, bias_rate=-1), "bias_rate = -1"),
        (lambda: VarianceAware(UNIFORM, least=0.5), "least = 0.5; expected a probability > 0, at most 1/K = 0.25"),
        (
            lambda: GroupDRO(schedules.order_matters(SIZES, switch_step=1).mixture(0)),
            "start never draws domain 'gl', so its loss is never seen",
        ),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
