"""What a call cost, once it is known what it used."""

from __future__ import annotations

from sluice_core.usage import Usage
from sluice_sidecar.call import Call
from sluice_sidecar.grant import Grant


def price(call: Call, grant: Grant, *, finished: bool) -> None:
    """Price what the call used. Of an answer that broke off or that nobody waited for, usage is estimated."""
    if call.usage is None and call.generating and not finished and call.status < 400:
        call.usage_estimated = True
        call.usage = Usage(input_tokens=call.estimated_input_tokens, output_tokens=call.streamed_deltas)
    if call.usage is not None:
        model = call.served_model or grant.model or call.facts.model  # of a form, it may be known only now
        call.cost_usd_micros = grant.upstream.prices.cost_usd_micros(
            call.usage, model, call.service_tier, call.unix_time
        )
