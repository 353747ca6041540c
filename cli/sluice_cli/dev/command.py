"""`sluice dev`: policies from a folder at work on this machine."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import structlog

from sluice_cli.allocations import HEADER, allocation_rows
from sluice_cli.dev.folder import ManifestFileError
from sluice_cli.dev.session import Session
from sluice_cli.dev.sidecars import SidecarError
from sluice_cli.dev.upstreams import MockUpstreams, RealUpstreams, Upstreams
from sluice_cli.dev.view import Decisions, Screen, Section
from sluice_cli.dev.workloads import Workload, parse_workload
from sluice_cli.documents import document, kind_table
from sluice_core.api.crd import KINDS, Kind

REFRESH_SECONDS: Final = 1.0
FIRST_PORT: Final = 4141
CONTROL_PORT: Final = 4140
SHOWN_KINDS: Final = ("CanarySplit", "QuotaAllocation")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("-f", "--folder", type=Path, required=True, help="folder or file with manifests")
    parser.add_argument(
        "--pod",
        action="append",
        default=[],
        metavar="[NS/]KEY=VALUE,...",
        help="labels of a pod to play; may be repeated (default: one for each selector in the manifests)",
    )
    parser.add_argument(
        "--upstream",
        choices=("mock", "real"),
        default="mock",
        help="mock: one mock OpenAI per Upstream; real: the baseURLs as written (default: %(default)s)",
    )
    parser.add_argument(
        "--key-from", default="OPENAI_API_KEY", metavar="VARIABLE", help="environment variable with the real key"
    )
    parser.add_argument(
        "--port",
        type=int,
        default=FIRST_PORT,
        help="port of the first workload; 0 takes free ones (default: %(default)s)",
    )
    parser.add_argument(
        "--control-port", type=int, default=CONTROL_PORT, help="port for `sluice status --dev` (default: %(default)s)"
    )
    parser.add_argument(
        "--state",
        type=Path,
        metavar="FILE",
        help="keep statuses in this file and go on from there: a rollout survives the end of the process",
    )
    parser.add_argument("--plain", action="store_true", help="print tables when they change, even on a terminal")


def run(args: argparse.Namespace) -> int:
    """Run until Ctrl-C or SIGTERM."""
    # Standard output is for tables.
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    try:
        workloads = tuple(parse_workload(text) for text in args.pod)
        upstreams: Upstreams = MockUpstreams() if args.upstream == "mock" else RealUpstreams(args.key_from)
        asyncio.run(_run(args, workloads, upstreams))
    except (ManifestFileError, SidecarError, ValueError, OSError) as error:
        print(f"sluice dev: {error}", file=sys.stderr)
        return 2
    return 0


async def _run(args: argparse.Namespace, workloads: tuple[Workload, ...], upstreams: Upstreams) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    decisions = Decisions()
    session = Session(
        args.folder,
        upstreams,
        workloads=workloads,
        first_port=args.port,
        control_port=args.control_port,
        state=args.state,
        on_record=lambda workload, record: decisions.add(workload.name, record),
    )
    async with session:
        screen = Screen(_intro(session, upstreams), live=sys.stdout.isatty() and not args.plain)
        screen.start()
        try:
            await _show(session, decisions, screen, stop)
        finally:
            screen.stop()
    print("stopped")


async def _show(session: Session, decisions: Decisions, screen: Screen, stop: asyncio.Event) -> None:
    """Redraw every second until told to stop or until the session fails."""
    failed = asyncio.create_task(session.ended())
    stopping = asyncio.create_task(stop.wait())
    try:
        while not stopping.done():
            screen.show(sections(session, decisions), _notes(session))
            done, _ = await asyncio.wait(
                (failed, stopping), timeout=REFRESH_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            if failed in done:
                failed.result()
    finally:
        for task in (failed, stopping):
            task.cancel()
        await asyncio.gather(failed, stopping, return_exceptions=True)


def _intro(session: Session, upstreams: Upstreams) -> list[str]:
    lines = [
        f"{sidecar.workload.name:<28} export OPENAI_BASE_URL={sidecar.base_url} OPENAI_API_KEY=sk-placeholder"
        for sidecar in session.sidecars.values()
    ]
    if isinstance(upstreams, MockUpstreams):
        lines += [f"mock of {key:<20} {mock.origin}/mock/faults" for key, mock in upstreams.mocks.items()]
    return [*lines, f"control                      {session.control_url}", ""]


def _notes(session: Session) -> list[str]:
    return [*session.plane.events, *(f"not in force: {line}" for line in session.refused)]


def sections(session: Session, decisions: Decisions) -> list[Section]:
    """Return the tables of the present moment."""
    now = datetime.now(UTC)
    found = [kind_section(kind, session, now) for kind in KINDS if kind.name in SHOWN_KINDS]
    breakers = session.plane.leader.fleet.breakers(asyncio.get_running_loop().time())
    rows = tuple((pod, each.upstream, each.model, each.credential, each.state) for pod, each in breakers)
    found.append(Section(title="breakers", header=("POD", "UPSTREAM", "MODEL", "KEY", "STATE"), rows=rows))
    found.append(allocation_section(session))
    found.append(decisions.section())
    return found


def kind_section(kind: Kind, session: Session, now: datetime) -> Section:
    """Return the table that `kubectl get` would print of one kind."""
    header, rows = kind_table(kind, map(document, session.store.of_kind(kind.name)), now)
    return Section(title=kind.crd_name, header=tuple(header), rows=tuple(tuple(row) for row in rows))


def allocation_section(session: Session) -> Section:
    """Return the live figures of every allocation."""
    rows = allocation_rows(map(document, session.store.of_kind("QuotaAllocation")))
    return Section(title="allocations, last minute", header=HEADER, rows=tuple(rows))
