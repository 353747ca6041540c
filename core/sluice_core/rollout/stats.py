"""Statistics that stay valid however often one looks. Plain mathematics: numbers in, numbers out.

Evidence is kept as logarithms of e-values: under the null hypothesis an e-process exceeds 1/alpha at any time with
probability at most alpha (Ville's inequality), so it may be looked at after every interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

RATIOS: Final = (1.25, 1.5, 2.0, 3.0, 5.0, 10.0)
"""Alternatives of the ratio test: the candidate's rate is this many times what the limit allows."""

_CEILING_GAPS: Final = (0.1, 0.25, 0.4, 0.6, 0.8, 0.95)
"""Alternatives of the ceiling test: the rate lies this far on the way from the ceiling to 1."""

Scores = tuple[float, float, float, float, float, float]
"""Log likelihood ratios, one per alternative."""

NO_SCORES: Final[Scores] = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def log_sum_exp(values: Sequence[float]) -> float:
    """Return log(sum(exp(values))) without overflow."""
    top = max(values)
    return top + math.log(sum(math.exp(value - top) for value in values))


def log_beta(*parameters: float) -> float:
    """Return the logarithm of the (multivariate) beta function."""
    return sum(math.lgamma(parameter) for parameter in parameters) - math.lgamma(sum(parameters))


def plus(first: Scores, second: Scores) -> Scores:
    """Return the scores of two independent intervals together."""
    a, b, c, d, e, f = (one + other for one, other in zip(first, second, strict=True))
    return a, b, c, d, e, f


def ratio_scores(errors: tuple[int, int], requests: tuple[int, int], limit_ratio: float) -> Scores:
    """Return one interval's evidence that the candidate's rate exceeds `limit_ratio` times stable's.

    Args:
        errors: (candidate, stable) events in the interval.
        requests: (candidate, stable) exposure in the interval.
        limit_ratio: largest harmless ratio of the rates.

    Given the interval's events, the candidate's number is binomial, whatever the common rate: Lindon & Malek,
    arXiv 2011.03567; for canaries Lindon, Sanden & Shirikian, arXiv 2205.14762.
    """
    if not requests[0] or not requests[1] or not (errors[0] or errors[1]):
        return NO_SCORES
    share = requests[0] / (requests[0] + requests[1])

    def candidate_part(ratio: float) -> float:
        return share * ratio / (share * ratio + 1 - share)

    null = candidate_part(limit_ratio)

    def score(ratio: float) -> float:
        part = candidate_part(limit_ratio * ratio)
        return errors[0] * math.log(part / null) + errors[1] * math.log((1 - part) / (1 - null))

    a, b, c, d, e, f = (score(ratio) for ratio in RATIOS)
    return a, b, c, d, e, f


def ceiling_scores(errors: int, requests: int, ceiling: float) -> Scores:
    """Return one interval's evidence that a rate exceeds `ceiling` (between 0 and 1, both excluded)."""

    def score(gap: float) -> float:
        rate = ceiling + gap * (1 - ceiling)
        return errors * math.log(rate / ceiling) + (requests - errors) * math.log((1 - rate) / (1 - ceiling))

    a, b, c, d, e, f = (score(gap) for gap in _CEILING_GAPS)
    return a, b, c, d, e, f


def log_evidence(scores: Scores, discount: float = 1.0) -> float:
    """Return the log e-value: the mean of the likelihood ratios, each discounted by the design effect."""
    return log_sum_exp([score / discount for score in scores]) - math.log(len(scores))


def design_effect(clusters: Sequence[tuple[float, float]], variance: float | None = None) -> float:
    """Return by how much the variance of a ratio of sums exceeds that of independent observations.

    Args:
        clusters: (sum, observations) per cluster of observations.
        variance: variance of one observation; without it that of a yes-or-no figure.

    Delta method, Deng et al., arXiv 1803.06336. 1.0 where it cannot be told: fewer than two clusters, no variation.
    """
    occupied = [(total, n) for total, n in clusters if n > 0]
    n_all = sum(n for _, n in occupied)
    if len(occupied) < 2 or n_all <= 0:
        return 1.0
    mean = sum(total for total, _ in occupied) / n_all
    expected = (mean * (1 - mean) if variance is None else variance) / n_all
    if expected <= 0:
        return 1.0
    spread = sum((total - mean * n) ** 2 for total, n in occupied) / n_all**2
    return max(1.0, spread * len(occupied) / (len(occupied) - 1) / expected)


def rate_interval(events: float, n: float, alpha: float) -> tuple[float, float]:
    """Return bounds of a rate that hold at all times together with probability 1 - alpha.

    Beta(1/2, 1/2) mixture (Robbins; Howard et al., arXiv 1810.08240).
    """
    if n <= 0:
        return 0.0, 1.0
    constant = log_beta(0.5 + events, 0.5 + n - events) - log_beta(0.5, 0.5)

    def outside(rate: float) -> bool:
        log_likelihood = events * math.log(rate) + (n - events) * math.log1p(-rate)
        return constant - log_likelihood >= -math.log(alpha)

    point = min(max(events / n, 1e-12), 1 - 1e-12)
    lower = 0.0 if not outside(1e-12) else _edge(outside, 1e-12, point)
    upper = 1.0 if not outside(1 - 1e-12) else _edge(outside, 1 - 1e-12, point)
    return lower, upper


def _edge(outside: Callable[[float], bool], far: float, near: float) -> float:
    """Return where `outside` turns false on the way from `far` to `near`."""
    for _ in range(40):
        middle = (far + near) / 2
        if outside(middle):
            far = middle
        else:
            near = middle
    return near


def best_rho(variance_time: float, alpha: float) -> float:
    """Return the parameter that makes a mixture bound tightest at this intrinsic time."""
    log_odds = 2 * math.log(1 / alpha)
    return variance_time / (log_odds + math.log(1 + log_odds))


def normal_bound(variance_time: float, alpha: float, rho: float) -> float:
    """Return the two-sided normal-mixture bound of a sum at this intrinsic time."""
    return math.sqrt(
        (variance_time + rho) * (math.log(1 + variance_time / rho) + 2 * math.log(1 / alpha)),
    )


class BetaBinomialBound:
    """Bound of a sum of centred yes-or-no observations, each in [-g, h], tightest at `best_at` intrinsic time.

    Howard & Ramdas, Bernoulli 28(3), arXiv 1906.09712; parametrised as in their library `confseq`.
    """

    __slots__ = ("_alpha", "_g", "_h", "_normalizer", "_r")

    def __init__(self, best_at: float, alpha: float, g: float, h: float) -> None:
        self._alpha = alpha
        self._g = g
        self._h = h
        self._r = max(best_rho(best_at, alpha) - g * h, 1e-3 * g * h)
        self._normalizer = log_beta(self._r / (g * (g + h)), self._r / (h * (g + h)))

    def log_mixture(self, deviation: float, variance_time: float) -> float:
        """Return the log of the mixture supermartingale for a sum that deviates by `deviation`."""
        g, h, r = self._g, self._h, self._r
        above = (variance_time + h * deviation) / (h * (g + h))
        below = (variance_time - g * deviation) / (g * (g + h))
        return (
            variance_time / (g * h) * math.log(g + h)
            - above * math.log(g)
            - below * math.log(h)
            + log_beta(r / (g * (g + h)) + below, r / (h * (g + h)) + above)
            - self._normalizer
        )

    def at(self, variance_time: float) -> float:
        """Return the largest deviation within the bound at this intrinsic time."""
        low, high = 0.0, variance_time / self._g
        if self.log_mixture(high, variance_time) < -math.log(self._alpha):
            return high
        for _ in range(30):
            middle = (low + high) / 2
            if self.log_mixture(middle, variance_time) < -math.log(self._alpha):
                low = middle
            else:
                high = middle
        return high


def quantile_slack(quantile: float, n: int, alpha: float, best_at: int = 1000) -> tuple[float, float]:
    """Return how far an empirical distribution may lie (above, below) the quantile's rank at any time."""
    if n <= 0:
        return 1.0, 1.0
    scale = quantile * (1 - quantile)
    above = BetaBinomialBound(best_at * scale, alpha, quantile, 1 - quantile).at(n * scale) / n
    below = BetaBinomialBound(best_at * scale, alpha, 1 - quantile, quantile).at(n * scale) / n
    return above, below


def mean_p(z: float, n: float, alpha: float, best_at: float = 5000.0) -> float:
    """Return the always-valid p of a one-sided test of a mean `z` standard errors above its limit.

    Inverts the one-sided asymptotic confidence sequence of Waudby-Smith et al., arXiv 2103.06476, eq. 134.

    Args:
        z: distance from the limit in standard errors.
        n: observations behind it.
        alpha: the level that the bound is tuned for.
        best_at: number of observations at which the bound is tightest.
    """
    if z <= 0 or n <= 0:
        return 1.0
    growth = n * mean_rho(2 * alpha, best_at) ** 2
    exponent = z * z * growth / (2 * (growth + 1))
    if exponent > 700:
        return 0.0
    return min(1.0, math.sqrt(growth + 1) / (2 * math.expm1(exponent)))


def mean_halfwidth(standard_error: float, n: float, alpha: float, best_at: float = 5000.0) -> float:
    """Return how far the mean's one-sided bound lies below it: same source as `mean_p`."""
    growth = n * mean_rho(2 * alpha, best_at) ** 2
    return standard_error * math.sqrt(2 * (growth + 1) / growth * math.log1p(math.sqrt(growth + 1) / (2 * alpha)))


def mean_rho(alpha: float, best_at: float) -> float:
    """Return the parameter that makes the asymptotic bound of a mean tightest at `best_at` observations."""
    return math.sqrt((-2 * math.log(alpha) + math.log(1 - 2 * math.log(alpha))) / best_at)


def share_mismatch(counts: Sequence[float], expected: Sequence[float], concentration: float = 100.0) -> float:
    """Return the log Bayes factor that counts do not come in the expected shares; valid at every look.

    Lindon & Malek, arXiv 2011.03567, with a Dirichlet prior around the expected shares.
    """
    prior = [concentration * share for share in expected]
    posterior = [weight + count for weight, count in zip(prior, counts, strict=True)]
    null = sum(count * math.log(share) for count, share in zip(counts, expected, strict=True))
    return log_beta(*posterior) - log_beta(*prior) - null


def share_dispersion(clusters: Sequence[tuple[float, float]]) -> float:
    """Return how much more clusters (candidate, stable) differ in their shares than chance would make them, at least 1.

    Pearson's statistic per degree of freedom: heavy users make it large, and their share is no mismatch.
    """
    occupied = [(candidate, candidate + stable) for candidate, stable in clusters if candidate + stable > 0]
    total = sum(n for _, n in occupied)
    candidates = sum(candidate for candidate, _ in occupied)
    if not occupied:
        return 1.0
    if len(occupied) < 2 or not 0 < candidates < total:  # cannot be told: each cluster may be one user
        return max(1.0, total / len(occupied))
    share = candidates / total
    statistic = sum((candidate - share * n) ** 2 / (n * share * (1 - share)) for candidate, n in occupied)
    return max(1.0, statistic / (len(occupied) - 1))
