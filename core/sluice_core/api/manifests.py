"""Manifests, as decoded from YAML or JSON, into typed resources."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from sluice_core.api.base import API_VERSION, GROUP
from sluice_core.api.canarysplit_status import CanarySplit
from sluice_core.api.modelroute import ModelRoute
from sluice_core.api.quotaallocation import QuotaAllocation
from sluice_core.api.upstream import Upstream
from sluice_core.problems import Problem, Reason, Severity

AnyResource = Upstream | QuotaAllocation | ModelRoute | CanarySplit

_TYPES: dict[str, type[AnyResource]] = {
    "Upstream": Upstream,
    "QuotaAllocation": QuotaAllocation,
    "ModelRoute": ModelRoute,
    "CanarySplit": CanarySplit,
}


def is_sluice(manifest: Mapping[str, Any]) -> bool:
    """Tell whether a manifest is one of Sluice's group, of whatever version and kind."""
    return str(manifest.get("apiVersion", "")).partition("/")[0] == GROUP


def parse(manifest: Mapping[str, Any]) -> AnyResource | Problem:
    """Return the resource that a manifest describes, or what keeps it from being one.

    Only the shape is checked here: types and bounds. Unknown fields are ignored, rules across fields are not looked at;
    both are done by the API server and by `sluice_core.api.validation`.
    """
    kind = _TYPES.get(str(manifest.get("kind")))
    if kind is None or manifest.get("apiVersion") != API_VERSION:
        message = f'no matches for kind "{manifest.get("kind")}" in version "{manifest.get("apiVersion")}"'
        return Problem(severity=Severity.ERROR, reason=Reason.INVALID, path="kind", message=message)
    try:
        return msgspec.convert(without_nulls(manifest), kind)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$.")
        return Problem(severity=Severity.ERROR, reason=Reason.INVALID, path=path.rstrip("`"), message=message)


def without_nulls(value: Any) -> Any:
    """Return the value with empty fields taken out, as the API server does."""
    if isinstance(value, Mapping):
        return {name: without_nulls(inner) for name, inner in value.items() if inner is not None}
    if isinstance(value, list | tuple):
        return [without_nulls(inner) for inner in value]
    return value
