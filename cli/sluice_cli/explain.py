"""`sluice explain`: why one call was decided as it was, in sentences, from its decision record."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from sluice_cli.cluster import ClusterError, add_source_arguments, source_of
from sluice_core.api.degradation import Cause
from sluice_core.caching import CacheUse
from sluice_core.records import Attempt, CallRecord


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("call_id", help="the call's x-sluice-call-id, or the upstream's x-request-id")
    parser.add_argument("--pod", help="pod that made the call; its sidecar's log is read")
    parser.add_argument("--records", metavar="FILE", help='read decision records from a file, "-" for standard input')
    add_source_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Find the record and print what it says."""
    try:
        record = find(_lines(args), args.call_id)
    except (ClusterError, OSError) as error:
        print(f"sluice explain: {error}", file=sys.stderr)
        return 2
    if record is None:
        print(f"sluice explain: no record of {args.call_id} there", file=sys.stderr)
        return 1
    print("\n".join(explain(record)))
    return 0


def _lines(args: argparse.Namespace) -> Sequence[bytes]:
    if args.records == "-":
        return sys.stdin.buffer.read().splitlines()
    if args.records:
        with open(args.records, "rb") as file:  # noqa: PTH123 - a path or a descriptor's name
            return file.read().splitlines()
    return source_of(args).records(args.pod)


def find(lines: Iterable[bytes], call_id: str) -> CallRecord | None:
    """Return the record of a call among JSON lines, some of which may be none."""
    wanted = call_id.encode()
    decoder = msgspec.json.Decoder(CallRecord)
    for line in lines:
        if wanted in line:
            try:
                record = decoder.decode(line)
            except msgspec.DecodeError:
                continue
            if call_id in (record.call_id, record.upstream_request_id, record.client_request_id):
                return record
    return None


def explain(record: CallRecord) -> Iterator[str]:
    """Yield what happened, in the order in which it happened."""
    asked = f" for {record.requested_model}" if record.requested_model else ""
    streamed = ", streamed" if record.stream else ""
    yield f"{record.endpoint.value}{asked}{streamed}: {record.outcome.value}, {record.status}"
    if record.route:
        yield f"routed by {record.route}, rule {record.rule}, to {record.target}"
    else:
        yield "no rule matched; it went to the default upstream" if record.upstream else "no rule matched"
    if record.split:
        how = "forced by header or conversation" if record.arm_forced else f"by hash, bucket {record.bucket} of 10000"
        yield f"split {record.split}: {record.arm} arm, version {record.version}, {how}"
    yield from _admission(record)
    for number, attempt in enumerate(record.attempts, start=1):
        yield f"attempt {number}: {_attempt(attempt)}"
    if record.cache is not None:
        yield _KEPT[record.cache]
    if record.fallback is not None:
        yield f"answered by fallback {record.fallback}, counted from 0"
    yield from _result(record)


_KEPT = {
    CacheUse.HIT: "answered by a kept answer; nothing was asked of the upstream",
    CacheUse.STALE: "answered by a kept answer past its time",
    CacheUse.COALESCED: "answered with an identical call that was under way; nothing more was asked of the upstream",
    CacheUse.MISS: "no answer to such a call was kept",
    CacheUse.BYPASS: "no answer to such a call is kept; the header x-sluice-cache said why",
}


def _admission(record: CallRecord) -> Iterator[str]:
    if record.allocation:
        waited = f", waited {record.queue_ms:.0f} ms" if record.queue_ms >= 1 else ""
        yield f"allocation {record.allocation} of {record.quota}: {record.reserved_tokens} tokens reserved{waited}"
    if record.level is not None:
        yield f"level of service: {record.level.value}, by {(record.level_cause or Cause.HAND).value.lower()}"
    if record.refused_by:
        yield f"refused by {record.refused_by}{f' ({record.error_code})' if record.error_code else ''}"
    if record.would_refuse:
        yield f"would have been refused by {record.would_refuse}, but its allocation is in Shadow mode"
    if record.degraded:
        yield "made cheaper, or answered without an upstream, by the level of service"


def _attempt(attempt: Attempt) -> str:
    what = " ".join(
        part
        for part in (attempt.upstream, attempt.model, f"key {attempt.credential}" if attempt.credential else "")
        if part
    )
    how = " ".join(str(part) for part in (attempt.status, attempt.code) if part)
    return f"{what}: {attempt.outcome.value}{f' ({how})' if how else ''} after {attempt.duration_ms:.0f} ms"


def _result(record: CallRecord) -> Iterator[str]:
    if record.usage is not None:
        usage = record.usage
        estimated = ", estimated" if record.usage_estimated else ""
        model = record.served_model or record.model
        yield f"used {usage.input_tokens} + {usage.output_tokens} tokens{estimated} of {model}"
    if record.cost_usd_micros is not None:
        yield f"cost ${record.cost_usd_micros / 1e6:.6f}"
    elif record.usage is not None:
        yield "cost unknown: the price book has no such model"
    yield f"took {record.duration_ms:.0f} ms, of which {record.upstream_ms:.0f} ms at the upstream"
