"""How the API server is reached: from within a pod, or by a kubeconfig. One login for all of the operator."""

from __future__ import annotations

import kopf
from kubernetes.aio.client import Configuration
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config


async def load_configuration() -> Configuration:
    """Return the connection's settings. The pod's token is read anew every minute, as it rotates.

    Raises:
        ConfigException: there is neither a service account nor a kubeconfig.
    """
    configuration = Configuration()
    try:
        load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    except ConfigException:
        await load_kube_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    return configuration


async def kopf_login(configuration: Configuration) -> kopf.ConnectionInfo:
    """Return the same connection for kopf, which asks again whenever the API server turns its token down."""
    header = await configuration.get_api_key_with_prefix("BearerToken") or ""
    scheme, _, token = header.rpartition(" ")
    return kopf.ConnectionInfo(
        server=configuration.host,
        ca_path=configuration.ssl_ca_cert,
        insecure=not configuration.verify_ssl,
        scheme=(scheme.capitalize() or "Bearer") if token else None,
        token=token.strip() or None,
        certificate_path=configuration.cert_file,
        private_key_path=configuration.key_file,
    )
