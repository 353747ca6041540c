"""A rollout's conditions: what each phase and finding says to kubectl, and to the person who has to act."""

from __future__ import annotations

from typing import Any

import pytest

from sluice_core.api.base import ConditionStatus
from sluice_core.api.canarysplit_status import CanarySplitStatus, Phase, Verdict
from sluice_core.rollout.conditions import conditions_of
from sluice_core.rollout.judge import Judgement
from sluice_core.rollout.presets import RolloutRules

NOW = "2026-01-01T00:00:00Z"
RULES = RolloutRules(
    steps=(),
    watch_seconds=0,
    watch_requests=0,
    step_deadline_seconds=60,
    on_inconclusive="Pause",
    metrics=(),
    webhooks=(),
    alpha=0.05,
)
JUDGED: dict[str, Any] = {"verdict": Verdict.INCONCLUSIVE, "reason": "cannot tell"}


def found(
    status: CanarySplitStatus, judgement: Judgement | None = None, *, converged: bool = True
) -> dict[str, tuple[bool, str, str]]:
    made = conditions_of(status, 1, RULES, judgement, converged=converged, now=NOW)
    return {each.type: (each.status is ConditionStatus.TRUE, each.reason, each.message) for each in made}


@pytest.mark.parametrize(
    ("phase", "true"),
    [
        (Phase.IDLE, "Ready"),
        (Phase.PROGRESSING, "Reconciling"),
        (Phase.WATCHING, "Reconciling"),
        (Phase.AWAITING_GATE, "Reconciling"),
        (Phase.PAUSED, "Reconciling"),
        (Phase.PROMOTED, "Ready"),
        (Phase.ROLLED_BACK, "Stalled"),
        (Phase.ABORTED, "Stalled"),
    ],
)
def test_of_the_three_that_tools_read_one_is_true(phase: Phase, true: str) -> None:
    """kubectl wait, Helm and Flux never read a contradiction; the reason is the phase."""
    conditions = found(CanarySplitStatus(phase=phase, reason="because"))
    assert [each for each in ("Ready", "Reconciling", "Stalled") if conditions[each][0]] == [true]
    assert conditions[true][1:] == (phase.value, "because")


@pytest.mark.parametrize(
    ("status", "judgement", "converged", "type_", "holds", "reason", "words"),
    [
        ({"deadline_passed": True, "step": "1/3"}, None, True, "Progressing", False, "DeadlineExceeded", "promote or"),
        ({"paused_reason": "ManualGate"}, None, True, "Paused", False, "ManualGate", ""),
        ({}, None, True, "AnalysisConfigured", False, "NoMetrics", "name metrics in analysis"),
        ({"synced_pods": "1/2"}, None, False, "ConfigSynced", False, "PodsBehind", "container sluice"),
        ({"synced_pods": "2/2"}, None, True, "ConfigSynced", True, "Synced", "2/2 pods"),
        ({}, {}, True, "AnalysisHealthy", False, "Inconclusive", "cannot tell"),
        ({}, {"baseline_degraded": True}, True, "BaselineDegraded", True, "BaselineDegraded", "mend what fails there"),
        ({}, {"share_mismatch": True}, True, "SampleRatioMismatch", True, "SampleRatioMismatch", "look for one user"),
        ({}, {}, True, "SampleRatioMismatch", False, "AsExpected", ""),
    ],
)
def test_what_is_amiss_is_told_with_the_mend(
    status: dict[str, Any],
    judgement: dict[str, Any] | None,
    converged: bool,
    type_: str,
    holds: bool,
    reason: str,
    words: str,
) -> None:
    """Each finding is a condition of its own, with a sentence that says what to do."""
    judged = Judgement(**JUDGED, **judgement) if judgement is not None else None
    made = found(CanarySplitStatus(phase=Phase.PROGRESSING, **status), judged, converged=converged)[type_]
    assert made[:2] == (holds, reason)
    assert words in made[2]
