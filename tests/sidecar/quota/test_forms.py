"""Calls whose body is a form: sound and pictures have limits and prices by model as all else has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx2
import openai
import pytest

from sluice_core.api.quotaallocation import Budget
from sluice_core.api.upstream import Limits, ModelLimits
from sluice_core.snapshot import TargetPolicy

Client = Callable[..., openai.OpenAI]
NONE = {"requests_per_minute": 0, "tokens_per_minute": 0, "requests_per_day": 0, "concurrency": 0}
LARGE = 1_500_000


def policy(policies: Any, mock: Any, *, target: str | None = None) -> Any:
    """One transcription and one picture a minute, and a budget."""
    rows = tuple(ModelLimits(model=name, **(NONE | {"requests_per_minute": 1})) for name in ("whisper-1", "gpt-image*"))
    return policies.snapshot(
        policies.upstream(mock.base_url, limits=Limits(**NONE), model_limits=rows),
        rules=(policies.rule(targets=(TargetPolicy(name="main", upstream="team/openai", model=target),)),),
        quotas=(policies.quota(budget=Budget(daily_usd="100")),),
    )


def form(size: int, *, model_last: bool) -> tuple[bytes, dict[str, str]]:
    """A transcription as some SDKs send it; the official one of Python puts the file last."""
    sound = b'Content-Disposition: form-data; name="file"; filename="a.mp3"\r\nContent-Type: audio/mpeg\r\n\r\n'
    parts = [b'Content-Disposition: form-data; name="model"\r\n\r\nwhisper-1', sound + bytes(size)]
    body = b"".join(b"--xyz\r\n" + part + b"\r\n" for part in (parts[::-1] if model_last else parts)) + b"--xyz--\r\n"
    return body, {"Content-Type": "multipart/form-data; boundary=xyz", "Authorization": "Bearer x"}


@pytest.mark.parametrize(
    ("size", "model_last", "second"),
    [(2000, False, 429), (2000, True, 429), (LARGE, False, 429), (LARGE, True, 200)],
    ids=["small", "small, model last", "large", "large, model last"],
)
def test_a_form_has_the_limits_and_the_price_of_its_model(
    start: Any, mock: Any, policies: Any, size: int, model_last: bool, second: int
) -> None:
    """Only where the model comes after a large file it is known too late to refuse, but not for the price."""
    sidecar = start(policy(policies, mock))
    body, fields = form(size, model_last=model_last)
    url = f"{sidecar.base_url}/audio/transcriptions"
    answers = [httpx2.post(url, content=body, headers=fields) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, second]
    first = sidecar.record(answers[0].headers["x-sluice-call-id"])
    assert first["costUSDMicros"] > 0
    assert mock.ledger.find(endpoint="audio.transcriptions")[0].received_bytes == size + len("whisper-1")


def test_pictures_are_charged_to_the_budget(start: Any, client: Client, mock: Any, policies: Any) -> None:
    """Edits come as a form; they cost the most of all calls."""
    sidecar = start(policy(policies, mock))
    picture = ("a.png", b"\x89PNG\r\n\x1a\n" + bytes(100))
    api = client(sidecar.base_url)
    edited = api.images.with_raw_response.edit(model="gpt-image-1", image=picture, prompt="more")
    record = sidecar.record(edited.headers["x-sluice-call-id"])
    assert record["costUSDMicros"] > 10_000
    with pytest.raises(openai.RateLimitError):
        api.images.edit(model="gpt-image-1", image=picture, prompt="more")
    assert len(mock.ledger) == 1


def test_a_form_goes_as_it_is_whatever_the_rule_says_of_models(start: Any, mock: Any, policies: Any) -> None:
    """Forms are not rewritten; the record has the model that was asked for."""
    sidecar = start(policy(policies, mock, target="gpt-4o-transcribe"))
    body, fields = form(2000, model_last=False)
    answer = httpx2.post(f"{sidecar.base_url}/audio/transcriptions", content=body, headers=fields)
    assert answer.status_code == 200
    assert mock.ledger.last.model_requested == "whisper-1"
    assert sidecar.record(answer.headers["x-sluice-call-id"])["model"] == "whisper-1"
