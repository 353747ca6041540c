"""What one attempt sends: the application's request with the edits of its rule and arm, under a key of ours."""

from __future__ import annotations

from sluice_core.errors import BadRequestError
from sluice_core.records import Outcome
from sluice_sidecar.attempt import Order
from sluice_sidecar.call import Call
from sluice_sidecar.errors import RefusedError
from sluice_sidecar.headers import Field
from sluice_sidecar.plan import Plan
from sluice_sidecar.upstream import Key, Upstream

_IDENTITY: Field = ("Accept-Encoding", "identity")


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
        lines=call.fields.lines(our_fields(call, upstream, key)),
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
    fields = list(upstream.own_fields)
    if key.secret is not None and not call.keeps_authorization:
        fields.append(("Authorization", f"Bearer {key.secret.reveal()}"))
    fields.append(("traceparent", call.traceparent))
    if "x-client-request-id" not in call.fields.first:
        fields.append(("X-Client-Request-Id", call.id))
    if call.reads:
        fields.append(_IDENTITY)
    return fields
