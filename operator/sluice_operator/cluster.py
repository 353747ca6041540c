"""The only module that speaks to the API server on the operator's own account: reads, writes, reviews.

Every call has a deadline. Faults are one hierarchy, told apart by what the caller does next:

    ApiError
      NotFoundError      there is no such object, or the kind is not installed
      ConflictError      somebody else wrote first: read again, decide again
      ExpiredError       a listing's continuation is too old: list again
      RefusedError       401, 403, 422: trying again will not help
      UnavailableError   no answer, too slow, overloaded: try again later
      FencedError        this process may not write at present; nothing was sent
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Final, Generic, NoReturn, TypeVar

import aiohttp
import msgspec
from kubernetes.aio.client import ApiClient, Configuration

from sluice_operator.kinds import FIELD_MANAGER, SECRETS, ResourceType

PAGE_SIZE: Final = 500
MAX_RELISTS: Final = 3
MAX_MESSAGE_CHARACTERS: Final = 300

Json = dict[str, Any]
T = TypeVar("T")


class ApiError(Exception):
    """The API server did not do what was asked."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}" if message else f"{status} {reason}")
        self.status = status
        self.reason = reason


class NotFoundError(ApiError):
    """There is no such object, or the kind is not installed."""


class ConflictError(ApiError):
    """Somebody else wrote first, or the object exists already."""


class ExpiredError(ApiError):
    """What the request refers to is too old."""


class RefusedError(ApiError):
    """The request is not allowed, or not valid."""


class UnavailableError(ApiError):
    """The API server gave no answer in time, or is overloaded."""


class FencedError(ApiError):
    """This process does not lead, or is not sure of it."""


class _Status(msgspec.Struct):
    reason: str = ""
    message: str = ""


class _PageMeta(msgspec.Struct, rename="camel", frozen=True):
    resource_version: str = ""
    next_page: str = msgspec.field(name="continue", default="")


class _Page(msgspec.Struct, Generic[T]):
    items: list[T] | None = None
    metadata: _PageMeta = _PageMeta()


class ObjectVersion(msgspec.Struct, rename="camel", frozen=True):
    """Which state of an object is stored."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    labels: dict[str, str] = {}


class VersionOnly(msgspec.Struct, frozen=True):
    """An object of which only the metadata was asked for."""

    metadata: ObjectVersion


class Cluster:
    """A client of the API server for the few calls that the operator makes."""

    __slots__ = ("_api", "_may_write", "_timeout")

    def __init__(self, configuration: Configuration, *, timeout_seconds: float = 5.0) -> None:
        self._api: Any = ApiClient(configuration)
        self._api.user_agent = FIELD_MANAGER
        # Shorter than what is left of a lease after its renewal deadline: no write outlives the right to write.
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds, connect=min(2.0, timeout_seconds))

        self._may_write: Callable[[], bool] | None = None

    def fenced(self, may_write: Callable[[], bool]) -> Cluster:
        """Return the same client, whose every write first asks whether this process may write."""
        client = copy.copy(self)
        client._may_write = may_write  # noqa: SLF001 -- its own kind
        return client

    async def close(self) -> None:
        """Close the connections."""
        await self._api.close()

    async def get(self, type_: ResourceType, namespace: str | None, name: str) -> Json:
        """Return one object."""
        return _json(await self._call("GET", type_, type_.path(namespace, name)))

    async def list_all(
        self,
        type_: ResourceType,
        item: type[T],
        *,
        field_selector: str = "",
        metadata_only: bool = False,
    ) -> list[T]:
        """Return all objects of a type in all namespaces, page by page.

        `metadata_only` leaves the content on the server: what a Secret holds is not even read. A listing that outlives
        its continuation is started anew, so the answer is never a mixture with holes.
        """
        accept = "application/json"
        if metadata_only:
            accept = f"application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,{accept}"
        query = [("limit", str(PAGE_SIZE))]
        if field_selector:
            query.append(("fieldSelector", field_selector))
        for _ in range(MAX_RELISTS):
            try:
                return await self._list_once(type_, item, query, accept)
            except ExpiredError:
                continue
        raise ExpiredError(410, "Expired", f"listing {type_.plural} expired {MAX_RELISTS} times")

    async def _list_once(
        self, type_: ResourceType, item: type[T], query: list[tuple[str, str]], accept: str
    ) -> list[T]:
        items: list[T] = []
        page_type: Any = _Page[item]  # type: ignore[valid-type]
        more: list[tuple[str, str]] = []
        while True:
            body = await self._call("GET", type_, type_.path(), query=[*query, *more], accept=accept)
            page = msgspec.json.decode(body, type=page_type)
            items.extend(page.items or ())
            if not page.metadata.next_page:
                return items
            more = [("continue", page.metadata.next_page)]

    async def apply(self, type_: ResourceType, namespace: str, name: str, body: Json) -> Json:
        """Create or update an object by server-side apply; what others changed in our fields is set back."""
        manifest = {
            "apiVersion": type_.api_version,
            "kind": type_.kind,
            **body,
            "metadata": {**body.get("metadata", {}), "name": name, "namespace": namespace},
        }
        return _json(
            await self._call(
                "PATCH",
                type_,
                type_.path(namespace, name),
                body=manifest,
                content_type="application/apply-patch+yaml",
                query=[("fieldManager", FIELD_MANAGER), ("force", "true")],
            )
        )

    async def patch_status(
        self, type_: ResourceType, namespace: str, name: str, status: Json, resource_version: str
    ) -> Json:
        """Merge into an object's status, unless it has changed since `resource_version`.

        Raises:
            ConflictError: it has changed; nothing was written.
        """
        return _json(
            await self._call(
                "PATCH",
                type_,
                type_.path(namespace, name, "status"),
                body={"metadata": {"resourceVersion": resource_version}, "status": status},
                content_type="application/merge-patch+json",
                query=[("fieldManager", FIELD_MANAGER)],
            )
        )

    async def create(self, type_: ResourceType, namespace: str | None, body: Json) -> Json:
        """Create an object, or ask a review.

        Raises:
            ConflictError: an object of this name exists.
        """
        manifest = {"apiVersion": type_.api_version, "kind": type_.kind, **body}
        return _json(await self._call("POST", type_, type_.path(namespace), body=manifest))

    async def replace(self, type_: ResourceType, namespace: str, name: str, body: Json) -> Json:
        """Replace an object; its `resourceVersion` must be that of the stored one, else ConflictError."""
        return _json(await self._call("PUT", type_, type_.path(namespace, name), body=body))

    async def merge(self, type_: ResourceType, namespace: str, name: str, body: Json) -> Json:
        """Merge into an object."""
        return _json(
            await self._call(
                "PATCH",
                type_,
                type_.path(namespace, name),
                body=body,
                content_type="application/merge-patch+json",
                query=[("fieldManager", FIELD_MANAGER)],
            )
        )

    async def delete(self, type_: ResourceType, namespace: str, version: ObjectVersion) -> None:
        """Delete an object in exactly this state; one that is gone already is no fault."""
        preconditions = {"uid": version.uid, "resourceVersion": version.resource_version}
        try:
            await self._call(
                "DELETE",
                type_,
                type_.path(namespace, version.name),
                body={"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": preconditions},
            )
        except NotFoundError:
            return

    async def _call(
        self,
        method: str,
        type_: ResourceType,
        path: str,
        *,
        query: list[tuple[str, str]] | None = None,
        body: Json | None = None,
        content_type: str = "application/json",
        accept: str = "application/json",
    ) -> bytes:
        if method != "GET" and self._may_write is not None and not self._may_write():
            raise FencedError(0, "NotLeading", f"{method} {type_.plural}")
        headers = {"Accept": accept, "Content-Type": content_type}
        try:
            verb, url, headers, body, _ = await self._api.param_serialize(
                method, path, query_params=query, header_params=headers, body=body, auth_settings=["BearerToken"]
            )
            response = await self._api.call_api(verb, url, headers, body, _request_timeout=self._timeout)
            content: bytes = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise UnavailableError(0, type(error).__name__, f"{method} {type_.plural}") from error
        if response.status >= 300:
            _fail(response.status, content, type_)
        return content


def _fail(status: int, content: bytes, type_: ResourceType) -> NoReturn:
    try:
        answer = msgspec.json.decode(content, type=_Status)
    except (msgspec.DecodeError, UnicodeDecodeError):
        answer = _Status()
    # The server repeats invalid values in its message; of a Secret it must not come further than this.
    message = "" if type_ == SECRETS else answer.message[:MAX_MESSAGE_CHARACTERS]
    reason = answer.reason[:64] or "Error"
    match status:
        case 404:
            raise NotFoundError(status, reason, message)
        case 409:
            raise ConflictError(status, reason, message)
        case 410:
            raise ExpiredError(status, reason, message)
        case 408 | 429:
            raise UnavailableError(status, reason, message)
        case _ if status >= 500:
            raise UnavailableError(status, reason, message)
        case _:
            raise RefusedError(status, reason, message)


def _json(content: bytes) -> Json:
    answer: Json = msgspec.json.decode(content)
    return answer
