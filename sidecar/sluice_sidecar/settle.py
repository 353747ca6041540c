"""What a call cost, once it is known what it used."""

from __future__ import annotations

from sluice_core.classify import Failure
from sluice_core.records import Outcome
from sluice_core.unreported import unreported_usage
from sluice_core.usage import Usage
from sluice_sidecar.call import Call
from sluice_sidecar.grant import Grant

_BROKE_OFF = frozenset({Outcome.TRUNCATED, Outcome.TIMEOUT, Outcome.CONNECTION_ERROR})
_TO_COME = frozenset({"queued", "in_progress"})


def price(call: Call, grant: Grant, *, finished: bool, failure: Failure | None = None) -> None:
    """Price what the call used.

    Where the upstream reports no usage it is estimated: of an answer that broke off or that nobody waited for, and of
    kinds that never report any. A failure that the upstream itself reports costs nothing.
    """
    if call.usage is None and call.generating and call.status < 400:
        call.usage = _estimate(call, finished=finished, failure=failure)
        call.usage_estimated = call.usage is not None
    if call.usage is not None:
        model = call.served_model or grant.model or call.facts.model  # of a form, it may be known only now
        call.cost_usd_micros = grant.upstream.prices.cost_usd_micros(
            call.usage, model, call.service_tier, call.unix_time
        )


def lose(call: Call, grant: Grant, output_tokens: int) -> None:
    """Price an attempt whose answer broke off before anybody saw any of it: the upstream charges it all the same."""
    usage = Usage(input_tokens=call.estimated_input_tokens, output_tokens=output_tokens)
    cost = grant.upstream.prices.cost_usd_micros(usage, grant.model, call.facts.service_tier, call.unix_time)
    call.lost_usd_micros += cost or 0


def _estimate(call: Call, *, finished: bool, failure: Failure | None) -> Usage | None:
    if not finished or (failure is not None and failure.outcome in _BROKE_OFF):
        return Usage(input_tokens=call.estimated_input_tokens, output_tokens=call.streamed_deltas)
    if failure is not None or call.status == 101 or call.response_status in _TO_COME:
        return None
    return unreported_usage(
        call.facts,
        call.estimated_input_tokens,
        call.streamed_deltas,
        request_bytes=call.request_bytes,
        response_bytes=call.downstream.bytes_written,
    )
