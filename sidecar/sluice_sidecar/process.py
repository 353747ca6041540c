"""The life of the process: listen, become ready, watch the policy, drain on SIGTERM, leave nothing unsaid."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import structlog
from aiohttp import web

from sluice_sidecar.admin import admin_application
from sluice_sidecar.app import Proxy
from sluice_sidecar.config import POLL_SECONDS
from sluice_sidecar.governor import Governor
from sluice_sidecar.report import status
from sluice_sidecar.server import ProxyServer, silent_logger
from sluice_sidecar.settings import Settings
from sluice_sidecar.sync import SyncChannel
from sluice_sidecar.telemetry import logs
from sluice_sidecar.telemetry.records import RecordWriter

FLUSH_SECONDS = 2.0
_COLLECT_AFTER = (10_000, 10, 10)
"""Calls leave next to nothing in cycles: looking for that at every dozen of them cost two percent of their time."""

_CANCEL_SECONDS = 1.0
_CLOSE_SECONDS = 0.1  # for idle connections; zero would mean for ever

log = structlog.get_logger()


async def serve(settings: Settings) -> None:
    """Run a sidecar until it is told to stop."""
    logs.configure()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_report_fault)
    records = RecordWriter(sys.stdout.buffer)
    governor = Governor(settings, time.monotonic, records)  # uvloop's own clock counts whole milliseconds
    governor.poll()
    proxy = Proxy(governor)
    stop = asyncio.Event()
    with _stop_on_signals(stop) as stop_at_once:
        server = ProxyServer(proxy.handle)
        listener = await loop.create_server(server, settings.listen.host, settings.listen.port, backlog=1024)
        runner = web.AppRunner(_admin(governor), access_log=None, logger=silent_logger(), handle_signals=False)
        await runner.setup()
        admin = web.TCPSite(runner, settings.admin.host, settings.admin.port)
        await admin.start()
        _write_ports(settings, listener, runner)
        background = [asyncio.create_task(_watch(governor)), asyncio.create_task(governor.stores.run())]
        if settings.sync_url is not None:
            governor.sync = _channel(settings, governor)
            background.append(asyncio.create_task(governor.sync.run()))
        gc.collect()
        gc.freeze()  # what start-up made stays; the collector need not walk it at every turn
        gc.set_threshold(*_COLLECT_AFTER)
        log.info("listening", proxy=_port(listener.sockets), admin=runner.addresses[0][1])
        try:
            await stop.wait()
            log.info("draining", in_flight=governor.in_flight, grace_seconds=settings.grace_seconds)
            governor.stopping = True
            await _drain(proxy, stop_at_once, settings.grace_seconds)
        finally:
            listener.close()
            proxy.break_off_all()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CANCEL_SECONDS):
                    await proxy.idle()
            server.pre_shutdown()
            await server.shutdown(_CLOSE_SECONDS)
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            await governor.close()
            await records.close(FLUSH_SECONDS)
            await runner.cleanup()
            log.info("stopped", records_dropped=records.dropped)


def _admin(governor: Governor) -> web.Application:
    return admin_application(
        ready=governor.not_ready_because,
        book=governor.books.bring_up_to_date,
        status=lambda: status(governor),
        metrics=governor.metrics.render,
    )


def _channel(settings: Settings, governor: Governor) -> SyncChannel:
    assert settings.sync_url is not None  # noqa: S101 - the caller has looked
    return SyncChannel(settings.sync_url, settings.namespace, settings.sync_token_file, settings.sync_ca_file, governor)


async def _watch(governor: Governor) -> None:
    """Look at the mounted files twice a second."""
    while True:
        await asyncio.sleep(POLL_SECONDS)
        governor.poll()
        await governor.close_retired()


async def _drain(proxy: Proxy, stop_at_once: asyncio.Event, grace_seconds: float) -> None:
    """Wait until no call is in flight, the grace period is over, or the patience of whoever stops us."""
    waits = {asyncio.create_task(proxy.idle()), asyncio.create_task(stop_at_once.wait())}
    try:
        await asyncio.wait(waits, timeout=grace_seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)


@contextlib.contextmanager
def _stop_on_signals(stop: asyncio.Event) -> Iterator[asyncio.Event]:
    """Set `stop` at the first SIGTERM or SIGINT, and the event that is yielded at the second."""
    loop = asyncio.get_running_loop()
    at_once = asyncio.Event()

    def signalled() -> None:
        (at_once if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signalled)
    try:
        yield at_once
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def _write_ports(settings: Settings, listener: asyncio.Server, runner: web.AppRunner) -> None:
    """Tell whoever asked which ports the system chose. The file appears whole or not at all."""
    if settings.ports_file is None:
        return
    ports = {"proxy": _port(listener.sockets), "admin": runner.addresses[0][1]}
    draft = Path(f"{settings.ports_file}.{os.getpid()}")
    draft.write_bytes(msgspec.json.encode(ports))
    draft.replace(settings.ports_file)


def _port(sockets: Any) -> int:
    port: int = sockets[0].getsockname()[1]
    return port


def _report_fault(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Report what no task has caught, by kind only: a message could quote a call."""
    error = context.get("exception")
    log.error("unhandled fault in the event loop", kind=type(error).__name__, message=context.get("message"))
