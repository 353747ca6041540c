"""A fleet of simulated pods under one limit: use of capacity, fairness, the leader's cost and the worst overshoot.

    python -m bench.leases --pods 1000 --seconds 600

Demand is twice the limit and moves to other pods every two and a half minutes; the leader fails over half way, between
two moves. See `bench.lease_fleet` for the fleet. Prints the figures of the run, what the capacity that is not used is
held by, and how use and fairness come back round by round after a move.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Final

from msgspec import Struct

from bench.lease_fleet import REPORT_SECONDS, SHARES, TICK_SECONDS, UPSTREAM, WINDOW_SECONDS, Pod, Simulation
from bench.results import markdown
from sluice_core.limits.keys import Dimension

MOVE_SECONDS: Final = 150.0
FAILOVER_SECONDS: Final = 100.0
"""For so long after a failover the figures are not those of moves of demand."""
ROUNDS_SHOWN: Final = (0, 1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 20, 24, 29)
SETTLED_SECONDS: Final = WINDOW_SECONDS + 2 * REPORT_SECONDS
HOLDERS: Final = (
    "dead pods",
    "pods cut off",
    "its last report",  # what a pod gave up, or lost to time, since the leader heard of it
    "pods that were refused lately",
    "pods with enough",
    "nobody",
)
_WORST_PART: Final = 0.05


class Fairness(Struct, frozen=True, kw_only=True):
    """How what pods got in the last minute compares with what is due to each: max-min fair within the shares.

    Of pods that were there all the minute and not cut off. `jain` is Jain's index of the parts of their due that they
    got, 1 if all got the same part. The worst pods are the twentieth that got the smallest part of their due.
    """

    jain: float = 1.0
    worst_pods_percent: float = 100.0
    small_pods_percent: float = 100.0
    large_pods_percent: float = 100.0
    worst_allocation_percent: float = 100.0


class Sample(Struct, frozen=True, kw_only=True):
    """One moment of a run. `since_move` and `since_failover` are seconds."""

    since_move: float
    since_failover: float
    moves: int
    use_percent: float
    fairness: Fairness | None
    held: dict[str, float]


class Figures(Struct, kw_only=True):
    """What a run shows. Percentages are of the capacity, over windows of a minute; fairness is of settled demand."""

    pods: int
    simulated_seconds: float
    demand_percent: float
    use_percent_mean: float
    use_percent_settled: float
    use_percent_from_two_rounds_after_a_move: float
    use_percent_least_after_failover: float
    overshoot_percent: float
    fairness_jain_index: float
    worst_twentieth_of_pods_percent_of_due: float
    worst_allocation_percent_of_due: float
    leader_percent_of_a_core: float
    reports: int
    seconds_it_took: float


def fairness(pods: Iterable[Pod], now: float) -> Fairness:
    """Compare what pods got with their due."""
    due, got = dict.fromkeys(SHARES, 0.0), dict.fromkeys(SHARES, 0.0)
    small: list[float] = []
    large: list[float] = []
    for pod in pods:
        due[pod.allocation] += pod.due
        got[pod.allocation] += pod.in_window
        if now - pod.started_at > WINDOW_SECONDS + REPORT_SECONDS and now - pod.cut_until > WINDOW_SECONDS:
            (small if pod.due >= pod.rate * WINDOW_SECONDS else large).append(100.0 * pod.in_window / pod.due)
    parts = sorted((*small, *large))
    if not parts or not any(parts):
        return Fairness()
    return Fairness(
        jain=sum(parts) ** 2 / (len(parts) * sum(part * part for part in parts)),
        worst_pods_percent=fmean(parts[: max(1, int(len(parts) * _WORST_PART))]),
        small_pods_percent=fmean(small or (100.0,)),
        large_pods_percent=fmean(large or (100.0,)),
        worst_allocation_percent=min(100.0 * got[name] / due[name] for name in SHARES if due[name]),
    )


def held_unused(simulation: Simulation) -> dict[str, float]:
    """Return what the capacity that is not in use is held by, in percent of it."""
    now, found = simulation.now, dict.fromkeys(HOLDERS, 0.0)
    pods = {pod.name: pod for pod in simulation.pods}
    exposures = simulation.leader.exposures(UPSTREAM, Dimension.TOKENS)
    for name, exposure in exposures.items():
        pod = pods.get(name)
        if pod is None:
            found["dead pods"] += exposure
            continue
        (demand,) = (each for each in pod.admission.limits(now) if each.held)
        if now < pod.cut_until + REPORT_SECONDS:
            found["pods cut off"] += exposure - pod.in_window
            continue
        found["its last report"] += exposure - demand.held
        short = now - pod.refused_at <= REPORT_SECONDS
        found["pods that were refused lately" if short else "pods with enough"] += demand.held - pod.in_window
    known = sum(pod.in_window for pod in simulation.pods if pod.name in exposures)
    found["nobody"] = simulation.capacity - known - sum(found.values())
    found["dead pods"] -= simulation.in_window - sum(pod.in_window for pod in simulation.pods)
    return {name: 100.0 * amount / simulation.capacity for name, amount in found.items()}


def sampled(simulation: Simulation, seconds: float) -> Iterable[Sample]:
    """Run the simulation and yield a sample every second after the first minute; demand and leader change meanwhile."""
    failed_over_at, moved_at, moves = float("inf"), 0.0, 0
    while simulation.now < seconds:
        for _ in range(round(1.0 / TICK_SECONDS)):
            simulation.tick()
        now = simulation.now
        if now - moved_at >= MOVE_SECONDS:
            simulation.skew()
            moved_at, moves = now, moves + 1
        if failed_over_at > now and now >= seconds / 2 and now - moved_at >= MOVE_SECONDS / 3:
            simulation.fail_over()
            failed_over_at = now
        if now > WINDOW_SECONDS:
            at_a_round = (now - moved_at) % REPORT_SECONDS == 0
            yield Sample(
                since_move=now - moved_at,
                since_failover=now - failed_over_at,
                moves=moves,
                use_percent=100.0 * simulation.in_window / simulation.capacity,
                fairness=fairness(simulation.pods, now) if at_a_round else None,
                held=held_unused(simulation) if at_a_round else {},
            )


def run(
    pods: int, seconds: float, seed: int, demand: float = 2.0, churn: float = 0.2, killed: float = 0.5
) -> tuple[Figures, list[Sample]]:
    """Simulate and return the figures and the samples. Failover happens half way, so ten minutes show something.

    "Settled" is what is measured from two rounds and a window after the last move of demand; the 100 s after the
    failover are not in it. What is used from two rounds after a move until then is a figure of its own.
    """
    started = time.process_time()
    simulation = Simulation(pods, seed, demand=demand, churn=churn, killed=killed)
    samples = list(sampled(simulation, seconds))
    steady = [each for each in samples if not 0 <= each.since_failover <= FAILOVER_SECONDS]
    settled = [each for each in steady if each.since_move > SETTLED_SECONDS]
    moving = [each for each in steady if each.moves and 2 * REPORT_SECONDS < each.since_move <= SETTLED_SECONDS]
    after_failover = [each.use_percent for each in samples if 0 <= each.since_failover <= FAILOVER_SECONDS]
    fair = [each.fairness for each in settled if each.fairness is not None]
    figures = Figures(
        pods=pods,
        simulated_seconds=seconds,
        demand_percent=100.0 * demand,
        use_percent_mean=fmean(each.use_percent for each in samples),
        use_percent_settled=fmean(each.use_percent for each in settled),
        use_percent_from_two_rounds_after_a_move=fmean([each.use_percent for each in moving] or [100.0]),
        use_percent_least_after_failover=min(after_failover, default=100.0),
        overshoot_percent=max(0.0, 100.0 * simulation.worst / simulation.capacity - 100.0),
        fairness_jain_index=fmean(each.jain for each in fair),
        worst_twentieth_of_pods_percent_of_due=fmean(each.worst_pods_percent for each in fair),
        worst_allocation_percent_of_due=min(each.worst_allocation_percent for each in fair),
        leader_percent_of_a_core=100.0 * simulation.leader_cpu / seconds,
        reports=simulation.reports,
        seconds_it_took=time.process_time() - started,
    )
    return figures, samples


def rounds(samples: Sequence[Sample]) -> str:
    """Return the table of what is seen so many rounds after a move: means over the moves."""
    cells = [
        ["round", "seconds", "use %", "Jain", "worst pods %", "small pods %", "large pods %", "worst allocation %"]
    ]
    for number in ROUNDS_SHOWN:
        found = [
            each
            for each in samples
            if each.moves and each.since_move == number * REPORT_SECONDS and not 0 <= each.since_failover <= 100
        ]
        fair = [each.fairness for each in found if each.fairness is not None]
        if fair:
            means = [fmean(getattr(each, name) for each in fair) for name in Fairness.__struct_fields__]
            jain, *percents = means
            shown = (f"{fmean(each.use_percent for each in found):.1f}", f"{jain:.3f}")
            cells.append([str(number), f"{number * REPORT_SECONDS:g}", *shown, *(f"{each:.1f}" for each in percents)])
    return markdown(cells)


def holders(samples: Sequence[Sample]) -> str:
    """Return the table of what holds the capacity that is not used."""
    steady = [each for each in samples if each.held and not 0 <= each.since_failover <= FAILOVER_SECONDS]
    moving = [each for each in steady if each.moves and 2 * REPORT_SECONDS < each.since_move <= SETTLED_SECONDS]
    settled = [each for each in steady if each.since_move > SETTLED_SECONDS]
    cells = [["not used, held by", "", "after a move %", "settled %"]]
    for name in HOLDERS:
        parts = (f"{fmean(each.held[name] for each in part):.2f}" if part else "" for part in (moving, settled))
        cells.append([name, "", *parts])
    return markdown(cells)


def main() -> int:
    """Print the figures; fail if the limit was exceeded."""
    parser = argparse.ArgumentParser(prog="python -m bench.leases", description="Simulate leases among many pods.")
    parser.add_argument("--pods", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--demand", type=float, default=2.0, help="in multiples of the capacity")
    parser.add_argument("--churn", type=float, default=0.2, help="part of the pods replaced in ten minutes")
    parser.add_argument("--killed", type=float, default=0.5, help="part of these that leaves without a word")
    given = parser.parse_args()
    figures, samples = run(given.pods, given.seconds, given.seed, given.demand, given.churn, given.killed)
    for name in figures.__struct_fields__:
        value = getattr(figures, name)
        print(f"{name.replace('_', ' '):42} {value:.3f}" if isinstance(value, float) else f"{name:42} {value}")
    print(f"\n{rounds(samples)}\n\n{holders(samples)}")
    return 1 if figures.overshoot_percent > 0 else 0


if __name__ == "__main__":
    sys.exit(main())
