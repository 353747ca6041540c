"""The page of environment variables. A variable that is not described here, or no longer read, is a fault."""

from __future__ import annotations

import inspect
import re

import msgspec

from reference.markdown import code, table
from reference.markdown import page as whole_page
from sluice_operator.settings import Settings as OperatorSettings
from sluice_sidecar import settings as sidecar

_SIDECAR = {
    "SLUICE_LISTEN": ("`127.0.0.1:4141`", "Where calls are taken; a loopback address, because keys are added to them"),
    "SLUICE_ADMIN": ("`0.0.0.0:4142`", "Where `/metrics`, `/livez`, `/readyz` and `/status` are served"),
    "SLUICE_CONFIG_DIR": ("`/etc/sluice/config`", "Folder with `snapshot.json`, the mounted ConfigMap"),
    "SLUICE_CREDENTIALS_DIR": ("`/etc/sluice/credentials`", "Folder with the keys, the mounted Secret"),
    "SLUICE_LABELS_FILE": ("", "The pod's labels, as the downward API writes them"),
    "SLUICE_LABELS": ("", "Labels as `a=b,c=d`; they go before those of the file"),
    "SLUICE_NAMESPACE": ("`default`", "The pod's namespace"),
    "SLUICE_POD_NAME": ("", "The pod's name"),
    "SLUICE_POD_UID": ("", "The pod's uid"),
    "SLUICE_SYNC_URL": (
        "",
        "The operator's sync server; without it the mounted policy does alone, within the safe share of the limits",
    ),
    "SLUICE_SYNC_TOKEN_FILE": ("", "Projected service account token for it"),
    "SLUICE_SYNC_CA_FILE": ("", "Authority that its certificate is checked by"),
    "SLUICE_SOLE": (
        "`false`",
        "`true` where no other pod uses the same accounts: the limits are then this one's alone",
    ),
    "SLUICE_GRACE_SECONDS": ("`30`", "How long calls in flight may go on after SIGTERM"),
    "SLUICE_WHEN_UNCONFIGURED": (
        "`Hold`",
        "Before the first policy: `Hold` calls back, or `PassThrough` to the public API",
    ),
    "SLUICE_PORTS_FILE": ("", "File that is written with the ports once they listen, for port 0"),
    "SLUICE_CACHE_BYTES": (
        "`16777216`",
        "Memory for answers that rules keep; streams that are being recorded may take as much again. 0 keeps none",
    ),
    "TIKTOKEN_CACHE_DIR": ("", "Folder with tiktoken's vocabularies: input tokens are counted exactly"),
}

_OPERATOR = {
    "namespace": "Its own namespace",
    "lease_name": "Lease by which the replicas agree on a leader",
    "pod_name": "Name of the pod, to tell replicas apart",
    "http": "Where `/metrics` and the probes are served",
    "sync": "Where sidecars are served",
    "certificate_secret": "Secret with the certificate of the sync server and the injector",
    "certificate_names": "DNS names in it, comma-separated; without them the sync server is off",
    "certificate_issuer": "Who writes that Secret: `Sluice` or `External`",
    "excluded_namespaces": "Namespaces besides its own that the webhook is not asked about, comma-separated",
    "ports_file": "File that is written with the ports once they listen",
    "log_level": "Least level that is logged",
    "tick_seconds": "Longest time between two rounds",
    "debounce_seconds": "How long changes are gathered before a round",
    "resync_seconds": "Longest time without listing everything anew",
    "drift_seconds": "Longest time without looking at what is stored",
    "reread_seconds": "Longest time without reading the Secrets",
    "request_timeout_seconds": "Longest wait for the API server",
}


def page() -> str:
    """Return the page."""
    read = set(re.findall(r'get\("([A-Z]+_\w+)"\)', inspect.getsource(sidecar.load)))
    fields = msgspec.structs.fields(OperatorSettings)
    if read != _SIDECAR.keys() or {field.name for field in fields} != _OPERATOR.keys():
        raise ValueError(f"describe each variable, and nothing else, in {__name__}")
    return whole_page(
        "Environment variables",
        "The injector and the chart set all of these; they matter to who runs a part by itself. A value that cannot be "
        "used ends the process with the variable's name.",
        "## Sidecar",
        table(("Variable", "Default", "Meaning"), ((code(name), *row) for name, row in _SIDECAR.items())),
        "## Operator",
        table(
            ("Variable", "Default", "Meaning"),
            ((code(f"SLUICE_{each.name.upper()}"), code(each.default), _OPERATOR[each.name]) for each in fields),
        ),
    )
