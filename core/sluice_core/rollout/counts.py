"""Cumulative counts of one arm of one split in one sidecar."""

from __future__ import annotations

from sluice_core.api.base import Value


class ArmCounts(Value, frozen=True, kw_only=True):
    """What one sidecar process has seen of one arm of one revision since it started."""

    split: str
    revision: str
    arm: str
    requests: int = 0
