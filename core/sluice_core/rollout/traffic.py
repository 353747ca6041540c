"""Which arms and weight a split puts into force: what the compiler takes from a rollout's status."""

from __future__ import annotations

from sluice_core.api.canarysplit import ArmSpec
from sluice_core.api.canarysplit_status import CanarySplit, Phase
from sluice_core.rollout.revisions import content_in, content_of
from sluice_core.snapshot import ArmPolicy, SplitPolicy


def traffic(split: CanarySplit) -> SplitPolicy:
    """Return the policy of a split.

    The stable arm is the version promoted last, whatever the spec still says. A candidate that the rollout has not
    taken up yet gets no users, so that an edit in the middle of a rollout cannot send them to an untried version.
    """
    spec, status = split.spec, split.status
    stable = status.stable_arm or spec.stable
    candidate, weight = spec.candidate, 0
    if content_of(candidate) == content_in(status.revision):
        weight = status.weight
        if status.phase is Phase.WATCHING:  # the candidate is stable already, and can still be taken back
            stable, candidate = status.previous_arm or stable, stable
    return SplitPolicy(
        key=split.key,
        revision=status.revision,
        salt=status.salt,
        weight=weight,
        stable=_policy(stable),
        candidate=_policy(candidate),
        keys=spec.assignment.key,
        on_missing_key=spec.assignment.on_missing_key,
        override_header=spec.assignment.override_header,
    )


def _policy(arm: ArmSpec) -> ArmPolicy:
    return ArmPolicy(version=arm.version, model=arm.model, instructions=arm.instructions, overrides=arm.overrides)
