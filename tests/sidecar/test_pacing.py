"""The pace of calls while an upstream throttles: per model, and read from what the upstream says of itself."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import openai
import pytest

from sluice_core.api.upstream import Limits, ModelLimits
from sluice_core.limits.admission import Admission
from sluice_core.limits.decisions import Admitted, Ask
from sluice_core.selection import PodPolicy
from sluice_core.snapshot import UpstreamPolicy
from sluice_sidecar.headers import Fields
from sluice_sidecar.pacing import Pacing

UP = "team/openai"
Client = Callable[..., openai.OpenAI]
FULL = {"requests_per_minute": 0, "tokens_per_minute": 0, "requests_per_day": 0, "concurrency": 0}


def governed(*rows: ModelLimits, **whole: int) -> tuple[Admission, Pacing]:
    """A pod by itself with limits on the whole and on some models."""
    admission = Admission(sole=True)
    configure(admission, *rows, **whole)
    return admission, Pacing(admission)


def configure(admission: Admission, *rows: ModelLimits, **whole: int) -> None:
    """Put limits into force."""
    upstream = UpstreamPolicy(key=UP, base_url="http://x", limits=Limits(**(FULL | whole)), model_limits=rows)
    admission.configure(PodPolicy(namespace="team", revision="1", upstreams={UP: upstream}))


def row(model: str, requests: int) -> ModelLimits:
    """A limit of one model."""
    return ModelLimits(model=model, **(FULL | {"requests_per_minute": requests}))


def admitted(admission: Admission, model: str, count: int, now: float) -> int:
    """How many of so many calls go at once. What they take is given back."""
    answers = [admission.reserve(UP, Ask(model=model), now) for _ in range(count)]
    taken = [each for each in answers if isinstance(each, Admitted)]
    for each in taken:
        admission.release(each.reservation, now)
    return len(taken)


def throttle(pacing: Pacing, model: str, now: float, *, slow_down: bool = False) -> None:
    """Let the upstream throttle a model."""
    pacing.throttled(UP, model, now, now, slow_down=slow_down)


def test_a_throttled_model_slows_down_alone() -> None:
    """Its own limit is halved; other models, with limits of their own or without, go on in full."""
    admission, pacing = governed(row("gpt-4.1", 40), row("o*", 40), requests_per_minute=1000)
    throttle(pacing, "gpt-4.1", 0.0)
    assert admitted(admission, "gpt-4.1", 60, 0.0) == 20
    assert admitted(admission, "o3", 60, 0.0) == 40
    assert admitted(admission, "gpt-4.1-mini", 60, 0.0) == 60


def test_models_under_one_limit_share_the_slowest_pace() -> None:
    """One that recovers, or was never throttled, does not lift the other's pace."""
    admission, pacing = governed(requests_per_minute=40)
    throttle(pacing, "a", 0.0)
    throttle(pacing, "a", 0.1)
    throttle(pacing, "b", 0.2)
    assert admitted(admission, "c", 60, 0.2) <= 11
    for _ in range(60):
        pacing.answered(UP, "b", Fields([]), 1.0)
    pacing.tick(1.0)
    assert admitted(admission, "b", 60, 1.0) <= 11
    pacing.tick(120.0)
    assert admitted(admission, "b", 60, 120.0) == 40
    assert pacing.paces(120.0) == ()


def test_a_pace_goes_over_to_the_limit_that_a_model_is_given() -> None:
    """The whole is used in full again once the throttled model has a limit of its own."""
    admission, pacing = governed(requests_per_minute=40)
    throttle(pacing, "a", 0.0)
    configure(admission, row("a", 10), requests_per_minute=40)
    pacing.tick(0.0)
    assert admitted(admission, "a", 60, 0.0) == 5
    assert admitted(admission, "b", 60, 0.0) == 40


def test_slow_down_halves_and_ramps_up_again() -> None:
    """Half at first, three quarters after half of a quarter of an hour, then all."""
    admission, pacing = governed(requests_per_minute=40)
    throttle(pacing, "a", 0.0, slow_down=True)
    for now, most in ((0.0, 20), (450.0, 30), (901.0, 40)):
        pacing.tick(now)
        assert admitted(admission, "a", 60, now) == most


@pytest.mark.parametrize(
    ("dimension", "remaining", "most"),
    [("tokens", 10, 20), ("project-tokens", 10, 20), ("tokens", 50, 40), ("requests", 10, 40)],
)
def test_little_left_of_what_is_not_governed_slows_down(dimension: str, remaining: int, most: int) -> None:
    """Tokens are not limited here, so somebody else uses them up; of requests, being near the limit is the aim."""
    admission, pacing = governed(requests_per_minute=40)
    fields = {
        f"x-ratelimit-limit-{dimension}": "100",
        f"x-ratelimit-remaining-{dimension}": str(remaining),
    }
    pacing.answered(UP, "a", Fields([(name.encode(), value.encode()) for name, value in fields.items()]), 100.0)
    pacing.tick(100.1)
    assert admitted(admission, "a", 60, 100.1) == most
    (seen,) = pacing.observations(100.1)
    assert (seen.dimension, seen.limit, seen.remaining) == (dimension, 100, remaining)


def test_the_pace_of_a_model_shows_and_spares_the_others(start: Any, client: Client, mock: Any) -> None:
    """Through a real sidecar: one model is throttled by the upstream, calls of the other one all go."""
    policies = sys.modules["policies"]
    rows = (row("gpt-4.1", 4), row("gpt-4.1-mini", 4))
    sidecar = start(policies.snapshot(policies.upstream(mock.base_url, limits=Limits(), model_limits=rows)))
    api = client(sidecar.base_url)

    def status(model: str) -> int:
        messages: Any = [{"role": "user", "content": "hello"}]
        # A client that waits for less than a second is told at once.
        headers = {"x-stainless-read-timeout": "0.5"}
        try:
            answer = api.chat.completions.with_raw_response.create(
                model=model, messages=messages, extra_headers=headers
            )
        except openai.APIStatusError as error:
            return error.response.status_code
        return answer.status_code

    mock.faults.add(model="gpt-4.1", error="rate_limit_exceeded", count=1, retry_after_ms="1")
    assert status("gpt-4.1") == 200  # repeated unseen: two calls of this model's four
    assert 0.3 < sidecar.metric("sluice_pace", model="gpt-4.1") < 0.9
    assert status("gpt-4.1") in (200, 429)
    assert status("gpt-4.1") == 429
    assert [status("gpt-4.1-mini") for _ in range(4)] == [200] * 4
    assert sidecar.metric("sluice_pace", model="gpt-4.1-mini") == 0
