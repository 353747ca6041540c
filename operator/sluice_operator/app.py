"""The operator, put together: observer, loop, leadership, probes and the sync server in one event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog
from aiohttp import web
from kubernetes.aio.client import Configuration

from sluice_core.sync import SyncRequest, SyncResponse
from sluice_operator import probes
from sluice_operator.alerts import AlertCalls
from sluice_operator.authn import TokenAuthenticator
from sluice_operator.budgets import Budgets
from sluice_operator.certificates_keeper import CertificateKeeper
from sluice_operator.cluster import Cluster
from sluice_operator.connection import kopf_login
from sluice_operator.events import Events
from sluice_operator.leader import Leader
from sluice_operator.lease import Leadership
from sluice_operator.loop import Loop
from sluice_operator.metrics import Metrics
from sluice_operator.observe import Observer, Watches
from sluice_operator.reconcile import Reconciler
from sluice_operator.resource_metrics import BudgetMetrics, ResourceMetrics
from sluice_operator.rollout_metrics import Decisions
from sluice_operator.rollouts import FleetRollouts
from sluice_operator.settings import CertificateIssuer, Settings, address
from sluice_operator.spend_store import SpendStore
from sluice_operator.sync import PolicyBoard, SyncServer
from sluice_operator.webhook_secrets import ClusterSecrets
from sluice_operator.webhooks import Webhooks
from sluice_operator.world import World

STOP_SECONDS: Final = 5.0

_log = structlog.get_logger()


def monotonic() -> float:
    """Return seconds that go on while the machine sleeps, so that a lease cannot seem fresh after a pause."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class LeadingReports:
    """Takes reports only while the Lease is surely held: what it grants, nobody else may grant.

    `term` tells of which term of leadership the leader's memory is; that of an earlier one is out of date.
    """

    def __init__(self, leader: Leader, leadership: Leadership, term: Callable[[], int]) -> None:
        self._leader = leader
        self._leadership = leadership
        self._term = term

    @property
    def leading(self) -> bool:
        """Tell whether this process may grant capacity at present."""
        current = self._term() == self._leadership.term
        return current and self._leader.leading and self._leadership.leading

    def report(self, request: SyncRequest) -> SyncResponse:
        """Take in one report and return the answer."""
        return self._leader.report(request)


class Operator:
    """All parts of one replica."""

    def __init__(self, settings: Settings, configuration: Configuration) -> None:
        identity = settings.identity
        self._settings = settings
        self._configuration = configuration
        self._cluster = Cluster(configuration, timeout_seconds=settings.request_timeout_seconds)
        self.wake = asyncio.Event()
        self.leadership = Leadership(
            self._cluster,
            settings.namespace,
            settings.lease_name,
            identity,
            clock=monotonic,
            wall=time.time,
            changed=self.wake,
        )
        writer = self._cluster.fenced(lambda: self.leadership.leading)
        self.world = World()
        self.board = PolicyBoard()
        self.metrics = Metrics()
        decisions = Decisions(monotonic)
        self.metrics.registry.register(
            ResourceMetrics(self.world.resources, lambda: self.leadership.leading, decisions)
        )
        self.observer = Observer(
            self.world, self._cluster, clock=monotonic, resync_seconds=settings.resync_seconds, changed=self.wake
        )
        leader = Leader(clock=monotonic)
        self._webhooks = Webhooks(ClusterSecrets(self._cluster), answered=self.wake)
        events = Events(writer, identity=settings.pod_name or identity, wall=time.time)
        self.budgets = Budgets(
            lambda: leader.spending,
            SpendStore(writer, settings.namespace, clock=monotonic),
            self.world,
            events,
            AlertCalls(),
            wall=time.time,
        )
        self.metrics.registry.register(BudgetMetrics(self.budgets))
        self.reconciler = Reconciler(
            writer,
            self.world,
            fleet=leader,
            rollouts=FleetRollouts(leader, self._webhooks, wall=time.time, decisions=decisions),
            board=self.board,
            events=events,
            budgets=self.budgets,
            clock=monotonic,
            wall=time.time,
            exempt_namespaces=settings.exempt_namespaces,
            drift_seconds=settings.drift_seconds,
            reread_seconds=settings.reread_seconds,
        )
        self.loop = Loop(
            self.reconciler,
            self.world,
            self.leadership,
            leader,
            self.metrics,
            wake=self.wake,
            clock=monotonic,
            tick_seconds=settings.tick_seconds,
            debounce_seconds=settings.debounce_seconds,
        )
        authenticator = TokenAuthenticator(self._cluster, clock=monotonic)
        reports = LeadingReports(leader, self.leadership, lambda: self.loop.term)
        self._sync = SyncServer(reports, self.board, authenticator.authenticate)
        self.ports: dict[str, int] = {}

    async def run(self, stop: asyncio.Event) -> None:
        """Run until `stop` is set, then give leadership up and close everything."""
        http = web.AppRunner(
            probes.application(
                self.metrics,
                finished_at=lambda: self.loop.finished_at,
                ready=lambda: self.world.complete,
                clock=monotonic,
            ),
            access_log=None,
        )
        sync = web.AppRunner(self._sync.application(), access_log=None, shutdown_timeout=2.0)
        try:
            await http.setup()
            await self._listen(http, "http", self._settings.http)
            await self._run_tasks(stop, sync)
        finally:
            await self._webhooks.close()
            await self.budgets.close()
            await sync.cleanup()
            await http.cleanup()
            await self._cluster.close()

    async def _run_tasks(self, stop: asyncio.Event, sync: web.AppRunner) -> None:
        async def login() -> Any:
            return await kopf_login(self._configuration)

        jobs: list[Coroutine[Any, Any, None]] = [
            self.observer.run(),
            Watches(self.observer, login, on_fault=self.metrics.watch_faults.inc).run(),
            self._serve_sync(sync),
        ]
        async with asyncio.TaskGroup() as group:
            leadership = group.create_task(self.leadership.run())
            rounds = group.create_task(self.loop.run())
            others = [group.create_task(job) for job in jobs]
            await stop.wait()
            _log.info("operator_stopping")
            if self.leadership.leading:
                await self.budgets.save()
            # The Lease is given up last: no write of this process may meet one of its successor.
            rounds.cancel()
            await asyncio.wait([rounds], timeout=STOP_SECONDS)
            for task in (leadership, *others):
                task.cancel()

    async def _serve_sync(self, sync: web.AppRunner) -> None:
        settings = self._settings
        if not settings.dns_names:
            _log.warning("sync_server_off", reason="SLUICE_CERTIFICATE_NAMES is not set")
            return
        keeper = CertificateKeeper(
            self._cluster,
            namespace=settings.namespace,
            secret=settings.certificate_secret,
            names=settings.dns_names,
            wall=time.time,
            issue=settings.certificate_issuer is CertificateIssuer.SLUICE,
        )
        self.reconciler.policies.authorities = lambda: keeper.authorities
        async with asyncio.TaskGroup() as group:
            group.create_task(keeper.run())
            await keeper.loaded.wait()
            await sync.setup()
            await self._listen(sync, "sync", settings.sync, keeper)

    async def _listen(
        self, runner: web.AppRunner, name: str, where: str, keeper: CertificateKeeper | None = None
    ) -> None:
        host, port = address(where)
        await web.TCPSite(runner, host or None, port, ssl_context=keeper.context if keeper else None).start()
        self.ports[name] = runner.addresses[0][1]
        _log.info("listening", server=name, port=self.ports[name])
        if self._settings.ports_file:
            path = Path(self._settings.ports_file)
            partial = path.with_suffix(".partial")
            partial.write_bytes(msgspec.json.encode(self.ports))
            partial.replace(path)
