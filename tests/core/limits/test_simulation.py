"""A small fleet, simulated: the limit holds under churn, cut-offs and failover, and capacity is not left idle."""

from __future__ import annotations

import pytest
from bench.leases import run


@pytest.mark.parametrize("seed", [1, 2])
def test_the_limit_holds_under_churn_and_failover(seed: int) -> None:
    """Pods come and go, some are cut off, leader and demand change: no minute ever holds more than the limit."""
    figures, _ = run(40, 450.0, seed, churn=0.5)
    assert figures.overshoot_percent == 0.0
    assert figures.use_percent_settled > 87.0


def test_capacity_is_used_under_skewed_demand() -> None:
    """While no pod is lost, a fifth of the pods that wants four fifths gets what the others leave."""
    figures, _ = run(100, 600.0, 1, churn=0.0)
    assert figures.overshoot_percent == 0.0
    assert figures.use_percent_settled > 95.0
    assert figures.use_percent_from_two_rounds_after_a_move > 90.0
    assert figures.use_percent_least_after_failover > 90.0


def test_little_demand_is_served_whole() -> None:
    """At half of the capacity, however skewed, next to nothing is refused."""
    figures, _ = run(60, 450.0, 1, demand=0.5, churn=0.0)
    assert figures.use_percent_mean > 45.0
