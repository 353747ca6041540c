"""A burst beyond a pod's present lease: it waits for the next answer instead of being sent away."""

from __future__ import annotations

from sluice_core.api.base import ObjectMeta
from sluice_core.api.quotaallocation import Priority
from sluice_core.api.upstream import Limits, Upstream, UpstreamSpec
from sluice_core.compile import compile_namespaces
from sluice_core.limits.admission import Admission
from sluice_core.limits.allocator import Allocator
from sluice_core.limits.decisions import Admitted, Ask, Refused
from sluice_core.limits.queue import Entered, Ready, Waiter, WaitingLine
from sluice_core.selection import select

UPSTREAM = "default/openai"
LIMIT = 5


def test_a_sole_pod_gets_the_whole_limit_within_one_report() -> None:
    """What the lease leaves out at first is waited for briefly; what exceeds the limit is refused with a true time."""
    resource = Upstream(metadata=ObjectMeta(name="openai"), spec=UpstreamSpec(limits=Limits(requests_per_minute=LIMIT)))
    compiled = compile_namespaces([resource], {"default": {}}, {"default": ({},)})
    admission, allocator = Admission(), Allocator(now=0.0, fresh=True)
    admission.configure(select(compiled.snapshots["default"], {}))
    allocator.configure([(compiled.upstreams[0], compiled.quotas[0])], 0.0)
    line = WaitingLine(admission)

    def report(sequence: int, now: float) -> None:
        leases = allocator.exchange("pod", sequence, admission.demands(now), now)
        admission.apply_leases(leases, sent_at=now)

    def submit(number: int, now: float) -> Admitted | Entered | Refused:
        ask = Ask(model="gpt-4.1", tokens=10)
        waiter = Waiter(id=number, upstream=UPSTREAM, ask=ask, priority=Priority.STANDARD, deadline=now + 10.0)
        return line.submit(waiter, now)

    report(1, 0.5)
    answers = [submit(number, 1.0 + number / 100) for number in range(LIMIT + 1)]
    report(2, 1.5)
    late = [each for each in line.ready(1.5) if isinstance(each, Ready)]

    admitted = [each for each in answers if isinstance(each, Admitted)]
    assert len(admitted) + len(late) == LIMIT
    assert late
    refused = answers[-1]
    assert isinstance(refused, Refused)
    assert refused.retry_at is not None
    assert refused.retry_at >= 61.0
