"""Legacy completions."""

from collections.abc import Iterator
from typing import Any, Final

from sluice_cli.mock.answers import Answer, Frame, JsonAnswer, StreamAnswer
from sluice_cli.mock.chat import SYSTEM_FINGERPRINT, usage_body
from sluice_cli.mock.content import Prompt, Reply, digest, grouped, measure, reply_for, usage_for
from sluice_cli.mock.errors import ERRORS, error_body, missing
from sluice_cli.mock.ledger import Usage
from sluice_cli.mock.state import Call
from sluice_cli.mock.wire import SSE_DONE, JsonObject, sse_data

DEFAULT_MAX_TOKENS: Final = 16  # the endpoint's own default


def prompt_of(body: JsonObject) -> Prompt:
    """Read a completion request."""
    if not isinstance(body.get("model"), str):
        raise missing("model")
    written: Any = body.get("prompt", "<|endoftext|>")
    return Prompt(
        model=body["model"],
        seed=digest(body["model"], written, body.get("temperature"), body.get("seed")),
        characters=measure(written)[0],
        messages=1,
        max_tokens=body.get("max_tokens") or DEFAULT_MAX_TOKENS,
    )


async def create(call: Call) -> Answer:
    """Answer `POST /completions`."""
    body, effect = call.body, call.effect
    prompt = prompt_of(body)
    replies = [reply_for(prompt, effect, index) for index in range(body.get("n") or 1)]
    usage = usage_for(prompt, sum(reply.tokens for reply in replies), effect)
    head: JsonObject = {
        "id": call.state.object_id("cmpl-", prompt.seed),
        "object": "text_completion",
        "created": call.state.created_at(),
        "model": call.model_served,
        "system_fingerprint": SYSTEM_FINGERPRINT,
    }
    call.entry.object_id = head["id"]
    if body.get("stream"):
        asked = call.entry.usage_asked and effect.usage != "omit"
        return StreamAnswer(
            frames=_frames(call, head, replies, usage, asked),
            usage=None if effect.stream_error else usage,
            usage_sent=asked and effect.stream_error is None,
            failure=effect.stream_error,
        )
    choices = [_choice(index, reply.text, reply.finish_reason) for index, reply in enumerate(replies)]
    payload = head | {"choices": choices}
    if effect.usage != "omit":
        payload["usage"] = usage_body(usage)
    return JsonAnswer(payload=payload, usage=usage, usage_sent=effect.usage != "omit", events=len(replies[0].pieces))


def _choice(index: int, text: str, finish_reason: str | None) -> JsonObject:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": finish_reason}


def _frames(call: Call, head: JsonObject, replies: list[Reply], usage: Usage, asked: bool) -> Iterator[Frame]:
    effect = call.effect
    blank: JsonObject = {"usage": None} if asked else {}
    tokens = usage.reasoning_tokens
    for index, reply in enumerate(replies):
        start = tokens
        fail_at = len(reply.pieces) // 2 if effect.fail_at_event is None else effect.fail_at_event
        for number, (text, upto) in enumerate(grouped(reply.pieces, effect.events)):
            if effect.stream_error is not None and number >= fail_at:
                yield Frame(data=sse_data(error_body(ERRORS[effect.stream_error])), output_tokens=tokens)
                return
            tokens = start + upto
            yield Frame(data=sse_data(head | {"choices": [_choice(index, text, None)]} | blank), output_tokens=tokens)
        ending = head | {"choices": [_choice(index, "", reply.finish_reason)]} | blank
        yield Frame(data=sse_data(ending), output_tokens=tokens)
    if asked:
        yield Frame(data=sse_data(head | {"choices": [], "usage": usage_body(usage)}), output_tokens=tokens)
    if not effect.no_done:
        yield Frame(data=SSE_DONE, output_tokens=tokens)
