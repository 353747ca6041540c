"""Upstreams as policy, and who may reference them."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal, InvalidOperation

from sluice_core.api.base import UpstreamRef
from sluice_core.api.upstream import Price, Upstream
from sluice_core.compile.tiers import effective_limits, effective_model_limits
from sluice_core.problems import Reason, Report, ResourceId
from sluice_core.snapshot import CredentialFile, UpstreamPolicy

_DEAREST_PLAUSIBLE_USD = Decimal(1000)  # per million tokens; the dearest model ever listed by OpenAI cost 600
_PUBLIC_OPENAI = "https://api.openai.com/"

NamespaceLabels = Mapping[str, Mapping[str, str]]


def namespace_labels(namespaces: NamespaceLabels, name: str) -> dict[str, str]:
    """Return a namespace's labels, with the one that the API server sets on each, which manifests need not repeat."""
    return {"kubernetes.io/metadata.name": name, **namespaces.get(name, {})}


def credential_file(namespace: str, upstream: str, credential: str) -> str:
    """Return the file, relative to the credentials directory, that holds a key."""
    return f"{namespace}.{upstream}.{credential}"


def store_password_file(namespace: str, quota: str) -> str:
    """Return the file that holds the password of a quota's store. No credential's name begins with an underscore."""
    return f"{namespace}.{quota}._store"


def compile_upstream(upstream: Upstream, report: Report) -> UpstreamPolicy:
    """Return an upstream's policy: presets resolved, keys named by file. An upstream is never dropped."""
    spec, metadata = upstream.spec, upstream.metadata
    _check_upstream(upstream, report)
    return UpstreamPolicy(
        key=upstream.key,
        base_url=spec.base_url.rstrip("/"),
        credentials=tuple(
            CredentialFile(name=each.name, file=credential_file(metadata.namespace, metadata.name, each.name))
            for each in spec.credentials
        ),
        organization=spec.organization,
        project=spec.project,
        headers=spec.headers,
        ca_bundle=spec.tls.ca_bundle if spec.tls else None,
        limits=effective_limits(spec.tier, spec.limits),
        model_limits=tuple(effective_model_limits(each) for each in spec.model_limits),
        prices=spec.prices,
        timeouts=spec.timeouts,
        breaker=spec.breaker,
        retry=spec.retry,
    )


def _check_upstream(upstream: Upstream, report: Report) -> None:
    resource = ResourceId("Upstream", upstream.key)
    if not upstream.spec.credentials and f"{upstream.spec.base_url}/".startswith(_PUBLIC_OPENAI):
        report.warning(
            resource,
            Reason.NO_CREDENTIALS,
            "spec.credentials",
            "no key is named, so OpenAI will refuse all calls but those of rules with authorization: Application; "
            "name a Secret's key in spec.credentials",
        )
    for index, price in enumerate(upstream.spec.prices):
        _check_price(price, resource, f"spec.prices[{index}]", report)


def _check_price(price: Price, resource: ResourceId, path: str, report: Report) -> None:
    per_million = {
        "inputPerMillion": price.input_per_million,
        "outputPerMillion": price.output_per_million,
        "cachedInputPerMillion": price.cached_input_per_million,
        "cacheWritePerMillion": price.cache_write_per_million,
    }
    usd = {name: _usd(text) for name, text in per_million.items() if text is not None}
    for name, amount in usd.items():
        if amount > _DEAREST_PLAUSIBLE_USD:
            message = f"{amount} US dollars per million tokens is more than any model costs; give dollars, not cents"
            report.warning(resource, Reason.PRICE_IMPLAUSIBLE, f"{path}.{name}", message)
    if usd.get("cachedInputPerMillion", Decimal(0)) > usd["inputPerMillion"]:
        message = "cached input costs more than input; the two may be exchanged"
        report.warning(resource, Reason.PRICE_IMPLAUSIBLE, f"{path}.cachedInputPerMillion", message)


def _usd(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation:  # refused by the schema before; a price that cannot be read is no price
        return Decimal(0)


class UpstreamIndex:
    """All upstreams by key, and the answer to whether a namespace may reference one."""

    __slots__ = ("_namespaces", "_policies", "_upstreams")

    def __init__(
        self, upstreams: Mapping[str, Upstream], policies: Mapping[str, UpstreamPolicy], namespaces: NamespaceLabels
    ) -> None:
        self._upstreams = upstreams
        self._policies = policies
        self._namespaces = namespaces

    @property
    def policies(self) -> Mapping[str, UpstreamPolicy]:
        """Return every upstream's policy by key."""
        return self._policies

    def allows(self, key: str, namespace: str) -> bool:
        """Tell whether pods of `namespace` may use this upstream: its own may, others by allowedNamespaces."""
        upstream = self._upstreams[key]
        if upstream.metadata.namespace == namespace:
            return True
        allowed = upstream.spec.allowed_namespaces
        return allowed is not None and allowed.selector.matches(namespace_labels(self._namespaces, namespace))

    def resolve(
        self, reference: UpstreamRef, namespace: str, resource: ResourceId, path: str, report: Report
    ) -> str | None:
        """Return the key that a reference from `namespace` means; None, with a problem noted, if it means nothing."""
        key = f"{reference.namespace or namespace}/{reference.name}"
        if key not in self._upstreams:
            message = f"there is no Upstream {key}; create it, or correct the name and namespace"
            report.error(resource, Reason.UPSTREAM_NOT_FOUND, path, message)
            return None
        if not self.allows(key, namespace):
            message = (
                f"Upstream {key} does not allow namespace {namespace}; "
                "its owner can allow it in spec.allowedNamespaces.selector"
            )
            report.error(resource, Reason.UPSTREAM_NOT_ALLOWED, path, message)
            return None
        return key
