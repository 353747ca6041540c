"""The Grafana dashboard that the chart installs, made from one table of panels."""

from __future__ import annotations

import json
from typing import Any, Final

import msgspec

_WIDTH: Final = 24
_HEIGHT: Final = 8
_ACROSS: Final = 3
_VARIABLE: Final = {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
_SOURCE: Final = {"type": "prometheus", "uid": "${source}"}


class Panel(msgspec.Struct, frozen=True):
    """One graph: title, Grafana's unit, and each query with its legend."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]


def _p(quantile: float, metric: str, by: str) -> str:
    return f"histogram_quantile({quantile}, sum by (le, {by}) (rate({metric}_bucket[5m])))"


ROWS: Final[tuple[tuple[str, tuple[Panel, ...]], ...]] = (
    (
        "Traffic",
        (
            Panel("Calls by outcome", "reqps", (("sum by (outcome) (rate(sluice_calls_total[5m]))", "{{outcome}}"),)),
            Panel(
                "Calls that fail",
                "percentunit",
                (
                    (
                        'sum by (route) (rate(sluice_calls_total{outcome!~"Success|ClientError|ClientClosed"}[5m])) '
                        "/ sum by (route) (rate(sluice_calls_total[5m]))",
                        "{{route}}",
                    ),
                ),
            ),
            Panel("Calls in flight", "short", (("sum(sluice_in_flight)", "in flight"),)),
            Panel(
                "Latency by route",
                "s",
                (
                    (_p(0.5, "sluice_call_duration_seconds", "route"), "p50 {{route}}"),
                    (_p(0.95, "sluice_call_duration_seconds", "route"), "p95 {{route}}"),
                ),
            ),
            Panel(
                "Time to first token",
                "s",
                ((_p(0.95, "sluice_first_token_seconds", "route, version"), "p95 {{route}} {{version}}"),),
            ),
            Panel(
                "Time spent in Sluice",
                "s",
                (("histogram_quantile(0.99, sum by (le) (rate(sluice_overhead_seconds_bucket[5m])))", "p99"),),
            ),
        ),
    ),
    (
        "Money and tokens",
        (
            Panel(
                "Dollars per hour by allocation",
                "currencyUSD",
                (("sum by (allocation) (rate(sluice_cost_usd_total[1h])) * 3600", "{{allocation}}"),),
            ),
            Panel(
                "Spent today of allocations with a budget",
                "currencyUSD",
                (('max by (namespace, allocation) (sluice_allocation_spent_usd{window="day"})', "{{allocation}}"),),
            ),
            Panel(
                "Kept answers: share of calls, dollars saved per hour",
                "short",
                (
                    (
                        'sum by (route) (rate(sluice_cache_calls_total{result=~"hit|coalesced|stale"}[5m])) '
                        "/ sum by (route) (rate(sluice_cache_calls_total[5m]))",
                        "share {{route}}",
                    ),
                    ("sum by (route) (rate(sluice_cache_saved_usd_total[1h])) * 3600", "dollars {{route}}"),
                ),
            ),
            Panel(
                "Tokens per minute by model",
                "short",
                (('sum by (model) (rate(sluice_tokens_total{kind=~"input|output"}[5m])) * 60', "{{model}}"),),
            ),
        ),
    ),
    (
        "Limits",
        (
            Panel(
                "Requests per minute: leased and used",
                "short",
                (
                    (
                        'max by (allocation) (sluice_allocation_granted_per_minute{unit="requests"})',
                        "leased {{allocation}}",
                    ),
                    ('max by (allocation) (sluice_allocation_used{unit="requests"})', "used {{allocation}}"),
                ),
            ),
            Panel(
                "Refusals by policy",
                "reqps",
                (("sum by (policy, mode) (rate(sluice_refusals_total[5m]))", "{{mode}} {{policy}}"),),
            ),
            Panel(
                "Calls below the full service",
                "reqps",
                (
                    (
                        "sum by (allocation, level, cause) (rate(sluice_level_calls_total[5m]))",
                        "{{level}} ({{cause}}) {{allocation}}",
                    ),
                ),
            ),
            Panel(
                "Waiting in line",
                "s",
                ((_p(0.99, "sluice_queue_seconds", "allocation"), "p99 {{allocation}}"),),
            ),
        ),
    ),
    (
        "Upstreams",
        (
            Panel(
                "Attempts by outcome",
                "reqps",
                (("sum by (upstream, outcome) (rate(sluice_attempts_total[5m]))", "{{upstream}} {{outcome}}"),),
            ),
            Panel(
                "Retries and fallbacks",
                "reqps",
                (
                    ("sum by (cause) (rate(sluice_retries_total[5m]))", "retry {{cause}}"),
                    ("sum by (route) (rate(sluice_fallbacks_total[5m]))", "fallback {{route}}"),
                ),
            ),
            Panel(
                "Breakers not closed, keys refused",
                "short",
                (
                    ("count by (upstream, model) (sluice_breaker_state)", "breaker {{upstream}} {{model}}"),
                    (
                        "sum by (upstream, credential) (increase(sluice_credential_errors_total[5m]))",
                        "key {{credential}}",
                    ),
                ),
            ),
        ),
    ),
    (
        "Rollouts",
        (
            Panel(
                "Share of users on the candidate",
                "percent",
                (
                    ("max by (namespace, name) (sluice_rollout_weight_percent)", "decided {{name}}"),
                    ("max by (namespace, name) (sluice_rollout_applied_weight_percent)", "in every pod {{name}}"),
                ),
            ),
            Panel(
                "Evidence of harm, as a share of what takes a candidate back",
                "percentunit",
                (
                    (
                        "max by (namespace, name, metric) "
                        "(sluice_rollout_evidence / sluice_rollout_evidence_threshold)",
                        "{{name}} {{metric}}",
                    ),
                ),
            ),
            Panel(
                "Decisions",
                "short",
                (
                    (
                        "sum by (namespace, name, decision) (increase(sluice_rollout_decisions_total[10m])) > 0",
                        "{{name}} {{decision}}",
                    ),
                ),
            ),
        ),
    ),
    (
        "Control plane",
        (
            Panel(
                "Leading replicas, pods without a sidecar",
                "short",
                (
                    ("sum(sluice_operator_leader)", "leaders"),
                    ("max(sluice_operator_uninjected_pods)", "pods without a sidecar"),
                ),
            ),
            Panel(
                "Sidecars without the newest policy or the sync channel",
                "short",
                (
                    ("sum(sluice_policy_good == bool 0)", "policy rejected"),
                    ("sum(sluice_sync_healthy == bool 0)", "no sync channel"),
                ),
            ),
            Panel(
                "Writes and failed rounds",
                "ops",
                (
                    ("sum by (type) (rate(sluice_operator_writes_total[5m]))", "{{type}}"),
                    ("sum(rate(sluice_operator_failed_rounds_total[5m]))", "failed rounds"),
                ),
            ),
        ),
    ),
)


def text() -> str:
    """Return the dashboard as Grafana imports it."""
    panels: list[dict[str, Any]] = []
    top = 0
    for title, row in ROWS:
        panels.append(_place({"type": "row", "title": title, "collapsed": False, "panels": []}, 0, top, _WIDTH, 1))
        top += 1
        for number, panel in enumerate(row):
            left = number % _ACROSS * (_WIDTH // _ACROSS)
            below = top + number // _ACROSS * _HEIGHT
            panels.append(_place(_graph(panel), left, below, _WIDTH // _ACROSS, _HEIGHT))
        top += -(-len(row) // _ACROSS) * _HEIGHT
    whole = {
        "uid": "sluice",
        "title": "Sluice",
        "tags": ["sluice"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": [_VARIABLE]},
        "panels": [{"id": number, **panel} for number, panel in enumerate(panels, start=1)],
    }
    return json.dumps(whole, indent=1) + "\n"


def _place(panel: dict[str, Any], left: int, top: int, width: int, height: int) -> dict[str, Any]:
    return {**panel, "gridPos": {"x": left, "y": top, "w": width, "h": height}}


def _graph(panel: Panel) -> dict[str, Any]:
    return {
        "type": "timeseries",
        "title": panel.title,
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(ord("A") + number), "datasource": _SOURCE, "expr": expression, "legendFormat": legend}
            for number, (expression, legend) in enumerate(panel.queries)
        ],
    }
