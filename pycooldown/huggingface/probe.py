"""Probe batches: losses and gradients of single examples, for the methods that learn from variances."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from pycooldown.huggingface.sources import Samples
from pycooldown.huggingface.vmap_masks import Tensors, vmap_inputs


class Probe:
    """A measurement of a model on a few examples of each domain, drawn anew at each step from held-out data.

    An example's loss is the mean over its tokens. Its gradient is that of the sum over its tokens, which is what one
    draw adds to the gradient of a batch. Dropout is off. The draws depend only on seed, step and the domain's name.

    The gradients of a domain's examples are formed side by side (`torch.func`). This takes memory for ``size`` copies
    of the parameters that ``parameters`` selects, and about the time of training on ``size`` examples. For large models
    there are two cheaper ways, since methods only compare domains. ``parameters`` may select the last layers, whose
    gradients represent all. Or the gradients are projected on ``directions`` random directions, the same for all
    domains. For a vector r of independent standard normal numbers, E (r . g)^2 = |g|^2. Forward-mode differentiation
    gives r . g for all examples at once, in the memory of one more copy of the parameters. The projected variance is
    unbiased, with a standard error of at most sqrt(2 / directions) times the variance. Part of the error is common to
    all domains.

    Args:
        datasets: Examples of each domain, by name, at least two each.
        domains: The names in order.
        collate: Makes ``labels`` (N, T) and the model's other inputs from samples.
        size: Examples of each domain in a probe, at least 2.
        parameters: A regular expression. A parameter is differentiated if the expression matches a part of its name.
        directions: Number of random directions to project gradients on; 0 for whole gradients.
        seed: Seed of the draws.

    Raises:
        ValueError: If a domain has fewer than two examples, or ``size`` is below 2.
    """

    def __init__(
        self,
        datasets: Mapping[str, Samples],
        domains: Sequence[str],
        collate: Callable[[list[Any]], Tensors],
        *,
        size: int = 8,
        parameters: str = "",
        directions: int = 0,
        seed: int = 0,
    ) -> None:
        if size < 2:
            raise ValueError(f"size = {size}; expected at least 2 examples, because one has no variance")
        for domain in domains:
            if domain not in datasets or len(datasets[domain]) < 2:
                raise ValueError(f"datasets has fewer than 2 examples of domain {domain!r}; keep more out of training")
        self.datasets = [datasets[domain] for domain in domains]
        self.domains = tuple(domains)
        self.collate = collate
        self.size = size
        self.parameters = parameters
        self.directions = directions
        self.seed = seed

    def measure(self, model: torch.nn.Module, step: int, positions: Sequence[int], *, gradients: bool) -> torch.Tensor:
        """Measure losses and gradients of the examples of one step.

        Args:
            model: With its loss fused (`pycooldown.huggingface.fuse_loss`). It is left unchanged.
            step: Decides which examples are drawn.
            positions: Positions of the domains to be measured; results of other domains are 0.
            gradients: Whether to form gradients; their results are 0 otherwise.

        Returns:
            (4, K) float64: mean and variance of the loss, then the trace of the gradients' covariance and their
            mean squared length.

        Raises:
            ValueError: If ``parameters`` matches no trained parameter.
        """
        result = torch.zeros(4, len(self.domains), dtype=torch.float64)
        device = next(model.parameters()).device
        drawn = {i: {name: value.to(device) for name, value in self._draw(step, i).items()} for i in positions}
        was_training = model.training
        model.eval()
        for i, inputs in drawn.items():
            each = torch.arange(len(inputs["labels"]), device=device)  # each example is its own domain
            options = {"domain_ids": each, "domain_weights": torch.ones(len(each)), "return_stats": True}
            with torch.no_grad():
                stats = model(**inputs, **options, skip_logits=True).domain_stats
            loss = stats.loss_sum / stats.token_count.clamp(min=1)
            result[0, i], result[1, i] = loss.mean().cpu(), loss.var().cpu()
        if gradients:
            measure = self._projected_moments if self.directions else self._gradient_moments
            for i, moments in measure(model, self._chosen(model), drawn, step).items():
                result[2:, i] = moments
        model.train(was_training)
        return result

    def _draw(self, step: int, position: int) -> Tensors:
        dataset = self.datasets[position]
        key = [self.seed, step, *self.domains[position].encode()]
        chosen = np.random.default_rng(key).choice(len(dataset), size=min(self.size, len(dataset)), replace=False)
        return self.collate([dataset[i] for i in chosen.tolist()])

    def _chosen(self, model: torch.nn.Module) -> Tensors:
        """Return the parameters that are differentiated, by name."""
        trained = ((name, p) for name, p in model.named_parameters() if p.requires_grad)
        chosen = {name: p.detach() for name, p in trained if re.search(self.parameters, name)}
        if not chosen:
            raise ValueError(
                f"parameters = {self.parameters!r} matches no trained parameter of the model; expected a part of a name"
            )
        return chosen

    def _gradient_moments(
        self, model: Any, chosen: Tensors, drawn: Mapping[int, Tensors], step: int
    ) -> dict[int, torch.Tensor]:
        """Return the trace of the covariance and the mean squared length of each domain's gradients, (2,) float64."""

        def loss(parameters: Mapping[str, torch.Tensor], example: Tensors) -> torch.Tensor:
            one = {name: value.unsqueeze(0) for name, value in example.items()}
            total: torch.Tensor = call(parameters, {**one, "reduction": "sum", "skip_logits": True}).loss
            return total

        call, moments = _with_parameters(model), {}
        for i, inputs in drawn.items():
            # Among the attention kernels, vmap vectorises only the mathematical one.
            with sdpa_kernel(SDPBackend.MATH), vmap_inputs(model, inputs) as masked:
                examples = vmap(grad(loss), in_dims=(None, 0))(chosen, masked)
            parts = [
                torch.stack([g.var(dim=0).sum(dtype=torch.float64), g.square().mean(dim=0).sum(dtype=torch.float64)])
                for g in examples.values()
            ]
            moments[i] = torch.stack(parts).sum(dim=0).cpu()
        return moments

    def _projected_moments(
        self, model: Any, chosen: Tensors, drawn: Mapping[int, Tensors], step: int
    ) -> dict[int, torch.Tensor]:
        """Return the same moments of the gradients' projections, whose expectations are those of the gradients."""

        def losses(parameters: Tensors) -> torch.Tensor:
            each: torch.Tensor = call(parameters, options).loss
            return each.sum(dim=1)

        call = _with_parameters(model)
        normal = torch.Generator(next(iter(chosen.values())).device).manual_seed(self.seed * 1_000_003 + step)
        moments = {i: torch.zeros(2, dtype=torch.float64) for i in drawn}
        for _ in range(self.directions):
            direction = {
                name: torch.randn(p.shape, generator=normal, device=p.device, dtype=p.dtype)
                for name, p in chosen.items()
            }
            for i, inputs in drawn.items():
                options = {**inputs, "reduction": "none", "skip_logits": False}  # of a few examples
                with sdpa_kernel(SDPBackend.MATH), torch.no_grad():
                    slopes: torch.Tensor = jvp(losses, (chosen,), (direction,))[1]
                slopes = slopes.double()
                moments[i] += torch.stack([slopes.var(), slopes.square().mean()]).cpu() / self.directions
        return moments


def _with_parameters(model: torch.nn.Module) -> Callable[[Mapping[str, torch.Tensor], Mapping[str, Any]], Any]:
    """Return a function that calls a model with other parameters, by their names in the model.

    Tied parameters are put in by each module that has them, once. `functional_call` ties by names, and where one module
    stands under two (the embeddings of encoder and decoder), it leaves the other parameters in the model.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    places = {
        f"{path}.{attribute}" if path else attribute: names[id(parameter)]
        for path, module in model.named_modules()
        for attribute, parameter in module.named_parameters(recurse=False, remove_duplicate=False)
    }

    def call(parameters: Mapping[str, torch.Tensor], options: Mapping[str, Any]) -> Any:
        given = {place: parameters[name] for place, name in places.items() if name in parameters}
        return functional_call(model, given, kwargs=dict(options), tie_weights=False)

    return call
