"""Outside judges, asked over real HTTP."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from sluice_core.api.base import SecretKeyRef
from sluice_core.rollout.observation import Answer, Question
from sluice_operator import webhooks as webhook_module
from sluice_operator.kinds import SECRETS
from sluice_operator.webhook_secrets import ClusterSecrets
from sluice_operator.webhooks import Webhooks


class Judge:
    """An outside judge that answers from a list and keeps what it was asked."""

    def __init__(self) -> None:
        self.answers: list[web.Response | float] = []
        self.asked: list[tuple[dict[str, str], dict[str, object]]] = []
        self.url = ""

    async def reply(self, request: web.Request) -> web.Response:
        self.asked.append((dict(request.headers), await request.json()))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, float):
            await asyncio.sleep(answer)
            return web.Response()
        return web.Response(status=answer.status, body=answer.body, headers=answer.headers)


@pytest.fixture
async def judge() -> AsyncIterator[Judge]:
    handler = Judge()
    application = web.Application()
    application.router.add_post("/judge", handler.reply)
    async with TestServer(application) as server:
        handler.url = str(server.make_url("/judge"))
        yield handler


@pytest.fixture
async def asker(cluster, monkeypatch) -> AsyncIterator[Webhooks]:
    monkeypatch.setattr(webhook_module, "BACKOFF_SECONDS", 0.001)
    webhooks = Webhooks(ClusterSecrets(cluster), answered=asyncio.Event(), allow_local=True)
    yield webhooks
    await webhooks.close()


def question(judge: Judge, **values) -> Question:
    defaults = {"name": "quality", "url": judge.url, "timeout_seconds": 5, "revision": "r-1", "step": 2}
    return Question(**{**defaults, **values})


async def answer_to(webhooks: Webhooks, asked: Question):
    webhooks.ask("team/chat", asked)
    await webhooks._answered.wait()
    webhooks._answered.clear()
    return webhooks.answers("team/chat")[-1]


def says(verdict: str, message: str = "") -> web.Response:
    return web.json_response({"verdict": verdict, "message": message})


@pytest.mark.parametrize(
    ("replies", "expected", "requests"),
    [
        ([says("Pass", "0.93")], Answer.PASS, 1),
        ([says("Fail", "toxic")], Answer.FAIL, 1),
        ([says("Wait")], Answer.WAIT, 1),
        ([web.Response(status=503), says("Pass")], Answer.PASS, 2),
        ([web.Response(status=503)], Answer.ERROR, 3),
        ([web.Response(status=401)], Answer.ERROR, 1),
        ([web.Response(status=204)], Answer.ERROR, 1),
        ([web.Response(text="yes")], Answer.ERROR, 1),
        ([web.json_response({"verdict": "pass"})], Answer.ERROR, 1),
        ([web.Response(text="x" * 100_000)], Answer.ERROR, 1),
        ([web.Response(status=307, headers={"Location": "/judge"})], Answer.ERROR, 1),
    ],
)
async def test_only_a_clear_verdict_counts(asker, judge, replies, expected: Answer, requests: int):
    """Pass, Fail and Wait are taken as said; faults are retried where that can help, and are never a pass."""
    judge.answers = replies
    answer = await answer_to(asker, question(judge))
    assert (answer.answer, answer.revision, answer.step) == (expected, "r-1", 2)
    assert len(judge.asked) == requests


async def test_a_judge_that_does_not_answer_in_time_is_an_error(asker, judge):
    """The timeout holds for the whole question, retries included."""
    judge.answers = [30.0]
    answer = await answer_to(asker, question(judge, timeout_seconds=0))
    assert answer.answer is Answer.ERROR


async def test_the_authorization_comes_from_the_secret_of_the_splits_namespace(asker, judge, api, capsys):
    """The header is sent to the judge and appears nowhere else."""
    api.put(SECRETS, "judge", "team", data={"token": base64.b64encode(b"Bearer t0ps3cret\n").decode()})
    judge.answers = [says("Pass")]
    reference = SecretKeyRef(name="judge", key="token")
    answer = await answer_to(asker, question(judge, secret_ref=reference, payload={"step": 2}))
    headers, body = judge.asked[0]
    assert (headers["Authorization"], body) == ("Bearer t0ps3cret", {"step": 2})
    assert "t0ps3cret" not in repr(answer) + "".join(capsys.readouterr())


@pytest.mark.parametrize(
    "data", [None, {"other": "eA=="}, {"token": "!"}, {"token": base64.b64encode(b"a\r\nb: c").decode()}]
)
async def test_without_a_usable_secret_the_judge_is_not_asked(asker, judge, api, data):
    """A missing Secret, a missing key, or a value that is no header is an error, not a request without it."""
    if data is not None:
        api.put(SECRETS, "judge", "team", data=data)
    judge.answers = [says("Pass")]
    answer = await answer_to(asker, question(judge, secret_ref=SecretKeyRef(name="judge", key="token")))
    assert (answer.answer, judge.asked) == (Answer.ERROR, [])


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "169.254.169.254", "[::1]", "0.0.0.0", "[::ffff:127.0.0.1]"]
)
async def test_addresses_of_a_machine_itself_are_never_asked(cluster, host: str):
    """Neither loopback nor a metadata service can be reached through the operator, by address or by name."""
    webhooks = Webhooks(ClusterSecrets(cluster), answered=asyncio.Event())
    asked = Question(name="q", url=f"http://{host}:1/", timeout_seconds=5, revision="r", step=1)
    assert (await answer_to(webhooks, asked)).answer is Answer.ERROR
    await webhooks.close()


async def test_a_judge_that_owes_an_answer_is_not_asked_again(asker, judge):
    """One question at a time for each webhook of a split; other splits are not held up."""
    judge.answers = [30.0]
    assert asker.ask("team/chat", question(judge))
    assert not asker.ask("team/chat", question(judge))
    assert asker.ask("team/other", question(judge))


async def test_what_is_known_of_a_deleted_split_is_dropped(asker, judge):
    """Answers live as long as their split."""
    judge.answers = [says("Pass")]
    await answer_to(asker, question(judge))
    asker.keep(["team/other"])
    assert asker.answers("team/chat") == ()
