"""Closed forms of the variance of minibatch gradients under a mixture.

Notation, for K domains and batches of B samples:

    pi_i, q_i, v_i = pi_i / q_i    target, sampling and loss weights of the mixture
    n_i                            samples of domain i in a batch; E n_i = B q_i under every allocation
    N_i                            size of domain i
    mu_i, Sigma_i                  mean and covariance of the per-sample gradient over domain i (divided by N_i)
    M_i = tr Sigma_i + |mu_i|^2    its second moment
    g = sum_i pi_i mu_i            the full gradient

The minibatch gradient is (1/B) sum_b v_{d(b)} grad L(x_b), the loss being averaged over samples; its mean is g. All
variances are traces of covariance matrices. Temperature sampling has q = pi and v = 1; scalarization has q = rho (in
proportion to size) and v = w = pi / rho.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import numpy.typing as npt

from pycooldown.mixture import Mixture, Vector

Allocation = Literal["multinomial", "systematic", "stratified"]


def variance_inflation(mixture: Mixture) -> float:
    """Return F = sum_i q_i v_i^2, by which loss weights inflate the second moment of gradients of equal size.

    1 for temperature sampling, 1 + chi^2(p(tau) || p(1)) for scalarization (Li et al., NAACL 2025, Lemma 2.1, which
    needs sizes > 0 where the paper says >= 0). The effective size of a batch of B samples is B / F.
    """
    return float((mixture.sampling * mixture.loss_weights**2).sum())


def inflation_slope(sizes: npt.ArrayLike, tau: float) -> float:
    """Return dF/dtau of scalarization, F(tau) = sum_i p(i; tau)^2 / p(i; 1).

    With s = 1/tau and E_a the mean under probabilities proportional to N_i^a,

        dF/dtau = (2 F / tau^2) (E_s[log N] - E_{2s-1}[log N]).

    E_a[log N] does not decrease with a, and 2s - 1 <= s if s <= 1: F rises for tau >= 1 and falls for tau < 1. Li et
    al. (NAACL 2025), Theorem 3, states the first half; its printed derivative holds N_i^(1/tau) fixed and is too large.
    """
    log_n = np.log(np.asarray(sizes, dtype=np.float64))
    s = 1 / tau

    def moments(a: float) -> tuple[float, float]:
        """Return the mean of log N under N^a, and the logarithm of sum N^a."""
        top = (a * log_n).max()
        weights = np.exp(a * log_n - top)
        return float(weights @ log_n / weights.sum()), float(top + math.log(weights.sum()))

    (mean, log_z), (mean_2, log_z2), (_, log_n_total) = moments(s), moments(2 * s - 1), moments(1.0)
    return 2 / tau**2 * math.exp(log_z2 + log_n_total - 2 * log_z) * (mean - mean_2)


def variance_gap(mixture: Mixture, second_moments: npt.ArrayLike) -> float:
    """Return the variance of one draw under ``mixture`` minus that of temperature sampling with the same target.

    Delta = sum_i pi_i (v_i - 1) M_i = Cov_q(v, v M).

    Li et al. (NAACL 2025), Theorem 2, says that it is never negative for scalarization. The proof takes M_i out of the
    sum over domains, so it holds if all M_i are equal (then Delta = (F - 1) M) and not in general: rho = (.9, .1),
    pi = (.5, .5), M = (10, 1), g = 0 gives 5.28 for scalarization and 5.5 for temperature sampling. Nor does Delta
    have to rise with tau, as Theorem 3 says, if the M_i differ. See `moment_thresholds` for the sign.

    Args:
        mixture: Usually `Mixture.scalarization`.
        second_moments: (K,), M_i.
    """
    return float((mixture.target * (mixture.loss_weights - 1)) @ np.asarray(second_moments, dtype=np.float64))


def moment_thresholds(mixture: Mixture) -> npt.NDArray[np.float64]:
    """Return v_j / v_i, (K, K): the ratio M_i / M_j at which v_i M_i = v_j M_j.

    If M_i / M_j is below entry (i, j) for every pair with v_i < v_j, then v M rises with v and `variance_gap` is
    not negative. For K = 2 this is also necessary. A domain with small gradients, such as one that is being
    memorised, can exceed it.
    """
    v = mixture.loss_weights
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(v[None, :] / v[:, None])


def optimal_sampling(target: npt.ArrayLike, moments: npt.ArrayLike) -> Vector:
    """Return q_i proportional to pi_i sqrt(m_i), the sampling with the least variance.

    With m_i = M_i it is optimal for independent draws, where E|gradient|^2 becomes (sum_i pi_i sqrt(M_i))^2 / B plus a
    constant; with m_i = tr Sigma_i it is Neyman's allocation (1934), optimal for a fixed number of samples per domain.

    Args:
        target: (K,), pi.
        moments: (K,), M_i or tr Sigma_i, >= 0.

    Returns:
        (K,) float64, on the simplex.

    Raises:
        ValueError: If a moment is negative or not finite, or all of ``target * moments`` is 0.
    """
    m = np.asarray(moments, dtype=np.float64)
    if not (np.isfinite(m) & (m >= 0)).all():
        raise ValueError(f"moments = {m}; expected finite numbers >= 0")
    q = np.asarray(target, dtype=np.float64) * np.sqrt(m)
    if not q.sum() > 0:
        raise ValueError(
            "moments are 0 wherever target is positive, so every sampling is optimal; expected one moment > 0"
        )
    return np.asarray(q / q.sum())


def count_covariance(
    mixture: Mixture, batch_size: int, allocation: Allocation | npt.NDArray[np.integer]
) -> npt.NDArray[np.float64]:
    """Return Cov(n_i, n_j), (K, K). See `gradient_variance` for the arguments."""
    mean = batch_size * mixture.sampling
    if not isinstance(allocation, str):
        off = np.asarray(allocation, dtype=np.float64) - mean
        return np.asarray(off.T @ off / len(off))
    if allocation == "multinomial":
        return np.asarray(np.diag(mean) - np.outer(mean, mean) / batch_size)
    if allocation == "stratified":
        return np.zeros((mixture.num_domains, mixture.num_domains))
    if allocation != "systematic":
        raise ValueError(
            f"allocation = {allocation!r}; expected 'multinomial', 'systematic', 'stratified' or planned counts"
        )
    # Domain i has floor(B q_i) samples and one more if the uniform offset falls into an arc of length frac(B q_i) of
    # the unit circle. The sampler lays the domains along it in the order m i mod K, with a random m coprime to K.
    total = np.zeros((mixture.num_domains, mixture.num_domains))
    for m in range(mixture.num_domains):
        while math.gcd(m, mixture.num_domains) != 1:
            m += 1
        order = m * np.arange(mixture.num_domains) % mixture.num_domains
        ends = np.empty_like(mean)
        ends[order] = np.cumsum(mean[order])
        f = mean % 1
        gap = np.subtract.outer(mean - ends, mean - ends) % 1  # from the start of arc i to the start of arc j
        overlap = np.maximum(np.minimum(f[:, None], gap + f) - gap, 0)
        overlap += np.maximum(np.minimum(f[:, None], gap + f - 1), 0)
        total += overlap - np.outer(f, f)
    return total / mixture.num_domains


def gradient_variance(
    mixture: Mixture,
    means: npt.ArrayLike,
    covariance_traces: npt.ArrayLike,
    batch_size: int,
    allocation: Allocation | npt.NDArray[np.integer] = "multinomial",
    *,
    replacement: bool = True,
) -> float:
    """Return the trace of the covariance of the minibatch gradient.

    With a_i = v_i / B it is sum_i a_i^2 E[n_i] tr Sigma_i + sum_ij a_i a_j Cov(n_i, n_j) mu_i . mu_j. For independent
    draws this is (1/B) (sum_i q_i v_i^2 M_i - |g|^2), the quantity of Li et al. (NAACL 2025), Theorem 2.

    Args:
        mixture: The mixture, which gives pi, q and v.
        means: (K, D), mu_i, in any orthonormal basis.
        covariance_traces: (K,), tr Sigma_i.
        batch_size: B, in samples.
        allocation: How a batch's slots are given to domains: "multinomial" and "systematic" as
            `pycooldown.DomainBatchSampler` does; "stratified" for n_i = B q_i exactly, even if that is not whole; or
            integers (T, K), the planned counts of T batches (as under "quota"), for the mean squared distance from g.
        replacement: Whether a batch may hold a sample twice. If not, n_i becomes n_i (N_i - n_i) / (N_i - 1) in the
            first sum (Cochran, 1977, section 2.6); n_i <= N_i is assumed.

    Raises:
        ValueError: If ``allocation`` is unknown or the shapes do not fit.
    """
    mu = np.asarray(means, dtype=np.float64)
    if mu.ndim != 2:
        raise ValueError(f"means has shape {mu.shape}; expected (K, D), one mean gradient for each domain")
    return variance_from_products(
        mixture, mu @ mu.T, covariance_traces, batch_size, allocation, replacement=replacement
    )


def variance_from_products(
    mixture: Mixture,
    mean_products: npt.ArrayLike,
    covariance_traces: npt.ArrayLike,
    batch_size: int,
    allocation: Allocation | npt.NDArray[np.integer] = "multinomial",
    *,
    replacement: bool = True,
) -> float:
    """Return `gradient_variance` from mu_i . mu_j (K, K), which unlike |mu_i|^2 can be estimated without bias."""
    products = np.asarray(mean_products, dtype=np.float64)
    traces = np.asarray(covariance_traces, dtype=np.float64)
    k = mixture.num_domains
    if products.shape != (k, k) or traces.shape != (k,):
        raise ValueError(
            f"means and covariance_traces are of {products.shape[0]} and {traces.size} domains; the mixture has {k}"
        )
    draws = batch_size * mixture.sampling
    covariance = count_covariance(mixture, batch_size, allocation)
    effective = draws
    if not replacement:
        n = mixture.sizes.astype(np.float64)
        effective = (n * draws - draws**2 - np.diag(covariance)) / np.maximum(n - 1, 1)
    a = mixture.loss_weights / batch_size
    return float((a**2 * effective) @ traces + np.outer(a, a).ravel() @ (covariance * products).ravel())
