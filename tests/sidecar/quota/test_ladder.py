"""The degradation ladder through real sidecars: each level by each cause, its words, and the way back."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import aiohttp
import msgspec
import openai
import pytest

from sluice_core.api.degradation import BudgetStep, Degradation, Degraded, Level
from sluice_core.api.modelroute import Cache
from sluice_core.api.quotaallocation import Budget, Mode, OnExhausted, Priority, WholeDegradation
from sluice_core.api.upstream import Breaker, Limits
from sluice_core.snapshot import ArmPolicy, FallbackPolicy, QuotaPolicy, SplitPolicy

Client = Callable[..., openai.OpenAI]
MESSAGES: Any = [{"role": "user", "content": "hello"}]
CHAT = "team/openai-quota/chat"
CHEAPER = Degraded(model="gpt-4.1-nano", max_output_tokens=20)
SORRY = "We answer again soon."
QUIET = FallbackPolicy(static_message="The route says so.")
OTHER = "team/other"


def governed(policies: Any, mock: Any, *, whole: WholeDegradation | None = None, **fields: Any) -> Any:
    """A snapshot without limits. `rule` and `upstream` change these, what else is given the allocation."""
    rule, upstream = fields.pop("rule", {}), fields.pop("upstream", {})
    quota = policies.quota(**fields)
    quota = QuotaPolicy(key=quota.key, upstream=quota.upstream, allocations=quota.allocations, degradation=whole)
    return policies.snapshot(
        policies.upstream(mock.base_url, limits=Limits(), **upstream), rules=(policies.rule(**rule),), quotas=(quota,)
    )


def create(api: openai.OpenAI, **fields: Any) -> Any:
    """Make a small chat call; return the raw answer, errors included."""
    fields = {"model": "gpt-4.1", "messages": MESSAGES, "max_tokens": 50, **fields}
    try:
        return api.chat.completions.with_raw_response.create(**fields)
    except openai.APIStatusError as error:
        return error.response


def text_of(answer: Any) -> str:
    """Return what a chat answer says."""
    return str(json.loads(answer.content)["choices"][0]["message"]["content"])


def steps(*taken: tuple[int, Level], **fields: Any) -> Budget:
    """A budget of a dollar a day that goes down these steps."""
    written = tuple(BudgetStep(at_percent=percent, level=level) for percent, level in taken)
    return Budget(**{"daily_usd": "1", "steps": written, **fields})


def test_economy_by_hand_makes_calls_cheaper(start: Any, client: Client, mock: Any, policies: Any) -> None:
    """The model and the output are those of degradeTo; what cannot be made cheaper goes on as it came."""
    by_hand = Degradation(level=Level.ECONOMY, degrade_to=CHEAPER)
    sidecar = start(governed(policies, mock, degradation=by_hand))
    api = client(sidecar.base_url)
    answer = create(api)

    assert answer.status_code == 200
    assert (mock.ledger.last.model_requested, mock.ledger.last.max_tokens) == ("gpt-4.1-nano", 20)
    said = 'degraded; code=degraded; level=Economy; cause=Hand; policy="team/openai-quota/chat"'
    assert answer.headers["x-sluice-decision"] == said
    record = sidecar.record(answer.headers["x-sluice-call-id"])
    assert (record["level"], record["levelCause"], record["degraded"]) == ("Economy", "Hand", True)
    assert sidecar.metric("sluice_level_calls_total", allocation="chat", level="Economy", cause="Hand") == 1
    embedded = api.embeddings.with_raw_response.create(model="text-embedding-3-small", input="hello")
    assert "x-sluice-decision" not in embedded.headers
    assert "level" not in sidecar.record(embedded.headers["x-sluice-call-id"])


@pytest.mark.parametrize(
    ("fallbacks", "model"),
    [
        ((FallbackPolicy(upstream="team/openai", model="gpt-4.1-mini"),), "gpt-4.1-mini"),
        ((), "gpt-4.1"),
        ((QUIET,), "gpt-4.1"),
    ],
    ids=["first other model", "nothing cheaper", "only a fixed answer"],
)
def test_economy_without_a_model_takes_the_first_other_one_of_the_rule(
    start: Any, client: Client, mock: Any, policies: Any, fallbacks: Any, model: str
) -> None:
    """Where there is none, calls stay as they are as long as there is money."""
    rule = {"fallbacks": fallbacks}
    sidecar = start(governed(policies, mock, rule=rule, degradation=Degradation(level=Level.ECONOMY)))
    answer = create(client(sidecar.base_url))

    assert (answer.status_code, mock.ledger.last.model_requested) == (200, model)
    assert ("x-sluice-decision" in answer.headers) == (model != "gpt-4.1")


@pytest.mark.parametrize(
    ("own", "fallbacks", "said"),
    [(SORRY, (), SORRY), (SORRY, (QUIET,), "The route says so."), (None, (QUIET,), "The route says so.")],
    ids=["the ladder's message", "the route's before it", "the route's"],
)
def test_static_by_hand_answers_without_the_upstream(
    start: Any, client: Client, mock: Any, policies: Any, own: str | None, fallbacks: Any, said: str
) -> None:
    """In the shape of the operation, streamed or not; nothing is reserved, charged or sent."""
    by_hand = Degradation(level=Level.STATIC, static_message=own)
    sidecar = start(governed(policies, mock, rule={"fallbacks": fallbacks}, degradation=by_hand))
    api = client(sidecar.base_url)
    answer = create(api)

    assert (answer.status_code, text_of(answer)) == (200, said)
    assert "level=Static; cause=Hand" in answer.headers["x-sluice-decision"]
    stream = api.chat.completions.create(model="gpt-4.1", messages=MESSAGES, stream=True)
    assert "".join(each.choices[0].delta.content or "" for each in stream) == said
    assert api.responses.create(model="gpt-4.1", input="hello").output_text == said
    assert len(mock.ledger) == 0
    assert sidecar.metric("sluice_degraded_calls_total", allocation="chat") == 3
    assert sidecar.metric("sluice_cost_usd_total") == 0
    assert api.models.list().data, "what generates nothing goes on"


def test_static_without_a_message_refuses(start: Any, client: Client, mock: Any, policies: Any) -> None:
    """As it does where the operation has no text to say anything in."""
    sidecar = start(governed(policies, mock, degradation=Degradation(level=Level.STATIC, retry_after_seconds=7)))
    refused = create(client(sidecar.base_url))

    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "degraded")
    assert (refused.headers["retry-after"], refused.headers["x-should-retry"]) == ("7", "false")
    assert "level of service is Static, set by hand" in refused.json()["error"]["message"]
    assert refused.headers["x-sluice-decision"] == 'refused; code=degraded; policy="team/openai-quota/chat"'
    record = sidecar.record(refused.headers["x-sluice-call-id"])
    assert (record["level"], record["refusedBy"]) == ("Static", "team/openai-quota/chat/level/Static")
    assert "degraded" not in record

    worded = start(governed(policies, mock, degradation=Degradation(level=Level.STATIC, static_message=SORRY)))
    with pytest.raises(openai.InternalServerError) as caught:
        client(worded.base_url).embeddings.create(model="text-embedding-3-small", input="hello")
    assert caught.value.code == "degraded"
    assert len(mock.ledger) == 0


async def test_a_conversation_over_a_websocket_does_not_begin(start: Any, mock: Any, policies: Any) -> None:
    """It could not be given a fixed answer."""
    by_hand = Degradation(level=Level.STATIC, static_message=SORRY)
    sidecar = await asyncio.to_thread(start, governed(policies, mock, degradation=by_hand))
    address = f"{sidecar.base_url}/realtime?model=gpt-realtime"
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await session.ws_connect(address)
    assert refused.value.status == 503
    assert refused.value.headers is not None
    assert "code=degraded" in refused.value.headers["x-sluice-decision"]


def test_maintenance_refuses_everything_until_it_is_over(start: Any, client: Client, mock: Any, policies: Any) -> None:
    """With a code of its own and the time to come back; taken away, calls go on as before."""
    down = Degradation(level=Level.MAINTENANCE, retry_after_seconds=120)
    sidecar = start(governed(policies, mock, degradation=down))
    api = client(sidecar.base_url)
    refused = create(api)

    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "maintenance")
    assert (refused.headers["retry-after"], refused.headers["x-should-retry"]) == ("120", "false")
    with pytest.raises(openai.InternalServerError):
        api.models.list()
    assert len(mock.ledger) == 0
    assert sidecar.metric("sluice_level_calls_total", level="Maintenance", cause="Hand") == 2
    assert sidecar.status()["levels"]["team/openai"]["level"] == "Maintenance"
    sidecar.runs(sidecar.apply(governed(policies, mock)))
    assert create(api).status_code == 200


def test_the_higher_level_of_whole_and_allocation_counts(start: Any, client: Client, mock: Any, policies: Any) -> None:
    """And those of an exempt priority follow their own alone."""
    whole = WholeDegradation(level=Level.STATIC, static_message=SORRY, exempt=(Priority.CRITICAL,))
    own = Degradation(level=Level.ECONOMY, degrade_to=CHEAPER)
    ordinary = start(governed(policies, mock, whole=whole, degradation=own))
    critical = start(governed(policies, mock, whole=whole, degradation=own, priority=Priority.CRITICAL))

    assert text_of(create(client(ordinary.base_url))) == SORRY
    assert len(mock.ledger) == 0
    assert create(client(critical.base_url)).status_code == 200
    assert mock.ledger.last.model_requested == "gpt-4.1-nano"


LADDER = steps(
    (50, Level.ECONOMY), (80, Level.STATIC), (100, Level.MAINTENANCE),
    on_exhausted=OnExhausted.DEGRADE, degrade_to=CHEAPER,
)  # fmt: skip


def test_a_budget_goes_down_its_steps_in_all_pods(
    start: Any, client: Client, mock: Any, policies: Any, plane: Any
) -> None:
    """What all have spent together counts; every pod hears of it with its next report, and of a raised budget too."""
    message = Degradation(static_message=SORRY)
    snapshot = governed(policies, mock, budget=LADDER, degradation=message)
    plane.adopt(snapshot)
    pods = [start(snapshot, SLUICE_SYNC_URL=plane.url, SLUICE_POD_NAME=f"chat-{number}") for number in range(2)]
    apis = [client(pod.base_url) for pod in pods]

    def everywhere(expected: str) -> None:
        for pod, api in zip(pods, apis, strict=True):
            pod.wait_until(lambda api=api: _level(create(api)) == expected)  # type: ignore[misc] # bound at once

    everywhere("Full")
    plane.charge(CHAT, 490_000)
    plane.charge(CHAT, 20_000)
    everywhere("Economy")
    assert mock.ledger.last.model_requested == "gpt-4.1-nano"
    plane.charge(CHAT, 300_000)
    everywhere("Static")
    plane.charge(CHAT, 200_000)
    everywhere("Maintenance")
    refused = create(apis[0])
    until_midnight = 86_400 - time.time() % 86_400
    assert abs(int(refused.headers["retry-after"]) - until_midnight) < 30

    for dollars, level in (("1.2", "Static"), ("100", "Full")):
        raised = governed(
            policies, mock, budget=msgspec.structs.replace(LADDER, daily_usd=dollars), degradation=message
        )
        plane.adopt(raised)
        for pod in pods:
            pod.apply(raised)
        everywhere(level)


def _level(answer: Any) -> str:
    if answer.status_code == 503:
        return {"maintenance": "Maintenance", "degraded": "refused"}[answer.json()["error"]["code"]]
    decision = answer.headers.get("x-sluice-decision", "level=Full;")
    return str(decision.split("level=")[1].split(";")[0])


def test_one_pod_alone_goes_down_its_steps(start: Any, client: Client, mock: Any, policies: Any) -> None:
    """Without any control plane it counts what it spends itself."""
    budget = steps((50, Level.STATIC), on_exhausted=OnExhausted.DEGRADE)
    sidecar = start(governed(policies, mock, budget=budget, degradation=Degradation(static_message=SORRY)))
    api = client(sidecar.base_url)
    mock.faults.add(prompt_tokens=300_000)
    assert _level(create(api)) == "Full"
    sidecar.wait_until(lambda: _level(create(api)) == "Static")
    assert "cause=Budget" in create(api).headers["x-sluice-decision"]


KEPT = {"rule": {"cache": Cache(ttl_seconds=3600)}}


def test_cache_only_by_hand_gives_what_is_kept_and_refuses_the_rest(
    start: Any, client: Client, mock: Any, policies: Any
) -> None:
    """Nothing is sent; taken away, the answers that were kept are still there."""
    sidecar = start(governed(policies, mock, **KEPT))
    api = client(sidecar.base_url)
    kept = text_of(create(api, temperature=0))
    sidecar.runs(sidecar.apply(governed(policies, mock, degradation=Degradation(level=Level.CACHE_ONLY), **KEPT)))
    answer = create(api, temperature=0)

    assert (answer.status_code, text_of(answer)) == (200, kept)
    assert answer.headers["x-sluice-cache"].startswith("hit; age=")
    assert "level=CacheOnly; cause=Hand" in answer.headers["x-sluice-decision"]
    record = sidecar.record(answer.headers["x-sluice-call-id"])
    assert (record["level"], record["cache"], record["degraded"]) == ("CacheOnly", "Hit", True)
    for unknown in ({"temperature": 0, "max_tokens": 7}, {"temperature": 1}):
        refused = create(api, **unknown)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "degraded")
        assert (refused.headers["retry-after"], refused.headers["x-should-retry"]) == ("60", "false")
    assert len(mock.ledger) == 1
    sidecar.runs(sidecar.apply(governed(policies, mock, **KEPT)))
    assert "x-sluice-decision" not in create(api, temperature=0).headers
    assert len(mock.ledger) == 1


@pytest.mark.parametrize("level", [Level.STATIC, Level.MAINTENANCE])
def test_a_kept_answer_is_no_way_around_a_higher_level(
    start: Any, client: Client, mock: Any, policies: Any, level: Level
) -> None:
    """Whoever goes above CacheOnly does not want the answers that are kept."""
    sidecar = start(governed(policies, mock, **KEPT))
    api = client(sidecar.base_url)
    create(api, temperature=0)
    higher = Degradation(level=level, static_message=SORRY)
    sidecar.runs(sidecar.apply(governed(policies, mock, degradation=higher, **KEPT)))
    answer = create(api, temperature=0)

    assert text_of(answer) == SORRY if level is Level.STATIC else answer.json()["error"]["code"] == "maintenance"
    assert "x-sluice-cache" not in answer.headers


def test_what_a_cheaper_model_said_is_not_kept_for_the_full_service(
    start: Any, client: Client, mock: Any, policies: Any
) -> None:
    """An answer of Economy is good for the call that got it alone."""
    by_hand = Degradation(level=Level.ECONOMY, degrade_to=CHEAPER)
    sidecar = start(governed(policies, mock, degradation=by_hand, **KEPT))
    api = client(sidecar.base_url)
    create(api, temperature=0)
    assert mock.ledger.last.model_requested == "gpt-4.1-nano"
    sidecar.runs(sidecar.apply(governed(policies, mock, **KEPT)))
    create(api, temperature=0)
    assert mock.ledger.last.model_requested == "gpt-4.1"
    sidecar.runs(sidecar.apply(governed(policies, mock, degradation=by_hand, **KEPT)))
    answer = create(api, temperature=0)
    assert answer.headers["x-sluice-cache"].startswith("hit"), "what is kept of the full model costs nothing"
    assert len(mock.ledger) == 2


FRAGILE = {"breaker": Breaker(consecutive_failures=1, minimum_requests=1, open_seconds=60)}


def broken(start: Any, client: Client, mock: Any, policies: Any, **fields: Any) -> tuple[Any, openai.OpenAI]:
    """Start a sidecar, and let the breakers of its upstream open."""
    sidecar = start(governed(policies, mock, upstream={**FRAGILE, "retry": policies.Retry(attempts=1)}, **fields))
    api = client(sidecar.base_url)
    mock.faults.add(error="server_error")
    for _ in range(2):  # one of each key
        create(api)
    return sidecar, api


def test_an_open_breaker_leads_to_the_level_written_for_it(
    start: Any, client: Client, mock: Any, policies: Any
) -> None:
    """A call whose every upstream is stopped is answered; its failure still counts for its version."""
    when_open = Degradation(on_open_breaker=Level.STATIC, static_message=SORRY)
    sidecar, api = broken(start, client, mock, policies, degradation=when_open)
    sent = len(mock.ledger)
    answer = create(api)

    assert (answer.status_code, text_of(answer)) == (200, SORRY)
    decision = 'degraded; code=circuit_open; level=Static; cause=Breaker; policy="team/openai-quota/chat"'
    assert answer.headers["x-sluice-decision"] == decision
    assert len(mock.ledger) == sent
    assert sidecar.metric("sluice_level_calls_total", level="Static", cause="Breaker") == 1
    mock.faults.clear()


@pytest.mark.parametrize(
    ("degradation", "code", "retries"),
    [
        (None, "circuit_open", True),
        (Degradation(on_open_breaker=Level.STATIC), "circuit_open", True),
        (Degradation(on_open_breaker=Level.MAINTENANCE), "maintenance", False),
    ],
    ids=["as ever", "without a message", "maintenance"],
)
def test_without_an_answer_an_open_breaker_refuses(
    start: Any, client: Client, mock: Any, policies: Any, degradation: Any, code: str, retries: bool
) -> None:
    """With the time at which a call may go again."""
    _, api = broken(start, client, mock, policies, degradation=degradation)
    refused = create(api)

    assert (refused.status_code, refused.json()["error"]["code"]) == (503, code)
    assert 50 <= int(refused.headers["retry-after"]) <= 60
    assert ("x-should-retry" not in refused.headers) == retries


def test_fallbacks_go_before_the_level_of_an_open_breaker(start: Any, client: Client, mock: Any, policies: Any) -> None:
    """It is for calls that nothing else can answer."""
    rule = {"fallbacks": (QUIET,)}
    when_open = Degradation(on_open_breaker=Level.MAINTENANCE)
    _, api = broken(start, client, mock, policies, rule=rule, degradation=when_open)
    answer = create(api)

    assert (answer.status_code, text_of(answer)) == (200, "The route says so.")
    assert "x-sluice-decision" not in answer.headers


@pytest.mark.parametrize(
    ("level", "degrade_to"), [(Level.MAINTENANCE, None), (Level.STATIC, None), (Level.ECONOMY, CHEAPER)]
)
def test_shadow_mode_counts_a_level_and_applies_none(
    start: Any, client: Client, mock: Any, policies: Any, level: Level, degrade_to: Any
) -> None:
    """Nothing is refused or changed; what would be is named."""
    by_hand = Degradation(level=level, degrade_to=degrade_to, static_message=SORRY)
    sidecar = start(governed(policies, mock, degradation=by_hand, mode=Mode.SHADOW))
    answer = create(client(sidecar.base_url))

    assert (answer.status_code, mock.ledger.last.model_requested) == (200, "gpt-4.1")
    record = sidecar.record(answer.headers["x-sluice-call-id"])
    assert record["wouldRefuse"] == f"team/openai-quota/chat/level/{level.value}"
    assert not {"level", "degraded"} & record.keys()
    assert sidecar.metric("sluice_refusals_total", mode="Shadow") == 1
    assert sidecar.metric("sluice_level_calls_total") == 0
    assert sidecar.status()["allocations"][0]["refused"] == 1


def test_a_fallback_to_an_account_in_maintenance_is_left_out(
    start: Any, client: Client, mock: Any, policies: Any
) -> None:
    """Its own account stands at Full, but the other one is not to be called."""
    quota = policies.quota()
    away = QuotaPolicy(
        key="team/other-quota",
        upstream=OTHER,
        allocations=quota.allocations,
        degradation=WholeDegradation(level=Level.MAINTENANCE),
    )
    failing = policies.upstream("http://127.0.0.1:9/v1", limits=Limits(), retry=policies.Retry(attempts=1))
    other = policies.upstream(mock.base_url, key=OTHER, limits=Limits())
    rules = (policies.rule(fallbacks=(FallbackPolicy(upstream=OTHER, model="gpt-4.1-mini"), QUIET)),)
    sidecar = start(policies.snapshot(failing, other, rules=rules, quotas=(quota, away)))
    answer = create(client(sidecar.base_url))

    assert text_of(answer) == "The route says so."
    assert answer.headers["x-sluice-fallback"] == "1"
    assert len(mock.ledger) == 0


def test_answers_of_a_level_say_nothing_about_a_version(start: Any, client: Client, mock: Any, policies: Any) -> None:
    """A fixed answer would look like a very fast success of the arm."""
    split = SplitPolicy(
        key="team/split",
        revision="r1",
        salt="s",
        weight=100,
        stable=ArmPolicy(version="v1", model="gpt-4.1"),
        candidate=ArmPolicy(version="v2", model="gpt-4.1-mini"),
        keys=(policies.KeySource(body="user"),),
    )
    by_hand = Degradation(level=Level.STATIC, static_message=SORRY)
    sidecar = start(governed(policies, mock, rule={"split": split}, degradation=by_hand))
    answer = create(client(sidecar.base_url), user="u")

    assert text_of(answer) == SORRY
    assert "x-sluice-arm" not in answer.headers
    assert "arm" not in sidecar.record(answer.headers["x-sluice-call-id"])
    assert sidecar.status()["arms"] == []


def test_economy_does_not_soften_a_budget_that_rejects(
    start: Any, client: Client, mock: Any, policies: Any, plane: Any
) -> None:
    """A call that is refused anyway is refused with the budget's own words."""
    by_hand = Degradation(level=Level.ECONOMY, degrade_to=CHEAPER)
    snapshot = governed(policies, mock, budget=Budget(daily_usd="1"), degradation=by_hand)
    plane.adopt(snapshot)
    plane.charge(CHAT, 1_000_000)
    sidecar = start(snapshot, SLUICE_SYNC_URL=plane.url)
    sidecar.wait_until(lambda: sidecar.status()["sync"]["secondsSinceSuccess"] is not None)
    refused = create(client(sidecar.base_url))

    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "budget_exceeded")


async def test_a_conversation_over_a_websocket_is_no_way_around_a_spent_budget(
    start: Any, mock: Any, policies: Any, plane: Any
) -> None:
    """It costs money and cannot be made cheaper."""
    snapshot = governed(policies, mock, budget=Budget(daily_usd="1", on_exhausted=OnExhausted.DEGRADE))
    plane.adopt(snapshot)
    plane.charge(CHAT, 1_000_000)
    sidecar = await asyncio.to_thread(start, snapshot, SLUICE_SYNC_URL=plane.url)
    await asyncio.to_thread(sidecar.wait_until, lambda: sidecar.status()["sync"]["secondsSinceSuccess"] is not None)
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await session.ws_connect(f"{sidecar.base_url}/realtime?model=gpt-realtime")
    assert refused.value.status == 429
    assert len(mock.ledger) == 0
