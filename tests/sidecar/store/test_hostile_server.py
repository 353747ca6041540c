"""A server that is slow, stalls, talks nonsense or refuses: calls go on, and what is wrong with it is told."""

from __future__ import annotations

import random
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

REQUESTS_PER_MINUTE = 4000
DOCS = Path(__file__).parents[3] / "docs" / "quotas.md"

_shared = sys.modules["sharing"]


class Fault(NamedTuple):
    """What a proxy does to answers, for how long it holds them, and what is said of it."""

    treat: Callable[[bytes], bytes | None]
    error: str
    seconds: Callable[[], float] = float


def instead(text: str) -> Callable[[bytes], bytes | None]:
    """Answer everything with this line."""
    return lambda _: f"{text}\r\n".encode()


_draw = random.Random(1)
FAULTS = {
    "slow": Fault(bytes, "did not answer in time", lambda: _draw.uniform(0, 2)),
    "stalls without closing": Fault(lambda _: b"", "did not answer in time"),
    "half an answer": Fault(lambda answer: answer[: len(answer) // 2], "did not answer in time"),
    "half an answer, then cut": Fault(lambda _: None, "cannot be reached"),
    "every answer twice": Fault(lambda answer: answer + answer, "the store"),
    "loading": Fault(instead("-LOADING Redis is loading the dataset in memory"), "still loading"),
    "replica": Fault(instead("-READONLY You can't write against a read only replica."), "replica"),
    "out of memory": Fault(instead("-OOM command not allowed when used memory > 'maxmemory'."), "out of memory"),
    "cluster is down": Fault(instead("-CLUSTERDOWN The cluster is down"), "cluster is down"),
    "no referral": Fault(instead("-MOVED nowhere"), "cannot be reached"),
    "no text": Fault(lambda _: b"\x00\xff\xfe*9999999\r\n\r\n-\xff\r\n", "the store"),
    "another answer": Fault(instead("*2\r\n:1\r\n+yes"), "the store"),
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("names", [list(FAULTS)[:6], list(FAULTS)[6:]], ids=["late", "wrong"])
def test_calls_go_on_whatever_the_server_does(
    start: Any, client: Any, mock: Any, policies: Any, serve: Any, proxy: Any, names: list[str]
) -> None:
    """No call waits for it, metric and status say what is wrong, and all is well again when it answers."""
    server = serve()
    before = proxy(server)
    snapshot = _shared.policy(policies, mock, f"redis://localhost:{before.port}", REQUESTS_PER_MINUTE)
    sidecar = _shared.settled(start(snapshot), server)
    chat = client(sidecar.base_url)
    for name in names:
        fault = FAULTS[name]
        before.treat, before.seconds = fault.treat, fault.seconds
        sidecar.wait_until(lambda fault=fault: fault.error in _shared.store(sidecar)["error"])
        began = time.perf_counter()
        assert _shared.admitted(chat, 5) == 5, name
        assert time.perf_counter() - began < 1.0, f"{name}: a call waited for the store"
        if name != "slow":  # which answers now and then
            assert sidecar.metric("sluice_store_healthy") == 0, name
        before.treat, before.seconds = bytes, float
        sidecar.wait_until(lambda: not _shared.store(sidecar)["error"])
    assert sidecar.metric("sluice_store_healthy") == 1
    assert len(mock.ledger) == 5 * len(names)


def test_a_server_that_is_reconfigured_says_so(start: Any, client: Any, mock: Any, policies: Any, serve: Any) -> None:
    """Made a replica, short of memory, with another password: each is told, and is over when it is mended."""
    server = serve("--requirepass", _shared.PASSWORD)
    file = _shared.PASSWORD_FILE.replace(".", "__")
    snapshot = _shared.policy(policies, mock, server.url, REQUESTS_PER_MINUTE, password_file=_shared.PASSWORD_FILE)
    sidecar = start(snapshot)
    sidecar.credentials.write(**policies.CREDENTIAL_FILES, **{file: _shared.PASSWORD})
    _shared.settled(sidecar, server, _shared.PASSWORD)
    chat = client(sidecar.base_url)

    def says(error: str) -> None:
        sidecar.wait_until(lambda: error in _shared.store(sidecar)["error"] and (error or _healthy(sidecar)))
        assert _shared.admitted(chat, 2) == 2

    with server.admin(_shared.PASSWORD) as admin:
        admin.replicaof("127.0.0.1", "1")
        says("replica")
        admin.replicaof("NO", "ONE")
        says("")
        admin.config_set("maxmemory", 1)
        says("out of memory")
        admin.config_set("maxmemory", 0)
        says("")
        admin.config_set("requirepass", "planted-next-redis-password")
        admin.client_kill_filter(_type="normal", skipme=True)
        says("refuses the user or password")
        sidecar.credentials.write(**policies.CREDENTIAL_FILES, **{file: "planted-next-redis-password"})
        says("")
    assert b"planted-next-redis-password" not in sidecar.output()


def _healthy(sidecar: Any) -> bool:
    return not _shared.store(sidecar)["error"]


def test_what_is_evicted_is_not_believed(start: Any, client: Any, mock: Any, policies: Any, serve: Any) -> None:
    """A server that drops keys for want of memory makes no pod exceed what is there."""
    server = serve("--maxmemory-policy", "allkeys-random")
    sidecars = [_shared.settled(start(_shared.policy(policies, mock, server.url)), server) for _ in range(2)]
    chats = [client(each.base_url) for each in sidecars]
    total = sum(_shared.admitted(chat, 5) for chat in chats)
    with server.admin() as admin:
        admin.config_set("maxmemory", 1)  # every call finds nothing any more
        for each in sidecars:
            each.wait_until(lambda each=each: _shared.store(each)["learningSeconds"] > 80)
        total += sum(_shared.admitted(chat, 10) for chat in chats)
        admin.config_set("maxmemory", 0)
        sidecars[0].wait_until(lambda: admin.dbsize() > 1)
    total += sum(_shared.admitted(chat, 30) for chat in chats)
    assert 10 < total <= 40


def acl() -> str:
    """The rights that the documentation asks for."""
    found = re.search(r"ACL SETUSER sluice on '>[^']*' (.*)$", DOCS.read_text("utf-8"), re.MULTILINE)
    assert found is not None
    return found[1]


def test_the_documented_rights_are_enough(start: Any, client: Any, mock: Any, policies: Any, serve: Any) -> None:
    """A user with no more than these takes slices; if it is left without its keys, the status says so."""
    server = serve()
    rights = acl().replace("'", "").split()
    with server.admin() as admin:
        admin.execute_command("ACL", "SETUSER", "sluice", "on", f">{_shared.PASSWORD}", *rights)
        store = {"username": "sluice", "password_file": _shared.PASSWORD_FILE}
        sidecar = start(_shared.policy(policies, mock, server.url.removesuffix("0") + "1", **store))
        file = _shared.PASSWORD_FILE.replace(".", "__")
        sidecar.credentials.write(**policies.CREDENTIAL_FILES, **{file: _shared.PASSWORD})
        sidecar.wait_until(lambda: _shared.store(sidecar)["secondsSinceSuccess"] is not None)
        commands = [each for each in rights if each.startswith("+")]
        assert len(commands) > 10
        admin.execute_command("ACL", "SETUSER", "sluice", "resetkeys", "~other:*")
        sidecar.wait_until(lambda: "forbids" in _shared.store(sidecar)["error"])


def test_another_node_of_a_cluster_is_found(
    start: Any, mock: Any, policies: Any, serve: Any, proxy: Any, port: int
) -> None:
    """A node that does not have the account refers to the one that does; all keys of an account are in one slot."""
    options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000")
    home = serve(*options, "--cluster-config-file", "home.conf", "--cluster-port", str(port))
    with home.admin() as admin:
        admin.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
    referring = proxy(home)
    moved = f"-MOVED 1 127.0.0.1:{home.port}\r\n".encode()
    referring.treat = lambda answer: moved if answer[:1] == b"*" or b"NOSCRIPT" in answer else answer
    sidecar = start(_shared.policy(policies, mock, f"redis://localhost:{referring.port}"))
    sidecar.wait_until(lambda: _shared.store(sidecar)["secondsSinceSuccess"] is not None)
    with home.admin() as admin:
        keys = admin.keys("sluice:*")
        assert len(keys) == 1 + 3
        assert len({admin.execute_command("CLUSTER", "KEYSLOT", key) for key in keys}) == 1
