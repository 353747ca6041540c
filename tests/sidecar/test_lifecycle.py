"""From start to stop: ready with a policy, following its changes, drained at SIGTERM, whole again after kill -9."""

from __future__ import annotations

import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from sluice_core.snapshot import FallbackPolicy, TargetPolicy, encode, seal

Client = Callable[..., openai.OpenAI]
MESSAGES: Any = [{"role": "user", "content": "planted prompt about the purple submarine"}]


@pytest.fixture
def policies() -> Any:
    """The snapshots of this folder."""
    return sys.modules["policies"]


def create(client: openai.OpenAI, **fields: Any) -> Any:
    """Make a chat call; return the raw answer, errors included."""
    try:
        return client.chat.completions.with_raw_response.create(
            **{"model": "gpt-4.1-mini", "messages": MESSAGES, **fields}
        )
    except openai.APIStatusError as error:
        return error.response


def test_it_is_not_ready_before_its_first_policy(start: Any, client: Client, mock: Any, policies: Any) -> None:
    """Until then calls are told to come back; then it becomes ready by itself."""
    sidecar = start()
    assert sidecar.admin("/livez")[0] == 200
    assert sidecar.admin("/readyz")[0] == 503
    refused = create(client(sidecar.base_url))
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_configured")
    sidecar.apply(policies.plain(mock.base_url))
    sidecar.wait_until(lambda: sidecar.admin("/readyz")[0] == 200)
    assert create(client(sidecar.base_url)).status_code == 200


def test_it_may_pass_calls_through_before_its_first_policy(start: Any) -> None:
    """Where the namespace wants it so, it is ready at once."""
    sidecar = start(SLUICE_WHEN_UNCONFIGURED="PassThrough")
    assert sidecar.admin("/readyz")[0] == 200
    assert sidecar.status()["revision"] == "pass-through"


def test_a_new_policy_is_followed_and_a_bad_one_is_not(start: Any, client: Client, mock: Any, policies: Any) -> None:
    """A good one is in force within a second; a bad one is rejected whole, said so, and mended by the next."""
    sidecar = start(policies.plain(mock.base_url))
    good = seal(policies.plain(mock.base_url))
    cut = encode(good)[:-20]
    edited = encode(good).replace(b'"primary"', b'"primary2"')
    for bad in (cut, edited):
        sidecar.config.write(snapshot__json=bad)
        sidecar.wait_until(lambda: bool(sidecar.status()["configError"]))
        assert sidecar.status()["revision"] == good.revision
        assert sidecar.metric("sluice_policy_good") == 0
        assert create(client(sidecar.base_url)).status_code == 200
        revision = sidecar.apply(policies.plain(mock.base_url))
        sidecar.wait_until(lambda: not sidecar.status()["configError"])
        assert sidecar.status()["revision"] == revision
    target = TargetPolicy(name="main", upstream="team/openai", model="gpt-4.1")
    sidecar.runs(
        sidecar.apply(policies.snapshot(policies.upstream(mock.base_url), rules=(policies.rule(targets=(target,)),)))
    )
    create(client(sidecar.base_url))
    assert mock.ledger.last.model_requested == "gpt-4.1"


def test_a_call_in_flight_ends_under_the_policy_it_began_with(
    start: Any, client: Client, mock: Any, policies: Any
) -> None:
    """Its upstream disappears from the policy in mid-stream; the stream comes to its end."""
    sidecar = start(policies.plain(mock.base_url))
    mock.faults.add(events=40, gap_seconds=0.03)
    stream = client(sidecar.base_url).chat.completions.create(model="gpt-4.1-mini", messages=MESSAGES, stream=True)
    next(iter(stream))
    rule = policies.rule(targets=(TargetPolicy(name="gone", upstream="team/gone"),))
    other = policies.upstream("http://127.0.0.1:1/v1", key="team/other")
    sidecar.runs(sidecar.apply(policies.snapshot(other, rules=(rule,))))
    assert [choice.finish_reason for chunk in stream for choice in chunk.choices][-1] == "stop"


def test_its_labels_choose_its_routes_and_may_change(
    start: Any, client: Client, mock: Any, policies: Any, tmp_path: Path
) -> None:
    """The downward API's file is read again when it changes."""
    from sluice_core.api.base import LabelSelector
    from sluice_core.snapshot import RoutePolicy, Snapshot

    def route(app: str, model: str) -> RoutePolicy:
        rule = policies.rule(targets=(TargetPolicy(name="main", upstream="team/openai", model=model),))
        return RoutePolicy(key=f"team/{app}", workloads=LabelSelector(match_labels={"app": app}), rules=(rule,))

    sidecar_snapshot = Snapshot(
        namespace="team",
        upstreams=(policies.upstream(mock.base_url),),
        routes=(route("chat", "gpt-4.1"), route("batch", "gpt-4.1-nano")),
    )
    mount = sys.modules["sidecars"].Mount(tmp_path / "pod")
    mount.write(labels='app="chat"\ntier="a=b"\n')
    again = start(sidecar_snapshot, SLUICE_LABELS="", SLUICE_LABELS_FILE=str(mount.path / "labels"))
    api = client(again.base_url)
    create(api)
    assert mock.ledger.last.model_requested == "gpt-4.1"
    assert again.status()["labels"] == {"app": "chat", "tier": "a=b"}
    mount.write(labels='app="batch"\n')
    again.wait_until(lambda: again.status()["labels"] == {"app": "batch"})
    create(api)
    assert mock.ledger.last.model_requested == "gpt-4.1-nano"


def test_sigterm_lets_streams_end_and_says_everything(start: Any, client: Client, mock: Any, policies: Any) -> None:
    """It is unready at once, the stream comes to its end, the record is written, and the exit status is 0."""
    sidecar = start(policies.plain(mock.base_url))
    mock.faults.add(events=50, gap_seconds=0.04)
    stream = client(sidecar.base_url).chat.completions.create(model="gpt-4.1-mini", messages=MESSAGES, stream=True)
    next(iter(stream))
    sidecar.process.send_signal(signal.SIGTERM)
    sidecar.wait_until(lambda: any(b"draining" in line for line in sidecar.stderr))
    assert sidecar.admin("/readyz")[0] == 503
    assert [choice.finish_reason for chunk in stream for choice in chunk.choices][-1] == "stop"
    assert sidecar.wait() == 0
    assert sidecar.records(1)[0]["outcome"] == "Success"


@pytest.mark.parametrize("how", ["grace period over", "second signal"])
def test_what_does_not_end_in_time_is_ended_honestly(
    start: Any, client: Client, mock: Any, policies: Any, how: str
) -> None:
    """The application gets an error event and no [DONE]; the call is recorded."""
    grace = "0.3" if how == "grace period over" else "60"
    sidecar = start(policies.plain(mock.base_url), SLUICE_GRACE_SECONDS=grace)
    mock.faults.add(events=400, gap_seconds=0.05)
    stream = client(sidecar.base_url).chat.completions.create(model="gpt-4.1-mini", messages=MESSAGES, stream=True)
    next(iter(stream))
    sidecar.process.send_signal(signal.SIGTERM)
    if how == "second signal":
        sidecar.wait_until(lambda: sidecar.admin("/readyz")[0] == 503)
        sidecar.process.send_signal(signal.SIGTERM)
    with pytest.raises(openai.APIError, match="broke off"):
        list(stream)
    assert sidecar.wait() == 0
    assert len(sidecar.records(1)) == 1


def test_after_kill_9_a_restart_serves_again(start: Any, client: Client, mock: Any, policies: Any) -> None:
    """The stream that was cut is cut; nothing has to be cleaned up before the next start."""
    sidecar = start(policies.plain(mock.base_url))
    fault = mock.faults.add(events=400, gap_seconds=0.05)
    stream = client(sidecar.base_url).chat.completions.create(model="gpt-4.1-mini", messages=MESSAGES, stream=True)
    next(iter(stream))
    sidecar.kill()
    with pytest.raises((openai.APIConnectionError, OSError)):
        list(stream)
    mock.faults.remove(fault)
    sidecar.start()
    assert create(client(sidecar.base_url)).status_code == 200


def test_it_stays_small(start: Any, mock: Any, policies: Any) -> None:
    """An idle process takes little memory."""
    sidecar = start(policies.plain(mock.base_url))
    status = Path(f"/proc/{sidecar.process.pid}/status").read_text()
    resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    assert resident < 60 * 1024


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("SLUICE_LISTEN", "nonsense"),
        ("SLUICE_LISTEN", "10.0.0.1:80"),
        ("SLUICE_ADMIN", "0.0.0.0:99999"),
        ("SLUICE_GRACE_SECONDS", "soon"),
        ("SLUICE_WHEN_UNCONFIGURED", "Maybe"),
        ("SLUICE_SYNC_URL", "ftp://x"),
        ("SLUICE_LABELS", "app"),
    ],
)
def test_a_wrong_setting_is_named(variable: str, value: str) -> None:
    """The message says which variable is wrong."""
    from sluice_sidecar.settings import SettingsError, load

    with pytest.raises(SettingsError, match=variable):
        load({variable: value})


def test_two_policies_at_once_leave_no_gap(start: Any, client: Client, mock: Any, policies: Any) -> None:
    """Under a stream of swaps every call is answered."""
    sidecar = start(policies.plain(mock.base_url))
    stop = threading.Event()
    statuses: set[int] = set()

    def call() -> None:
        api = client(sidecar.base_url)
        while not stop.is_set():
            statuses.add(create(api).status_code)

    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for number in range(4):
            fallback = FallbackPolicy(static_message=f"{number}")
            rule = policies.rule(fallbacks=(fallback,))
            sidecar.runs(sidecar.apply(policies.snapshot(policies.upstream(mock.base_url), rules=(rule,))))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert statuses == {200}
    with socket.create_connection(("127.0.0.1", sidecar.port), timeout=2):
        pass
