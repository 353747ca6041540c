"""The admission endpoint: AdmissionReview in, patch out. Stateless; any replica answers any request.

A pod is never refused. What cannot be read is answered with 400 and a fault of ours with 500, and the API server then
does what the webhook's `failurePolicy` says, which is the installation's choice and not this program's.
"""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
import structlog
from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from sluice_operator import injector
from sluice_operator.certificates_keeper import CertificateKeeper
from sluice_operator.injector import Injection
from sluice_operator.injector_settings import InjectorSettings, WhenUnconfigured

MAX_REVIEW_BYTES: Final = 8 * 1024 * 1024  # a pod is below 1.5 MiB; a review may hold it twice
API_VERSION: Final = "admission.k8s.io/v1"

NamespaceChoice = Callable[[str], Awaitable[WhenUnconfigured | None]]
"""Return what a namespace says about pods without a policy, None if it says nothing. Never raises."""

_log = structlog.get_logger()


class _Kind(msgspec.Struct, frozen=True):
    group: str = ""
    kind: str = ""


class _Request(msgspec.Struct, frozen=True, rename="camel"):
    uid: str
    kind: _Kind = _Kind()
    namespace: str = ""
    operation: str = ""
    object: dict[str, Any] | None = None


class _Review(msgspec.Struct, frozen=True, rename="camel"):
    request: _Request
    api_version: str = API_VERSION


_reviews: Final = msgspec.json.Decoder(_Review)


class InjectorMetrics:
    """What the injector counts, on a registry of its own."""

    __slots__ = ("certificate_expiry", "duration", "faults", "registry", "reviews")

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.reviews = Counter(
            "sluice_injector_reviews", "Pods looked at, by what was done.", ["outcome"], registry=self.registry
        )
        self.faults = Counter("sluice_injector_faults", "Reviews that could not be answered.", registry=self.registry)
        self.duration = Histogram(
            "sluice_injector_review_seconds",
            "Time to answer a review.",
            buckets=(0.001, 0.005, 0.02, 0.1, 0.5, 2.0),
            registry=self.registry,
        )
        self.certificate_expiry = Gauge(
            "sluice_injector_certificate_expiry_timestamp_seconds",
            "When the served certificate ends, as Unix time.",
            registry=self.registry,
        )
        for outcome in injector.Outcome:
            self.reviews.labels(outcome.value)


class InjectorServer:
    """Answers admission reviews with what `injector.inject` decides."""

    __slots__ = ("_choice", "_metrics", "_settings", "native")

    def __init__(
        self,
        settings: InjectorSettings,
        *,
        native: bool,
        metrics: InjectorMetrics,
        namespace_choice: NamespaceChoice,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._choice = namespace_choice
        self.native = native

    def application(self) -> web.Application:
        """Return the application that serves `POST /inject`; the caller binds it with TLS."""
        application = web.Application(client_max_size=MAX_REVIEW_BYTES)
        application.router.add_post("/inject", self._review)
        return application

    async def _review(self, request: web.Request) -> web.Response:
        body = await request.read()
        try:
            review = _reviews.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self._metrics.faults.inc()
            raise web.HTTPBadRequest(text=f"not an AdmissionReview: {error}") from None
        if review.api_version != API_VERSION:
            self._metrics.faults.inc()
            raise web.HTTPBadRequest(text=f"AdmissionReview must be of {API_VERSION}")
        with self._metrics.duration.time():
            injection = await self._decide(review.request)
        answer = msgspec.json.encode(_answer(review.request.uid, injection))
        return web.Response(body=answer, content_type="application/json")

    async def _decide(self, request: _Request) -> Injection:
        pod = request.object
        if request.kind.kind != "Pod" or request.operation != "CREATE" or pod is None:
            return Injection(outcome=injector.Outcome.UNCHANGED)
        choice = await self._choice(request.namespace)
        try:
            injection = injector.inject(pod, self._settings, native=self.native, when_unconfigured=choice)
        except Exception:
            self._metrics.faults.inc()
            _log.exception("injection_failed", namespace=request.namespace, uid=request.uid)
            raise
        self._metrics.reviews.labels(injection.outcome.value).inc()
        _log.info("pod_reviewed", namespace=request.namespace, pod=_pod_name(pod), outcome=injection.outcome.value)
        return injection


def _answer(uid: str, injection: Injection) -> dict[str, Any]:
    response: dict[str, Any] = {"uid": uid, "allowed": True}
    if injection.patch:
        response["patchType"] = "JSONPatch"
        response["patch"] = base64.b64encode(msgspec.json.encode(injection.patch)).decode()
    if injection.warnings:
        response["warnings"] = list(injection.warnings)
    return {"apiVersion": API_VERSION, "kind": "AdmissionReview", "response": response}


def _pod_name(pod: dict[str, Any]) -> str:
    # A pod of a controller has only a prefix at this point; the API server adds the rest later.
    metadata = pod.get("metadata")
    named = metadata if isinstance(metadata, dict) else {}
    return str(named.get("name") or named.get("generateName") or "")


def health_application(keeper: CertificateKeeper, metrics: InjectorMetrics) -> web.Application:
    """Return the plain application with `/livez`, `/metrics` and `/readyz`: ready is who serves a valid certificate."""

    async def live(_request: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def ready(_request: web.Request) -> web.Response:
        if not keeper.ready:
            raise web.HTTPServiceUnavailable(text="no valid certificate yet")
        return web.Response(text="ok")

    async def expose(_request: web.Request) -> web.Response:
        metrics.certificate_expiry.set(keeper.expires_at)
        body = generate_latest(metrics.registry)
        return web.Response(body=body, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    application = web.Application()
    application.router.add_get("/livez", live)
    application.router.add_get("/readyz", ready)
    application.router.add_get("/metrics", expose)
    return application
