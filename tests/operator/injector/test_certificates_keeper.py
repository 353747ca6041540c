"""How replicas share certificates through the API server, and serve a new one without a restart."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ssl
from typing import Any

import pytest

from sluice_operator.certificates_keeper import WEBHOOKS, CertificateKeeper
from sluice_operator.cluster import Cluster, UnavailableError
from sluice_operator.kinds import RELEASE_LABELS, SECRETS

NAMESPACE = "sluice-system"
NAMES = ("sluice-injector.sluice-system.svc",)


@pytest.fixture(autouse=True)
def webhook(api: Any) -> None:
    entries = [{"name": f"{kind}.inject.sluice.dev", "clientConfig": {"service": {"name": "i"}}} for kind in ("a", "b")]
    api.put(WEBHOOKS, "sluice-injector", webhooks=entries)


def _keeper(cluster: Cluster, clock: Any, **changes: Any) -> CertificateKeeper:
    options = {"namespace": NAMESPACE, "secret": "sluice-certificates", "names": NAMES, "webhook": "sluice-injector"}
    return CertificateKeeper(cluster, wall=clock, **(options | changes))


def _trusted(api: Any) -> list[str]:
    entries = api.object(WEBHOOKS, "sluice-injector")["webhooks"]
    return [base64.b64decode(entry["clientConfig"].get("caBundle", "")).decode() for entry in entries]


async def _served(keeper: CertificateKeeper, authorities: str) -> dict[str, Any]:
    """Connect to a server that uses the keeper's context, as the API server would; return its certificate."""

    closed = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await writer.wait_closed()
        closed.set()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=keeper.context)
    async with server:
        client = ssl.create_default_context(cadata=authorities)
        host, port = server.sockets[0].getsockname()
        _, writer = await asyncio.open_connection(host, port, ssl=client, server_hostname=NAMES[0])
        certificate: dict[str, Any] = writer.get_extra_info("peercert")
        writer.close()
        await writer.wait_closed()
        await closed.wait()
        return certificate


async def test_the_first_look_stores_trusts_and_serves(api: Any, cluster: Cluster, real_clock: Any) -> None:
    """After one round a client that trusts the webhook's bundle completes a handshake for the service's name."""
    keeper = _keeper(cluster, real_clock)
    assert not keeper.ready

    await keeper.look()

    assert keeper.ready
    assert _trusted(api) == [keeper.authorities] * 2
    assert NAMES[0] in str(await _served(keeper, _trusted(api)[0]))


async def test_a_secret_without_content_is_filled(api: Any, cluster: Cluster, clock: Any) -> None:
    """The chart creates the Secret empty, so that it goes with the chart; the keeper fills it and keeps its labels."""
    api.put(SECRETS, "sluice-certificates", NAMESPACE, metadata={"labels": {"a": "b"}}, type="Opaque")

    await _keeper(cluster, clock).look()

    stored = api.object(SECRETS, "sluice-certificates", NAMESPACE)
    assert set(stored["data"]) == {"ca.crt", "ca.key", "tls.crt", "tls.key"}
    assert stored["metadata"]["labels"] == {"a": "b"}


async def test_replicas_agree_on_one_bundle(api: Any, cluster: Cluster, clock: Any) -> None:
    """Of replicas that start together one writes, and all serve what it wrote."""
    replicas = [_keeper(cluster, clock) for _ in range(4)]

    await asyncio.gather(*(replica.look() for replica in replicas))
    await asyncio.gather(*(replica.look() for replica in replicas))

    assert len({replica.authorities for replica in replicas}) == 1
    assert _trusted(api) == [replicas[0].authorities] * 2
    assert [method for method, path in api.writes if "secrets" in path].count("POST") >= 1
    assert len(api.all(SECRETS)) == 1


async def test_a_round_without_need_writes_nothing(api: Any, cluster: Cluster, clock: Any) -> None:
    """Looking is free of writes while all is well."""
    keeper = _keeper(cluster, clock)
    await keeper.look()
    api.writes.clear()

    await keeper.look()

    assert api.writes == []


async def test_an_expired_certificate_is_replaced_while_serving(api: Any, cluster: Cluster, real_clock: Any) -> None:
    """After a long stop, the next round serves a current certificate on the same listener's context."""
    keeper = _keeper(cluster, real_clock)
    real_clock.now -= 100 * 86_400
    await keeper.look()
    before = keeper.expires_at
    real_clock.now += 100 * 86_400
    assert not keeper.ready

    await keeper.look()

    assert keeper.ready
    assert keeper.expires_at > before
    assert await _served(keeper, _trusted(api)[0])


async def test_a_deleted_secret_comes_back_and_the_old_authority_stays_trusted(
    api: Any, cluster: Cluster, real_clock: Any
) -> None:
    """While one replica has the new bundle and another still serves the old, the API server trusts both."""
    first, second = _keeper(cluster, real_clock), _keeper(cluster, real_clock)
    await first.look()
    await second.look()
    api.remove(SECRETS, "sluice-certificates", NAMESPACE)

    await first.look()

    assert api.object(SECRETS, "sluice-certificates", NAMESPACE)["metadata"]["labels"] == RELEASE_LABELS
    assert await _served(first, _trusted(api)[0])
    assert await _served(second, _trusted(api)[0])


async def test_drift_in_the_webhook_configuration_is_repaired(api: Any, cluster: Cluster, clock: Any) -> None:
    """What an upgrade of the chart or a person emptied is filled again; nothing else of it is touched."""
    keeper = _keeper(cluster, clock)
    await keeper.look()
    entries = [{"name": "a.inject.sluice.dev", "clientConfig": {"service": {"name": "i"}}, "failurePolicy": "Fail"}]
    api.put(WEBHOOKS, "sluice-injector", webhooks=entries)

    await keeper.look()

    assert _trusted(api) == [keeper.authorities]
    assert api.object(WEBHOOKS, "sluice-injector")["webhooks"][0]["failurePolicy"] == "Fail"


@pytest.mark.parametrize("fault", [(403, "Forbidden"), (404, "NotFound")])
async def test_a_webhook_configuration_out_of_reach_does_not_stop_the_server(
    api: Any, cluster: Cluster, clock: Any, fault: tuple[int, str]
) -> None:
    """Without the permission or the object the certificate is served all the same, and the fault is counted."""
    api.fail(*fault, path="mutatingwebhookconfigurations")
    keeper = _keeper(cluster, clock)

    await keeper.look()

    assert keeper.ready
    assert keeper.faults == 1


async def test_a_conflict_on_the_webhook_configuration_is_tried_again(api: Any, cluster: Cluster, clock: Any) -> None:
    """Two replicas that write at once both come to an end."""
    api.fail(409, "Conflict", method="PUT", path="mutatingwebhookconfigurations", times=2)
    keeper = _keeper(cluster, clock)

    await keeper.look()

    assert _trusted(api) == [keeper.authorities] * 2


async def test_an_api_server_that_is_away_takes_nothing_from_those_who_serve(
    api: Any, cluster: Cluster, clock: Any, real_clock: Any
) -> None:
    """The loop goes on through faults and what was served stays served."""
    keeper = _keeper(cluster, real_clock)
    await keeper.look()
    authorities = keeper.authorities
    api.fail(503, "ServiceUnavailable", times=100)
    task = asyncio.create_task(keeper.run())
    while not keeper.faults:  # noqa: ASYNC110 -- the fault is counted in passing, nothing announces it
        await asyncio.sleep(0)
    task.cancel()

    assert keeper.ready
    assert await _served(keeper, authorities)


async def test_certificates_of_another_issuer_are_served_and_never_written(
    api: Any, cluster: Cluster, real_clock: Any
) -> None:
    """With cert-manager the Secret is read and reloaded; neither it nor the webhook configuration is written."""
    await _keeper(cluster, real_clock).look()
    api.writes.clear()
    reader = _keeper(cluster, real_clock, issue=False)

    await reader.look()

    assert reader.ready
    assert api.writes == []


async def test_a_secret_that_another_issuer_has_not_written_yet_is_waited_for(cluster: Cluster, clock: Any) -> None:
    """No certificate, not ready, no fault."""
    keeper = _keeper(cluster, clock, issue=False)

    await keeper.look()

    assert not keeper.ready
    assert keeper.faults == 0


async def test_nothing_is_served_before_it_is_trusted(api: Any, cluster: Cluster, real_clock: Any) -> None:
    """While the webhook configuration cannot be reached, the old certificate is served on, and then the new one."""
    keeper = _keeper(cluster, real_clock)
    real_clock.now -= 61 * 86_400
    await keeper.look()
    before = keeper.expires_at
    real_clock.now += 61 * 86_400
    api.fail(503, "ServiceUnavailable", path="mutatingwebhookconfigurations")
    with pytest.raises(UnavailableError):
        await keeper.look()
    assert keeper.expires_at == before
    assert keeper.ready

    await keeper.look()

    assert keeper.expires_at > before
    assert await _served(keeper, _trusted(api)[0])
