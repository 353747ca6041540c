"""What names a rollout: the candidate's content and the attempt at it."""

from __future__ import annotations

import hashlib
from typing import Any, Final

import msgspec

from sluice_core.api.canarysplit import ArmSpec

_encoder: Final = msgspec.json.Encoder(order="deterministic")


def content_of(arm: ArmSpec) -> str:
    """Return a digest of what an arm does to a call. The version is a name, not content; 1 and 1.0 are the same."""
    content = {"model": arm.model, "instructions": arm.instructions, "overrides": _canonical(arm.overrides)}
    return hashlib.sha256(_encoder.encode(content)).hexdigest()[:12]


def revision_of(content: str, attempt: int) -> str:
    """Return the name of one attempt at a content; no two rollouts of a split share it."""
    return f"{content}-{attempt}"


def content_in(revision: str) -> str:
    """Return the content that a revision names."""
    return revision.rpartition("-")[0]


def _canonical(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: _canonical(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(inner) for inner in value]
    return value
