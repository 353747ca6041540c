"""What the account itself says of its limits, put into force where it is less than what was declared.

An upstream reports limits per model. One that the user declared for a pattern of models, or for the whole, cannot be
smaller than the largest of the models under it: so the largest report counts, and a single model that allows less than
its siblings is left to the pace (`adaptive.Pacer`). What is declared is never raised by a report, and a limit that was
not declared stays off: nobody asked for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeVar

import msgspec

from sluice_core.api.upstream import MAX_REPORTED, Limits, ModelLimits, ReportedLimits
from sluice_core.limits.keys import pattern_for
from sluice_core.snapshot import UpstreamPolicy

_FIELDS: Final = {"requests": "requests_per_minute", "tokens": "tokens_per_minute"}
_PROJECT: Final = "project-"
Row = TypeVar("Row", Limits, ModelLimits)


def reported_limits(learned: Mapping[tuple[str, str], int]) -> tuple[ReportedLimits, ...]:
    """Return what was reported, by (model, dimension), as people read it in a status."""
    rows: dict[str, dict[str, int]] = {}
    for (model, dimension), limit in sorted(learned.items()):
        project = dimension.startswith(_PROJECT)
        field = _FIELDS.get(dimension.removeprefix(_PROJECT))
        if field is not None:
            rows.setdefault(model, {})["project_" + field if project else field] = limit
    return tuple(ReportedLimits(model=model, **fields) for model, fields in rows.items())[:MAX_REPORTED]


def with_learned(upstream: UpstreamPolicy, learned: Mapping[tuple[str, str], int]) -> UpstreamPolicy:
    """Return the policy with its limits lowered to what was reported, by (model, dimension)."""
    largest: dict[tuple[str, str], int] = {}
    for (model, dimension), limit in learned.items():
        pattern = (pattern_for(model, upstream.model_limits) if model else None) or ""
        if not (pattern and dimension.startswith(_PROJECT)):
            place = (pattern, dimension)
            largest[place] = max(limit, largest.get(place, 0))
    limits = _lowered(upstream.limits, "", largest)
    model_limits = tuple(_lowered(row, row.model, largest) for row in upstream.model_limits)
    if limits == upstream.limits and model_limits == upstream.model_limits:
        return upstream
    return msgspec.structs.replace(upstream, limits=limits, model_limits=model_limits)


def _lowered(row: Row, pattern: str, largest: Mapping[tuple[str, str], int]) -> Row:
    changes = {}
    for dimension, field in _FIELDS.items():
        declared = getattr(row, field) or 0
        told = [
            limit for name in (dimension, _PROJECT + dimension) if (limit := largest.get((pattern, name))) is not None
        ]
        if declared and told and min(told) < declared:
            changes[field] = min(told)
    return msgspec.structs.replace(row, **changes) if changes else row
