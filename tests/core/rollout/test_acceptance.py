"""What users of the pod-rollout tools have asked for or complained about, as stories, and where each is proved.

Stories named here are tests of this module, `test_aNN_...`; "real" ones are played once more over real calls, with a
real sidecar, in tests/cli/canary.

| story | what must hold | test |
|---|---|---|
| A1 | no traffic neither promotes nor rolls back | a01; real: test_holds |
| A2 | one error of few requests is no harm | a02 |
| A3 | the reason has the figures | a03; real: test_harm |
| A4, A5 | conditions for `kubectl wait`, Helm and Flux | a04_a05; tests/operator/test_rollouts |
| A6, A7 | step, weight and time left are shown | a06_a07; real: test_progress (`sluice status`) |
| A8 | promoting goes past an inconclusive step | a08 |
| A9 | an advisory metric informs only | a09 |
| A10 | a stale read decides the same; tokens are carried out once | a10; test_states: restart at any tick |
| A11 | control by annotation, not by status | a11_a24, a11; real: test_steering |
| A12 | a new revision restarts cleanly | a12 (both); real: test_steering |
| A13 | what failed is not tried again by itself | a13_a29, a13; real: test_steering, test_kill |
| A14 | a new revision after a failure starts at once | a14 |
| A15 | a bad stable arm holds, a person may promote | a15 (both); real: test_holds |
| A16 | the deadline fires in every phase | a16 (both) |
| A17 | harm acts while paused, gated, watched | a17_a25 |
| A18 | a gate before the first step is no restart | a18 |
| A19 | no metrics is said, not passed over | a19 |
| A20 | an error is never a pass | a20 (both); tests/operator/test_webhooks |
| A21 | the revision is the content alone | a21 |
| A22 | edits of steps and limits count at once | a22 |
| A23 | abort works at any time | a23; real: test_steering |
| A24 | approval is one command | a11_a24; real: test_steering, test_progress (by webhook) |
| A25 | rollback after promotion; instant return | a17_a25, a25; real: test_progress |
| A26 | limits are relative to stable | a26 |
| A27 | a ramp moves users to the candidate only | test_split.test_a27; real: test_progress, test_kill |
| A28 | the shown weight is the weight in effect | a28; tests/operator/test_rollouts |
| A29 | the spec is never written; applying again changes nothing | a13_a29; tests/operator/test_rollouts |
| A30 | model and prompt rollouts, sticky, with automatic return | a30; real: test_harm, test_progress, test_holds |
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from sluice_core.api.base import ConditionStatus
from sluice_core.api.canarysplit_status import Phase, Verdict
from sluice_core.rollout.observation import Answer
from sluice_core.rollout.plan import plan

TRUE, FALSE = ConditionStatus.TRUE, ConditionStatus.FALSE
V3 = {"version": "v3", "model": "gpt-4.1-mini", "instructions": "Be clear."}
GATED = {
    "steps": [
        {"weight": 10, "bakeSeconds": 30, "minRequests": 20},
        {"weight": 100, "bakeSeconds": 30, "minRequests": 20, "gate": "Manual"},
    ]
}


def with_policy(policy: str) -> dict[str, Any]:
    return {
        "steps": [{"weight": 50, "bakeSeconds": 30, "minRequests": 50}, {"weight": 100}],
        "stepDeadlineSeconds": 600,
        "onInconclusive": policy,
    }


def test_a_healthy_candidate_climbs_and_is_promoted(world: Any) -> None:
    """The whole story: every step is baked, the watch passes, the candidate becomes the stable version."""
    rollout = world().run(2000, requests=200, stable_errors=0.01, candidate_errors=0.01)

    assert rollout.phase is Phase.PROMOTED
    assert sorted(set(rollout.weights)) == [10, 50, 100]
    assert rollout.weights == sorted(rollout.weights)
    assert rollout.policy.stable.version == "v2"
    assert rollout.status.history[0].result == "Promoted"


@pytest.mark.parametrize("policy", ["Pause", "Promote", "Rollback"])
def test_a01_no_traffic_neither_promotes_nor_rolls_back(world: Any, policy: str) -> None:
    """Without requests the weight is held whatever the policy says, past every deadline; with them it goes on."""
    rollout = world(strategy=with_policy(policy))
    for _ in range(100):
        rollout.tick(60)

    assert (rollout.phase, rollout.status.weight) == (Phase.PROGRESSING, 50)
    assert rollout.status.verdict is Verdict.INSUFFICIENT_DATA
    assert rollout.events.count("StepDeadlineExceeded") == 1

    rollout.run(60)

    assert rollout.status.weight == 100


def test_a02_one_error_of_few_requests_is_no_harm(world: Any) -> None:
    """One failed call of one is not a hundred percent."""
    rollout = world().serve(10, candidate_errors=1.0).tick()

    assert rollout.status.candidate.errors == 1
    assert rollout.phase is Phase.PROGRESSING


def test_a03_the_reason_has_the_figures(world: Any) -> None:
    """A rollback says metric, both arms, limit and p."""
    rollout = world().run(60, candidate_errors=0.3, stable_errors=0.01)

    assert rollout.phase is Phase.ROLLED_BACK
    for part in ("error rate candidate", "vs stable", "limit +50%", "p="):
        assert part in rollout.status.reason
    assert rollout.status.reason in rollout.messages[-1]


def test_a04_a05_conditions_tell_wait_and_kstatus_where_it_stands(world: Any) -> None:
    """Ready, Reconciling and Stalled are clean in every phase; Paused can be waited for."""
    rollout = world()
    assert [rollout.condition(kind) for kind in ("Ready", "Reconciling", "Stalled")] == [FALSE, TRUE, FALSE]
    rollout.ask("pause", "1")
    assert rollout.condition("Paused") is TRUE
    rollout.ask("abort", "1")
    assert [rollout.condition(kind) for kind in ("Ready", "Reconciling", "Stalled")] == [FALSE, FALSE, TRUE]
    rollout.change(candidate=rollout.spec["stable"] | {"version": "same"})
    assert [rollout.condition(kind) for kind in ("Ready", "Reconciling", "Stalled")] == [TRUE, FALSE, FALSE]
    assert rollout.status.observed_generation == rollout.generation


def test_a06_a07_step_weight_and_time_left_are_shown(world: Any) -> None:
    """Status says the step of steps, the weight, and when the rollout can move at the earliest."""
    rollout = world().run(10)

    assert (rollout.status.step, rollout.status.weight) == ("1/3", 10)
    assert rollout.status.next_transition_time > rollout.status.baking_since > ""
    assert f"baking until {rollout.status.next_transition_time}" in rollout.status.reason


def test_a08_promoting_after_an_inconclusive_step_goes_past_it(world: Any) -> None:
    """A rollout paused for want of a verdict advances on promote and is not paused again by the same step."""
    judge = {"webhooks": [{"name": "quality", "url": "https://judge.example/ask"}]}
    rollout = world(strategy=with_policy("Pause"), analysis=judge).run(700)
    assert (rollout.phase, rollout.status.paused_reason) == (Phase.PAUSED, "Inconclusive")

    rollout.ask("promote", "go")

    assert (rollout.phase, rollout.status.step) == (Phase.PROGRESSING, "2/2")


def test_a09_an_advisory_metric_informs_without_deciding(world: Any) -> None:
    """Harm in an advisory metric shows in its row and stops nothing."""
    rollout = world(analysis={"latency": {"mode": "Advisory"}, "errorRate": {}}).run(400, requests=200, slower=2.0)

    verdicts = {metric.name: metric.verdict for metric in rollout.status.metrics}
    assert verdicts["latency"] is Verdict.HARM
    assert rollout.status.weight == 100


def test_a10_a_stale_status_decides_the_same_again(world: Any) -> None:
    """A tick on a stale read repeats the same decision; a promote token is carried out once."""
    rollout = world(strategy=GATED).run(60)
    assert rollout.phase is Phase.AWAITING_GATE
    rollout.annotations["sluice.dev/promote"] = "go"
    stale, seen = rollout.split, rollout.observe()

    first, second = plan(stale, seen, rollout.now + 5), plan(stale, seen, rollout.now + 5)
    after = rollout.tick().run(10)

    assert first == second
    assert (first.status.phase, first.status.weight) == (Phase.PROGRESSING, 100)
    assert after.events.count("WeightChanged") == 2


def test_a11_a24_requests_are_annotations_each_carried_out_once(world: Any) -> None:
    """A token works once; repeated applies of it do nothing; another one works again."""
    rollout = world().ask("pause", "monday").ask("resume", "monday").tick().tick()
    assert (rollout.phase, rollout.events.count("Paused")) == (Phase.PROGRESSING, 1)

    rollout.ask("pause", "tuesday")

    assert rollout.phase is Phase.PAUSED
    assert rollout.status.consumed_requests == {"pause": "tuesday", "resume": "monday"}


def test_a11_tokens_on_a_new_resource_are_left_from_an_earlier_life(world: Any) -> None:
    """A resource that is created with old annotations does not promote itself."""
    rollout = world({"sluice.dev/promote-full": "old"}).tick()

    assert (rollout.phase, rollout.status.weight) == (Phase.PROGRESSING, 10)


def test_a12_a_new_revision_starts_from_the_beginning(world: Any) -> None:
    """A candidate changed in mid-rollout starts at the first step with a fresh salt and without the old figures."""
    rollout = world().run(100, candidate_errors=0.02, stable_errors=0.01)
    old = rollout.status
    assert old.step == "2/3"

    rollout.change(candidate=V3)

    assert (rollout.status.step, rollout.status.weight) == ("1/3", 10)
    assert rollout.status.salt != old.salt
    assert rollout.status.candidate.requests == 0
    assert rollout.status.history[0].result == "Superseded"


def test_a12_an_edit_gives_no_user_to_the_untried_candidate(world: Any) -> None:
    """Between the edit and the next tick the compiler sends everyone to the stable version."""
    rollout = world().run(100)
    rollout.spec = rollout.spec | {"candidate": V3}

    assert (rollout.policy.weight, rollout.policy.candidate.version, rollout.policy.stable.version) == (0, "v3", "v1")


def test_a13_a29_a_failed_revision_stays_out_however_often_it_is_applied(world: Any) -> None:
    """GitOps may apply the same manifest again and again: nothing changes and nothing is said."""
    rollout = world().run(60, candidate_errors=0.5)
    assert rollout.phase is Phase.ROLLED_BACK
    said, before = len(rollout.events), rollout.status

    for _ in range(10):
        rollout.change()

    assert len(rollout.events) == said
    assert not rollout.tick().last.urgent
    assert msgspec.structs.replace(rollout.status, observed_generation=0, conditions=()) == msgspec.structs.replace(
        before, observed_generation=0, conditions=()
    )


def test_a13_a_failed_candidate_is_refused_when_it_comes_back(world: Any) -> None:
    """Another version, then the failed one again under another name: it is known by its content."""
    rollout = world().run(60, candidate_errors=0.5).change(candidate=V3)
    assert rollout.phase is Phase.PROGRESSING
    rollout.change(candidate={"version": "v2-again", "model": "gpt-4.1-mini", "instructions": "Be kind."})

    assert (rollout.phase, rollout.status.weight) == (Phase.ROLLED_BACK, 0)
    assert "failed before" in rollout.status.reason

    rollout.ask("retry", "once")

    assert (rollout.phase, rollout.status.weight) == (Phase.PROGRESSING, 10)


@pytest.mark.parametrize("verb", [None, "abort"])
def test_a14_a_new_revision_after_a_failure_starts_at_once(world: Any, verb: str | None) -> None:
    """Neither a rollback nor an abort keeps the next candidate waiting."""
    rollout = world()
    if verb:
        rollout.ask(verb, "1")
    else:
        rollout.run(60, candidate_errors=0.5)
    assert rollout.status.weight == 0

    rollout.change(candidate=V3)

    assert (rollout.phase, rollout.status.weight) == (Phase.PROGRESSING, 10)


def test_a15_a_bad_stable_arm_does_not_trap_a_good_candidate(world: Any) -> None:
    """Above the ceiling the stable arm is no measure: hold, say so, and let a person promote."""
    rollout = world().run(200, requests=200, stable_errors=0.5, candidate_errors=0.02)

    assert rollout.condition("BaselineDegraded") is TRUE
    assert (rollout.phase, rollout.status.verdict) == (Phase.PROGRESSING, Verdict.INCONCLUSIVE)

    rollout.ask("promote-full", "now")

    assert (rollout.phase, rollout.status.weight) == (Phase.WATCHING, 100)


def test_a15_a_provider_outage_holds_instead_of_guessing(world: Any) -> None:
    """When both arms fail in mid-rollout nothing is rolled back; afterwards the rollout goes on."""
    rollout = world().run(80, requests=200).run(120, requests=200, stable_errors=0.9, candidate_errors=0.9)

    assert (rollout.phase, rollout.status.weight) == (Phase.PROGRESSING, 50)

    rollout.run(200, requests=200)

    assert rollout.status.weight == 100


@pytest.mark.parametrize(
    ("policy", "phase"),
    [("Pause", Phase.PAUSED), ("Promote", Phase.PAUSED), ("Rollback", Phase.ROLLED_BACK)],
)
def test_a16_the_deadline_fires_whatever_is_being_waited_for(world: Any, policy: str, phase: Phase) -> None:
    """A required judge that never answers cannot hold a step for ever; nor is its silence ever taken for a pass."""
    judge = {"webhooks": [{"name": "quality", "url": "https://judge.example/ask"}]}
    rollout = world(strategy=with_policy(policy), analysis=judge)
    rollout.answers = {"quality": Answer.WAIT}

    rollout.run(640)

    assert rollout.phase is phase
    assert rollout.status.weight == (0 if phase is Phase.ROLLED_BACK else 50)


def test_a16_the_deadline_fires_while_pods_lag_behind(world: Any) -> None:
    """Pods that never get the weight do not keep the deadline from being told."""
    rollout = world(strategy=with_policy("Pause"))
    rollout.stuck = True

    rollout.run(700)

    assert rollout.condition("ConfigSynced") is FALSE
    assert "StepDeadlineExceeded" in rollout.events


@pytest.mark.parametrize("phase", [Phase.PROGRESSING, Phase.PAUSED, Phase.AWAITING_GATE, Phase.WATCHING])
def test_a17_a25_harm_is_acted_on_in_every_phase(world: Any, phase: Phase) -> None:
    """Paused, at a gate or promoted already: a candidate that fails is taken back within ten seconds."""
    rollout = world(strategy=GATED) if phase is Phase.AWAITING_GATE else world()
    match phase:
        case Phase.PAUSED:
            rollout.ask("pause", "1")
        case Phase.AWAITING_GATE:
            rollout.run(60)
        case Phase.WATCHING:
            rollout.ask("promote-full", "1").run(20)
    assert rollout.phase is phase

    rollout.run(10, requests=200, candidate_errors=0.5, stable_errors=0.01)

    assert (rollout.phase, rollout.status.weight) == (Phase.ROLLED_BACK, 0)
    assert rollout.policy.stable.version == "v1"


def test_a18_a_gate_before_the_first_step_is_no_restart(world: Any) -> None:
    """Weight 0 at a gate is a step like any other, told by its number."""
    rollout = world(strategy={"steps": [{"weight": 20, "gate": "Manual"}, {"weight": 100}]}).run(20)
    assert (rollout.phase, rollout.status.step, rollout.status.weight) == (Phase.AWAITING_GATE, "0/2", 0)
    started = rollout.status.started_at

    rollout.ask("pause", "1").ask("resume", "1").run(20)
    assert rollout.phase is Phase.AWAITING_GATE
    rollout.ask("promote", "1")

    assert (rollout.status.step, rollout.status.weight, rollout.status.started_at) == ("1/2", 20, started)


def test_a19_an_analysis_without_metrics_says_so(world: Any) -> None:
    """Bake times alone steer only where the user asked for no metric, and a condition tells."""
    assert world(analysis={}).condition("AnalysisConfigured") is FALSE
    assert world().condition("AnalysisConfigured") is TRUE


def test_a20_an_error_is_never_a_pass(world: Any) -> None:
    """A required metric without any figure, like the score nobody reports, stops the step and pauses it in the end."""
    rollout = world(strategy=with_policy("Promote"), analysis={"score": {}}).run(100)
    assert (rollout.status.verdict, rollout.status.weight) == (Verdict.ERROR, 50)

    rollout.run(600)

    assert rollout.phase is Phase.PAUSED


def test_a20_a_judge_in_error_is_never_a_pass(world: Any) -> None:
    """A webhook that cannot answer holds the step."""
    rollout = world(analysis={"webhooks": [{"name": "quality", "url": "https://judge.example/ask"}]})
    rollout.answers = {"quality": Answer.ERROR}

    assert rollout.run(300).status.weight == 10


def test_a21_the_revision_is_the_content_alone(world: Any) -> None:
    """The order of overrides, 0.70 for 0.7, 1.0 for 1 and a new version name are no new candidate."""
    arm = {"model": "m", "overrides": {"temperature": 0.7, "n": 1, "stop": ["a"]}}
    rollout = world(candidate=arm | {"version": "v2"})
    revision = rollout.status.revision

    same = {"model": "m", "overrides": {"stop": ["a"], "n": 1.0, "temperature": 0.70}}
    rollout.change(candidate=same | {"version": "v2-renamed"})
    assert rollout.status.revision == revision
    rollout.change(candidate=same | {"version": "v2", "instructions": "Other."})

    assert rollout.status.revision != revision


def test_a22_a_changed_limit_counts_at_the_next_tick(world: Any) -> None:
    """Steps and limits are read at every tick and restart nothing."""
    rollout = world().run(30)
    revision = rollout.status.revision

    strategy = {"steps": [{"weight": 10, "bakeSeconds": 5, "minRequests": 10}, {"weight": 100}]}
    rollout.change(strategy=strategy)

    assert (rollout.status.revision, rollout.status.step) == (revision, "2/2")


@pytest.mark.parametrize("before", ["none", "pause", "gate", "promote-full"])
def test_a23_abort_works_at_any_time(world: Any, before: str) -> None:
    """Whatever the rollout is doing, abort sends everyone back to the stable version."""
    rollout = world(strategy=GATED) if before == "gate" else world()
    if before == "gate":
        rollout.run(60)
    elif before != "none":
        rollout.ask(before, "1")

    rollout.ask("abort", "1")

    assert (rollout.phase, rollout.status.weight, rollout.policy.stable.version) == (Phase.ABORTED, 0, "v1")
    assert rollout.status.last_failed_revision == rollout.status.revision


def test_a25_a_return_to_the_last_stable_is_instant(world: Any) -> None:
    """After a promotion the version before it is given back to everyone at once, without a canary."""
    rollout = world().ask("promote-full", "1").ask("promote", "1")
    assert (rollout.phase, rollout.policy.stable.version) == (Phase.PROMOTED, "v2")

    rollout.change(candidate=rollout.spec["stable"] | {"version": "v1-back"})

    assert (rollout.phase, rollout.policy.stable.version) == (Phase.PROMOTED, "v1-back")
    assert rollout.policy.stable.instructions == "Be brief."


def test_a26_the_limit_is_relative_to_stable(world: Any) -> None:
    """Ten percent errors are no harm beside a stable arm with ten percent, and harm beside one with one."""
    same = world().run(50, requests=400, stable_errors=0.1, candidate_errors=0.1)
    worse = world().run(50, requests=400, stable_errors=0.01, candidate_errors=0.1)

    assert (same.phase, worse.phase) == (Phase.PROGRESSING, Phase.ROLLED_BACK)


def test_a28_the_shown_weight_is_the_weight_in_effect(world: Any) -> None:
    """Until every pod has it, applied weight lags, bake time does not run and nothing advances."""
    rollout = world()
    rollout.stuck = True
    rollout.run(300)
    assert (rollout.status.weight, rollout.status.applied_weight, rollout.status.synced_pods) == (10, 0, "2/3")
    assert (rollout.status.step, rollout.status.baking_since) == ("1/3", "")

    rollout.stuck = False
    rollout.run(10)

    assert (rollout.status.applied_weight, rollout.status.observed_share) == (10, "10.00")


def test_a30_the_first_deployment_has_nothing_to_do(world: Any) -> None:
    """A candidate that is the stable version in all but name is settled at once."""
    rollout = world(candidate={"version": "v1-copy", "model": "gpt-4.1-mini", "instructions": "Be brief."})

    assert (rollout.phase, rollout.status.weight, rollout.condition("Ready")) == (Phase.IDLE, 0, TRUE)
