"""The rollout's conditions: what `kubectl wait`, Helm and Flux read."""

from __future__ import annotations

from typing import Final

from sluice_core.api.base import Condition, ConditionStatus
from sluice_core.api.canarysplit_status import CanarySplitStatus, Phase
from sluice_core.rollout.judge import Judgement
from sluice_core.rollout.presets import RolloutRules
from sluice_core.rollout.states import RUNNING

_SETTLED: Final = frozenset({Phase.IDLE, Phase.PROMOTED})
_FAILED: Final = frozenset({Phase.ROLLED_BACK, Phase.ABORTED})

_BASELINE: Final = (
    "the stable arm itself is above the ceiling, so nothing can be said of the candidate; mend what fails "
    "there, or raise analysis.errorRate.ceilingPercent"
)
_SHARES: Final = (
    "the arms do not get their shares of the calls, so they cannot be compared; look for one user or retry loop behind "
    "most calls, or for users whom a cache or a proxy before the pods treats unlike"
)
_LATE: Final = " has outlasted stepDeadlineSeconds; promote or abort it, or give it the calls that its verdict needs"
_BEHIND: Final = "; the log of the container sluice says why one stays behind"


_Fact = tuple[str, bool, str, str]
"""A condition's type, whether it holds, its reason and its message."""


def conditions_of(
    status: CanarySplitStatus,
    generation: int,
    rules: RolloutRules,
    judgement: Judgement | None,
    *,
    converged: bool,
    now: str,
) -> tuple[Condition, ...]:
    """Return all conditions for a status; a time changes only when its condition flips. Foreign ones are kept."""
    facts = [*_course(status), *_setting(status, rules, converged=converged)]
    if judgement is not None:
        facts += [
            ("AnalysisHealthy", judgement.verdict.value == "Pass", judgement.verdict.value, judgement.reason),
            _alarm("BaselineDegraded", raised=judgement.baseline_degraded, text=_BASELINE),
            _alarm("SampleRatioMismatch", raised=judgement.share_mismatch, text=_SHARES),
        ]
    known = {condition.type: condition for condition in status.conditions}
    for kind, holds, reason, message in facts:
        state = ConditionStatus.TRUE if holds else ConditionStatus.FALSE
        before = known.get(kind)
        known[kind] = Condition(
            type=kind,
            status=state,
            reason=reason,
            message=message,
            last_transition_time=before.last_transition_time if before and before.status is state else now,
            observed_generation=generation,
        )
    return tuple(known.values())


def _course(status: CanarySplitStatus) -> list[_Fact]:
    """Where the rollout is."""
    phase = status.phase or Phase.IDLE
    paused, failed = phase in {Phase.PAUSED, Phase.AWAITING_GATE}, phase in _FAILED
    return [
        ("Ready", phase in _SETTLED, phase.value, status.reason),
        ("Reconciling", phase in RUNNING, phase.value, status.reason),
        ("Stalled", failed, phase.value, status.reason if failed else ""),
        (
            "Progressing",
            phase in {Phase.PROGRESSING, Phase.WATCHING} and not status.deadline_passed,
            "DeadlineExceeded" if status.deadline_passed else phase.value,
            f"step {status.step}{_LATE if status.deadline_passed else ''}" if status.step else "",
        ),
        ("Paused", paused, status.paused_reason or phase.value, status.reason if paused else ""),
        ("Promoted", phase is Phase.PROMOTED, phase.value, ""),
        ("RolledBack", failed, phase.value, status.reason if failed else ""),
    ]


def _setting(status: CanarySplitStatus, rules: RolloutRules, *, converged: bool) -> list[_Fact]:
    """What carries it: the pods that run what is decided, and the analysis."""
    judged = bool(rules.metrics or rules.webhooks)
    return [
        (
            "ConfigSynced",
            converged,
            "Synced" if converged else "PodsBehind",
            f"{status.synced_pods or 'no'} pods run what is decided{'' if converged else _BEHIND}",
        ),
        (
            "AnalysisConfigured",
            judged,
            "Configured" if judged else "NoMetrics",
            "" if judged else "only bake times steer this rollout; name metrics in analysis",
        ),
    ]


def _alarm(kind: str, *, raised: bool, text: str) -> _Fact:
    return kind, raised, kind if raised else "AsExpected", text if raised else ""
