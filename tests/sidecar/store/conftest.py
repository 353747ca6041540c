"""Real Redis servers on free ports, and the script under a clock that the test sets."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import redis


def _load(name: str) -> None:
    """Import a module beside this file; test folders are no packages."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


_load("sharing")


class RedisServer:
    """One redis-server process. It keeps nothing on disk: a restart forgets everything."""

    def __init__(self, folder: Path, *options: str, tls: dict[str, str] | None = None) -> None:
        self.folder = folder
        self.port = 0
        self._options = options
        self._tls = tls
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False

    @property
    def url(self) -> str:
        """Return the address as a policy has it."""
        return f"{'rediss' if self._tls else 'redis'}://localhost:{self.port}/0"

    @property
    def pid(self) -> int:
        """Return the process id."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> RedisServer:
        """Start on the port of before, else on a free one."""
        for _ in range(20):
            self.port = self.port or free_port()
            self._process = subprocess.Popen(
                [_binary(), *self._listen(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
                 "--dir", str(self.folder), *self._options],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )  # fmt: skip
            if self._answers():
                return self
            self.kill()
            self.port = 0  # somebody else took it meanwhile
        raise AssertionError("no redis-server would start")

    def _listen(self) -> list[str]:
        if self._tls is None:
            return ["--port", str(self.port)]
        files = [word for name, path in self._tls.items() for word in (f"--tls-{name}", path)]
        return ["--port", "0", "--tls-port", str(self.port), "--tls-auth-clients", "no", *files]

    def _answers(self) -> bool:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and self._process is not None and self._process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as peer:
                if self._tls is None:
                    peer.sendall(b"PING\r\n")
                    return peer.recv(1) in (b"+", b"-")
                return True
            threading.Event().wait(0.01)
        return False

    def kill(self) -> None:
        """Kill -9."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Stop the process; its connections stay open, and nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on with all that was sent meanwhile."""
        os.kill(self.pid, signal.SIGCONT)

    @contextlib.contextmanager
    def admin(self, password: str | None = None) -> Iterator[redis.Redis]:
        """Return a client of the test's own."""
        with redis.Redis("127.0.0.1", self.port, password=password, socket_timeout=10) as client:
            yield client


class Proxy:
    """A TCP proxy before a server that does to its answers what `treat` says: a function of the bytes to the client.

    It returns the bytes to send, or None for a connection that is cut then; `seconds` is how long it waits before.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._peers: list[socket.socket] = []
        self.port: int = self._listener.getsockname()[1]
        self.treat: Callable[[bytes], bytes | None] = bytes
        self.seconds: Callable[[], float] = float
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._peers.append(client)
                with contextlib.suppress(OSError):
                    server = socket.create_connection(("127.0.0.1", self._target))
                    self._peers.append(server)
                    threading.Thread(target=self._pump, args=(client, server, False), daemon=True).start()
                    threading.Thread(target=self._pump, args=(server, client, True), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while (found := source.recv(65_536)) or not answers:
                if answers:
                    threading.Event().wait(self.seconds())
                treated = self.treat(found) if answers else found
                if not found or treated is None:
                    break
                sink.sendall(treated)
        for each in (source, sink):
            _cut(each)

    def close(self) -> None:
        """Cut all connections and listen no more."""
        for each in (self._listener, *self._peers):
            _cut(each)
            each.close()


def _cut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _binary() -> str:
    found = shutil.which("redis-server")
    if found is None:
        message = "these tests need redis-server (Debian: apt-get install redis-server)"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


Serve = Callable[..., RedisServer]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start servers of the test's own, to be killed, paused and flushed."""
    running: list[RedisServer] = []

    def start(*options: str, **settings: Any) -> RedisServer:
        running.append(RedisServer(tmp_path, *options, **settings))
        return running[-1].start()

    yield start
    for server in running:
        server.kill()


@pytest.fixture
def proxy() -> Iterator[Callable[[RedisServer], Proxy]]:
    """Put proxies before servers."""
    running: list[Proxy] = []

    def start(server: RedisServer) -> Proxy:
        running.append(Proxy(server.port))
        return running[-1]

    yield start
    for each in running:
        each.close()


@pytest.fixture
def port() -> int:
    """A port that nobody uses."""
    return free_port()


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """The server of the session, for tests that use accounts of their own and leave it as it is."""
    server = RedisServer(tmp_path_factory.mktemp("redis")).start()
    yield server
    server.kill()


class TimedScript:
    """The script on a real server, with the time read from a key instead of the server's clock."""

    def __init__(self, client: redis.Redis) -> None:
        text = resources.files("sluice_sidecar.store").joinpath("slices.lua").read_text("utf-8")
        assert text.count("redis.call('TIME')") == 1
        self.client = client
        self._script = client.register_script(
            text.replace("redis.call('TIME')", "redis.call('LRANGE', KEYS[1] .. ':clock', 0, 1)")
        )

    def call(self, keys: Any, arguments: Any, now_ms: int) -> list[int]:
        """Return the script's answer at a time."""
        clock = f"{keys[0]}:clock"
        self.client.delete(clock)
        self.client.rpush(clock, now_ms // 1000, now_ms % 1000 * 1000)
        return list(self._script(keys=keys, args=arguments))


@pytest.fixture(scope="session")
def timed(shared_server: RedisServer) -> Iterator[TimedScript]:
    """The script under a clock that the test sets."""
    with shared_server.admin() as client:
        yield TimedScript(client)


@pytest.fixture
def policies() -> Any:
    """The snapshots of the folder above."""
    return sys.modules["policies"]
