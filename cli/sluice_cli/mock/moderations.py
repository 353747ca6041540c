"""Moderations: a text is flagged for the categories whose own words it holds."""

from typing import Any, Final

from sluice_cli.mock.answers import Answer, JsonAnswer
from sluice_cli.mock.content import digest
from sluice_cli.mock.errors import missing
from sluice_cli.mock.state import Call
from sluice_cli.mock.wire import JsonObject, encode_json

DEFAULT_MODEL: Final = "omni-moderation-latest"
_CATEGORIES: Final = (
    "harassment", "harassment/threatening", "hate", "hate/threatening", "illicit", "illicit/violent", "self-harm",
    "self-harm/instructions", "self-harm/intent", "sexual", "sexual/minors", "violence", "violence/graphic",
)  # fmt: skip


async def create(call: Call) -> Answer:
    """Answer `POST /moderations`; it is free of charge."""
    given: Any = call.body.get("input")
    if not given:
        raise missing("input")
    # A list of parts is one input; a list of texts is one each.
    inputs = given if isinstance(given, list) and isinstance(given[0], str) else [given]
    call.entry.model_served = call.body.get("model") or DEFAULT_MODEL
    payload = {
        "id": call.state.object_id("modr-", digest(given)),
        "model": call.entry.model_served,
        "results": [_result(item) for item in inputs],
    }
    return JsonAnswer(payload=payload)


def _result(item: Any) -> JsonObject:
    text = item if isinstance(item, str) else encode_json(item).decode()
    flags = {name: name.partition("/")[0] in text.lower() and "/" not in name for name in _CATEGORIES}
    return {
        "flagged": any(flags.values()),
        "categories": flags,
        "category_scores": {name: 0.95 if flag else 0.0001 for name, flag in flags.items()},
        "category_applied_input_types": {name: ["text"] for name in _CATEGORIES},
    }
