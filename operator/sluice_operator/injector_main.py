"""The injector's process: `sluice-injector` or `python -m sluice_operator.injector_main`.

Environment: `SLUICE_INJECTOR_CONFIG` (settings file), `SLUICE_NAMESPACE` (its own), `SLUICE_CERTIFICATE_SECRET`,
`SLUICE_CERTIFICATE_NAMES` (comma-separated DNS names), `SLUICE_CERTIFICATE_ISSUER` (`Sluice`, or `External` where
another program writes the Secret), `SLUICE_WEBHOOK` (its webhook configuration), `SLUICE_INJECTOR_PORT` (9443),
`SLUICE_HEALTH_PORT` (8080), `SLUICE_DRAIN_SECONDS` (5), `SLUICE_PORTS_FILE` (where to write the ports, for port 0).
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec
import structlog
from aiohttp import web

from sluice_operator.certificates_keeper import CertificateKeeper
from sluice_operator.cluster import Cluster
from sluice_operator.connection import load_configuration
from sluice_operator.injector_cluster import NamespaceChoices, detect_native
from sluice_operator.injector_server import InjectorMetrics, InjectorServer, health_application
from sluice_operator.injector_settings import InjectorSettings, decode

NATIVE_LOOK_SECONDS: Final = 300.0
# A webhook call has five seconds in all; what is asked meanwhile must leave it time to answer.
API_TIMEOUT_SECONDS: Final = 2.0

_log = structlog.get_logger()


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """The process's environment, checked."""

    settings: InjectorSettings
    namespace: str
    secret: str
    names: tuple[str, ...]
    issue: bool
    webhook: str
    port: int
    health_port: int
    drain_seconds: float
    ports_file: Path | None


def read_environment(environment: Mapping[str, str]) -> Environment:
    """Return the checked environment. Raises `ValueError` that names the variable."""
    get = environment.get
    names = tuple(name.strip() for name in get("SLUICE_CERTIFICATE_NAMES", "").split(",") if name.strip())
    if not names:
        raise ValueError("SLUICE_CERTIFICATE_NAMES: name the DNS names of the webhook's service")
    path = Path(get("SLUICE_INJECTOR_CONFIG") or "/etc/sluice/injector.json")
    try:
        settings = decode(path.read_bytes())
    except (OSError, msgspec.DecodeError) as error:
        raise ValueError(f"SLUICE_INJECTOR_CONFIG: {path}: {error}") from error
    issuer = get("SLUICE_CERTIFICATE_ISSUER") or "Sluice"
    if issuer not in ("Sluice", "External"):
        raise ValueError(f"SLUICE_CERTIFICATE_ISSUER: {issuer!r} is neither Sluice nor External")
    ports_file = get("SLUICE_PORTS_FILE")
    return Environment(
        settings=settings,
        namespace=get("SLUICE_NAMESPACE") or "sluice-system",
        secret=get("SLUICE_CERTIFICATE_SECRET") or "sluice-certificates",
        names=names,
        issue=issuer == "Sluice",
        webhook=get("SLUICE_WEBHOOK") or "sluice-injector",
        port=_number("SLUICE_INJECTOR_PORT", get("SLUICE_INJECTOR_PORT") or "9443"),
        health_port=_number("SLUICE_HEALTH_PORT", get("SLUICE_HEALTH_PORT") or "8080"),
        drain_seconds=_number("SLUICE_DRAIN_SECONDS", get("SLUICE_DRAIN_SECONDS") or "5"),
        ports_file=Path(ports_file) if ports_file else None,
    )


def _number(variable: str, text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65_535:
        raise ValueError(f"{variable}: {text!r} is not a number from 0 to 65535")
    return int(text)


async def serve(environment: Environment, stop: asyncio.Event) -> None:
    """Serve until `stop` is set, then answer for a few seconds more: the service's endpoints lag behind."""
    cluster = Cluster(await load_configuration(), timeout_seconds=API_TIMEOUT_SECONDS)
    keeper = CertificateKeeper(
        cluster,
        namespace=environment.namespace,
        secret=environment.secret,
        names=environment.names,
        wall=time.time,
        webhook=environment.webhook,
        issue=environment.issue,
    )
    metrics = InjectorMetrics()
    choices = NamespaceChoices(cluster, time.monotonic)
    setting = environment.settings.native_sidecar
    server = InjectorServer(environment.settings, native=True, metrics=metrics, namespace_choice=choices.get)
    health = web.AppRunner(health_application(keeper, metrics), access_log=None)
    admission = web.AppRunner(server.application(), access_log=None, shutdown_timeout=environment.drain_seconds)
    try:
        await health.setup()
        await web.TCPSite(health, port=environment.health_port).start()
        server.native = await detect_native(cluster, setting, default=True)
        async with asyncio.TaskGroup() as tasks:
            background = [
                tasks.create_task(keeper.run()),
                tasks.create_task(_watch_nodes(cluster, server, environment.settings)),
            ]
            await _first(keeper.loaded, stop)
            if not stop.is_set():
                await admission.setup()
                await web.TCPSite(admission, port=environment.port, ssl_context=keeper.context).start()
                _announce(environment, admission, health)
            await stop.wait()
            await asyncio.sleep(environment.drain_seconds if admission.server else 0)
            for task in background:
                task.cancel()
    finally:
        await admission.cleanup()
        await health.cleanup()
        await cluster.close()


async def _first(*events: asyncio.Event) -> None:
    waits = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


async def _watch_nodes(cluster: Cluster, server: InjectorServer, settings: InjectorSettings) -> None:
    while True:
        await asyncio.sleep(NATIVE_LOOK_SECONDS)
        server.native = await detect_native(cluster, settings.native_sidecar, default=server.native)


def _announce(environment: Environment, admission: web.AppRunner, health: web.AppRunner) -> None:
    # The shortest address is the IPv4 one; with port 0 the two families get different ports.
    ports = {"admission": min(admission.addresses, key=len)[1], "health": min(health.addresses, key=len)[1]}
    _log.info("injector_listening", **ports)
    if environment.ports_file is not None:
        partial = environment.ports_file.with_suffix(".partial")
        partial.write_bytes(msgspec.json.encode(ports))
        partial.replace(environment.ports_file)


async def _run(environment: Environment) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await serve(environment, stop)


def main() -> int:
    """Run the injector; 0 after a stop, 2 for a wrong environment."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,  # without local variables: a pod's environment may hold secrets
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    try:
        environment = read_environment(os.environ)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    asyncio.run(_run(environment))
    return 0


if __name__ == "__main__":
    sys.exit(main())
