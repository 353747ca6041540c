"""What one attempt sends: the application's request with the edits of its rule and arm, under a key of ours."""

from __future__ import annotations

from sluice_core.errors import BadRequestError
from sluice_core.records import Outcome
from sluice_sidecar.attempt import Order
from sluice_sidecar.call import Call
from sluice_sidecar.errors import RefusedError
from sluice_sidecar.headers import Field, OwnFields
from sluice_sidecar.plan import Plan
from sluice_sidecar.upstream import Key, Upstream

_IDENTITY: Field = ("Accept-Encoding", "identity")
_REQUEST_ID = "x-client-request-id"


def order_for(call: Call, plan: Plan, key: Key) -> Order:
    """Return the request for one attempt.

    Raises:
        RefusedError: the body cannot be edited.
        BadFieldError: a header field of the upstream's policy cannot be sent.
    """
    facts, upstream, model = call.facts, plan.upstream, call.model
    strips_usage = facts.usage_on_request and not facts.include_usage
    body = call.body if call.shrunk is None else call.shrunk
    if call.generating and body is not None and not call.opaque_body:
        try:
            body = plan.editor.rewrite(call.endpoint, body, facts, model=model, include_usage=strips_usage)
        except BadRequestError as error:
            raise RefusedError(error.refusal(), Outcome.CLIENT_ERROR) from None
    return Order(
        method=call.method,
        url=upstream.base + call.target.suffix,
        lines=_lines(call, upstream, key),
        body=body if call.body_stream is None else call.body_stream,
        timeouts=upstream.policy.timeouts,
        content_length=call.body_length,
        endpoint=call.endpoint,
        reads=call.reads,
        strips_usage=strips_usage,
        edited=plan.edited if model == facts.model else plan.edited_with_model,
    )


def our_fields(call: Call, upstream: Upstream, key: Key) -> list[Field]:
    """Return the header fields that are ours: the key, the upstream's extra fields, trace and request id."""
    fields = _lasting_fields(call, upstream, key)
    fields.append(("traceparent", call.traceparent))
    if _REQUEST_ID not in call.fields.first:
        fields.append((_REQUEST_ID, call.id))
    return fields


def _lines(call: Call, upstream: Upstream, key: Key) -> bytes:
    """Return the application's header fields and ours, as they are sent."""
    named = _REQUEST_ID in call.fields.first
    kind = (key, call.keeps_authorization, call.reads, named)
    own = upstream.own_heads.get(kind)
    if own is None:
        further = ("traceparent",) if named else ("traceparent", _REQUEST_ID)
        own = upstream.own_heads[kind] = OwnFields(_lasting_fields(call, upstream, key), further)
    further_lines = f"traceparent: {call.traceparent}\r\n"  # letters and digits, as the id is
    if not named:
        further_lines += f"{_REQUEST_ID}: {call.id}\r\n"
    return call.fields.lines_before(own, further_lines.encode("ascii"))


def _lasting_fields(call: Call, upstream: Upstream, key: Key) -> list[Field]:
    fields = list(upstream.own_fields)
    if key.secret is not None and not call.keeps_authorization:
        fields.append(("Authorization", f"Bearer {key.secret.reveal()}"))
    if call.reads:
        fields.append(_IDENTITY)
    return fields
