"""Outside judges: when they are asked, and what their answers mean."""

from __future__ import annotations

from typing import Any

import msgspec

from sluice_core.api.canarysplit import MetricMode, WebhookAnalysis
from sluice_core.api.canarysplit_status import ArmFigures, Phase, WebhookStatus
from sluice_core.rollout.draft import Draft
from sluice_core.rollout.observation import Answer, Question, WebhookAnswer
from sluice_core.rollout.times import rfc3339, unix_seconds


def take_answers(draft: Draft, answers: tuple[WebhookAnswer, ...]) -> None:
    """Note the answers about the present revision and step; others are late and mean nothing."""
    status = draft.status
    fitting = {
        answer.name: answer for answer in answers if (answer.revision, answer.step) == (status.revision, _stage(draft))
    }
    known = {webhook.name: webhook for webhook in status.webhooks}
    webhooks: list[WebhookStatus] = []
    for rule in draft.rules.webhooks:
        webhook = known.get(rule.name) or WebhookStatus(name=rule.name, step=_stage(draft))
        answer = fitting.get(rule.name)
        if answer is not None:
            webhook = msgspec.structs.replace(webhook, answer=answer.answer.value, message=answer.message[:256])
        webhooks.append(webhook)
    draft.change(webhooks=tuple(webhooks))


def _stage(draft: Draft) -> int:
    """Return what an answer is about: the number of the step; the watch is one more, so that it is asked about anew."""
    return draft.status.step_number + (draft.status.phase is Phase.WATCHING)


def objection(draft: Draft) -> str:
    """Return the sentence of a required judge that says Fail, empty if there is none."""
    for webhook in _required(draft):
        if webhook.answer == Answer.FAIL.value:
            return f"{webhook.name} says fail: {webhook.message or 'without a reason'}"
    return ""


def outstanding(draft: Draft) -> str:
    """Return the name of a required judge that has not said Pass, empty if all have."""
    return next((webhook.name for webhook in _required(draft) if webhook.answer != Answer.PASS.value), "")


def _required(draft: Draft) -> list[WebhookStatus]:
    names = {rule.name for rule in draft.rules.webhooks if rule.mode is MetricMode.REQUIRED}
    return [webhook for webhook in draft.status.webhooks if webhook.name in names]


def ask(draft: Draft) -> tuple[Question, ...]:
    """Return the questions that are due, and note them as asked."""
    asked = {webhook.name: webhook for webhook in draft.status.webhooks}
    due = [rule for rule in draft.rules.webhooks if rule.name in asked and _is_due(rule, asked[rule.name], draft.now)]
    for rule in due:
        asked[rule.name] = msgspec.structs.replace(asked[rule.name], asked_at=rfc3339(draft.now))
    if due:
        draft.change(webhooks=tuple(asked.values()))
    return tuple(_question(draft, rule) for rule in due)


def _is_due(rule: WebhookAnalysis, webhook: WebhookStatus, now: float) -> bool:
    return not webhook.asked_at or now - unix_seconds(webhook.asked_at) >= rule.interval_seconds


def _question(draft: Draft, rule: WebhookAnalysis) -> Question:
    status = draft.status
    return Question(
        name=rule.name,
        url=rule.url,
        timeout_seconds=rule.timeout_seconds,
        secret_ref=rule.secret_ref,
        revision=status.revision,
        step=_stage(draft),
        payload={
            "namespace": draft.split.metadata.namespace,
            "name": draft.split.metadata.name,
            "webhook": rule.name,
            "revision": status.revision,
            "phase": status.phase.value if status.phase else "",
            "step": _stage(draft),
            "weight": status.weight,
            "stable": _whole(status.stable or ArmFigures()),
            "candidate": _whole(
                msgspec.structs.replace(status.candidate or ArmFigures(), version=draft.candidate.version)
            ),
        },
    )


def _whole(figures: ArmFigures) -> dict[str, Any]:
    """Return figures with every field, zeros too: whoever reads them need not know our defaults."""
    return {field.encode_name: getattr(figures, field.name) for field in msgspec.structs.fields(figures)}
