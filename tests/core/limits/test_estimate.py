"""Estimates of what a call will be charged."""

from __future__ import annotations

import base64
import json
import random
from typing import Any

import pytest

from sluice_core.api.modelroute import Endpoint
from sluice_core.limits.estimate import Estimator
from sluice_core.request import RequestFacts, peek
from sluice_core.usage import Usage


def chat(**fields: Any) -> RequestFacts:
    """Facts of a chat call."""
    return RequestFacts(**({"endpoint": Endpoint.CHAT_COMPLETIONS, "model": "m"} | fields))


@pytest.mark.parametrize(
    ("facts", "tokens", "floor"),
    [
        (chat(text_characters=400, max_output_tokens=1000), 1000, 1000),  # the larger of the two, as OpenAI charges
        (chat(text_characters=40_000, max_output_tokens=1000), 10_000, 10_000),
        (chat(text_characters=400, max_output_tokens=1000, n=3), 3000, 3000),
        (chat(text_characters=400), 600, 100),  # no limit: input, and the first guess of 500 tokens of output
        (chat(text_characters=400, images=("low", "high")), 1450, 950),
        (chat(text_characters=0, audio_bytes=160_000, max_output_tokens=1), 100, 100),
        (RequestFacts(endpoint=Endpoint.EMBEDDINGS, text_characters=4000), 1000, 1000),
        (RequestFacts(endpoint=Endpoint.RESPONSES, text_characters=0, max_output_tokens=7), 7, 7),
        (RequestFacts(endpoint=Endpoint.MODERATIONS, text_characters=4000), 0, 0),
    ],
)
def test_tokens_are_charged_by_rule(facts: RequestFacts, tokens: int, floor: int) -> None:
    """Reserved is what the upstream charges, or input and learned output where the call has no limit."""
    estimate = Estimator().estimate(facts, "m")
    assert (estimate.tokens, estimate.floor_tokens) == (tokens, floor)


def test_a_large_picture_costs_what_a_picture_costs() -> None:
    """The estimate does not depend on how many characters of base64 a picture has."""
    picture = base64.b64encode(b"\x89PNG" + bytes(2_000_000)).decode()
    content = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}", "detail": "high"}},
    ]
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": content}], "max_tokens": 10}).encode()
    facts = peek(Endpoint.CHAT_COMPLETIONS, body)
    assert 765 <= Estimator().estimate(facts, "m").tokens < 2 * 765


def test_output_is_learned_where_the_call_gives_no_limit() -> None:
    """About 95 of 100 calls are covered, without reserving many times too much; the estimate follows change."""
    estimator, draw, facts = Estimator(), random.Random(3), chat(text_characters=4)
    for mean in (100, 2000, 40):
        for _ in range(400):
            estimator.learn(facts, "m", Usage(input_tokens=1, output_tokens=round(draw.uniform(0.5, 1.5) * mean)))
        covered = 0
        for _ in range(400):
            output = round(draw.uniform(0.5, 1.5) * mean)
            covered += output <= estimator.estimate(facts, "m").output_tokens
            estimator.learn(facts, "m", Usage(input_tokens=1, output_tokens=output))
        assert covered >= 340
        assert estimator.estimate(facts, "m").output_tokens <= 2.5 * mean


def test_the_ratio_of_characters_is_learned_per_model() -> None:
    """A model whose input has two characters a token is estimated so; others are not affected."""
    estimator, facts = Estimator(), chat(text_characters=1000)
    for _ in range(300):
        estimator.learn(facts, "dense", Usage(input_tokens=500, output_tokens=1))
    assert estimator.estimate(facts, "dense").input_tokens == pytest.approx(500, rel=0.05)
    assert estimator.estimate(facts, "other").input_tokens == 250


def test_context_kept_by_the_upstream_is_learned() -> None:
    """A call that goes on from an earlier response carries input that its body does not show."""
    estimator = Estimator()
    facts = RequestFacts(endpoint=Endpoint.RESPONSES, text_characters=40, previous_response_id="resp_1")
    for _ in range(60):
        estimator.learn(facts, "m", Usage(input_tokens=5000, output_tokens=10))
    assert estimator.estimate(facts, "m").input_tokens > 4500


def test_the_number_of_models_is_bounded() -> None:
    """Made-up model names do not fill the memory."""
    estimator = Estimator()
    for index in range(1000):
        estimator.learn(chat(text_characters=4), f"m{index}", Usage(input_tokens=1, output_tokens=1))
    assert len(estimator._models) <= 64
