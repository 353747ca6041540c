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
    phase = status.phase or Phase.IDLE
    facts: list[tuple[str, bool, str, str]] = [
        ("Ready", phase in _SETTLED, phase.value, status.reason),
        ("Reconciling", phase in RUNNING, phase.value, status.reason),
        ("Stalled", phase in _FAILED, phase.value, status.reason if phase in _FAILED else ""),
        (
            "Progressing",
            phase in {Phase.PROGRESSING, Phase.WATCHING} and not status.deadline_passed,
            "DeadlineExceeded" if status.deadline_passed else phase.value,
            f"step {status.step}{_LATE if status.deadline_passed else ''}" if status.step else "",
        ),
        (
            "Paused",
            phase in {Phase.PAUSED, Phase.AWAITING_GATE},
            status.paused_reason or phase.value,
            status.reason if phase in {Phase.PAUSED, Phase.AWAITING_GATE} else "",
        ),
        ("Promoted", phase is Phase.PROMOTED, phase.value, ""),
        ("RolledBack", phase in _FAILED, phase.value, status.reason if phase in _FAILED else ""),
        (
            "ConfigSynced",
            converged,
            "Synced" if converged else "PodsBehind",
            f"{status.synced_pods or 'no'} pods run what is decided{'' if converged else _BEHIND}",
        ),
        (
            "AnalysisConfigured",
            bool(rules.metrics or rules.webhooks),
            "Configured" if rules.metrics or rules.webhooks else "NoMetrics",
            "" if rules.metrics or rules.webhooks else "only bake times steer this rollout; name metrics in analysis",
        ),
    ]
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


def _alarm(kind: str, *, raised: bool, text: str) -> tuple[str, bool, str, str]:
    return kind, raised, kind if raised else "AsExpected", text if raised else ""
