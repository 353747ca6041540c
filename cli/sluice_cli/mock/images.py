"""
Images: generation, edits, variations.

Output tokens per image are those of a square one (low 272, medium 1056, high 4160); a prompt costs
ceil(characters / 4), each image given 765. `dall-e` models report no usage.
"""

import base64
from collections.abc import Iterator
from typing import Any, Final

from sluice_cli.mock.answers import Answer, Frame, JsonAnswer, StreamAnswer
from sluice_cli.mock.content import IMAGE_TOKENS
from sluice_cli.mock.errors import bad_request, missing
from sluice_cli.mock.forms import Form
from sluice_cli.mock.ledger import Usage
from sluice_cli.mock.state import Call
from sluice_cli.mock.wire import JsonObject, sse_event

_QUALITY_TOKENS: Final = {"low": 272, "medium": 1056, "high": 4160}
# One transparent pixel.
_PNG: Final = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAAC0lEQVR42mNgAAIAAAUAAen63NgAAAAASUVORK5CYII="
)
_PNG_BASE64: Final = base64.b64encode(_PNG).decode()
_MAX_IMAGES: Final = 10


def charge(body: JsonObject) -> int:
    """Estimate the tokens that the limiter charges."""
    return max(1, -(-len(str(body.get("prompt", ""))) // 4))


async def generate(call: Call) -> Answer:
    """Answer `POST /images/generations`."""
    if not call.body.get("prompt"):
        raise missing("prompt")
    return _answer(call, 0, "image_generation")


async def edit(call: Call) -> Answer:
    """Answer `POST /images/edits`."""
    given = _images(call)
    if not call.body.get("prompt"):
        raise missing("prompt")
    return _answer(call, given, "image_edit")


async def vary(call: Call) -> Answer:
    """Answer `POST /images/variations`."""
    call.body.setdefault("model", "dall-e-2")
    return _answer(call, _images(call), "image_variation")


def _images(call: Call) -> int:
    """Count the images given, in the form or as references in a JSON body."""
    given: Any = call.form.files.get("image") if isinstance(call.form, Form) else call.body.get("images")
    if not given:
        raise missing("image")
    return len(given)


def _answer(call: Call, given: int, kind: str) -> Answer:
    body = call.body
    count = body.get("n") or 1
    if not isinstance(count, int) or not 1 <= count <= _MAX_IMAGES:
        raise bad_request("Invalid 'n': must be between 1 and 10.", "n")
    old = str(body.get("model", "gpt-image-1")).startswith("dall-e")
    usage = None if old else _usage(body, count, given)
    if body.get("stream") and usage is not None:
        return StreamAnswer(frames=_frames(call, kind, usage), usage=usage)
    payload: JsonObject = {"created": call.state.created_at()}
    if old and body.get("response_format") != "b64_json":
        payload["data"] = [{"url": f"https://images.invalid/{number}.png"} for number in range(count)]
    else:
        payload["data"] = [{"b64_json": _PNG_BASE64} for _ in range(count)]
    if usage is not None:
        payload |= _details(body) | {"usage": _usage_body(usage)}
    return JsonAnswer(payload=payload, usage=usage)


def _details(body: JsonObject) -> JsonObject:
    return {
        "background": "opaque",
        "output_format": body.get("output_format") or "png",
        "quality": _quality(body),
        "size": body["size"] if body.get("size") not in (None, "auto") else "1024x1024",
    }


def _quality(body: JsonObject) -> str:
    asked = body.get("quality")
    return asked if asked in _QUALITY_TOKENS else "medium"


def _usage(body: JsonObject, count: int, given: int) -> Usage:
    text_tokens = charge(body)
    return Usage(
        input_tokens=text_tokens + IMAGE_TOKENS * given,
        image_input_tokens=IMAGE_TOKENS * given,
        output_tokens=_QUALITY_TOKENS[_quality(body)] * count,
    )


def _usage_body(usage: Usage) -> JsonObject:
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {
            "image_tokens": usage.image_input_tokens,
            "text_tokens": usage.input_tokens - usage.image_input_tokens,
        },
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"image_tokens": usage.output_tokens, "text_tokens": 0},
        "total_tokens": usage.total_tokens,
    }


def _frames(call: Call, kind: str, usage: Usage) -> Iterator[Frame]:
    common = {"b64_json": _PNG_BASE64, "created_at": call.state.created_at(), **_details(call.body)}
    partial = int(call.body.get("partial_images") or 0)
    for number in range(partial):
        event = {"type": f"{kind}.partial_image", "partial_image_index": number, **common}
        # The part of the image that is there when it shows.
        yield Frame(data=sse_event(event), output_tokens=usage.output_tokens * (number + 1) // (partial + 1))
    done = {"type": f"{kind}.completed", "usage": _usage_body(usage), **common}
    yield Frame(data=sse_event(done), output_tokens=usage.output_tokens)
