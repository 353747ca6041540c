"""The server as a value: start it, point a client at its base URL, read its ledger, stop it."""

import asyncio
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from aiohttp import streams, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import RawRequestMessage

from sluice_cli.mock.app import App
from sluice_cli.mock.faults import Fault, FaultBook
from sluice_cli.mock.identity import KeyRing
from sluice_cli.mock.ledger import Ledger
from sluice_cli.mock.limiter import ModelLimit, RateLimiter
from sluice_cli.mock.state import State

_MAX_BODY_BYTES: Final = 1 << 30
_BACKLOG: Final = 4096
_SHUTDOWN_SECONDS: Final = 0.5
_MAX_HEADER_BYTES: Final = 64 * 1024


def _request(
    message: RawRequestMessage,
    payload: streams.StreamReader,
    protocol: web.RequestHandler,
    writer: AbstractStreamWriter,
    task: "asyncio.Task[None]",
) -> web.BaseRequest:
    """Make a request whose body may be as large as a file upload."""
    loop = asyncio.get_running_loop()
    return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=_MAX_BODY_BYTES)


class MockOpenAI:
    """
    An OpenAI server on a local port, for tests, the demo and local mode.

    `keys` maps names to the secrets that are valid; without it any `sk-...` is. `models` are those that exist;
    without it all do. `seed` fixes every random draw. In a `stable` server ids and times in answers depend on
    the request alone, so that two equal requests get equal bytes. `port` 0 picks a free one.

    Use as `async with MockOpenAI() as mock: ... mock.base_url, mock.ledger, mock.faults, mock.limiter`.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        faults: Iterable[Fault] = (),
        limits: Sequence[ModelLimit] = (),
        keys: Mapping[str, str] | None = None,
        models: Collection[str] | None = None,
        seed: int = 0,
        stable: bool = False,
        ledger_capacity: int = 100_000,
    ) -> None:
        self._host = host
        self._port = port
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._state = State(seed=seed, stable=stable, ledger_capacity=ledger_capacity)
        self._state.faults.replace(faults)
        self._state.limiter.configure(limits)
        self._app = App(self._state, KeyRing(keys), models)
        self._runner: web.ServerRunner | None = None
        self._site: web.TCPSite | None = None

    @property
    def base_url(self) -> str:
        """What `OPENAI_BASE_URL` is set to."""
        return f"{self.origin}/v1"

    @property
    def origin(self) -> str:
        """Scheme, host and port; the admin endpoints are under `/mock`."""
        return f"http://{self._host}:{self._port}"

    @property
    def port(self) -> int:
        """The port that is listened on, once started."""
        return self._port

    @property
    def ledger(self) -> Ledger:
        """What was served."""
        return self._state.ledger

    @property
    def faults(self) -> FaultBook:
        """The faults in force."""
        return self._state.faults

    @property
    def limiter(self) -> RateLimiter:
        """The rate limiter."""
        return self._state.limiter

    def reset(self) -> None:
        """Forget faults, ledger, counts and stored objects; start the random draws over."""
        self._state.reset()

    async def start(self) -> None:
        """Listen; `OSError` when the port is taken."""
        server = web.Server(
            self._app.handle,
            request_factory=_request,
            handler_cancellation=True,  # a client that goes away stops its own generation
            access_log=None,
            max_line_size=_MAX_HEADER_BYTES,
            max_field_size=_MAX_HEADER_BYTES,
        )
        self._runner = web.ServerRunner(server, shutdown_timeout=_SHUTDOWN_SECONDS)
        self._folder = tempfile.TemporaryDirectory(prefix="mock-openai-", ignore_cleanup_errors=True)
        self._state.folder = Path(self._folder.name)
        try:
            await self._runner.setup()
            await self.accept_connections()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Close every connection and remove stored files."""
        if self._runner is not None:
            await self._runner.cleanup()
        self._runner = self._site = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    async def refuse_connections(self) -> None:
        """Stop listening: new connections are refused, open ones go on."""
        if self._site is not None:
            await self._site.stop()
            self._site = None

    async def accept_connections(self) -> None:
        """Listen (again), on the same port."""
        if self._runner is None or self._site is not None:
            return
        site = web.TCPSite(self._runner, self._host, self._port, backlog=_BACKLOG)
        await site.start()
        self._site = site
        # What is bound is one socket: a host name that has several addresses is not what this is for.
        self._port = int(self._runner.addresses[-1][1])

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()
