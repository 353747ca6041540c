"""What policy needs to know of a request, read from its path and body without parsing the rest.

The hot path: one pass of msgspec over the body, in which messages and other large fields stay unparsed slices. Fields
of an unexpected type count as absent, because judging them is the upstream's business; only a body that is no JSON
object at all is refused, since no policy can be applied to it.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw

from sluice_core.api.base import Value
from sluice_core.api.modelroute import Endpoint
from sluice_core.errors import BadRequestError
from sluice_core.media import measure
from sluice_core.untrusted import UNREADABLE

_FAMILIES: dict[str, Endpoint] = {
    "completions": Endpoint.COMPLETIONS,
    "responses": Endpoint.RESPONSES,
    "embeddings": Endpoint.EMBEDDINGS,
    "images": Endpoint.IMAGES,
    "audio": Endpoint.AUDIO,
    "moderations": Endpoint.MODERATIONS,
    "files": Endpoint.FILES,
    "uploads": Endpoint.FILES,
    "batches": Endpoint.BATCHES,
    "models": Endpoint.MODELS,
    "realtime": Endpoint.REALTIME,
}

_GENERATING: dict[str, Endpoint] = {
    "/chat/completions": Endpoint.CHAT_COMPLETIONS,
    "/responses": Endpoint.RESPONSES,
    "/completions": Endpoint.COMPLETIONS,
    "/embeddings": Endpoint.EMBEDDINGS,
    "/images/generations": Endpoint.IMAGES,
    "/images/edits": Endpoint.IMAGES,
    "/images/variations": Endpoint.IMAGES,
    "/audio/speech": Endpoint.AUDIO,
    "/audio/transcriptions": Endpoint.AUDIO,
    "/audio/translations": Endpoint.AUDIO,
    "/moderations": Endpoint.MODERATIONS,
}

_USAGE_ON_REQUEST = frozenset({Endpoint.CHAT_COMPLETIONS, Endpoint.COMPLETIONS})


def endpoint_of(method: str, path: str) -> Endpoint:
    """Return the operation behind a path below the `/v1` root, such as `/chat/completions` (no query string).

    Paths below an operation (`GET /responses/{id}`) belong to it, so that they follow the same rules to one upstream.
    """
    if method == "POST":
        found = _GENERATING.get(path)
        if found is not None:
            return found
    first, _, rest = path.strip("/").partition("/")
    if first == "chat":
        return Endpoint.CHAT_COMPLETIONS if rest.split("/", 1)[0] == "completions" else Endpoint.OTHER
    return _FAMILIES.get(first, Endpoint.OTHER)


def generates(method: str, path: str) -> bool:
    """Tell whether a call makes the upstream generate something, so that tokens are spent and `rewrite` applies."""
    return method == "POST" and path.rstrip("/") in _GENERATING


class RequestFacts(Value, frozen=True, kw_only=True, gc=False):
    """What policy knows of a request. Absent fields are None; nothing here holds text of a prompt.

    `text_characters` is the length of the input as it stands in the body (messages, instructions, tools), media left
    out: a measure for estimates; `text_tokens` is set where somebody has counted its tokens. `images` holds the
    requested detail of each image (`low`, `high`, `auto`), `audio_bytes` and `file_bytes` the decoded size of inline
    data. `asks_usage` tells that the client itself asked for `stream_options.include_usage`. `has_stream_options` and
    `output_limit_field` tell which members are there.
    """

    endpoint: Endpoint
    model: str | None = None
    stream: bool = False
    n: int = 1
    max_output_tokens: int | None = None
    output_limit_field: str | None = None
    include_usage: bool = False
    has_stream_options: bool = False
    background: bool = False
    service_tier: str | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    previous_response_id: str | None = None
    conversation: str | None = None
    text_characters: int = 0
    text_tokens: int | None = None
    images: tuple[str, ...] = ()
    audio_bytes: int = 0
    file_bytes: int = 0
    deterministic: bool = False

    @property
    def usage_on_request(self) -> bool:
        """Tell whether this is a stream that reports usage only if `stream_options.include_usage` asks for it."""
        return self.stream and self.endpoint in _USAGE_ON_REQUEST


_ABSENT = Raw(b"")


class _Body(msgspec.Struct, gc=False):
    model: str | None = None
    stream: bool | None = None
    n: int | None = None
    best_of: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    background: bool | None = None
    service_tier: str | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    previous_response_id: str | None = None
    conversation: Raw = _ABSENT
    stream_options: Raw = _ABSENT
    messages: Raw = _ABSENT
    input: Raw = _ABSENT
    prompt: Raw = _ABSENT
    instructions: Raw = _ABSENT
    tools: Raw = _ABSENT
    functions: Raw = _ABSENT
    response_format: Raw = _ABSENT
    text: Raw = _ABSENT


class _StreamOptions(msgspec.Struct, gc=False):
    include_usage: bool | None = None


class _Conversation(msgspec.Struct, gc=False):
    id: str


_decode_body = msgspec.json.Decoder(_Body).decode
_decode_stream_options = msgspec.json.Decoder(_StreamOptions | None).decode
_decode_conversation = msgspec.json.Decoder(str | _Conversation | None).decode
_decode_members = msgspec.json.Decoder(dict[str, Raw]).decode

_FIELD_TYPES: dict[str, Any] = {
    name: msgspec.json.Decoder(kind).decode
    for name, kind in (
        *((field, str | None) for field in ("model", "service_tier", "user", "safety_identifier", "prompt_cache_key")),
        ("previous_response_id", str | None),
        *((field, bool | None) for field in ("stream", "background")),
        *(
            (field, int | None)
            for field in ("n", "best_of", "max_tokens", "max_completion_tokens", "max_output_tokens")
        ),
        ("temperature", float | None),
    )
}

_MAX_DETERMINISTIC_TEMPERATURE = 0.1
_LARGEST_OUTPUT_LIMIT = 2**31 - 1
_MOST_CHOICES = 1024
"""Beyond what any API takes. Numbers of callers go into sums, reports and figures that must not burst with them."""

_NOT_JSON = "We could not parse the JSON body of your request: it is not a JSON object."


def peek(endpoint: Endpoint, body: bytes) -> RequestFacts:
    """Return what policy needs to know of a JSON request body.

    Raises:
        BadRequestError: the body is no JSON object, is no UTF-8 where it matters, or is nested too deep.
    """
    fields = _fields(body)
    limit_field, limit = _output_limit(endpoint, fields)
    text_characters, images, audio_bytes, file_bytes = measure(
        body, fields.messages, fields.input, _other_characters(fields)
    )
    options = fields.stream_options
    has_options = len(options) > 0
    temperature = fields.temperature
    count = fields.n if fields.best_of is None else max(fields.best_of, fields.n or 1)  # all of them are generated
    return RequestFacts(
        endpoint=endpoint,
        model=fields.model,
        stream=fields.stream is True,
        n=min(count, _MOST_CHOICES) if count is not None and count > 0 else 1,
        max_output_tokens=limit,
        output_limit_field=limit_field,
        include_usage=has_options and _asks_usage(options),
        has_stream_options=has_options,
        background=fields.background is True,
        service_tier=fields.service_tier,
        user=fields.user,
        safety_identifier=fields.safety_identifier,
        prompt_cache_key=fields.prompt_cache_key,
        previous_response_id=fields.previous_response_id,
        conversation=_conversation_id(fields.conversation) if len(fields.conversation) else None,
        text_characters=text_characters,
        images=images,
        audio_bytes=audio_bytes,
        file_bytes=file_bytes,
        deterministic=temperature is not None and temperature <= _MAX_DETERMINISTIC_TEMPERATURE,
    )


def _fields(body: bytes) -> _Body:
    try:
        return _decode_body(body)
    except msgspec.ValidationError:
        return _lenient_fields(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise BadRequestError(_NOT_JSON) from None
    except RecursionError:
        raise BadRequestError("We could not parse the JSON body of your request: it is nested too deep.") from None


def _lenient_fields(body: bytes) -> _Body:
    """Read the fields one by one, so that one of a wrong type does not hide the others."""
    fields = _Body()
    for name, raw in members(body).items():
        decode = _FIELD_TYPES.get(name)
        if decode is not None:
            setattr(fields, name, _try(decode, raw))
        elif name in _Body.__struct_fields__:
            setattr(fields, name, raw)
    return fields


def members(body: bytes) -> dict[str, Raw]:
    """Return the members of a JSON object, values unparsed. Of members with the same name the last one counts.

    Raises:
        BadRequestError: the body is no JSON object.
    """
    try:
        return _decode_members(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise BadRequestError(_NOT_JSON) from None
    except RecursionError:
        raise BadRequestError("We could not parse the JSON body of your request: it is nested too deep.") from None


def _output_limit(endpoint: Endpoint, fields: _Body) -> tuple[str | None, int | None]:
    """Return the name and value of the member that caps the output; chat has two names for it, the newer one first."""
    if endpoint is Endpoint.RESPONSES:
        name, value = "max_output_tokens", fields.max_output_tokens
    elif fields.max_completion_tokens is not None:
        name, value = "max_completion_tokens", fields.max_completion_tokens
    else:
        name, value = "max_tokens", fields.max_tokens
    return (None, None) if value is None or value < 0 else (name, min(value, _LARGEST_OUTPUT_LIMIT))


def _other_characters(fields: _Body) -> int:
    return (
        len(fields.prompt)
        + len(fields.instructions)
        + len(fields.tools)
        + len(fields.functions)
        + len(fields.response_format)
        + len(fields.text)
    )


def _asks_usage(raw: Raw) -> bool:
    options = _try(_decode_stream_options, raw)
    return options is not None and options.include_usage is True


def _conversation_id(raw: Raw) -> str | None:
    conversation = _try(_decode_conversation, raw)
    return conversation.id if isinstance(conversation, _Conversation) else conversation


def _try(decode: Any, raw: Raw) -> Any:
    """Return the value, or None if it is of another type: wrong values are for the upstream to refuse."""
    try:
        return decode(raw)
    except UNREADABLE:
        return None
