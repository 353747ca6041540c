"""The judge's mathematics against published vectors and against independent computation."""

from __future__ import annotations

import math

import pytest

from sluice_core.rollout import stats
from sluice_core.rollout.stats import Scores


@pytest.mark.parametrize(
    ("limit", "log_e", "p"),
    [(1.0, 2.258345, 0.104523), (1.25, 0.659412, 0.517156)],
)
def test_ratio_evidence_of_one_interval(limit: float, log_e: float, p: float) -> None:
    """20 of 1000 against 90 of 9000 errors."""
    scores = stats.ratio_scores((20, 90), (1000, 9000), limit)

    assert stats.log_evidence(scores) == pytest.approx(log_e, abs=1e-6)
    assert math.exp(-stats.log_evidence(scores)) == pytest.approx(p, abs=1e-6)
    if limit == 1.0:
        assert scores == pytest.approx((1.7467, 2.7424, 3.3788, 1.9169, -4.8232, -24.5522), abs=1e-4)


def test_ratio_evidence_adds_up_over_intervals() -> None:
    """Each interval is compared with itself alone; the scores add."""
    total: Scores = stats.NO_SCORES
    for errors, requests in [((3, 10), (100, 900)), ((12, 30), (500, 2000)), ((40, 40), (2500, 2500))]:
        total = stats.plus(total, stats.ratio_scores(errors, requests, 1.0))

    assert stats.log_evidence(total) == pytest.approx(-0.881503, abs=1e-6)
    assert stats.log_evidence(stats.ratio_scores((10, 90), (1000, 9000), 1.0)) == pytest.approx(-1.527955, abs=1e-6)


@pytest.mark.parametrize("requests", [(0, 10), (10, 0)])
def test_an_interval_without_one_arm_is_no_evidence(requests: tuple[int, int]) -> None:
    """There is nothing to compare with."""
    assert stats.ratio_scores((min(1, requests[0]), min(1, requests[1])), requests, 1.0) == stats.NO_SCORES


@pytest.mark.parametrize(
    ("events", "n", "bounds"),
    [
        (700, 1000, (0.645438, 0.751017)),
        (20, 1000, (0.007819, 0.040635)),
        (90, 9000, (0.006410, 0.014716)),
        (5, 5, (0.414968, 1.0)),
        (3, 3, (0.25, 1.0)),
        (0, 0, (0.0, 1.0)),
    ],
)
def test_rate_intervals(events: int, n: int, bounds: tuple[float, float]) -> None:
    """Beta-binomial confidence sequences at 5 %."""
    assert stats.rate_interval(events, n, 0.05) == pytest.approx(bounds, abs=1.1e-4)


def test_mixture_bounds_agree_with_confseq() -> None:
    """Vectors of confseq's uniform_boundaries_unittest."""
    rho = stats.best_rho(100, 0.05)
    bound = stats.BetaBinomialBound(100, 0.05, 0.2, 0.8)

    assert rho == pytest.approx(12.60056, abs=1e-5)
    assert stats.normal_bound(100, 0.05, rho) == pytest.approx(30.35209, abs=1e-4)
    assert bound.log_mixture(10, 100) == pytest.approx(-0.6941012, abs=1e-6)
    assert bound.at(100) == pytest.approx(31.4308, abs=1e-3)


@pytest.mark.parametrize(
    ("quantile", "n", "slack"),
    [
        (0.95, 200, (0.04392, 0.05897)),
        (0.95, 500, (0.02676, 0.03316)),
        (0.95, 1000, (0.01921, 0.02258)),
        (0.95, 5000, (0.00935, 0.01011)),
        (0.99, 1000, (0.00765, 0.01139)),
    ],
)
def test_quantile_slack(quantile: float, n: int, slack: tuple[float, float]) -> None:
    """Time-uniform bounds of an empirical distribution at one quantile."""
    assert stats.quantile_slack(quantile, n, 0.05) == pytest.approx(slack, abs=2e-5)


def test_mean_bound() -> None:
    """2 % of 1000 against 1 % of 9000: the one-sided bound of the difference, and the p that inverts it."""
    error = math.sqrt(0.02 * 0.98 / 1000 + 0.01 * 0.99 / 9000)

    assert stats.mean_rho(0.1, 5000) == pytest.approx(0.035578, abs=1e-6)
    halfwidth = stats.mean_halfwidth(error, 10_000, 0.05)
    assert halfwidth == pytest.approx(0.012745, abs=1e-6)
    assert stats.mean_p(halfwidth / error, 10_000, 0.05) == pytest.approx(0.05, rel=1e-9)


def test_share_mismatch_agrees_with_ssrm() -> None:
    """Vector of Optimizely's ssrm, uniform prior, and two of a binary split."""
    uniform = stats.log_beta(21, 18, 10) - stats.log_beta(1, 1, 1)
    expected = sum(n * math.log(share) for n, share in zip((20, 17, 9), (0.4, 0.4, 0.2), strict=True))

    # ssrm adds the multinomial coefficient to both sides; the Bayes factor does without
    assert uniform - expected == pytest.approx(-7.028201432058012 + 4.0776406466061985, abs=1e-9)
    assert stats.share_mismatch((8900, 1100), (0.9, 0.1)) == pytest.approx(2.9893, abs=1e-4)
    assert stats.share_mismatch((8900, 1100), (0.9, 0.1), 10_000) == pytest.approx(2.3694, abs=1e-4)
    assert stats.share_mismatch((9000, 1000), (0.9, 0.1)) < 0


def test_the_design_effect_tells_alike_from_independent() -> None:
    """Errors spread evenly have no design effect; errors of whole users have one of about a user's requests."""
    even = [(1.0, 10.0), (0.0, 10.0), (2.0, 10.0), (1.0, 10.0)] * 10
    whole = [(20.0, 20.0), *[(0.0, 20.0)] * 19]

    assert stats.design_effect(even) == 1.0
    assert stats.design_effect(whole) == pytest.approx(20.0, rel=0.1)
    assert stats.design_effect([(3.0, 5.0)]) == 1.0


def test_heavy_users_are_no_share_mismatch() -> None:
    """Half of the traffic by one user shows as dispersion, which takes the weight off the mismatch."""
    clusters = [(10.0, 90.0)] * 49 + [(4900.0, 0.0)]

    assert stats.share_dispersion(clusters) > 50
    assert stats.share_dispersion([(10.0, 90.0)] * 50) == 1.0
    assert stats.share_dispersion([(300.0, 0.0), (200.0, 0.0)]) == 250.0
    assert stats.share_dispersion([]) == 1.0


def test_the_ceiling_needs_few_straight_failures() -> None:
    """Above a 20 % ceiling a handful of straight failures is evidence enough at 5 %."""
    evidence = [stats.log_evidence(stats.ceiling_scores(n, n, 0.2)) for n in range(1, 7)]

    assert next(n for n, log_e in enumerate(evidence, 1) if log_e >= math.log(20)) <= 4
