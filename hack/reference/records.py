"""The page of the decision record. A field without a description here, or a description without a field, is a fault."""

from __future__ import annotations

import typing

import msgspec

from reference.markdown import code, comments, table
from reference.markdown import page as whole_page
from sluice_core.records import Attempt, CallRecord, Outcome
from sluice_core.usage import Usage

_CALL = {
    "call_id": "Name of the call; the response carries it in `x-sluice-call-id`",
    "time": "When the call began, Unix seconds",
    "namespace": "Namespace of the policy that applied",
    "endpoint": "Operation",
    "method": "HTTP method",
    "stream": "Whether a stream was asked for",
    "requested_model": "Model in the request",
    "model": "Model sent to the upstream last",
    "served_model": "Model that the upstream says has answered",
    "service_tier": "Service tier of the answer, which its price depends on",
    "route": "ModelRoute, `namespace/name`; absent for the default upstream",
    "rule": "Rule of it",
    "target": "Target of the rule",
    "upstream": "Upstream tried last, `namespace/name`",
    "credential": "Name of the key used last; never the key",
    "quota": "QuotaAllocation that applied",
    "allocation": "Allocation within it; `unallocated` if none selects the pod",
    "priority": "Rank in the waiting line",
    "mode": "`Shadow` if the allocation refuses nothing",
    "user_hash": "16 hex digits of the salted SHA-256 of the user's key; present where the allocation has user limits",
    "user_class": "Class of user, if it is one that the policy names",
    "split": "CanarySplit on the rule",
    "split_revision": "Revision of the rollout",
    "arm": "`stable` or `candidate`",
    "version": "Version of that arm; also in `x-sluice-arm`",
    "bucket": "The user's bucket, 0 to 9999",
    "arm_forced": "Whether a header or the conversation chose the arm instead of the hash",
    "status": "HTTP status that the application got; 0 if it got none",
    "outcome": "How the call ended, see below",
    "error_code": "The upstream's error code, or Sluice's",
    "refused_by": (
        "What refused it: quota, allocation and limit (`requests`, `tokens`, `requests-day`, `concurrency`; "
        "`model/...`, `user/...`, `user/money-day`; `budget`, `level/...`), or the upstream's breaker"
    ),
    "would_refuse": "What would have refused it, in Shadow mode, under the same name",
    "attempts": "Every try, in order, see below",
    "fallback": "Index of the fallback that answered, from 0",
    "cache": "Where answers are kept: `Hit`, `Stale`, `Coalesced`, `Miss` or `Bypass`; also in `x-sluice-cache`",
    "saved_usd_micros": "What the answer cost when it was first given, if it was given again",
    "degraded": "Whether the level of service made the call cheaper, or answered it without an upstream",
    "level": "Level of service, where it is below Full and concerned the call",
    "level_cause": "Why it is in force: `Hand`, `Budget` or `Breaker`",
    "client_retry": "Which retry of the application's SDK this is, by its own header",
    "queue_ms": "Time spent waiting in line",
    "duration_ms": "From the request to the end of the answer",
    "first_token_ms": "From the request to the first content of a stream",
    "upstream_ms": "Time of all attempts together",
    "reserved_tokens": "Tokens reserved for the last attempt",
    "usage": "What the upstream reported, see below",
    "usage_estimated": "Whether the usage is an estimate, because the upstream reported none",
    "cost_usd_micros": "Price in millionths of a US dollar; absent if the model has no known price",
    "lost_usd_micros": "What attempts cost on top whose answer broke off before anybody saw it, by estimate",
    "finish_reason": "Why the answer ended",
    "request_bytes": "Size of the request's body",
    "response_bytes": "Size of the answer as written to the application",
    "request_sha256": "Hash of the request's body, for bodies up to 256 KiB",
    "client_request_id": "The application's own `x-client-request-id`",
    "upstream_request_id": "The upstream's `x-request-id`",
    "traceparent": "W3C trace context sent upstream",
}
_ATTEMPT = {
    "upstream": "Upstream, `namespace/name`",
    "model": "Model sent",
    "credential": "Name of the key",
    "status": "HTTP status; absent if there was no answer",
    "code": "The upstream's error code, or what broke the connection",
    "outcome": "How it ended",
    "duration_ms": "How long it took",
    "fallback": "Index of the fallback, from 0; absent for the target itself",
}
_USAGE = {
    "input_tokens": "Input, cached and all",
    "output_tokens": "Output, reasoning and all",
    "cached_input_tokens": "Part of the input read from the prompt cache",
    "cache_write_tokens": "Part of the input written to the prompt cache",
    "reasoning_tokens": "Part of the output spent on reasoning",
    "audio_input_tokens": "Part of the input that is audio",
    "audio_output_tokens": "Part of the output that is audio",
    "image_input_tokens": "Part of the input that is images",
    "image_output_tokens": "Part of the output that is images",
    "audio_input_milliseconds": "Length of the audio, where that is what is charged",
}


def page() -> str:
    """Return the page."""
    outcomes = comments(Outcome)
    return whole_page(
        "Decision record",
        "One JSON line per call on the sidecar's standard output, written when the call has settled. It holds no "
        "prompt, no answer, no key and no user's name. Fields that have their default (absent, false, 0) are left out. "
        "`sluice explain` puts a record into sentences.",
        _fields(CallRecord, _CALL),
        "## attempts",
        _fields(Attempt, _ATTEMPT),
        "## usage",
        _fields(Usage, _USAGE),
        "## outcome",
        table(("Outcome", "Meaning"), ((code(value), _outcome(value, text)) for value, text in outcomes.items())),
    )


def _fields(struct: type[msgspec.Struct], meanings: dict[str, str]) -> str:
    fields = msgspec.structs.fields(struct)
    if {field.name for field in fields} != meanings.keys():
        raise ValueError(f"{struct.__name__}: describe each field, and nothing else, in {__name__}")
    rows = ((code(field.encode_name), _type(field.type), meanings[field.name]) for field in fields)
    return table(("Field", "Type", "Meaning"), rows)


def _type(annotation: object) -> str:
    present = [each for each in typing.get_args(annotation) if each not in (type(None), ...)]
    if typing.get_origin(annotation) is tuple:
        return f"list of {_type(present[0])}"
    if present:
        return _type(present[0])
    names = {str: "string", int: "integer", float: "number", bool: "boolean"}
    if annotation in (Attempt, Usage):
        return "object"
    return names.get(annotation, "string") if isinstance(annotation, type) else str(annotation)


_PLAIN = {
    "ClientClosed": "the application went away",
    "Success": "answered",
    "Timeout": "no answer in time",
    "ConnectionError": "no connection, or it was lost",
}


def _outcome(value: str, comment: str) -> str:
    return comment or _PLAIN[value]
