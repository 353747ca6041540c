"""`sluice status`: splits and quotas at a glance, or one split metric by metric."""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from typing import Any

from sluice_cli.allocations import HEADER, allocation_rows
from sluice_cli.cluster import ClusterError, add_source_arguments, source_of
from sluice_cli.documents import kind_table
from sluice_cli.tables import render
from sluice_core.api.crd import BY_NAME

Document = dict[str, Any]
SHOWN = ("CanarySplit", "QuotaAllocation", "ModelRoute", "Upstream")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("name", nargs="?", help="a CanarySplit, to see it metric by metric")
    parser.add_argument("-o", "--output", choices=("wide",), help="show more columns")
    add_source_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Print the tables."""
    now = datetime.now(UTC)
    try:
        source = source_of(args)
        if args.name:
            print(split_text(_named(source.get("canarysplits"), args.name)))
            return 0
        texts = []
        for name in SHOWN:
            kind = BY_NAME[name]
            documents = source.get(kind.plural)
            if documents:
                texts.append(render(*kind_table(kind, documents, now, wide=args.output == "wide")))
            if name == "QuotaAllocation" and (rows := allocation_rows(documents)):
                texts.append(render(HEADER, rows))
    except ClusterError as error:
        print(f"sluice status: {error}", file=sys.stderr)
        return 2
    print("\n\n".join(texts) or "nothing is declared here")
    return 0


def _named(splits: list[Document], name: str) -> Document:
    for split in splits:
        if split["metadata"]["name"] == name:
            return split
    raise ClusterError(f"there is no CanarySplit {name}")


def split_text(split: Document) -> str:
    """Return one split in full: where it stands, both arms, each metric, its past."""
    status = split.get("status", {})
    weight = f"{status.get('weight', 0)} % (in every pod: {status.get('appliedWeight', 0)} %)"
    lines = [
        f"Split:    {split['metadata']['name']}",
        f"Phase:    {status.get('phase', 'not begun')}, step {status.get('step') or '-'}, weight {weight}",
        f"Verdict:  {status.get('verdict', '-')}: {status.get('reason', '-')}",
        f"Next:     {_next(status)}",
        f"Pods:     {status.get('syncedPods') or '-'} run this policy",
        f"Traffic:  {_traffic(status)}",
        "",
        render(
            ("ARM", "VERSION", "REQUESTS", "ERRORS", "ERROR %", "P95 MS", "FIRST TOKEN P95", "USD/REQUEST", "LEFT OUT"),
            _arms(status),
        ),
    ]
    if status.get("metrics"):
        lines += [
            "",
            render(
                ("METRIC", "MODE", "STABLE", "CANDIDATE", "LIMIT", "EVIDENCE", "P", "N", "NEEDS", "VERDICT"),
                _metrics(status),
            ),
        ]
    if status.get("webhooks"):
        lines += ["", render(("WEBHOOK", "STEP", "ANSWER", "ASKED", "SAYS"), _webhooks(status))]
    if status.get("history"):
        rows = [
            [each.get("version", ""), each["result"], each.get("finishedAt", ""), each.get("reason", "")]
            for each in status["history"]
        ]
        lines += ["", render(("PAST", "RESULT", "FINISHED", "WHY"), rows)]
    return "\n".join(lines)


def _next(status: Document) -> str:
    if status.get("phase") == "AwaitingGate":
        return "on a promote request"
    if status.get("phase") == "Paused":
        return "on a resume or promote request"
    return f"not before {status['nextTransitionTime']}" if status.get("nextTransitionTime") else "-"


def _traffic(status: Document) -> str:
    share = (
        f"{status['observedShare']} % of this step's requests on the candidate" if status.get("observedShare") else "-"
    )
    discount = status.get("evidenceDiscount")
    return f"{share}; evidence discounted {discount}, as requests of one user are alike" if discount else share


def _webhooks(status: Document) -> list[list[str]]:
    keys = ("name", "step", "answer", "askedAt", "message")
    return [[str(each.get(key, "")) for key in keys] for each in status["webhooks"]]


def _arms(status: Document) -> list[list[str]]:
    rows = []
    for name in ("stable", "candidate"):
        arm = status.get(name) or {}
        keys = (
            "version",
            "requests",
            "errors",
            "errorPercent",
            "p95Milliseconds",
            "firstTokenP95Milliseconds",
            "costPerRequestUSD",
            "excluded",
        )
        rows.append([name, *(str(arm.get(key, "")) for key in keys)])
    return rows


def _metrics(status: Document) -> list[list[str]]:
    keys = ("name", "mode", "stable", "candidate", "limit", "evidence", "p", "n", "neededRequests", "verdict")
    defaults = {"mode": "Required"}
    return [[str((defaults | metric).get(key, "")) for key in keys] for metric in status["metrics"]]
