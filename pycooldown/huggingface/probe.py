"""Probe batches: losses and gradients of single examples, from which the variance-based methods learn."""

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
    """Measure a model on a few examples of each domain, drawn anew at each step from data kept out of training.

    An example's loss is the mean over its tokens; its gradient is that of the sum over its tokens, which is what one
    draw adds to the gradient of a batch. Dropout is off. The draws depend on seed, step and the domain's name alone.

    The gradients of the examples of a domain are formed side by side (`torch.func`), which takes memory for ``size``
    copies of the parameters that ``parameters`` selects and about the time of ``size`` examples of training. For large
    models there are two substitutes, as methods only need how domains compare. ``parameters`` may select the last
    layers, whose gradients stand for all. Or the gradients are projected on ``directions`` random directions, the same
    for all domains: for a vector r of independent standard normal numbers, E (r . g)^2 = |g|^2, and r . g is what
    forward-mode differentiation gives for all examples at once, in the memory of one more copy of the parameters. The
    projected variance has no bias and a standard error of at most sqrt(2 / directions) of it, partly the same for all.

    Args:
        datasets: Examples of each domain, by name, at least two each.
        domains: The names in order.
        collate: Makes ``labels`` (N, T) and the model's other inputs of samples.
        size: Examples of each domain in a probe, at least 2.
        parameters: A regular expression; those whose name it matches somewhere are differentiated.
        directions: Number of random directions to project gradients on; 0 for whole gradients.
        seed: Of the draws.

    Raises:
        ValueError: If a domain has no or one example, or ``size`` is below 2.
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
            raise ValueError(f"the size of probes is {size}; expected at least 2 examples, as one has no variance")
        for domain in domains:
            if domain not in datasets or len(datasets[domain]) < 2:
                raise ValueError(f"domain {domain!r} has fewer than 2 examples to probe; keep more out of training")
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
            model: With its loss fused (`pycooldown.huggingface.fuse_loss`); is left as it was.
            step: Decides the examples.
            positions: Of the domains to be measured; 0 for the others.
            gradients: Whether to form them, or leave 0.

        Returns:
            (4, K) float64: mean and variance of the loss, and of the gradients the trace of the covariance and the mean
            squared length.

        Raises:
            ValueError: If ``parameters`` matches no parameter that is trained.
        """
        result = torch.zeros(4, len(self.domains), dtype=torch.float64)
        device = next(model.parameters()).device
        drawn = {i: {name: value.to(device) for name, value in self._draw(step, i).items()} for i in positions}
        was_training = model.training
        model.eval()
        for i, inputs in drawn.items():
            each = torch.arange(len(inputs["labels"]), device=device)  # a domain of its own for each example
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
            raise ValueError(f"parameters = {self.parameters!r} matches no parameter of the model")
        return chosen

    def _gradient_moments(
        self, model: Any, chosen: Tensors, drawn: Mapping[int, Tensors], step: int
    ) -> dict[int, torch.Tensor]:
        """Trace of the covariance and mean squared length of each domain's gradients, (2,) float64."""

        def loss(parameters: Mapping[str, torch.Tensor], example: Tensors) -> torch.Tensor:
            one = {name: value.unsqueeze(0) for name, value in example.items()}
            total: torch.Tensor = call(parameters, {**one, "reduction": "sum", "skip_logits": True}).loss
            return total

        call, moments = _with_parameters(model), {}
        for i, inputs in drawn.items():
            # The mathematical one is the only kernel of attention that vmap does not run example by example.
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
        """Return the same of the gradients' projections, which have these moments as expectation."""

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
