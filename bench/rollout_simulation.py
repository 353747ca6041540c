"""How often the canary's judge errs, and how soon it finds harm: a larger simulation than the test suite runs.

    python -m bench.rollout_simulation [RUNS]

Each line is one kind of traffic. `rolled back` is the share of runs in which the judge found harm while looking at
every tick, with the upper end of its 95 % interval (Wilson); for healthy candidates it must stay within the promised
5 %. `threshold` is the same for a rule as pod-rollout tools apply it, as long as the judge had not decided: an interval
above 1 % errors is a failed check, five roll back.
"""

from __future__ import annotations

import math
import random
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor

import msgspec

from sluice_core.api.canarysplit import CanarySplitSpec
from sluice_core.rollout.presets import RolloutRules, resolve
from sluice_core.rollout.simulation import Behaviour, Population, Ramp, Run, Traffic, run

HEALTHY = Behaviour()
DRIFT = (1.0, 1.0, 3.0, 3.0, 0.5, 2.0)
OUTAGE = (0.0,) * 25 + (0.8,) * 10


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of traffic."""

    name: str
    population: Population = Population()
    behaviour: Behaviour = HEALTHY
    ramp: Ramp = Ramp()
    multipliers: tuple[float, ...] = (1.0,)
    outages: tuple[float, ...] = (0.0,)


SCENARIOS = (
    Scenario(name="healthy, alike users"),
    Scenario(name="healthy, users differ widely", population=Population(concentration=2, error_rate=0.02)),
    Scenario(name="healthy, drifting base rate", multipliers=DRIFT),
    Scenario(name="healthy, 40 users who differ", population=Population(users=40, concentration=2, error_rate=0.02)),
    Scenario(
        name="healthy, one user has half",
        population=Population(users=200, concentration=5, error_rate=0.03, heavy_share=0.5),
    ),
    Scenario(name="healthy, 100 users with habits", population=Population(users=100, spread=0.7)),
    Scenario(name="healthy, outage of the provider", outages=OUTAGE),
    Scenario(name="errors x2", behaviour=Behaviour(error_factor=2)),
    Scenario(name="errors x3", behaviour=Behaviour(error_factor=3)),
    Scenario(name="errors x3, four times the traffic", behaviour=Behaviour(error_factor=3), ramp=Ramp(requests=400)),
    Scenario(name="errors x10", behaviour=Behaviour(error_factor=10)),
    Scenario(name="30 % errors", behaviour=Behaviour(error_factor=30)),
    Scenario(name="latency x1.5", behaviour=Behaviour(latency_factor=1.5)),
    Scenario(name="latency x2", behaviour=Behaviour(latency_factor=2)),
    Scenario(name="output and cost x1.5", behaviour=Behaviour(cost_factor=1.5)),
    Scenario(name="output and cost x2.5", behaviour=Behaviour(cost_factor=2.5)),
)


def rules() -> RolloutRules:
    """Return the standard limits on errors, latency and cost."""
    arms = {"stable": {"version": "v1"}, "candidate": {"version": "v2", "model": "m"}}
    analysis: dict[str, dict[str, int]] = {"errorRate": {}, "latency": {}, "cost": {}}
    return resolve(msgspec.convert({"routeRef": {"name": "sim"}, "analysis": analysis} | arms, CanarySplitSpec))


def simulate(scenario: Scenario, seed: int) -> Run:
    """Return one run."""
    traffic = Traffic(scenario.population, scenario.behaviour, random.Random(seed * 104_729 + 1), f"salt-{seed}")
    return run(rules(), scenario.ramp, traffic, scenario.multipliers, scenario.outages)


def upper_bound(hits: int, runs: int, z: float = 1.96) -> float:
    """Return the upper end of Wilson's interval of a share."""
    share = hits / runs
    centre = share + z * z / (2 * runs)
    spread = z * math.sqrt(share * (1 - share) / runs + z * z / (4 * runs * runs))
    return (centre + spread) / (1 + z * z / runs)


def main(runs: int) -> None:
    """Simulate all scenarios and print one line each."""
    print(f"{runs} runs each; weights 5, 25, 50 % for 20 ticks each; limits errors +50 %, p95 +25 %, cost +25 %")
    print(f"{'traffic':36} {'rolled back':>20} {'median candidate requests':>26} {'threshold':>10} {'seconds':>8}")
    with ProcessPoolExecutor() as pool:
        for scenario in SCENARIOS:
            start = time.perf_counter()
            results = list(pool.map(simulate, [scenario] * runs, range(runs), chunksize=8))
            found = [result.candidate_requests for result in results if result.harm_tick is not None]
            threshold = sum(result.threshold_tick is not None for result in results)
            share = f"{100 * len(found) / runs:.1f}% (<= {100 * upper_bound(len(found), runs):.1f}%)"
            median = f"{statistics.median(found):.0f}" if found else "-"
            seconds = time.perf_counter() - start
            print(f"{scenario.name:36} {share:>20} {median:>26} {100 * threshold / runs:>9.0f}% {seconds:>8.1f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 400)
