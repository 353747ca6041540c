"""Embeddings: unit vectors that depend on the text, as numbers or base64."""

import base64
import struct
from typing import Any, Final

from sluice_cli.mock.answers import Answer, JsonAnswer
from sluice_cli.mock.content import embedding
from sluice_cli.mock.errors import bad_request, missing
from sluice_cli.mock.ledger import Usage
from sluice_cli.mock.state import Call
from sluice_cli.mock.wire import JsonObject, encode_json

_DIMENSIONS: Final = {"text-embedding-3-small": 1536, "text-embedding-3-large": 3072, "text-embedding-ada-002": 1536}
_MAX_DIMENSIONS: Final = 3072
_MAX_INPUTS: Final = 2048


def inputs_of(body: JsonObject) -> list[Any]:
    """Read the inputs, each a text or a list of token numbers."""
    given = body.get("input")
    if given is None or given in ("", []):
        raise missing("input")
    if isinstance(given, str) or (isinstance(given, list) and isinstance(given[0], int)):
        given = [given]
    if not isinstance(given, list) or len(given) > _MAX_INPUTS:
        raise bad_request("Invalid 'input': must be a string or an array of at most 2048.", "input")
    return given


def charge(body: JsonObject) -> int:
    """Estimate the tokens that the limiter charges."""
    return sum(_tokens(item) for item in inputs_of(body))


def _tokens(item: Any) -> int:
    return max(1, -(-len(item) // 4)) if isinstance(item, str) else len(item)


async def create(call: Call) -> Answer:
    """Answer `POST /embeddings`; usage is ceil(characters / 4) per text, or the tokens given."""
    body = call.body
    if not isinstance(body.get("model"), str):
        raise missing("model")
    inputs = inputs_of(body)
    dimensions = body.get("dimensions") or _DIMENSIONS.get(body["model"], 1536)
    if not 1 <= dimensions <= _MAX_DIMENSIONS:
        raise bad_request("Invalid 'dimensions'.", "dimensions")
    as_base64 = body.get("encoding_format") == "base64"
    tokens = call.effect.prompt_tokens or sum(_tokens(item) for item in inputs)
    data = [
        {"object": "embedding", "index": index, "embedding": _vector(item, dimensions, as_base64)}
        for index, item in enumerate(inputs)
    ]
    payload: JsonObject = {"object": "list", "data": data, "model": call.model_served}
    if call.effect.usage != "omit":
        payload["usage"] = {"prompt_tokens": tokens, "total_tokens": tokens}
    return JsonAnswer(payload=payload, usage=Usage(input_tokens=tokens), usage_sent=call.effect.usage != "omit")


def _vector(item: Any, dimensions: int, as_base64: bool) -> str | tuple[float, ...]:
    text = item if isinstance(item, str) else encode_json(item).decode()
    values = embedding(text, dimensions)
    if not as_base64:
        return values
    return base64.b64encode(struct.pack(f"<{dimensions}f", *values)).decode()
