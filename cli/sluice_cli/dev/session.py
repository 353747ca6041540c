"""Everything that local mode runs: upstreams, control plane, one sidecar per workload, and the loop between them."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self

import msgspec
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from sluice_cli.dev.folder import FolderWatch, LocalStore, ManifestFileError, read_folder
from sluice_cli.dev.plane import LocalPlane
from sluice_cli.dev.scratch import scratch_directory
from sluice_cli.dev.sidecars import Sidecar, SidecarError
from sluice_cli.dev.state import LocalState, StateFile
from sluice_cli.dev.upstreams import Upstreams, store_passwords
from sluice_cli.dev.workloads import Workload, discover
from sluice_cli.documents import document
from sluice_core.compile import Compiled
from sluice_core.records import CallRecord
from sluice_core.snapshot import Snapshot, encode
from sluice_core.sync import PodRef
from sluice_operator.resource_metrics import ResourceMetrics
from sluice_operator.sync import SyncServer

ROUND_SECONDS: Final = 0.5
MAX_RECORDS: Final = 1000

OnRecord = Callable[[Workload, CallRecord], None]


class Session:
    """Local mode, from `async with` to its end.

    Args:
        folder: the manifests.
        upstreams: where calls end up.
        workloads: the pods to play; those that the manifests speak of, if none are named.
        first_port: port of the first workload's sidecar, the next one has the next; 0 takes free ones.
        state: a file to go on from and to keep statuses in.
        on_record: called with every settled call.
    """

    def __init__(
        self,
        folder: Path,
        upstreams: Upstreams,
        *,
        workloads: tuple[Workload, ...] = (),
        first_port: int = 0,
        control_port: int = 0,
        state: Path | None = None,
        on_record: OnRecord = lambda _workload, _record: None,
    ) -> None:
        """Prepare a session.

        Raises:
            StateError: the state file holds something else.
        """
        self._state = StateFile(state) if state is not None else None
        remembered = self._state.read() if self._state is not None else LocalState()
        self.store = LocalStore(remembered.resources)
        self.plane = LocalPlane(self.store, keep=self._keep, fresh=not remembered.resources)
        self.plane.leader.spending.restore(remembered.spending, time.time())
        self._metrics = CollectorRegistry()
        self._metrics.register(ResourceMetrics(lambda: self.store.resources, lambda: True, self.plane.decisions))
        self.sidecars: dict[str, Sidecar] = {}
        self.refused: tuple[str, ...] = ()
        self.control_url = ""
        self.reloads = 0
        self._watch = FolderWatch(folder)
        self._upstreams = upstreams
        self._named = workloads
        self._first_port = first_port
        self._control_port = control_port
        self._on_record = on_record
        self._records: deque[CallRecord] = deque(maxlen=MAX_RECORDS)
        self._tokens: dict[str, PodRef] = {}
        self._mounted: dict[str, tuple[str, dict[str, bytes]]] = {}
        self._stack = contextlib.AsyncExitStack()
        self._loop: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Start everything; when this returns, calls can be made.

        Raises:
            ManifestFileError, SidecarError, OSError: something is not as it must be.
        """
        async with contextlib.AsyncExitStack() as stack:
            self._directory = stack.enter_context(scratch_directory())
            stack.push_async_callback(self._upstreams.close)
            await self._serve(stack)
            stack.push_async_callback(self._stop_sidecars)
            stack.push_async_callback(self.plane.close)
            await self.round()
            if not self.sidecars:
                raise ManifestFileError(
                    f"{self._watch.path}: nothing to run: {'; '.join(self.refused) or 'no resources'}"
                )
            self._stack = stack.pop_all()
        self._loop = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop everything, the sidecars first."""
        if self._loop is not None:
            self._loop.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._loop
        await self._stack.aclose()

    async def ended(self) -> None:
        """Wait until the loop fails; it does not end otherwise."""
        if self._loop is not None:
            await asyncio.shield(self._loop)

    async def round(self) -> None:
        """Look at the folder, do one round of the control plane, and bring what it decides to the sidecars."""
        if self._watch.changed():
            self._reload()
        resources = await self._upstreams.aim(self.store.resources)
        await self._adjust_sidecars()
        pods: dict[str, tuple[dict[str, str], ...]] = {}
        for sidecar in self.sidecars.values():
            namespace = sidecar.workload.namespace
            pods[namespace] = (*pods.get(namespace, ()), sidecar.workload.labels)
        self.plane.present([sidecar.pod for sidecar in self.sidecars.values()])
        self._mount(self.plane.round(resources, pods, time.time()))
        for sidecar in self.sidecars.values():
            if sidecar.pid is None and not await sidecar.restart_if_gone():
                await sidecar.start()

    def _reload(self) -> None:
        try:
            reading = read_folder(self._watch.path)
        except ManifestFileError as error:
            self.refused = (str(error),)  # half an edit: what was read before stays in force
            return
        self.refused = reading.refused
        self.store.take(reading, time.time())
        self.reloads += 1

    async def _adjust_sidecars(self) -> None:
        wanted = {each.name: each for each in self._named or discover(self.store.resources)}
        for name in self.sidecars.keys() - wanted.keys():
            await self.sidecars.pop(name).stop()
        for name, workload in wanted.items():
            if name not in self.sidecars:
                self.sidecars[name] = self._sidecar(workload, len(self.sidecars))

    def _sidecar(self, workload: Workload, number: int) -> Sidecar:
        directory = self._directory / f"sidecar-{secrets.token_hex(4)}"
        directory.mkdir(mode=0o700)
        token = secrets.token_urlsafe(16)
        token_file = directory / "token"
        token_file.write_text(token)
        settings = {
            "SLUICE_SYNC_URL": self.control_url,
            "SLUICE_SYNC_TOKEN_FILE": str(token_file),
            "SLUICE_GRACE_SECONDS": "5",
        }
        port = self._first_port + number if self._first_port else 0
        sidecar = Sidecar(workload, directory, settings, self._note, port)
        self._tokens[token] = sidecar.pod
        return sidecar

    def _note(self, workload: Workload, record: CallRecord) -> None:
        self._records.append(record)
        self._on_record(workload, record)

    def _mount(self, compiled: Compiled) -> None:
        for name, sidecar in self.sidecars.items():
            snapshot = compiled.snapshots[sidecar.workload.namespace]
            keys = self._upstreams.keys(snapshot) | store_passwords(self.store.resources)
            if self._mounted.get(name) == (snapshot.revision, keys):
                continue
            self._mounted[name] = (snapshot.revision, keys)
            _write(sidecar, snapshot, keys)

    async def _serve(self, stack: contextlib.AsyncExitStack) -> None:
        application = SyncServer(self.plane.leader, self.plane.board, self._authenticate).application()
        application.router.add_get("/metrics", self._get_metrics)
        application.router.add_get("/dev/resources", self._get_resources)
        application.router.add_get("/dev/records", self._get_records)
        application.router.add_post("/dev/annotate", self._annotate)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", self._control_port).start()
        self.control_url = f"http://127.0.0.1:{runner.addresses[0][1]}"

    async def _get_metrics(self, _request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._metrics), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _authenticate(self, token: str | None) -> PodRef | None:
        return self._tokens.get(token or "")

    async def _get_resources(self, _request: web.Request) -> web.Response:
        return web.Response(body=documents_json(self.store), content_type="application/json")

    async def _get_records(self, _request: web.Request) -> web.Response:
        return web.Response(body=b"\n".join(map(msgspec.json.encode, self._records)), content_type="application/jsonl")

    async def _annotate(self, request: web.Request) -> web.Response:
        # Asking for JSON keeps web pages out: a browser sends it to another origin only after asking first.
        if request.content_type != "application/json":
            raise web.HTTPUnsupportedMediaType(text="send JSON")
        order = await request.json()
        if not self.store.annotate(str(order["kind"]), str(order["key"]), dict(order["annotations"])):
            raise web.HTTPNotFound(text=f"there is no {order['kind']} {order['key']}")
        self._keep()
        return web.json_response({})

    def _keep(self) -> None:
        if self._state is not None:
            spending = self.plane.leader.spending.states()
            self._state.write(LocalState(resources=self.store.remember(), spending=spending))

    async def _stop_sidecars(self) -> None:
        await asyncio.gather(*(sidecar.stop() for sidecar in self.sidecars.values()))

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ROUND_SECONDS):
                    await self.plane.answered.wait()
            self.plane.answered.clear()
            try:
                await self.round()
            except SidecarError as error:
                self.refused = (str(error),)


def _write(sidecar: Sidecar, snapshot: Snapshot, keys: dict[str, bytes]) -> None:
    sidecar.credentials.write(keys)
    sidecar.config.write({"snapshot.json": encode(snapshot)})


def documents_json(store: LocalStore) -> bytes:
    """Return the resources as `kubectl get -o json` would, as a list by kind."""

    items = [document(each) for each in store.resources]
    return msgspec.json.encode({"kind": "List", "items": items})
