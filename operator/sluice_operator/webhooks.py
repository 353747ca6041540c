"""Asks outside judges about rollouts: quality scorers, red-team suites, approval systems.

One POST with the figures of both arms, one verdict back: Pass, Fail or Wait. Whatever else happens is Error, which
decides nothing. Asking never holds up the loop, which finds the answers at its next round.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Collection
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import aiohttp
import msgspec
import structlog
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

from sluice_core.api.base import SecretKeyRef
from sluice_core.rollout.observation import Answer, Question, WebhookAnswer

MAX_AT_ONCE: Final = 16
MAX_IN_HAND: Final = 512
MAX_ANSWER_BYTES: Final = 65_536
MAX_MESSAGE_CHARACTERS: Final = 200
ATTEMPTS: Final = 3
BACKOFF_SECONDS: Final = 0.5

_log = structlog.get_logger()


class SecretError(Exception):
    """The value of an Authorization header cannot be had. The message holds nothing of it."""


class Secrets(Protocol):
    """Where the Authorization header of a webhook comes from."""

    async def authorization(self, namespace: str, reference: SecretKeyRef) -> str:
        """Return the header's value.

        Raises:
            SecretError: there is none that can be sent.
        """


class _Body(msgspec.Struct):
    verdict: Answer
    message: str = ""


class Webhooks:
    """Asks in the background and keeps the last answer of each webhook of each split.

    Args:
        secrets: has the values of the webhooks' Authorization headers.
        answered: set whenever an answer has come, or the attempt has failed.
        allow_local: whether addresses of this machine may be asked; only tests and local mode want that.
    """

    def __init__(self, secrets: Secrets, *, answered: asyncio.Event, allow_local: bool = False) -> None:
        self._secrets = secrets
        self._answered = answered
        self._allow_local = allow_local
        self._gate = asyncio.Semaphore(MAX_AT_ONCE)
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._answers: dict[str, dict[str, WebhookAnswer]] = {}

    def ask(self, split: str, question: Question) -> bool:
        """Begin to ask on behalf of a split, by its key; tell whether that was begun.

        A webhook that still owes an answer about this split is not asked again.
        """
        key = (split, question.name)
        if key in self._tasks or len(self._tasks) >= MAX_IN_HAND:
            return False
        task = asyncio.create_task(self._settle(split, question))
        self._tasks[key] = task
        task.add_done_callback(lambda _: self._tasks.pop(key, None))
        return True

    def answers(self, split: str) -> tuple[WebhookAnswer, ...]:
        """Return the last answer of each webhook that was asked about a split."""
        return tuple(self._answers.get(split, {}).values())

    def keep(self, splits: Collection[str]) -> None:
        """Drop what is known of all other splits."""
        for gone in set(self._answers) - set(splits):
            del self._answers[gone]

    async def close(self) -> None:
        """Stop asking."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _settle(self, split: str, question: Question) -> None:
        async with self._gate:
            try:
                async with asyncio.timeout(question.timeout_seconds):
                    answer, message = await self._ask(split.partition("/")[0], question)
            except TimeoutError:
                answer, message = Answer.ERROR, f"no answer within {question.timeout_seconds} s"
            except SecretError as error:
                answer, message = Answer.ERROR, str(error)
        # Neither address nor answer is logged: both may carry what only the two of them should know.
        _log.info("webhook_answered", split=split, webhook=question.name, answer=answer.value)
        self._answers.setdefault(split, {})[question.name] = WebhookAnswer(
            name=question.name,
            revision=question.revision,
            step=question.step,
            answer=answer,
            message=message[:MAX_MESSAGE_CHARACTERS],
        )
        self._answered.set()

    async def _ask(self, namespace: str, question: Question) -> tuple[Answer, str]:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if question.secret_ref is not None:
            headers["Authorization"] = await self._secrets.authorization(namespace, question.secret_ref)
        if not self._allow_local and is_local(urlsplit(question.url).hostname or ""):
            return Answer.ERROR, "its address is that of a machine itself, which is never asked"
        resolver = None if self._allow_local else OutsideResolver()
        connector = aiohttp.TCPConnector(resolver=resolver, force_close=True)
        async with aiohttp.ClientSession(connector=connector, headers=headers, auto_decompress=False) as session:
            body = msgspec.json.encode(question.payload)
            for attempt in range(1, ATTEMPTS + 1):
                answer, message, final = await _post(session, question.url, body)
                if final or attempt == ATTEMPTS:
                    break
                await asyncio.sleep(BACKOFF_SECONDS * 2 ** (attempt - 1))
            return answer, message


async def _post(session: aiohttp.ClientSession, url: str, body: bytes) -> tuple[Answer, str, bool]:
    """Return the verdict, what was said, and whether asking again is pointless."""
    try:
        # A redirect could lead anywhere, with our header in hand.
        async with session.post(url, data=body, allow_redirects=False) as response:
            if response.status >= 500 or response.status == 429:
                return Answer.ERROR, f"it answered {response.status}", False
            if response.status != 200:
                return Answer.ERROR, f"it answered {response.status}", True
            text = await response.content.read(MAX_ANSWER_BYTES + 1)
            while len(text) <= MAX_ANSWER_BYTES and (more := await response.content.read(MAX_ANSWER_BYTES)):
                text += more
    except (aiohttp.ClientError, OSError) as error:
        return Answer.ERROR, f"it cannot be reached ({type(error).__name__})", False
    if len(text) > MAX_ANSWER_BYTES:
        return Answer.ERROR, f"its answer is longer than {MAX_ANSWER_BYTES} bytes", True
    try:
        answer = msgspec.json.decode(text, type=_Body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Answer.ERROR, 'its answer is not {"verdict": "Pass", "Fail" or "Wait", "message": ...}', True
    message = "".join(character for character in answer.message if character.isprintable())
    return answer.verdict, message, True


def is_local(host: str) -> bool:
    """Tell whether a literal address is of this machine or of its link: loopback, metadata services, unspecified."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host.lower().rstrip(".") == "localhost"
    mapped = getattr(address, "ipv4_mapped", None) or address
    return bool(mapped.is_loopback or mapped.is_link_local or mapped.is_unspecified or mapped.is_multicast)


class OutsideResolver(AbstractResolver):
    """Resolves names, but to no address of this machine or its link, whatever a name's owner says."""

    def __init__(self) -> None:
        self._resolver = ThreadedResolver()

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[ResolveResult]:
        """Return the addresses of a name that may be asked."""
        found = await self._resolver.resolve(host, port, family)
        outside = [each for each in found if not is_local(each["host"])]
        if not outside:
            raise OSError(f"{len(found)} addresses, none of which may be asked")
        return outside

    async def close(self) -> None:
        """Close the resolver underneath."""
        await self._resolver.close()
