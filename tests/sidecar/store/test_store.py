"""Sidecars that share an account through a real Redis server, which is killed, paused, flushed and slow."""

from __future__ import annotations

import datetime as dt
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from sluice_operator import certificates
from sluice_sidecar.store.redis_link import StoreError, address_of

_sharing = sys.modules["sharing"]
PASSWORD, PASSWORD_FILE, SAFE = _sharing.PASSWORD, _sharing.PASSWORD_FILE, _sharing.SAFE
admitted, held, policy, settled, store = (
    _sharing.admitted, _sharing.held, _sharing.policy, _sharing.settled, _sharing.store
)  # fmt: skip
Client = Callable[..., openai.OpenAI]


def test_sidecars_never_exceed_the_account_together(
    start: Any, client: Client, mock: Any, policies: Any, serve: Any
) -> None:
    """Three of them ask for twice the limit; the account sees no more than it, and most of it is used."""
    server = serve()
    snapshot = policy(policies, mock, server.url)
    sidecars = [settled(start(snapshot), server) for _ in range(3)]
    assert all(each.status()["allocations"][0]["grantedRequests"] > SAFE for each in sidecars)
    counts: list[int] = []

    def work(sidecar: Any) -> None:
        chat, end = client(sidecar.base_url), time.monotonic() + 4
        total = 0
        while time.monotonic() < end:
            total += admitted(chat, 2)
            threading.Event().wait(0.05)
        counts.append(total)

    threads = [threading.Thread(target=work, args=(each,)) for each in sidecars]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0.8 * 40 <= sum(counts) <= 40
    assert len(mock.ledger) == sum(counts)


def test_a_killed_sidecar_keeps_its_slice_until_it_has_expired(
    start: Any, client: Client, mock: Any, policies: Any, serve: Any
) -> None:
    """What it used and held is not given to others within the window; whoever stops in order gives back the rest."""
    server = serve()
    snapshot = policy(policies, mock, server.url)
    killed, other = (settled(start(snapshot), server) for _ in range(2))
    used = admitted(client(killed.base_url), 10)
    killed.process.kill()
    assert used + admitted(client(other.base_url), 40) <= 40
    with server.admin() as admin:
        assert admin.hlen("sluice:{shop}:requests::pods") == 2
    assert other.terminate() == 0
    with server.admin() as admin:
        assert admin.hlen("sluice:{shop}:requests::pods") == 2, "what was used has yet to leave the window"


def test_without_the_store_calls_go_on_and_never_wait_for_it(
    start: Any, client: Client, mock: Any, policies: Any, serve: Any
) -> None:
    """While the server is paused calls are admitted from the lease as fast as ever; then it is gone, and comes back."""
    server = serve()
    sidecar = settled(start(policy(policies, mock, server.url)), server)
    chat = client(sidecar.base_url)
    assert admitted(chat, 1) == 1
    server.pause()
    sidecar.wait_until(lambda: bool(store(sidecar)["error"]))
    assert store(sidecar)["error"] == "the store did not answer in time"
    before = time.perf_counter()
    assert admitted(chat, 5) == 5
    assert time.perf_counter() - before < 1.0, "a call waited for the store, which takes a second to give up"
    record = sidecar.records(6)[-1]
    assert record["outcome"] == "Success"
    server.resume()
    sidecar.wait_until(lambda: not store(sidecar)["error"])
    server.kill()
    sidecar.wait_until(lambda: store(sidecar)["error"].startswith("the store cannot be reached"))
    assert sidecar.metric("sluice_store_healthy") == 0
    assert admitted(chat, 1) == 1
    server.start()
    sidecar.wait_until(lambda: not store(sidecar)["error"])
    assert sidecar.metric("sluice_store_healthy") == 1


def test_a_store_that_has_forgotten_gives_out_nothing_new(
    start: Any, client: Client, mock: Any, policies: Any, serve: Any
) -> None:
    """After a flush or a restart pods keep what they hold; a new one gets what they give back, and its safe share."""
    server = serve()
    snapshot = policy(policies, mock, server.url)
    first = settled(start(snapshot), server)
    used = admitted(client(first.base_url), 10)
    assert used == 10
    kept = held(first)
    with server.admin() as admin:
        admin.flushall()
        first.wait_until(lambda: bool(admin.exists("sluice:{shop}")))
    first.wait_until(lambda: store(first)["learningSeconds"] > 80)
    second = start(snapshot)
    second.wait_until(lambda: store(second)["secondsSinceSuccess"] is not None)
    assert first.metric("sluice_store_learning") == 1
    assert SAFE <= held(first) <= kept
    assert held(second) + held(first) <= kept + SAFE
    assert used + admitted(client(first.base_url), 40) + admitted(client(second.base_url), 40) <= 40


def test_the_script_is_loaded_again_when_the_server_has_dropped_it(
    start: Any, client: Client, mock: Any, policies: Any, serve: Any
) -> None:
    """A server that has flushed its scripts is no fault."""
    server = serve()
    sidecar = settled(start(policy(policies, mock, server.url)), server)
    with server.admin() as admin:
        admin.script_flush()
        sidecar.wait_until(lambda: admin.info("memory")["number_of_cached_scripts"] == 1)
    assert sidecar.metric("sluice_store_failures_total") == 0


def test_the_password_comes_from_a_file_and_is_in_no_output(
    start: Any, client: Client, mock: Any, policies: Any, serve: Any
) -> None:
    """Without it, and with a wrong one, the status says what to mend; a mounted right one is used without a restart."""
    server = serve("--requirepass", PASSWORD)
    sidecar = start(policy(policies, mock, server.url, password_file=PASSWORD_FILE))
    sidecar.wait_until(lambda: "not mounted" in store(sidecar)["error"])
    keys = policies.CREDENTIAL_FILES
    file = PASSWORD_FILE.replace(".", "__")
    sidecar.credentials.write(**keys, **{file: "planted-wrong-password"})
    sidecar.wait_until(lambda: "refuses the user or password" in store(sidecar)["error"])
    assert "refuses the user or password" in sidecar.status()["allocations"][0]["storeError"]
    assert admitted(client(sidecar.base_url), 3) == SAFE
    sidecar.credentials.write(**keys, **{file: PASSWORD})
    settled(sidecar, server, PASSWORD)
    said = sidecar.output() + "".join(sidecar.admin(page)[1] for page in ("/status", "/metrics")).encode()
    assert b"planted-wrong-password" not in said
    assert PASSWORD.encode() not in said


def test_tls_is_checked_against_the_policys_authority(
    start: Any, mock: Any, policies: Any, serve: Any, tmp_path: Path
) -> None:
    """A server of a private authority is believed where the policy brings its certificate, and only there."""
    bundle = certificates.renew(None, ("localhost",), dt.datetime.now(dt.UTC))
    assert bundle is not None
    files = {"cert-file": bundle.certificate, "key-file": bundle.key, "ca-cert-file": bundle.trusted}
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    server = serve(tls={name: str(tmp_path / name) for name in files})
    trusting = start(policy(policies, mock, server.url, ca_bundle=bundle.trusted))
    strict = start(policy(policies, mock, server.url))
    trusting.wait_until(lambda: store(trusting)["secondsSinceSuccess"] is not None)
    strict.wait_until(lambda: store(strict)["error"].startswith("the store cannot be reached"))
    assert store(strict)["secondsSinceSuccess"] is None


@pytest.mark.parametrize(
    "url", ["redis://", "http://x", "redis://h:port", "redis://u:secret@h", "redis://h?password=x"]
)
def test_an_address_that_is_none_is_told_without_repeating_it(url: str) -> None:
    """Whatever stands in the address, a password perhaps, is not in the message."""
    with pytest.raises(StoreError) as raised:
        address_of(url)
    assert "spec.store.url" in str(raised.value)
    assert "secret" not in str(raised.value)
