"""The triple that defines every mixing method: target, sampling and loss weights over named domains."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from pycooldown._html import table

Vector = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Scalar = TypeVar("Scalar", bound=np.generic)


def temperature(sizes: npt.ArrayLike, tau: float) -> Vector:
    """Return temperature-scaled domain probabilities, p(i; tau) = n_i^(1/tau) / sum_j n_j^(1/tau).

    Source: Li et al., "Upsample or Upweight? Balanced Training on Heavily Imbalanced Datasets", NAACL 2025, section 2.

    Args:
        sizes: Shape (K,), positive and finite: the size of each domain, in any one unit.
        tau: Temperature > 0. 1 is proportional to size, larger is flatter, ``math.inf`` is uniform.

    Returns:
        float64 array of shape (K,) that sums to 1.

    Raises:
        ValueError: If ``sizes`` is empty or has an entry that is not positive and finite, or ``tau`` is not > 0.
    """
    n = np.asarray(sizes, dtype=np.float64)
    if n.ndim != 1 or n.size == 0:
        raise ValueError(f"sizes has shape {n.shape}; expected a vector with one size for each domain, at least one")
    if (bad := np.flatnonzero(~(np.isfinite(n) & (n > 0)))).size:
        raise ValueError(f"sizes[{bad[0]}] = {n[bad[0]]}; expected a positive finite number: leave empty domains out")
    _check_tau(tau)
    return temperature_of_logs(np.log(n), tau)


def temperature_of_logs(log_sizes: Vector, tau: float | Vector) -> Vector:
    """Return `temperature` of exp(log_sizes), float64 (K,); for ``tau`` of shape (T, 1), a row for each, (T, K)."""
    # Computed in place and with numbers instead of arrays of one number, because annealing calls it at every step.
    p = np.asarray(log_sizes / tau)
    one_row = p.ndim == 1
    p -= p[p.argmax()] if one_row else p.max(axis=-1, keepdims=True)
    np.exp(p, out=p)
    p /= np.add.reduce(p) if one_row else p.sum(axis=-1, keepdims=True)
    return p


@dataclass(frozen=True, eq=False, repr=False)
class Mixture:
    """A mixture over K named domains: the objective, how often each domain is drawn, and the weight of its loss.

    The objective is sum_i target_i L_i. Domain i is drawn with probability sampling_i, and its loss is multiplied by
    loss_weights_i = target_i / sampling_i, which keeps the stochastic gradient unbiased. Temperature sampling has
    ``sampling == target``; scalarization draws in proportion to size.

    Attributes:
        domains: K distinct names.
        sizes: int64 (K,), number of samples of each domain, > 0.
        target: float64 (K,), on the simplex.
        sampling: float64 (K,), on the simplex, positive wherever ``target`` is.
        tau: The temperature that ``target`` was made with, for logs; ``None`` if there is none.

    Raises:
        ValueError: If the lengths differ, a name repeats, a size is not a positive integer, a vector is not on the
            simplex, or a domain has a positive target and is never drawn.
    """

    domains: tuple[str, ...]
    sizes: npt.NDArray[np.int64]
    target: Vector
    sampling: Vector
    tau: float | None = None

    def __post_init__(self) -> None:
        domains = tuple(self.domains)
        _check_domains(domains)
        checked = {
            "domains": domains,
            "sizes": _check_sizes(domains, self.sizes),
            "target": _check_simplex("target", domains, self.target),
            "sampling": _check_simplex("sampling", domains, self.sampling),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        _check_drawn(domains, self.target, self.sampling)

    @classmethod
    def temperature_sampling(cls, sizes: Mapping[str, int], tau: float) -> Mixture:
        """Return a mixture that draws domains with p(i; tau) (see `temperature`). All losses have weight 1."""
        domains, n = _split(sizes)
        p = temperature(n, tau)
        return cls(domains, n, p, p, float(tau))

    @classmethod
    def scalarization(cls, sizes: Mapping[str, int], tau: float) -> Mixture:
        """Return a mixture that draws in proportion to size and weighs losses with w_i = p(i; tau) / p(i; 1).

        Its objective is that of temperature sampling. Source: Li et al. (NAACL 2025), Theorem 1. The paper's text can
        be read as weighing with p(i; tau) itself, which would be another objective; its Theorem 1 needs the ratio.
        """
        domains, n = _split(sizes)
        return cls(domains, n, temperature(n, tau), temperature(n, 1.0), float(tau))

    @classmethod
    def proportional(cls, sizes: Mapping[str, int]) -> Mixture:
        """Return a mixture in which every sample counts the same: temperature sampling with tau = 1."""
        return cls.temperature_sampling(sizes, 1.0)

    def reweighted(self, target: npt.ArrayLike, sampling: npt.ArrayLike | None = None) -> Mixture:
        """Return a mixture with other probabilities over the same domains and sizes, which are not checked again.

        Args:
            target: Shape (K,), on the simplex.
            sampling: Shape (K,), on the simplex; ``target`` by default.

        Raises:
            ValueError: As `Mixture`.
        """
        target = _check_simplex("target", self.domains, target)
        sampling = target if sampling is None else _check_simplex("sampling", self.domains, sampling)
        _check_drawn(self.domains, target, sampling)
        return self._derived(target, sampling, None)

    def at_temperature(self, tau: float) -> Mixture:
        """Return `temperature_sampling` over the same domains and sizes, which are not checked again."""
        _check_tau(tau)
        if (log_sizes := self.__dict__.get("_log_sizes")) is None:
            log_sizes = np.log(self.sizes)
            object.__setattr__(self, "_log_sizes", log_sizes)
        p = _frozen(temperature_of_logs(log_sizes, tau))
        return self._derived(p, p, float(tau))

    def _derived(self, target: Vector, sampling: Vector, tau: float | None) -> Mixture:
        """Return a mixture over the same domains and sizes with probabilities that have been checked."""
        derived = object.__new__(Mixture)
        derived.__dict__.update(domains=self.domains, sizes=self.sizes, target=target, sampling=sampling, tau=tau)
        return derived

    @property
    def num_domains(self) -> int:
        """The number of domains, K."""
        return len(self.domains)

    @property
    def loss_weights(self) -> Vector:
        """float64 (K,): target / sampling; 0 for a domain that is not drawn."""
        return np.divide(self.target, self.sampling, out=np.zeros_like(self.target), where=self.sampling > 0)

    def expected_epochs(self, num_samples: float) -> Vector:
        """Return float64 (K,): how often each domain is passed through, on average, by ``num_samples`` draws."""
        return np.asarray(num_samples * self.sampling / self.sizes)

    def describe(self) -> str:
        """Return a short text that is equal for equal mixtures over the same domains and sizes."""
        if self.tau is not None:
            sizes = dict(zip(self.domains, self.sizes.tolist(), strict=True))
            for known in (Mixture.temperature_sampling, Mixture.scalarization):
                if self == known(sizes, self.tau):
                    return f"{known.__name__}(tau={self.tau})"
        digits = np.concatenate([self.target, self.sampling]).round(12) + 0.0
        return f"Mixture(sha256={hashlib.sha256(digits.tobytes()).hexdigest()[:16]})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mixture):
            return NotImplemented
        return self.domains == other.domains and all(
            np.array_equal(getattr(self, name), getattr(other, name)) for name in ("sizes", "target", "sampling")
        )

    def __hash__(self) -> int:
        return hash((self.domains, self.target.tobytes(), self.sampling.tobytes()))

    def __repr__(self) -> str:
        weights = self.loss_weights
        shown = [
            f"{name} q={self.sampling[i]:.3g}" + ("" if weights[i] == 1 else f" v={weights[i]:.3g}")
            for i, name in enumerate(self.domains[:4])
        ]
        names = ", ".join(shown) + (", ..." if self.num_domains > 4 else "")
        return f"Mixture({self.num_domains} domains: {names}; {self.describe()})"

    def _repr_html_(self) -> str:
        columns = ("domain", "size", "target", "sampling q", "loss weight v")
        values = zip(self.domains, self.sizes, self.target, self.sampling, self.loss_weights, strict=True)
        rows = [(name, f"{n:,}", f"{t:.4g}", f"{q:.4g}", f"{v:.4g}") for name, n, t, q, v in values]
        return table(columns, rows, f"{self.num_domains} domains, {self.describe()}")


def _split(sizes: Mapping[str, int]) -> tuple[tuple[str, ...], npt.NDArray[np.int64]]:
    if not isinstance(sizes, Mapping):
        raise TypeError(f"sizes is a {type(sizes).__name__}; expected a mapping from domain name to number of samples")
    domains = tuple(sizes)
    _check_domains(domains)
    return domains, _check_sizes(domains, list(sizes.values()))


def _check_domains(domains: Sequence[str]) -> None:
    if not domains:
        raise ValueError("domains is empty; expected at least one domain")
    for name in domains:
        if not isinstance(name, str) or not name:
            raise ValueError(f"domains contains {name!r}; expected non-empty strings")
    if len(set(domains)) != len(domains):
        twice = next(name for name in domains if domains.count(name) > 1)
        raise ValueError(f"domains contains {twice!r} more than once; expected distinct names")


def _check_sizes(domains: Sequence[str], sizes: npt.ArrayLike) -> npt.NDArray[np.int64]:
    values = np.asarray(sizes)
    _check_length("sizes", domains, values)
    if values.dtype.kind not in "iu" or not ((values > 0) & (values < 2**62)).all():
        for name, n in zip(domains, values.tolist(), strict=True):
            if isinstance(n, bool) or not isinstance(n, int | float) or not n > 0 or n != n // 1 or n >= 2**62:
                raise ValueError(f"size of domain {name!r} is {n!r}; expected a whole number of samples > 0")
    return _frozen(values.astype(np.int64))


def _check_simplex(name: str, domains: Sequence[str], values: npt.ArrayLike) -> Vector:
    p = np.array(values, dtype=np.float64)
    _check_length(name, domains, p)
    if not ((p >= 0) & (p < np.inf)).all():
        i = int(np.flatnonzero(~((p >= 0) & (p < np.inf)))[0])
        raise ValueError(f"{name} of domain {domains[i]!r} is {p[i]}; expected a probability")
    if not abs(p.sum() - 1) < 1e-6:
        raise ValueError(f"{name} sums to {p.sum():.9g}; expected 1: divide it by its sum")
    return _frozen(p)


def _check_drawn(domains: Sequence[str], target: Vector, sampling: Vector) -> None:
    if (never_drawn := np.flatnonzero((target > 0) & (sampling == 0))).size:
        i = never_drawn[0]
        raise ValueError(
            f"sampling of domain {domains[i]!r} is 0 but its target is {target[i]:.6g}: its part of the "
            "objective would never be seen; give it a positive sampling probability or a target of 0"
        )


def _check_tau(tau: float) -> None:
    if not tau > 0:
        raise ValueError(f"tau = {tau}; expected a temperature > 0 (1: proportional to size, inf: uniform)")


def _check_length(name: str, domains: Sequence[str], values: npt.NDArray[np.generic]) -> None:
    if values.shape != (len(domains),):
        raise ValueError(f"{name} has shape {values.shape}; expected one entry for each of {len(domains)} domains")


def _frozen(array: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
    array.setflags(write=False)
    return array
