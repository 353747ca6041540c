"""Answers given again: kept ones, and those of identical calls that are under way. What is kept stays in memory.

An answer that is given again asks nothing of the upstream: no limit, no budget and no breaker is concerned. Calls that
are identical at the same time wait for the first of them. Its answer, once it is whole, is theirs as well; its failure
is not: they go on by themselves then, and one of them is the new first. Nobody waits for longer than a bound, since the
first one's application may read as slowly as it likes.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from typing import TYPE_CHECKING, Final

from sluice_core.caching import MAX_KEYED_BYTES, CacheUse, Obstacle, answer_key, wishes_of
from sluice_core.errors import BadRequestError
from sluice_core.stored_answers import StoredAnswer, StoredAnswers
from sluice_sidecar.admit import name_account
from sluice_sidecar.call import Call, Sharing
from sluice_sidecar.flight import Flight, Lead
from sluice_sidecar.plan import Plan
from sluice_sidecar.recording import Room
from sluice_sidecar.replay import Replay
from sluice_sidecar.steering import Candidate, Candidates
from sluice_sidecar.telemetry.metrics import OTHER, Reading

if TYPE_CHECKING:
    from sluice_sidecar.governor import Governor

MAX_WAIT_SECONDS: Final = 30.0
"""Longest wait for an identical call; less where that would take more than half of the time that the call has."""

MAX_LABELS: Final = 256
_TIDY_SECONDS: Final = 60.0
_IDENTITY: Final = ("authorization", "api-key", "openai-organization", "openai-project")


class Answers:
    """The answers of one sidecar, and the calls that others wait for. Figures are by rule, `namespace/route/rule`."""

    def __init__(self, governor: Governor, max_bytes: int) -> None:
        self.stored = StoredAnswers(max_bytes)
        self.room = Room(max_bytes, self.stored.largest_body_bytes)
        self.flights: dict[bytes, Flight] = {}
        self.uses: dict[tuple[str, CacheUse], int] = {}
        self.saved_usd_micros: dict[str, int] = {}
        self.saved_tokens: dict[str, int] = {}
        self._governor = governor
        self._labels: set[str] = set()
        self._tidied = 0.0

    def cached_answer(self, call: Call, candidates: Candidates) -> Replay | None:
        """Return what is kept for such a call to the first of the candidates, of any age that its rule has a use for.

        Nothing is asked of an upstream and nobody is waited for.
        """
        rule = candidates[0].cache
        if rule is None or not call.generating:
            return None
        sharing = self._sharing(call, candidates[0])
        return self._kept(call, sharing, rule.keep_seconds, rule.ttl_seconds)

    async def find(self, call: Call, candidates: Candidates) -> Replay | Lead:
        """Return the answer to give, or leave to ask the upstream, with what the call owes to identical ones then."""
        first = candidates[0]
        rule = first.cache
        if rule is None or not call.generating:
            return Lead(self, call, candidates)
        sharing = self._sharing(call, first)
        key = sharing.key
        if isinstance(key, Obstacle):
            self._count(call, sharing, CacheUse.BYPASS, f"reason={key.value}")
            return Lead(self, call, candidates)
        fresh = self._kept(call, sharing, rule.ttl_seconds, rule.ttl_seconds)
        if fresh is not None:
            return fresh
        if rule.coalesce and sharing.wishes.reads:
            shared = await self._join(call, key)
            if shared is not None:
                return Replay(answer=shared, use=CacheUse.COALESCED)
        self._count(call, sharing, CacheUse.MISS, "")
        if rule.coalesce and key not in self.flights:
            sharing.flight = self.flights[key] = Flight(call)
        return Lead(self, call, self._with_stale(call, sharing, candidates), key)

    def give(self, call: Call, replay: Replay) -> None:
        """Note, and count, that a call is answered by a kept answer."""
        answer, rule, sharing = replay.answer, self._label(call), call.sharing
        assert sharing is not None  # noqa: S101 - the answer was found by its key
        detail = "" if replay.use is CacheUse.COALESCED else f"age={int(replay.age_seconds)}"
        self._count(call, sharing, replay.use, detail)
        sharing.saved_usd_micros = answer.cost_usd_micros
        self.saved_usd_micros[rule] = self.saved_usd_micros.get(rule, 0) + (answer.cost_usd_micros or 0)
        tokens = answer.usage.total_tokens if answer.usage is not None else 0
        self.saved_tokens[rule] = self.saved_tokens.get(rule, 0) + tokens

    def tidy(self, now: float) -> None:
        """Now and then, drop what is past its time; all of it once no rule keeps answers any more."""
        if now - self._tidied < _TIDY_SECONDS or not len(self.stored):
            return
        self._tidied = now
        view = self._governor.view()
        keeps = view is not None and any(rule.cache for route in view.policy.routes for rule in route.rules)
        self.stored.tidy(now if keeps else float("inf"))

    # --- what is kept

    def _kept(self, call: Call, sharing: Sharing, max_age_seconds: float, ttl_seconds: float) -> Replay | None:
        key, wishes, now = sharing.key, sharing.wishes, call.clock()
        if isinstance(key, Obstacle) or not wishes.reads:
            return None
        answer = self.stored.get(key, min(max_age_seconds, wishes.max_age_seconds), now)
        if answer is None:
            return None
        age = now - answer.stored_at
        return Replay(answer=answer, use=CacheUse.HIT if age < ttl_seconds else CacheUse.STALE, age_seconds=age)

    def _with_stale(self, call: Call, sharing: Sharing, candidates: Candidates) -> Candidates:
        """Return the candidates, with an earlier answer where the rule has a place for one and there is one."""
        rule = candidates[0].cache
        if rule is None or not rule.stale:
            return candidates
        found = list(candidates)
        for place in reversed(rule.stale):
            replay = self._kept(call, sharing, place.max_age_seconds, rule.ttl_seconds)
            if replay is not None:
                candidate = copy(candidates[0])
                candidate.upstream, candidate.fallback, candidate.replay = "", place.fallback, replay
                found.insert(place.before, candidate)
        return tuple(found)

    async def _join(self, call: Call, key: bytes) -> StoredAnswer | None:
        """Wait for an identical call, if there is one; return its answer if it may be shared."""
        begun = call.clock()
        until = begun + min(MAX_WAIT_SECONDS, (call.answer_deadline - begun) / 2)
        try:
            while (flight := self.flights.get(key)) is not None:
                answer = await flight.wait(until - call.clock())
                if answer is not None or not flight.left:
                    return answer
            return None
        finally:
            call.upstream_seconds += call.clock() - begun

    def _count(self, call: Call, sharing: Sharing, use: CacheUse, detail: str) -> None:
        sharing.use, sharing.detail = use, detail
        name = self._label(call), use
        self.uses[name] = self.uses.get(name, 0) + 1

    def _label(self, call: Call) -> str:
        """Return the name under which a rule is counted: policies that come and go do not pile up."""
        name = call.policy_name
        if name not in self._labels and len(self._labels) < MAX_LABELS:
            self._labels.add(name)
        return name if name in self._labels else OTHER

    # --- the key

    def _sharing(self, call: Call, first: Candidate) -> Sharing:
        if call.sharing is None:
            wishes = wishes_of(call.fields.first.get("cache-control"))
            key = self._key(call, first) if wishes.keeps else Obstacle.CACHE_CONTROL
            call.sharing = Sharing(key, wishes)
        return call.sharing

    def _key(self, call: Call, first: Candidate) -> bytes | Obstacle:
        body, rule = call.body, first.cache
        upstream = self._governor.upstreams.get(first.upstream)
        if body is None or call.opaque_body:
            return Obstacle.BODY
        if upstream is None or rule is None:
            return Obstacle.UPSTREAM
        user = rule.user_keys.of(call.facts, call.fields.first) if rule.user_keys is not None else ""
        if user is None:
            return Obstacle.USER_KEY
        plan = first.plan
        if plan is None or plan.upstream is not upstream:
            plan = first.plan = Plan(first, upstream, self._governor.admission.account(first.upstream))
        name_account(call, plan)
        call.upstream, call.model = plan.key, first.model or call.facts.model
        return _key_of(call, body, plan, user)


def cache_readings(answers: Answers) -> Iterator[Reading]:
    """Yield the figures of a sidecar's answers, read at the time of the scrape."""
    uses: list[tuple[tuple[str, ...], float]]
    uses = [((rule, use.value.lower()), float(number)) for (rule, use), number in answers.uses.items()]
    text = "Calls under rules that keep answers: hit, stale, coalesced, miss or bypass."
    yield "sluice_cache_calls_total", text, ("route", "result"), uses
    for name, text, figures, unit in (
        ("sluice_cache_saved_usd_total", "US dollars not spent on answers given again.", answers.saved_usd_micros, 1e6),
        ("sluice_cache_saved_tokens_total", "Tokens not used for answers given again.", answers.saved_tokens, 1.0),
    ):
        yield name, text, ("route",), [((rule,), number / unit) for rule, number in figures.items()]
    stored = answers.stored
    yield "sluice_cache_answers", "Answers kept.", (), [((), float(len(stored)))]
    yield "sluice_cache_bytes", "Memory that they take.", (), [((), float(stored.bytes))]
    text = "Answers that made room for others before their time."
    yield "sluice_cache_evictions_total", text, (), [((), float(stored.evicted))]


def _key_of(call: Call, body: bytes, plan: Plan, user: str) -> bytes | Obstacle:
    facts, fields, upstream, assignment = call.facts, call.fields.first, plan.upstream, call.assignment
    if len(body) > MAX_KEYED_BYTES:
        return Obstacle.SIZE
    strips_usage = facts.usage_on_request and not facts.include_usage
    try:
        sent = plan.editor.rewrite(call.endpoint, body, facts, model=call.model, include_usage=strips_usage)
    except BadRequestError:
        return Obstacle.BODY
    split = call.rule.split if call.rule is not None else None
    scope = (
        call.policy_name,
        (plan.key, upstream.base, upstream.own_fields, call.target.suffix),
        (split.key, split.revision, assignment.arm) if split is not None and assignment is not None else None,
        user,
        strips_usage,
        fields.get("openai-beta"),
        [fields.get(name) for name in _IDENTITY] if call.keeps_authorization else None,
    )
    return answer_key(call.endpoint, sent, scope)
