"""The last stage of the pipeline: what the call cost, what it says about its arm, and one record of it."""

from __future__ import annotations

from sluice_core.api.modelroute import Endpoint
from sluice_core.records import Outcome
from sluice_core.usage import Usage
from sluice_sidecar.call import Call
from sluice_sidecar.governor import Governor
from sluice_sidecar.grant import Grant


def price(call: Call, grant: Grant, *, finished: bool) -> None:
    """Price what the call used. Of an answer that broke off or that nobody waited for, usage is estimated."""
    if call.usage is None and call.generating and not finished and call.status < 400:
        call.usage_estimated = True
        call.usage = Usage(input_tokens=call.estimated_input_tokens, output_tokens=call.streamed_deltas)
    if call.usage is not None:
        model = call.served_model or grant.model
        call.cost_usd_micros = grant.upstream.prices.cost_usd_micros(
            call.usage, model, call.service_tier, call.unix_time
        )


def settle(call: Call, governor: Governor) -> None:
    """Book the end of a call."""
    if call.outcome is None:
        call.outcome = Outcome.CLIENT_CLOSED
    record = call.record()
    governor.settled(call, record)


def teaches(call: Call) -> bool:
    """Tell whether estimates may learn from this call: one that ended well, with usage that was reported."""
    return (
        call.outcome is Outcome.SUCCESS
        and call.usage is not None
        and not call.usage_estimated
        and call.endpoint is not Endpoint.REALTIME
    )
