"""The models endpoint."""

from typing import Final

from sluice_cli.mock.answers import Answer, JsonAnswer
from sluice_cli.mock.errors import ERRORS, ApiError
from sluice_cli.mock.state import STABLE_CREATED_AT, Call
from sluice_cli.mock.wire import MODEL_SNAPSHOTS, JsonObject

_OTHERS: Final = (
    "text-embedding-3-small", "text-embedding-3-large", "text-embedding-ada-002", "omni-moderation-latest",
    "gpt-image-1", "whisper-1", "gpt-4o-transcribe", "gpt-4o-mini-tts", "tts-1", "gpt-realtime",
    "gpt-3.5-turbo-instruct", "dall-e-2",
)  # fmt: skip
KNOWN_MODELS: Final = (*MODEL_SNAPSHOTS, *MODEL_SNAPSHOTS.values(), *_OTHERS)


def _model(name: str) -> JsonObject:
    return {"id": name, "object": "model", "created": STABLE_CREATED_AT, "owned_by": "system"}


async def list_models(_call: Call) -> Answer:
    """Answer `GET /models`."""
    return JsonAnswer(payload={"object": "list", "data": [_model(name) for name in KNOWN_MODELS]})


async def retrieve(call: Call) -> Answer:
    """Answer `GET /models/{model}`."""
    if call.args[0] not in KNOWN_MODELS:
        raise ApiError(ERRORS["model_not_found"])
    return JsonAnswer(payload=_model(call.args[0]))


async def delete(call: Call) -> Answer:
    """Answer `DELETE /models/{model}`; only a fine-tuned model can go."""
    if not call.args[0].startswith("ft:"):
        raise ApiError(ERRORS["insufficient_permissions"])
    return JsonAnswer(payload={"id": call.args[0], "object": "model", "deleted": True})
