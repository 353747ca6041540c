"""`sluice demo`: tells the story, and exits 0 only if everything in it was observed."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
import time
from pathlib import Path

from sluice_cli.demo.story import NotObservedError, Records, Story, say
from sluice_cli.dev.session import Session
from sluice_cli.dev.sidecars import SidecarError
from sluice_cli.dev.upstreams import MockUpstreams

POLICIES = Path(__file__).with_name("policies")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments: there are none."""
    parser.epilog = "Exit status: 0 everything was observed, 1 something was not, 2 it could not be started."


def run(args: argparse.Namespace) -> int:
    """Tell the story."""
    del args
    try:
        with tempfile.TemporaryDirectory(prefix="sluice-demo-") as directory:
            return asyncio.run(_tell(Path(directory) / "policies"))
    except (SidecarError, OSError) as error:
        print(f"sluice demo: {error}", file=sys.stderr)
        return 2


async def _tell(folder: Path) -> int:
    shutil.copytree(POLICIES, folder)
    started = time.monotonic()
    upstreams, records = MockUpstreams(), Records()
    async with Session(folder, upstreams, on_record=records.add) as session:
        say("Sluice on one machine: the sidecars, the compiler and the rollout engine of a cluster, over a folder.")
        for sidecar in session.sidecars.values():
            say(f"   {sidecar.workload.name:<20} OPENAI_BASE_URL={sidecar.base_url}")
        story = Story(session, upstreams, folder, records)
        try:
            for act in (
                story.healthy_candidate,
                story.failing_candidate,
                story.greedy_neighbour,
                story.failing_upstream,
            ):
                say("")
                await act()
        except NotObservedError as failure:
            print(f"\nnot observed: {failure}", file=sys.stderr)
            return 1
    say("", f"All observed in {time.monotonic() - started:.0f} s. {story.summary()}.")
    return 0
