"""What is wrong with a resource, as values: for its status, for events and for `sluice validate`."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from sluice_core.api.base import Value


class Severity(StrEnum):
    """What a problem does to the policy."""

    ERROR = "Error"  # something that the resource asks for is not in force
    WARNING = "Warning"  # all is in force, but probably not what was meant


class Reason(StrEnum):
    """Why, as one CamelCase word for conditions and events. The comment says what is left out of the snapshot."""

    INVALID = "Invalid"  # error, the whole resource: it does not have the shape of its kind
    UPSTREAM_NOT_FOUND = "UpstreamNotFound"  # error, the one target or fallback; of a quota, all of it
    UPSTREAM_NOT_ALLOWED = "UpstreamNotAllowed"  # error, the same
    NO_TARGET_LEFT = "NoTargetLeft"  # error: a fallback serves the rule; without one its calls are refused
    FALLBACK_UNREACHABLE = "FallbackUnreachable"  # warning: a fixed answer before it always succeeds
    RULE_UNREACHABLE = "RuleUnreachable"  # warning: an earlier rule takes every call
    ROUTES_OVERLAP = "RoutesOverlap"  # warning: the name decides which of two equally specific routes goes first
    APPLICATION_KEY_SHARED = "ApplicationKeyShared"  # warning: the application's own key goes to several hosts
    NOBODY_SELECTED = "NobodySelected"  # warning: no injected pod has such labels
    QUOTA_CONFLICT = "QuotaConflict"  # error, the whole quota: another one shares out the same upstream
    NOT_OWNED = "NotOwned"  # error, the whole quota: it is not in its upstream's namespace
    ALLOCATION_UNREACHABLE = "AllocationUnreachable"  # warning: an earlier allocation takes all its pods
    ALLOCATION_NAME_TAKEN = "AllocationNameTaken"  # error, the one allocation
    SHARES_EXCEED_WHOLE = "SharesExceedWhole"  # error: shares are cut in proportion
    NOTHING_TO_SHARE = "NothingToShare"  # warning: the upstream has no limits
    UNKNOWN_TIME_ZONE = "UnknownTimeZone"  # error, the zone alone: the budget's days are those of UTC
    PRICE_IMPLAUSIBLE = "PriceImplausible"  # warning: the price is used as written
    NO_CREDENTIALS = "NoCredentials"  # warning: calls go out without a key
    ROUTE_NOT_FOUND = "RouteNotFound"  # error, the whole split
    RULE_NOT_FOUND = "RuleNotFound"  # error, the whole split
    SPLIT_CONFLICT = "SplitConflict"  # error, the whole split: an older one has the rule
    OVERRIDE_FORBIDDEN = "OverrideForbidden"  # error: stable loses the parameter, a candidate gets no calls


class Problem(Value, frozen=True, kw_only=True):
    """One thing wrong, where, and how it is mended. Holds no secret and no instructions text."""

    severity: Severity
    reason: Reason
    path: str
    message: str


class ResourceId(NamedTuple):
    """Names a resource: its kind and its key, `namespace/name`."""

    kind: str
    key: str


class Report:
    """Collects problems while compiling."""

    __slots__ = ("_found",)

    def __init__(self) -> None:
        self._found: dict[ResourceId, list[Problem]] = {}

    def error(self, resource: ResourceId, reason: Reason, path: str, message: str) -> None:
        """Note something that will not be in force."""
        self._add(resource, Problem(severity=Severity.ERROR, reason=reason, path=path, message=message))

    def warning(self, resource: ResourceId, reason: Reason, path: str, message: str) -> None:
        """Note something that is probably not what was meant."""
        self._add(resource, Problem(severity=Severity.WARNING, reason=reason, path=path, message=message))

    def _add(self, resource: ResourceId, problem: Problem) -> None:
        problems = self._found.setdefault(resource, [])
        if problem not in problems:
            problems.append(problem)

    def problems(self) -> dict[ResourceId, tuple[Problem, ...]]:
        """Return what was found, errors first, in an order that does not depend on that of the input."""
        return {
            resource: tuple(sorted(self._found[resource], key=lambda each: (each.severity, each.path, each.message)))
            for resource in sorted(self._found)
        }
