"""Variance of the minibatch gradient, and training: temperature sampling, scalarization and Cooldown on a 125M model.

The data are Markov chains, one for each of two domains whose sizes differ a hundredfold. With --variance, the trace of
the gradient's covariance at batch 512, of which 146 samples are rare under τ = 5. With --training, losses on unseen
sequences of each domain under τ = 1, τ = 5, and 5 cooled down to 1 at half of the steps, in the regime of Li et al.
(NAACL 2025): τ = 5 passes through the rare domain 130 times (OPUS-100: 131, Cs-Ro: 118), so that it is memorized.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from common import DEVICE, ON_GPU, Run, missing, parse
from training import DRY, MODELS, model

from pycooldown import DomainBatchSampler, Mixture, schedules

SIZES = {"common": 200_000, "rare": 2_000}  # for the variance: a batch of 512 has no sample twice
TRAINING_SIZES = {"common": 9_600, "rare": 96}
TAU = 5
PASSES = 130  # through the rare domain under TAU
STATES = 512  # of a chain, each with four successors: 2,048 transitions, of which the rare domain shows each six times
SEEDS = 3


class Chains:
    """Sequences of a Markov chain for each domain, each a function of its domain and number."""

    def __init__(self, sizes: dict[str, int], classes: int, length: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.states, self.length = min(STATES, classes), length
        self.choices = torch.randint(self.states, (len(sizes), self.states, 4), generator=generator)
        self.begins = torch.tensor([0, *torch.tensor(list(sizes.values())).cumsum(0)])

    def batch(self, indices: list[int]) -> torch.Tensor:
        """Return tokens (B, T) on the device, for indices over all domains."""
        place = torch.tensor(indices)
        domain = torch.searchsorted(self.begins, place, right=True) - 1
        return self.sequences(domain, place)

    def unseen(self, domain: int, count: int) -> torch.Tensor:
        """Return tokens (count, T) of sequences that are in no batch."""
        return self.sequences(torch.full((count,), domain), torch.arange(count) + int(self.begins[-1]))

    def sequences(self, domain: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
        """Return tokens (B, T) on the device."""
        token = mixed(number, 0) % self.states
        tokens = [token]
        for position in range(1, self.length):
            token = self.choices[domain, token, mixed(number, position) % 4]
            tokens.append(token)
        return torch.stack(tokens, 1).to(DEVICE)


def mixed(number: torch.Tensor, position: int) -> torch.Tensor:
    """Return a pseudorandom unsigned number for a sequence and a position (a short form of splitmix64's mixing)."""
    x = number * 0x1E3779B97F4A7C15 + position * 0x3F58476D1CE4E5B9 % 2**62
    x = (x ^ (x >> 30)) * 0x3F58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x14D049BB133111EB
    return (x ^ (x >> 31)) & 0x7FFFFFFF


def losses(network: Any, tokens: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Return the mean over tokens of each sequence's loss, weighted."""
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        logits = network(input_ids=tokens).logits[:, :-1]
    each = torch.nn.functional.cross_entropy(logits.transpose(1, 2).float(), tokens[:, 1:], reduction="none").mean(1)
    return each if weights is None else each * weights


def variance(run: Run, shape: tuple[int, ...], batch_size: int, batches: int) -> None:
    """Measure both mixtures and compare them with the closed form."""
    network, data = model(shape), Chains(SIZES, shape[4], shape[6])
    parameters = [p for p in network.parameters() if p.requires_grad]
    for kind in ("temperature_sampling", "scalarization"):
        if run.written(mixture=kind):
            continue
        mixture = getattr(Mixture, kind)(SIZES, TAU)
        sampler = DomainBatchSampler(schedules.constant(mixture), batch_size=batch_size, seed=0)
        total: list[torch.Tensor] = [torch.zeros_like(p) for p in parameters]
        squares = 0.0
        for step in range(batches):
            plan = sampler.plan(step)
            weights = torch.tensor(mixture.loss_weights[plan.domain_ids], device=DEVICE, dtype=torch.float32)
            part = 4 if run.dry else 16
            grads = [torch.zeros_like(p) for p in parameters]
            for begin in range(0, batch_size, part):
                chosen = plan.indices[begin : begin + part].tolist()
                value = losses(network, data.batch(chosen), weights[begin : begin + part]).sum() / batch_size
                for grad, new in zip(grads, torch.autograd.grad(value, parameters)):
                    grad += new
            squares += sum(float(g.double().square().sum()) for g in grads)
            for old, grad in zip(total, grads):
                old += grad
        mean_square = sum(float(t.double().square().sum()) for t in total) / batches
        run.write(mixture=kind, batch_size=batch_size, batches=batches, trace=(squares - mean_square) / (batches - 1))


def steps_of(batch_size: int) -> int:
    """Return the number of steps in which TAU passes through the rare domain PASSES times."""
    passes = Mixture.temperature_sampling(TRAINING_SIZES, TAU).expected_epochs(batch_size)  # of a step
    return math.ceil(PASSES / passes[-1])


def training(run: Run, shape: tuple[int, ...], batch_size: int, steps: int, seeds: int) -> None:
    """Train with each schedule, from the same weights for each seed, and evaluate each domain."""
    data = Chains(TRAINING_SIZES, shape[4], shape[6])
    plans = {
        "tau 1": schedules.constant(Mixture.temperature_sampling(TRAINING_SIZES, 1)),
        "tau 5": schedules.constant(Mixture.temperature_sampling(TRAINING_SIZES, TAU)),
        "cooldown": schedules.cooldown(TRAINING_SIZES, tau=float(TAU), final_tau=1.0, switch_step=max(1, steps // 2)),
    }
    for seed in range(seeds):
        for name, schedule in plans.items():
            if run.written(schedule=name, seed=seed):
                continue
            network = model(shape, seed)
            optimizer = torch.optim.AdamW(network.parameters(), fused=ON_GPU)
            rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-4, total_steps=steps)
            sampler = DomainBatchSampler(schedule, batch_size=batch_size, seed=seed, num_steps=steps)
            for indices in sampler:
                losses(network, data.batch(indices)).mean().backward()
                optimizer.step()
                optimizer.zero_grad()
                rate.step()
            with torch.no_grad():
                held_out = {
                    domain: float(losses(network, data.unseen(number, 64)).mean())
                    for number, domain in enumerate(TRAINING_SIZES)
                }
            passes = dict(zip(TRAINING_SIZES, sampler.exposure().epochs.tolist()))
            run.write(schedule=name, seed=seed, steps=steps, batch_size=batch_size, passes=passes, losses=held_out)


def main() -> None:
    """Run the requested measurements."""
    run, rest = parse(__doc__.splitlines()[0])
    if absent := missing("transformers"):
        run.write(skipped=absent)
        return
    *sizes, length = DRY["tiny"] if run.dry else MODELS["125M"]
    shape = (*sizes, length if run.dry else 128)
    if "--variance" in rest:
        variance(run, shape, 8 if run.dry else 512, 2 if run.dry else 12)
    if "--training" in rest:
        batch_size = 4 if run.dry else 64
        training(run, shape, batch_size, 3 if run.dry else steps_of(batch_size), 1 if run.dry else SEEDS)


if __name__ == "__main__":
    main()
