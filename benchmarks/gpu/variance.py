"""Variance of the minibatch gradient, and training: temperature sampling, scalarization and Cooldown on a 125M model.

The data are Markov chains, one for each domain, of sizes that differ a hundredfold. With --variance, the trace of the
gradient's covariance at batch 512; with --training, losses on unseen sequences of each domain after as many steps under
τ = 1, τ = 5, and 5 cooled down to 1 in the last third.
"""

from __future__ import annotations

from typing import Any

import torch
from common import DEVICE, Run, missing, parse
from training import DRY, MODELS, model

from pycooldown import DomainBatchSampler, Mixture, schedules

SIZES = {"a": 200_000, "b": 20_000, "c": 2_000}
TAU = 5


class Chains:
    """Sequences of a Markov chain for each domain, each a function of its domain and number."""

    def __init__(self, classes: int, length: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.choices = torch.randint(classes, (len(SIZES), classes, 4), generator=generator)
        self.classes, self.length = classes, length
        self.begins = torch.tensor([0, *torch.tensor(list(SIZES.values())).cumsum(0)])

    def batch(self, indices: list[int]) -> torch.Tensor:
        """Tokens (B, T) on the device, of indices into the domains laid end to end."""
        place = torch.tensor(indices)
        domain = torch.searchsorted(self.begins, place, right=True) - 1
        return self.sequences(domain, place)

    def unseen(self, domain: int, count: int) -> torch.Tensor:
        """Tokens (count, T) of sequences that are in no batch."""
        return self.sequences(torch.full((count,), domain), torch.arange(count) + int(self.begins[-1]))

    def sequences(self, domain: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
        """Tokens (B, T) on the device."""
        token = mixed(number, 0) % self.classes
        tokens = [token]
        for position in range(1, self.length):
            token = self.choices[domain, token, mixed(number, position) % 4]
            tokens.append(token)
        return torch.stack(tokens, 1).to(DEVICE)


def mixed(number: torch.Tensor, position: int) -> torch.Tensor:
    """A number without sign that looks random, of a sequence and a place in it (splitmix64's mixing, shortened)."""
    x = number * 0x1E3779B97F4A7C15 + position * 0x3F58476D1CE4E5B9 % 2**62
    x = (x ^ (x >> 30)) * 0x3F58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x14D049BB133111EB
    return (x ^ (x >> 31)) & 0x7FFFFFFF


def losses(network: Any, tokens: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """The mean over tokens of each sequence's loss, weighted."""
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        logits = network(input_ids=tokens).logits[:, :-1]
    each = torch.nn.functional.cross_entropy(logits.transpose(1, 2).float(), tokens[:, 1:], reduction="none").mean(1)
    return each if weights is None else each * weights


def variance(run: Run, shape: tuple[int, ...], batch_size: int, batches: int) -> None:
    """Measure both mixtures beside the closed form."""
    network, data = model(shape), Chains(shape[4], shape[6])
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


def training(run: Run, shape: tuple[int, ...], batch_size: int, steps: int) -> None:
    """Train under each schedule and evaluate each domain."""
    data = Chains(shape[4], shape[6])
    plans = {
        "tau 1": schedules.constant(Mixture.temperature_sampling(SIZES, 1)),
        "tau 5": schedules.constant(Mixture.temperature_sampling(SIZES, TAU)),
        "cooldown": schedules.cooldown(SIZES, tau=float(TAU), final_tau=1.0, switch_step=2 * steps // 3),
    }
    for name, schedule in plans.items():
        if run.written(schedule=name):
            continue
        network = model(shape)
        optimizer = torch.optim.AdamW(network.parameters(), lr=3e-4)
        sampler = DomainBatchSampler(schedule, batch_size=batch_size, seed=0)
        for step in range(steps):
            losses(network, data.batch(sampler.plan(step).indices.tolist())).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            held_out = {
                domain: float(losses(network, data.unseen(number, 64)).mean()) for number, domain in enumerate(SIZES)
            }
        run.write(schedule=name, steps=steps, batch_size=batch_size, losses=held_out)


def main() -> None:
    """What is asked for."""
    run, rest = parse(__doc__.splitlines()[0])
    if absent := missing("transformers"):
        run.write(skipped=absent)
        return
    *sizes, length = DRY["tiny"] if run.dry else MODELS["125M"]
    shape = (*sizes, length if run.dry else 128)
    if "--variance" in rest:
        variance(run, shape, 8 if run.dry else 512, 2 if run.dry else 12)
    if "--training" in rest:
        training(run, shape, 4 if run.dry else 64, 3 if run.dry else 600)


if __name__ == "__main__":
    main()
