"""What a sidecar says about itself: to the control plane, on the status page, in the gauges of its metrics."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from sluice_core.rollout.counts import ArmCounts
from sluice_core.sync import AllocationGauge, BreakerGauge, Heard, PodRef, SyncRequest, SyncResponse
from sluice_sidecar.cache import cache_readings
from sluice_sidecar.store.redis_store import RedisStore
from sluice_sidecar.telemetry.metrics import Reading

if TYPE_CHECKING:
    from sluice_sidecar.governor import Governor

MAX_BREAKERS = 256
MAX_COUNTS = 256


def build_report(governor: Governor, sequence: int, *, stopping: bool) -> SyncRequest:
    """Return the report of this moment. All counts are cumulative since the process began."""
    settings = governor.settings
    now = governor.clock()
    admission = governor.admission
    return SyncRequest(
        pod=PodRef(namespace=settings.namespace, name=settings.pod_name, uid=settings.pod_uid),
        instance=governor.instance,
        sequence=sequence,
        revision=governor.revision,
        config_error=governor.source.error[:1024],
        demands=(admission.last_demands(now) if stopping else admission.demands(now))[:1024],
        counts=_counts(governor)[:MAX_COUNTS],
        spends=governor.spends.export()[:1024],
        users=admission.user_reports(now)[:64],
        observations=governor.pacing.observations(now)[:256],
        gauges=_gauges(governor, now)[:256],
        breakers=_breakers(governor),
        heard=_heard(governor.latest_answer, now),
        stopping=stopping,
    )


def _heard(latest: tuple[SyncResponse, float] | None, now: float) -> Heard | None:
    if latest is None or not latest[0].leader:  # an older leader does not say who it is
        return None
    answer, arrived_at = latest
    return Heard(leader=answer.leader[:512], answered_at=answer.answered_at, seconds_ago=max(0.0, now - arrived_at))


def _gauges(governor: Governor, now: float) -> tuple[AllocationGauge, ...]:
    found = []
    stores = _stores(governor)
    for gauge in governor.admission.gauges(now):
        place = (gauge.quota, gauge.allocation)
        count, model = governor.unpriced.get(place, (0, ""))
        degraded = governor.degraded[place].expire(now) if place in governor.degraded else 0
        if count or degraded:
            gauge = msgspec.structs.replace(gauge, unpriced=count, unpriced_model=model[:512], degraded=degraded)
        if (store := stores.get(gauge.quota)) is not None:
            error, learning = store.failing(now), store.learning_seconds > 0
            gauge = msgspec.structs.replace(gauge, store_error=error, store_learning=learning)
        found.append(gauge)
    return tuple(found)


def _stores(governor: Governor) -> dict[str, RedisStore]:
    """Return the stores by the quotas that name them."""
    accounts = ((each, governor.admission.account(each.upstream)) for each in governor.stores)
    return {account.quota.key: store for store, account in accounts if account.quota is not None}


def _counts(governor: Governor) -> tuple[ArmCounts, ...]:
    return tuple(counter.export() for counter in governor.counters.values())


def _breakers(governor: Governor) -> tuple[BreakerGauge, ...]:
    return tuple(
        BreakerGauge(upstream=upstream, model=(model or "")[:512], credential=credential or "", state=state.value)
        for (upstream, model, credential), state, _ in list(governor.breakers.not_closed())[:MAX_BREAKERS]
    )


def status(governor: Governor) -> dict[str, Any]:
    """Return the status page. Nothing on it is secret."""
    now = governor.clock()
    sync = governor.sync
    return {
        "ready": not governor.not_ready_because(),
        "reason": governor.not_ready_because(),
        "revision": governor.revision,
        "configError": governor.source.error,
        "labels": governor.labels.labels,
        "instance": governor.instance,
        "inFlight": governor.in_flight,
        "waiting": len(governor.gate.line),
        "upstreams": {
            key: {"baseURL": each.base, "keys": [key.name for key in each.keys if key.name], "inUse": each.in_use}
            for key, each in governor.upstreams.items()
        },
        "breakers": [
            {
                "upstream": upstream,
                "model": model,
                "credential": credential,
                "state": state.value,
                "opensForSeconds": round(max(0.0, until - now), 1),
            }
            for (upstream, model, credential), state, until in list(governor.breakers.not_closed())[:MAX_BREAKERS]
        ],
        "limits": governor.admission.limits(now),
        "allocations": _gauges(governor, now),
        "levels": governor.admission.levels(now),
        "arms": _counts(governor),
        "recordsDropped": governor.records.dropped,
        "cache": {
            "answers": len(governor.answers.stored),
            "bytes": governor.answers.stored.bytes,
            "maxBytes": governor.answers.stored.max_bytes,
            "recordingBytes": governor.answers.room.used_bytes,
            "underWay": len(governor.answers.flights),
        },
        "stores": [
            {
                "upstream": store.upstream,
                "account": store.policy.name,
                "error": store.error,
                "secondsSinceSuccess": None if store.last_success is None else round(now - store.last_success, 1),
                "learningSeconds": round(store.learning_seconds),
            }
            for store in governor.stores
        ],
        "sync": None
        if sync is None
        else {
            "error": sync.error,
            "secondsSinceSuccess": None if sync.last_success is None else round(now - sync.last_success, 1),
        },
    }


_STATES = {"Closed": 0.0, "HalfOpen": 1.0, "Open": 2.0}


def readings(governor: Governor) -> Iterable[Reading]:
    """Return the gauges, read at the time of the scrape."""
    now = governor.clock()
    yield from _of_breakers(governor)
    yield from _of_limits(governor, now)
    yield from _of_pacing(governor, now)
    yield from _of_process(governor)
    yield from _of_stores(governor)
    yield from cache_readings(governor.answers)
    yield "sluice_sync_healthy", "Whether the sync channel works.", (), [((), _sync_healthy(governor))]


def _of_breakers(governor: Governor) -> Iterable[Reading]:
    known = governor.metrics.known_models
    states: dict[tuple[str, ...], float] = {}
    for (upstream, model, credential), state, _ in list(governor.breakers.not_closed())[:MAX_BREAKERS]:
        label = "" if model is None else model if model in known else "other"
        place = (upstream, label, credential or "")
        states[place] = max(states.get(place, 0.0), _STATES[state.value])
    text = "Breakers that are not closed: 1 half-open, 2 open."
    yield "sluice_breaker_state", text, ("upstream", "model", "credential"), list(states.items())


def _of_limits(governor: Governor, now: float) -> Iterable[Reading]:
    gauges = governor.admission.gauges(now)
    names: list[tuple[str, ...]] = [(each.quota, each.allocation) for each in gauges]
    for name, text, values in (
        ("sluice_queue_depth", "Calls waiting in line.", [each.waiting for each in gauges]),
        ("sluice_window_requests", "Requests admitted in the last minute.", [each.used_requests for each in gauges]),
        ("sluice_window_tokens", "Tokens admitted in the last minute.", [each.used_tokens for each in gauges]),
    ):
        figures = [(label, float(value)) for label, value in zip(names, values, strict=True)]
        yield name, text, ("quota", "allocation"), figures


def _of_pacing(governor: Governor, now: float) -> Iterable[Reading]:
    known = governor.metrics.known_models
    paces: dict[tuple[str, ...], float] = {}
    for (upstream, model), pace in governor.pacing.paces(now):
        paced = (upstream, model if not model or model in known else "other")
        paces[paced] = min(pace, paces.get(paced, 1.0))
    text = "Part of the limit that is used while the upstream throttles; absent at full pace."
    yield "sluice_pace", text, ("upstream", "model"), list(paces.items())
    held: dict[tuple[str, ...], float] = {}
    for (upstream, held_model, _), seconds in governor.pacing.holds.in_force(now):
        waits = (upstream, (held_model or "") if not held_model or held_model in known else "other")
        held[waits] = max(seconds, held.get(waits, 0.0))
    text = "How long no call may go because the upstream asked for it by Retry-After; absent otherwise."
    yield "sluice_hold_seconds", text, ("upstream", "model"), list(held.items())


def _of_process(governor: Governor) -> Iterable[Reading]:
    yield "sluice_in_flight", "Calls in flight.", (), [((), float(governor.in_flight))]
    yield "sluice_policy_info", "The policy in force.", ("revision",), [((governor.revision,), 1.0)]
    yield "sluice_policy_good", "Whether the newest policy was accepted.", (), [((), float(not governor.source.error))]
    yield "sluice_policy_reloads_total", "Policies put into force.", (), [((), float(governor.reloads))]
    yield "sluice_policy_rejections_total", "Policies rejected.", (), [((), float(governor.source.rejected))]
    yield "sluice_records_dropped_total", "Decision records lost.", (), [((), float(governor.records.dropped))]
    counter = governor.counter
    counted: dict[tuple[str, ...], float] = {("exact",): counter.exact, ("estimated",): counter.estimated}
    text = "Inputs whose tokens were counted or estimated; absent unless exact counting is on."
    yield "sluice_token_counts_total", text, ("how",), list(counted.items()) if counter.enabled else []


def _of_stores(governor: Governor) -> Iterable[Reading]:
    stores = list(governor.stores)
    for name, text, figures in (
        ("sluice_store_healthy", "Whether the store answers.", [float(not each.error) for each in stores]),
        ("sluice_store_calls_total", "Calls of the store.", [float(each.calls) for each in stores]),
        ("sluice_store_failures_total", "Calls that it did not answer.", [float(each.failures) for each in stores]),
        ("sluice_store_learning", "Whether a store is learning what is out.", [_learning(each) for each in stores]),
    ):
        labels = [(each.upstream,) for each in stores]
        yield name, text, ("upstream",), list(zip(labels, figures, strict=True))


def _learning(store: RedisStore) -> float:
    return float(store.learning_seconds > 0)


def _sync_healthy(governor: Governor) -> float:
    sync = governor.sync
    return float(sync is not None and sync.last_success is not None and not sync.error)
