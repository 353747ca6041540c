"""Quotas: windows, admission, the waiting line, leases. Pure: time comes in as `now`, in monotonic seconds.

How a sidecar drives it:

1. `Admission()` once per process; `admission.configure(pod_policy)` whenever the policy changes (use is kept);
   `WaitingLine(admission)` once.
2. Per attempt at an upstream: `line.submit(Waiter(...), now)`.
   `Admitted`: go. `Entered`: wait until `ready` names the id. `Refused`: answer 429 (`retry_at` makes a true
   Retry-After; None means that no retry can help). A `Waiter` with a deadline of `now` asks without waiting.
3. One timer at `line.next_event(now)`; when it fires, and after every settle, release, lease and policy change:
   `line.ready(now)` says who goes (`Ready`) and who waited in vain (`TimedOut`). Client gone: `line.leave(id)`.
4. After the attempt, on every path: `admission.settle(reservation, tokens=..., usd_micros=..., now=now)` with what was
   used, or `admission.release(reservation, now)` if it never left. A call that left and failed still cost a request:
   settle it with tokens=0. Both are idempotent.
5. The sync channel: `admission.demands(now)` into the report; `admission.apply_leases(leases, sent_at=...)` with the
   answer, only if it answers the latest report. `admission.apply_exhausted(...)` with the spent budgets.

`estimate` says how many tokens to ask for. `allocator` is the leader's side.
"""
