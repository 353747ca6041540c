"""One tick of a rollout: what is seen in, what is to be done out. Pure; all memory is the status.

A tick takes up changes of the spec, carries out what people ask, looks at the figures, and then makes at most one move,
in this order: harm, deadline, the end of the step. The same tick twice decides the same.
"""

from __future__ import annotations

import math

import msgspec

from sluice_core.api.canarysplit import OnInconclusive
from sluice_core.api.canarysplit_status import CanarySplit, CanarySplitStatus, Phase, Verdict
from sluice_core.api.conditions import rfc3339 as whole_seconds
from sluice_core.rollout import evidence as memory
from sluice_core.rollout import requests, webhooks
from sluice_core.rollout.conditions import conditions_of
from sluice_core.rollout.draft import Draft
from sluice_core.rollout.figures import arm_figures, percent
from sluice_core.rollout.judge import Judgement, judge, observe
from sluice_core.rollout.observation import Observation, Plan, Question
from sluice_core.rollout.presets import resolve
from sluice_core.rollout.revisions import content_in, content_of
from sluice_core.rollout.states import RUNNING, Move
from sluice_core.rollout.times import rfc3339, unix_seconds


def plan(split: CanarySplit, observation: Observation, now_unix: float) -> Plan:
    """Return what to do about a split.

    Args:
        split: the resource with the status that this function returned last.
        observation: what is seen now; counts and answers of another revision than the status' are passed over.
        now_unix: Unix time in seconds.
    """
    draft = Draft(split, resolve(split.spec), now_unix)
    known = split.status.phase is not None
    _take_up_spec(draft)
    if known:
        requests.obey(draft)
    else:
        requests.consume_all(draft)
    converged = _converged(draft, observation)
    judgement: Judgement | None = None
    questions: tuple[Question, ...] = ()
    if draft.status.phase in RUNNING:
        judgement = _look(draft, observation, converged=converged)
        webhooks.take_answers(draft, observation.answers)
        _decide(draft, judgement)
        if draft.status.phase in RUNNING and converged:
            questions = webhooks.ask(draft)
    _describe(draft, observation, judgement, converged=_converged(draft, observation))
    return Plan(
        status=draft.status,
        events=tuple(draft.events),
        questions=questions,
        urgent=bool(draft.events or questions) or _essence(draft.status) != _essence(split.status),
    )


def _take_up_spec(draft: Draft) -> None:
    """Compare spec and status; a changed stable version counts at once, a changed candidate begins a rollout."""
    status, spec = draft.status, draft.split.spec
    stable_content, wanted = content_of(spec.stable), content_of(spec.candidate)
    stable_changed = stable_content != status.stable_content
    if stable_changed:
        draft.change(stable_content=stable_content, stable_arm=spec.stable, previous_arm=None)
        if status.phase is Phase.WATCHING and wanted == stable_content:
            draft.confirm("the spec names it as stable")
            return
    if wanted == content_in(status.revision) and not (
        stable_changed and status.phase in RUNNING | {Phase.PROMOTED, Phase.IDLE}
    ):
        return
    stable = draft.status.stable_arm or spec.stable
    previous = draft.status.previous_arm
    if wanted == content_of(stable):
        if status.phase is not Phase.IDLE or wanted != content_in(status.revision):
            draft.settle()
    elif previous is not None and wanted == content_of(previous):
        draft.give_back()
    elif wanted == content_in(status.last_failed_revision):
        draft.refuse()
    else:
        draft.begin("the stable version has changed" if wanted == content_in(status.revision) else "a new candidate")


def _converged(draft: Draft, observation: Observation) -> bool:
    """Tell whether every pod is known to run this revision's weight."""
    return (
        observation.synced_pods >= observation.total_pods
        and observation.applied_revision == draft.status.revision
        and observation.applied_weight == draft.status.weight
    )


def _look(draft: Draft, observation: Observation, *, converged: bool) -> Judgement:
    """Take in the figures and judge them; bake time counts from the moment that every pod has the step's weight."""
    status = draft.status
    if converged and not status.baking_since:
        draft.change(baking_since=rfc3339(draft.now))
    key, revision = draft.split.key, status.revision
    evidence = memory.decode(status.evidence, key, revision)
    totals = observation.stable or evidence.stable, observation.candidate or evidence.candidate
    if all(counts.revision == revision for counts in totals):
        step = status.step_number + (1 if status.phase is Phase.WATCHING else 0)
        evidence = observe(evidence, draft.rules, totals, step, converged=converged, now=draft.now)
    judgement = judge(evidence, draft.rules, draft.step)
    on_step = evidence.step_requests
    stable = status.previous_arm if status.phase is Phase.WATCHING else status.stable_arm
    draft.change(
        evidence=memory.encode(evidence),
        verdict=judgement.verdict,
        metrics=judgement.metrics,
        stable=arm_figures(stable.version if stable else "", evidence.stable),
        candidate=arm_figures(draft.candidate.version, evidence.candidate),
        observed_share=percent(on_step[0], sum(on_step)),
        evidence_discount=f"{judgement.discount:.1f}x" if judgement.discount > 1.05 else "",
    )
    return judgement


def _decide(draft: Draft, judgement: Judgement) -> None:
    """Make at most one move: harm first, in every running phase; then the deadline; then the end of the step."""
    status = draft.status
    objection = webhooks.objection(draft)
    if judgement.verdict is Verdict.HARM or objection:
        draft.take_back(Move.ROLL_BACK, objection or judgement.reason)
    elif status.phase is Phase.PAUSED or status.phase is Phase.AWAITING_GATE:
        return
    elif _step_is_done(draft, judgement):
        if status.phase is Phase.WATCHING:
            draft.confirm(judgement.reason)
        else:
            draft.advance()
    elif status.phase is Phase.PROGRESSING and draft.now >= _deadline(draft):
        _pass_deadline(draft, judgement)


def _step_is_done(draft: Draft, judgement: Judgement) -> bool:
    status = draft.status
    if not status.baking_since or webhooks.outstanding(draft):
        return False
    if draft.now < unix_seconds(status.baking_since) + draft.step.bake_seconds:
        return False
    unwatched = status.phase is Phase.WATCHING and draft.rules.watch_seconds == 0
    return unwatched or judgement.verdict is Verdict.PASS


def _deadline(draft: Draft) -> float:
    """Return when a step without a verdict has lasted too long; its bake time does not count."""
    started = unix_seconds(draft.status.step_started_at)
    return started + draft.step.bake_seconds + draft.rules.step_deadline_seconds


def _pass_deadline(draft: Draft, judgement: Judgement) -> None:
    """Act on a deadline. Without data nothing is decided: the step stays and goes on when data comes."""
    if judgement.verdict is Verdict.INSUFFICIENT_DATA:
        if not draft.status.deadline_passed:
            draft.change(deadline_passed=True)
            draft.tell("StepDeadlineExceeded", f"holding the weight: {judgement.reason}", warning=True)
        return
    missing = webhooks.outstanding(draft)
    reason = f"no verdict before the step's deadline: {f'{missing} has not passed' if missing else judgement.reason}"
    certain = judgement.verdict is not Verdict.ERROR and not judgement.baseline_degraded
    policy = draft.rules.on_inconclusive if certain else OnInconclusive.PAUSE
    if missing and policy is OnInconclusive.PROMOTE:
        policy = OnInconclusive.PAUSE  # what is required has to pass; running out of time is no pass
    match policy:
        case OnInconclusive.PAUSE:
            draft.pause("Inconclusive", reason)
        case OnInconclusive.PROMOTE:
            draft.advance()
        case OnInconclusive.ROLLBACK:
            draft.take_back(Move.ROLL_BACK, reason)


def _describe(draft: Draft, observation: Observation, judgement: Judgement | None, *, converged: bool) -> None:
    """Fill in what people read."""
    status = draft.status
    number, total = status.step_number, len(draft.rules.steps)
    applied = observation.applied_revision == status.revision and observation.synced_pods >= observation.total_pods
    draft.change(
        step=f"{number}/{total}" if status.phase in RUNNING else "",
        applied_weight=observation.applied_weight if applied else status.applied_weight,
        synced_pods=f"{observation.synced_pods}/{observation.total_pods}",
        next_transition_time=_next_transition(draft),
        reason=_reason(draft, judgement, converged=converged)[:1024],
        observed_generation=draft.split.metadata.generation,
    )
    draft.change(
        conditions=conditions_of(
            draft.status,
            draft.split.metadata.generation,
            draft.rules,
            judgement,
            converged=converged,
            now=rfc3339(draft.now),
        )
    )


def _next_transition(draft: Draft) -> str:
    status = draft.status
    if status.phase not in {Phase.PROGRESSING, Phase.WATCHING} or not status.baking_since:
        return ""
    # For people, who read it in a column: whole seconds, and never before the moment itself.
    return whole_seconds(math.ceil(unix_seconds(status.baking_since) + draft.step.bake_seconds))


def _reason(draft: Draft, judgement: Judgement | None, *, converged: bool) -> str:
    """Return why the rollout is where it is, in one sentence that changes only when something does."""
    status = draft.status
    if status.phase is Phase.AWAITING_GATE:
        return f"the next step wants a promote request: annotate with {requests.annotation(requests.Verb.PROMOTE)}"
    if status.phase not in {Phase.PROGRESSING, Phase.WATCHING} or judgement is None:
        return status.reason
    parts = [judgement.reason]
    if not converged:
        parts.insert(0, "waiting until every pod has the weight")
    elif status.baking_since and draft.now < unix_seconds(status.baking_since) + draft.step.bake_seconds:
        parts.insert(0, f"baking until {_next_transition(draft)}")
    elif missing := webhooks.outstanding(draft):
        parts.insert(0, f"waiting for {missing}")
    return "; ".join(parts)


def _essence(status: CanarySplitStatus) -> CanarySplitStatus:
    """Return what decisions hang on, without the figures."""
    return msgspec.structs.replace(
        status,
        conditions=(),
        stable=None,
        candidate=None,
        metrics=(),
        evidence="",
        reason="",
        verdict=None,
        observed_share="",
        evidence_discount="",
        synced_pods="",
        next_transition_time="",
    )
