"""An API server in process: kmock's discovery and plumbing under the semantics that the operator relies on.

What a real one does and kmock leaves out: resourceVersion and its preconditions, generation, the status subresource,
server-side apply, listing by page and by name, metadata-only listings, watches that start at a version and expire.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import uuid
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import kmock
import msgspec
import pytest
from aiohttp import web
from kubernetes.aio.client import Configuration

from sluice_core.api import crd, validation
from sluice_core.api.schema import with_defaults
from sluice_operator import kinds
from sluice_operator.certificates_keeper import WEBHOOKS
from sluice_operator.cluster import Cluster
from sluice_operator.injector_cluster import NODES
from sluice_operator.kinds import SLUICE_KINDS, TOKEN_REVIEWS, ResourceType

Json = dict[str, Any]
Key = tuple[str, str, str]

BUILT_IN = (kinds.PODS, kinds.NAMESPACES, kinds.CONFIG_MAPS, kinds.SECRETS, kinds.EVENTS, kinds.LEASES)
SERVED = {type_.plural: type_ for type_ in (*SLUICE_KINDS, *BUILT_IN, NODES, WEBHOOKS)}
WITH_STATUS = frozenset({*(type_.plural for type_ in SLUICE_KINDS), "pods"})


class RefusalError(Exception):
    """An answer other than success."""

    def __init__(self, status: int, reason: str, message: str = "") -> None:
        super().__init__(reason)
        self.response = web.json_response(
            {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": message},
            status=status,
        )


class ApiServer(kmock.KubernetesScaffold):
    """A small but honest API server. `faults` are asked first and may answer in its place."""

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.stored: dict[Key, Json] = {}
        self.applied: dict[tuple[Key, str], Json] = {}
        self.log: list[tuple[int, str, Json]] = []
        self.compacted = 0
        self.versions = itertools.count(1)
        self.version = 0
        self.watchers: set[asyncio.Queue[Json | None]] = set()
        self.faults: list[Callable[[kmock.Request], web.Response | None]] = []
        self.reviews: dict[str, Json] = {}
        self.writes: list[tuple[str, str]] = []
        self.rules: list[tuple[str | None, Json]] | None = None
        for type_ in SERVED.values():
            self.resources[f"{type_.api_version}/{type_.plural}"] = kmock.KubernetesScaffold.ResourceInfo(
                namespaced=type_.namespaced,
                kind=type_.kind,
                verbs={"get", "list", "watch", "create", "patch", "update", "delete"},
                subresources={"status"} if type_.plural in WITH_STATUS else set(),
            )

    # What a test does to the cluster -----------------------------------------------------------------------------

    def put(self, type_: ResourceType, name: str, namespace: str = "", **content: Any) -> Json:
        """Create an object, or change it as `kubectl apply` would."""
        key = (type_.plural, namespace, name)
        metadata = {"name": name, **content.pop("metadata", {})}
        if namespace:
            metadata["namespace"] = namespace
        before = self.stored.get(key)
        body = {"apiVersion": type_.api_version, "kind": type_.kind, "metadata": metadata, **content}
        if before is None:
            return self._create(type_, key, body)
        after = copy.deepcopy(before) | content
        after["metadata"] |= metadata
        return self._store(key, before, after)

    def object(self, type_: ResourceType, name: str, namespace: str = "") -> Json | None:
        return self.stored.get((type_.plural, namespace, name))

    def all(self, type_: ResourceType) -> list[Json]:
        return [stored for key, stored in sorted(self.stored.items()) if key[0] == type_.plural]

    def remove(self, type_: ResourceType, name: str, namespace: str = "") -> None:
        key = (type_.plural, namespace, name)
        gone = copy.deepcopy(self.stored.pop(key))
        for applied in [each for each in self.applied if each[0] == key]:
            del self.applied[applied]
        gone["metadata"]["resourceVersion"] = str(self._next())
        self._notify("DELETED", type_.plural, gone)

    def drop_watches(self, *, forget: bool = False) -> None:
        """Cut all watches; with `forget`, those that come back are told that they missed too much (410)."""
        if forget:
            self.compacted = self.version
        for watcher in self.watchers:
            watcher.put_nowait(None)

    def fail(self, status: int, reason: str, *, method: str = "", path: str = "", times: int = 1) -> None:
        """Answer the next requests that match with an error."""
        left = [times]

        def fault(request: kmock.Request) -> web.Response | None:
            if (
                left[0]
                and request.method.value == (method.upper() or request.method.value)
                and path in request.url.path
            ):
                left[0] -= 1
                return RefusalError(status, reason).response
            return None

        self.faults.append(fault)

    # What it does with requests ----------------------------------------------------------------------------------

    async def __call__(self, raw_request: web.BaseRequest) -> web.StreamResponse:
        if not raw_request.path.startswith("/api/v1/namespaces") or raw_request.path.count("/") > 4:
            return await super().__call__(raw_request)
        # kmock takes the path of namespaces themselves for an unfinished path of something in a namespace.
        request = kmock.Request(
            method=raw_request.method,
            url=raw_request.path_qs,
            params=dict(raw_request.query),
            headers=dict(raw_request.headers),
            resource=kmock.resource("v1/namespaces"),
            raw_request=raw_request,
        )
        return await self._handle(request)

    async def _handle(self, request: kmock.Request) -> web.StreamResponse:
        for fault in self.faults:
            answer = fault(request)
            if answer is not None:
                return answer
        resource = request.resource
        parent, _, name = request.url.path.rpartition("/")
        if parent == "/api/v1/namespaces" and name:  # kmock takes the name of a namespace for its content
            found = self.stored.get(("namespaces", "", name))
            return web.json_response(found) if found else RefusalError(404, "NotFound").response
        if resource is not None and resource.plural == "tokenreviews":
            self._authorize(TOKEN_REVIEWS, request)
            return web.json_response(self._review(request.data), status=201)
        if resource is None or resource.plural not in SERVED:
            return await super()._handle(request)
        try:
            return await self._serve(SERVED[resource.plural], request)
        except RefusalError as refusal:
            return refusal.response

    def enforce(self, cluster_rules: Iterable[Json], namespace: str, namespace_rules: Iterable[Json]) -> None:
        """Allow from now on what these RBAC rules allow, and nothing else."""
        self.rules = [(None, rule) for rule in cluster_rules] + [(namespace, rule) for rule in namespace_rules]

    def _authorize(self, type_: ResourceType, request: kmock.Request) -> None:
        if self.rules is None:
            return
        name = request.name or request.params.get("fieldSelector", "").removeprefix("metadata.name=")
        verbs = {"GET": "get" if request.name else "list", "POST": "create", "PUT": "update", "PATCH": "patch"}
        wanted = {verbs.get(request.method.value, "delete")}
        if request.params.get("watch"):
            wanted = {"watch"}
        key = (type_.plural, request.namespace or "", request.name or "")
        if request.method.value == "PATCH" and key not in self.stored:
            wanted.add("create")  # server-side apply of something new needs both
        resource = f"{type_.plural}/{request.subresource}" if request.subresource else type_.plural
        for verb in wanted:
            if not any(
                namespace in (None, request.namespace)
                and type_.group in rule["apiGroups"]
                and resource in rule["resources"]
                and verb in rule["verbs"]
                and ("resourceNames" not in rule or name in rule["resourceNames"])
                for namespace, rule in self.rules
            ):
                raise RefusalError(403, "Forbidden", f"cannot {verb} {resource} {name}")

    async def _serve(self, type_: ResourceType, request: kmock.Request) -> web.StreamResponse:
        method = request.method.value.upper()
        self._authorize(type_, request)
        key = (type_.plural, request.namespace or "", request.name or "")
        if method != "GET":
            self.writes.append((method, request.url.path))
        if method == "GET" and request.name:
            return web.json_response(self._found(key))
        if method == "GET" and request.params.get("watch", "") in ("true", "1"):
            return await self._watch(type_, request)
        if method == "GET":
            return web.json_response(self._list(type_, request))
        if method == "POST":
            return web.json_response(
                self._create(type_, (type_.plural, key[1], request.data["metadata"]["name"]), request.data), status=201
            )
        if method == "DELETE":
            self._check(self._found(key), (request.data or {}).get("preconditions", {}))
            self.remove(type_, key[2], key[1])
            return web.json_response({"kind": "Status", "status": "Success"})
        return web.json_response(self._update(type_, key, request, method))

    def _update(self, type_: ResourceType, key: Key, request: kmock.Request, method: str) -> Json:
        data = request.data if request.data is not None else msgspec.json.decode(request.body)
        if request.headers.get("Content-Type", "").startswith("application/apply-patch"):
            return self._apply(type_, key, data, request.params["fieldManager"], request.params.get("force") == "true")
        before = self._found(key)
        self._check(before, {"resourceVersion": data.get("metadata", {}).get("resourceVersion")})
        after = copy.deepcopy(data) if method == "PUT" else _merge(before, data)
        if request.subresource == "status":
            after = before | {"status": self._checked_status(type_, after.get("status", {}))}
        elif type_.plural in WITH_STATUS:
            after = after | ({"status": before["status"]} if "status" in before else {})
        return self._store(key, before, after)

    def _apply(self, type_: ResourceType, key: Key, data: Json, manager: str, force: bool) -> Json:
        owned = {name: value for name, value in data.items() if name in ("data", "binaryData", "spec", "type")}
        if "labels" in data["metadata"]:
            owned["metadata"] = {"labels": data["metadata"]["labels"]}
        last = self.applied.get((key, manager), {})
        before = self.stored.get(key)
        version = data["metadata"].get("resourceVersion")
        if version and (before is None or before["metadata"]["resourceVersion"] != version):
            raise RefusalError(409, "Conflict", "the object has been modified")
        if before is None:
            answer = self._create(type_, key, data)
        else:
            # Whatever this manager did not put there itself is somebody else's.
            if not force and _disputed(before, owned, last):
                raise RefusalError(409, "Conflict", "conflict with another field manager")
            answer = self._store(key, before, _merge(_without(before, last, owned), owned))
        self.applied[key, manager] = owned
        return answer

    def _create(self, type_: ResourceType, key: Key, data: Json) -> Json:
        if key in self.stored:
            raise RefusalError(409, "AlreadyExists", f"{type_.plural} {key[2]!r} already exists")
        stored = copy.deepcopy(data)
        if type_.plural in WITH_STATUS and type_ is not kinds.PODS:
            stored.pop("status", None)
        stored["metadata"] |= {
            "uid": str(uuid.uuid4()),
            "resourceVersion": str(self._next()),
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "generation": 1,
        }
        self.stored[key] = stored
        self._notify("ADDED", type_.plural, stored)
        return copy.deepcopy(stored)

    def _store(self, key: Key, before: Json, after: Json) -> Json:
        system = {name: before["metadata"][name] for name in ("uid", "creationTimestamp", "generation")}
        after["metadata"] = after["metadata"] | system | {"resourceVersion": before["metadata"]["resourceVersion"]}
        if after == before:
            return copy.deepcopy(before)  # a write that changes nothing makes no new version
        if after.get("spec") != before.get("spec"):
            after["metadata"]["generation"] += 1
        after["metadata"]["resourceVersion"] = str(self._next())
        self.stored[key] = after
        self._notify("MODIFIED", key[0], after)
        return copy.deepcopy(after)

    def _found(self, key: Key) -> Json:
        if key not in self.stored:
            raise RefusalError(404, "NotFound", f"{key[0]} {key[2]!r} not found")
        return self.stored[key]

    def _check(self, stored: Json, preconditions: Json) -> None:
        for name, value in preconditions.items():
            if value and stored["metadata"][name] != value:
                raise RefusalError(409, "Conflict", "the object has been modified")

    def _checked_status(self, type_: ResourceType, status: Json) -> Json:
        """Hold a status against the CRD's schema and fill in defaults, as a real API server does."""
        if type_ not in SLUICE_KINDS:
            return status
        schema = crd.schema(crd.BY_NAME[type_.kind])["properties"]["status"]
        errors = [f"{each.path}: {each.message}" for each in validation._schema_errors(schema, status, "status")]
        if errors:
            raise RefusalError(422, "Invalid", "; ".join(errors))
        return with_defaults(schema, status)

    def _list(self, type_: ResourceType, request: kmock.Request) -> Json:
        items = [stored for key, stored in sorted(self.stored.items()) if key[0] == type_.plural]
        wanted = request.params.get("fieldSelector", "")
        if wanted:
            items = [item for item in items if wanted == f"metadata.name={item['metadata']['name']}"]
        if "PartialObjectMetadataList" in request.headers.get("Accept", ""):
            items = [{"metadata": item["metadata"]} for item in items]
        start = int(request.params.get("continue", "0"))
        size = int(request.params.get("limit", "0")) or len(items)
        metadata: Json = {"resourceVersion": str(self.version)}
        if start + size < len(items):
            metadata["continue"] = str(start + size)
        return {"kind": f"{type_.kind}List", "metadata": metadata, "items": items[start : start + size]}

    async def _watch(self, type_: ResourceType, request: kmock.Request) -> web.StreamResponse:
        since = int(request.params.get("resourceVersion") or "0")
        queue: asyncio.Queue[Json | None] = asyncio.Queue()
        if since < self.compacted:
            status = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
            queue.put_nowait({"plural": type_.plural, "type": "ERROR", "object": status})
            queue.put_nowait(None)
            since = self.version
        for version, plural, event in self.log:
            if plural == type_.plural and version > since:
                queue.put_nowait({"plural": plural, **event})
        self.watchers.add(queue)
        response = web.StreamResponse()
        assert request._raw_request is not None
        await response.prepare(request._raw_request)
        try:
            while (event := await queue.get()) is not None:
                if event.pop("plural") == type_.plural:
                    await response.write(msgspec.json.encode(event) + b"\n")
        finally:
            self.watchers.discard(queue)
        await response.write_eof()
        return response

    def _review(self, question: Json) -> Json:
        status = self.reviews.get(question["spec"]["token"], {"authenticated": False})
        return {**question, "status": status}

    def _next(self) -> int:
        self.version = next(self.versions)
        return self.version

    def _notify(self, event_type: str, plural: str, stored: Json) -> None:
        event = {"type": event_type, "object": copy.deepcopy(stored)}
        self.log.append((self.version, plural, event))
        for watcher in self.watchers:
            watcher.put_nowait({"plural": plural, **event})


def _merge(before: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    merged = copy.deepcopy(before) if isinstance(before, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = _merge(merged.get(name), value)
    return merged


def _disputed(stored: Any, wanted: Any, last: Any) -> bool:
    """Tell whether an apply would change a value that its manager does not own."""
    if isinstance(wanted, dict):
        return isinstance(stored, dict) and any(
            name in stored and _disputed(stored[name], value, (last or {}).get(name)) for name, value in wanted.items()
        )
    return bool(stored != wanted and stored != last)


def _without(stored: Any, last: Any, owned: Any) -> Any:
    """Take away what a manager applied before and no longer does."""
    if not isinstance(stored, dict) or not isinstance(last, dict):
        return stored
    left = {}
    for name, value in stored.items():
        if name in last and name not in (owned or {}):
            continue
        left[name] = _without(value, last.get(name), (owned or {}).get(name))
    return left


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def api() -> AsyncIterator[ApiServer]:
    async with ApiServer() as server, kmock.Server(server):
        yield server
        server.drop_watches()


@pytest.fixture
def configuration(api: ApiServer) -> Configuration:
    return Configuration(host=str(api.url).rstrip("/"))


@pytest.fixture
async def cluster(configuration: Configuration) -> AsyncIterator[Cluster]:
    client = Cluster(configuration)
    yield client
    await client.close()
