"""The transition table, its diagram, and histories that a rollout must survive."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sluice_core.api.canarysplit_status import CanarySplit, Phase, Verdict
from sluice_core.rollout.diagram import mermaid
from sluice_core.rollout.observation import Answer, Observation
from sluice_core.rollout.plan import plan
from sluice_core.rollout.states import RUNNING, TRANSITIONS, Move, next_phase


def test_harm_leads_back_from_every_running_phase() -> None:
    """There is no running phase in which a candidate cannot be taken back or aborted."""
    for phase in RUNNING:
        assert next_phase(phase, Move.ROLL_BACK) is Phase.ROLLED_BACK
        assert next_phase(phase, Move.ABORT) is Phase.ABORTED


def test_every_phase_is_in_the_table_and_can_be_reached() -> None:
    """No phase is forgotten, none is dead."""
    reached = {phase for moves in TRANSITIONS.values() for phase in moves.values()}

    assert set(TRANSITIONS) == {None, *Phase}
    assert reached == set(Phase)


@pytest.mark.parametrize(
    ("phase", "move"),
    [
        (Phase.IDLE, Move.ADVANCE),
        (Phase.ROLLED_BACK, Move.RESUME),
        (Phase.PROMOTED, Move.ROLL_BACK),
        (None, Move.PAUSE),
    ],
)
def test_a_move_that_is_not_in_the_table_is_refused(phase: Phase | None, move: Move) -> None:
    """Nothing else can happen."""
    with pytest.raises(ValueError, match="is not possible while"):
        next_phase(phase, move)


def test_the_diagram_draws_every_phase_and_move() -> None:
    """The picture in the documentation is made from the table."""
    drawing = mermaid()

    assert all(phase.value in drawing for phase in Phase)
    assert all(move.value in drawing for move in Move)
    assert drawing.startswith("stateDiagram-v2\n")


ACTIONS = st.one_of(
    st.tuples(st.just("run"), st.sampled_from([5, 60, 400]), st.sampled_from([0.0, 0.01, 0.4])),
    st.tuples(st.just("idle"), st.sampled_from([5, 4000]), st.just(0.0)),
    st.tuples(
        st.sampled_from(["pause", "resume", "promote", "promote-full", "abort", "retry"]),
        st.integers(0, 3),
        st.just(0.0),
    ),
    st.tuples(st.sampled_from(["candidate", "stable"]), st.integers(1, 3), st.just(0.0)),
    st.tuples(st.just("stuck"), st.integers(0, 1), st.just(0.0)),
)


def act(rollout: Any, action: tuple[str, int, float]) -> None:
    verb, number, errors = action
    match verb:
        case "run":
            rollout.run(min(number, 60), requests=60, candidate_errors=errors)
        case "idle":
            rollout.tick(number)
        case "candidate" | "stable":
            text = f"Be number {number}."
            rollout.change(**{verb: {"version": f"{verb[0]}{number}", "model": "m", "instructions": text}})
        case "stuck":
            rollout.stuck = bool(number)
        case _:
            rollout.ask(verb, str(number))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ACTIONS, max_size=14))
def test_any_history_keeps_the_promises(world: Callable[..., Any], history: list[tuple[str, int, float]]) -> None:
    """Whatever happens: weights only climb within a revision, the same tick decides the same, nothing moves by itself
    without data, and a rollout that is over sends nobody to the candidate.
    """
    rollout = world()
    for action in history:
        before = rollout.status
        act(rollout, action)
        after = rollout.status

        if before.revision == after.revision and after.phase in RUNNING:
            assert after.weight >= before.weight
        if after.phase in {Phase.ROLLED_BACK, Phase.ABORTED, Phase.IDLE}:
            assert after.weight == 0
        if action[0] == "idle" and rollout.events[-1:] != ["RequestIgnored"] and after.verdict is not Verdict.PASS:
            assert after.weight == before.weight
        seen = rollout.observe()
        assert plan(rollout.split, seen, rollout.now) == plan(rollout.split, seen, rollout.now)
        assert len(after.history) <= 10
        assert len(after.evidence) < 32_768
        assert rollout.policy.weight in {0, after.weight}


@pytest.mark.parametrize("seed", range(6))
def test_a_restart_at_any_tick_decides_the_same(world: Callable[..., Any], seed: int) -> None:
    """A leader killed after any tick, even before its status was written, leads to the same decisions."""
    draws = random.Random(seed)
    errors = draws.choice([0.0, 0.08, 0.3])
    steady, shaken = world(), world()
    for _ in range(60):
        for rollout in (steady, shaken):
            rollout.serve(100, candidate_errors=errors, stable_errors=0.02)
        if draws.random() < 0.5:  # decided, then killed before the write: the next leader decides again
            plan(shaken.split, shaken.observe(), shaken.now + 5)
        steady.tick()
        shaken.tick()

        assert shaken.status == steady.status


def test_a_tick_repeated_on_its_own_result_changes_nothing(world: Callable[..., Any]) -> None:
    """The second of two equal ticks finds nothing new in the figures."""
    rollout = world().run(30)
    seen = rollout.observe()

    again = plan(rollout.split, seen, rollout.now)

    assert again.status == rollout.status
    assert (again.events, again.questions, again.urgent) == ((), (), False)


def test_blue_green_previews_switches_and_watches(world: Callable[..., Any]) -> None:
    """The preview is for the override header alone; the switch wants a hand; the watch can take it back."""
    strategy = {"type": "BlueGreen", "blueGreen": {"previewSeconds": 30, "watchSeconds": 120}}
    rollout = world(strategy=strategy)
    assert (rollout.policy.weight, rollout.policy.candidate.version) == (0, "v2")
    rollout.run(60)
    assert (rollout.phase, rollout.policy.weight) == (Phase.AWAITING_GATE, 0)
    rollout.ask("promote", "1").run(15)
    assert (rollout.phase, rollout.policy.weight) == (Phase.WATCHING, 100)

    bad = rollout.run(10, candidate_errors=0.6)

    assert (bad.phase, bad.policy.weight, bad.policy.stable.version) == (Phase.ROLLED_BACK, 0, "v1")


def test_blue_green_is_confirmed_after_a_quiet_watch(world: Callable[..., Any]) -> None:
    """The watch ends by itself, though not without traffic."""
    strategy = {"type": "BlueGreen", "blueGreen": {"watchSeconds": 60, "gate": "Auto"}}
    rollout = world(strategy=strategy).tick().serve(10).tick().serve(10).tick()
    for _ in range(20):
        rollout.tick(60)
    assert rollout.phase is Phase.WATCHING

    rollout.run(30)

    assert (rollout.phase, rollout.policy.stable.version) == (Phase.PROMOTED, "v2")


def test_a_required_judge_takes_a_candidate_back(world: Callable[..., Any]) -> None:
    """A quality drop that no figure shows: the webhook's Fail is harm, with its own words."""
    judge = {"webhooks": [{"name": "quality", "url": "https://judge.example/ask", "intervalSeconds": 30}]}
    rollout = world(analysis=judge).run(10)
    question = rollout.last.questions or plan(rollout.split, rollout.observe(), rollout.now + 40).questions
    assert question[0].payload["step"] == 1
    assert question[0].payload["candidate"]["version"] == "v2"

    rollout.answers = {"quality": Answer.PASS}
    rollout.run(100)
    assert rollout.status.step == "2/3"
    rollout.answers = {"quality": Answer.FAIL}
    rollout.tick()

    assert rollout.phase is Phase.ROLLED_BACK
    assert rollout.status.reason == "quality says fail: why"


def test_the_watch_is_asked_about_anew(world: Callable[..., Any]) -> None:
    """A judge's Pass for the last step is none for what comes after it; figures are sent whole, zeros too."""
    judge = {"webhooks": [{"name": "quality", "url": "https://judge.example/ask"}]}
    steps = {"steps": [{"weight": 100, "bakeSeconds": 10, "minRequests": 10}], "watchSeconds": 10}
    rollout = world(strategy=steps, analysis=judge).tick()
    (first,) = rollout.last.questions
    assert (first.step, first.payload["candidate"]["requests"], first.payload["stable"]["errors"]) == (1, 0, 0)

    rollout.answers = {"quality": Answer.PASS}  # about the step by its number, which the watch keeps
    rollout.run(60)

    assert rollout.phase is Phase.WATCHING
    assert [each.answer for each in rollout.status.webhooks] == [""]


def test_an_advisory_judge_decides_nothing(world: Callable[..., Any]) -> None:
    """Its Fail is shown in status."""
    judge = {"webhooks": [{"name": "taste", "url": "https://judge.example/ask", "mode": "Advisory"}]}
    rollout = world(analysis=judge)
    rollout.answers = {"taste": Answer.FAIL}

    rollout.run(100)

    assert rollout.status.webhooks[0].answer == "Fail"
    assert rollout.status.weight == 50


def test_answers_about_another_step_are_late(world: Callable[..., Any]) -> None:
    """A Pass for the first step is none for the second."""
    judge = {"webhooks": [{"name": "quality", "url": "https://judge.example/ask"}]}
    rollout = world(analysis=judge)
    rollout.answers = {"quality": Answer.PASS}
    while rollout.status.step == "1/3":
        rollout.run(5)
    rollout.answers = {}

    rollout.run(300)

    assert rollout.status.step == "2/3"
    assert "waiting for quality" in rollout.status.reason


def test_a_changed_stable_version_restarts_the_comparison(world: Callable[..., Any]) -> None:
    """The spec's stable version counts at once; what was measured against the old one is dropped."""
    rollout = world().run(75)
    rollout.change(stable={"version": "v1-hotfix", "model": "gpt-4.1"})

    assert (rollout.policy.stable.version, rollout.status.step) == ("v1-hotfix", "1/3")


def test_counts_of_another_revision_are_passed_over(world: Callable[..., Any]) -> None:
    """Late reports of an old revision never count for the new one."""
    rollout = world().run(20, candidate_errors=0.0)
    late = rollout.observe()
    rollout.change(candidate={"version": "v3", "model": "other"})

    after = plan(rollout.split, late, rollout.now + 5)

    assert after.status.candidate is not None
    assert after.status.candidate.requests == 0


def test_status_never_holds_what_it_should_not_and_spec_is_never_touched(world: Callable[..., Any]) -> None:
    """A tick returns a status; the resource it was given stays as it was."""
    rollout = world().run(60)
    split: CanarySplit = rollout.split
    before = msgspec.json.encode(split)

    plan(split, Observation(), rollout.now + 5)

    assert msgspec.json.encode(split) == before


def test_one_tick_is_fast(world: Callable[..., Any]) -> None:
    """A leader with hundreds of splits can look at each of them every few seconds."""
    analysis = {name: {} for name in ("errorRate", "latency", "firstToken", "cost", "outputTokens", "finishReasons")}
    rollout = world(analysis=analysis).run(60, requests=500)
    durations = []
    for _ in range(20):
        rollout.serve(200)
        split, seen = rollout.split, rollout.observe()
        start = time.perf_counter()
        plan(split, seen, rollout.now + 5)
        durations.append(time.perf_counter() - start)
        rollout.tick()

    assert sorted(durations)[len(durations) // 2] < 0.02  # about 3 ms on an idle machine


def test_the_core_reads_no_clock() -> None:
    """Rollouts take time and randomness as arguments."""
    import sluice_core.rollout as package

    sources = [path.read_text() for path in Path(package.__path__[0]).glob("*.py")]
    assert not any("import time\n" in text or "import random\n" in text for text in sources)
