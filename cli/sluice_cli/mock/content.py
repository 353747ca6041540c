"""
Replies and usage as pure functions of the request.

Usage is counted so that a test can predict it:
- input tokens = ceil(characters of text / 4) + 3 per message + 3, plus 765 per image (85 at low detail);
  data URLs and other binary parts are no text;
- output tokens = the pieces of text in the reply, plus the reasoning and audio tokens that were ordered;
  a tool call counts ceil(characters of its arguments / 4) + 8.
A reply has half of `max_tokens` pieces, 24 when there is no maximum, 4096 at most.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

import msgspec

from sluice_cli.mock.effects import Effect
from sluice_cli.mock.ledger import Usage
from sluice_cli.mock.wire import JsonObject, encode_json

DEFAULT_REPLY_TOKENS: Final = 24
MAX_REPLY_TOKENS: Final = 4096
TOKENS_PER_MESSAGE: Final = 3
IMAGE_TOKENS: Final = 765
LOW_DETAIL_IMAGE_TOKENS: Final = 85
_MAX_SCHEMA_DEPTH: Final = 12

# Not all ASCII, so that a chunk can end inside a character.
_VOCABULARY: Final = (
    "The", " quick", " brown", " fox", " crosses", " the", " sluice", " while", " water", " runs", " über",
    " den", " Fluß", ",", " naïve", " café", " 水", "门", " opens", " and", " closes", ".", " Ein", " Tor",
    " regelt", " the", " flow", " 🌊", " of", " каждый", " call", ",", " step", " by", " step", ";", " nothing",
    " spills", " over", " the", " weir", " —", " measured", " evenly", " and", " kept", " below", " its",
    " mark", ".",
)  # fmt: skip
# One run long enough that any reply is a slice of it.
_CORPUS: Final = _VOCABULARY * (MAX_REPLY_TOKENS // len(_VOCABULARY) + 2)


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """A function that the model may call."""

    name: str
    schema: JsonObject


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call of a function, with its arguments as JSON text."""

    name: str
    arguments: str


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """What any generating endpoint boils down to."""

    model: str
    seed: int
    characters: int
    messages: int
    image_tokens: int = 0
    max_tokens: int | None = None
    tools: tuple[Tool, ...] = ()
    tool_calls: int = 0  # how many of the tools the reply calls
    schema: JsonObject | None = None  # the reply is JSON of this schema

    @property
    def input_tokens(self) -> int:
        """Tokens of the input, by the formula of the module."""
        return -(-self.characters // 4) + TOKENS_PER_MESSAGE * self.messages + TOKENS_PER_MESSAGE + self.image_tokens

    @property
    def charged_tokens(self) -> int:
        """What the limiter takes: the larger of the maximum and the estimate from the characters."""
        return max(self.max_tokens or 0, -(-self.characters // 4) + self.image_tokens, 1)


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """One generated choice."""

    pieces: tuple[str, ...]
    tool_calls: tuple[ToolCall, ...] = ()
    refusal: bool = False
    finish_reason: str = "stop"

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(self.pieces)

    @property
    def tokens(self) -> int:
        """Output tokens, without reasoning and audio."""
        return len(self.pieces) + sum(-(-len(call.arguments) // 4) + 8 for call in self.tool_calls)


def digest(*parts: object) -> int:
    """Return a seed that depends on nothing but the values of `parts`."""
    return int.from_bytes(hashlib.blake2b(encode_json(parts), digest_size=8).digest())


def sha256_text(text: str) -> str:
    """Return the hash under which the ledger keeps a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def reply_for(prompt: Prompt, effect: Effect, index: int = 0) -> Reply:
    """Generate choice `index` of the answer to a prompt."""
    finish = effect.finish_reason or "stop"
    if effect.refusal:
        return Reply(pieces=("I'm", " sorry", ", I", " can't", " help", " with that", "."), refusal=True)
    if finish == "content_filter":
        return Reply(pieces=(), finish_reason=finish)
    if prompt.tool_calls and effect.content is None and effect.finish_reason is None:
        calls = tuple(
            ToolCall(name=tool.name, arguments=encode_json(sample(tool.schema, prompt.seed + index)).decode())
            for tool in prompt.tools[: prompt.tool_calls]
        )
        return Reply(pieces=(), tool_calls=calls, finish_reason="tool_calls")
    return Reply(pieces=_pieces(prompt, effect, index, finish), finish_reason=finish)


def _pieces(prompt: Prompt, effect: Effect, index: int, finish: str) -> tuple[str, ...]:
    if effect.content is not None:
        return split_text(effect.content)
    if prompt.schema is not None:
        return split_text(encode_json(sample(prompt.schema, prompt.seed + index)).decode())
    count = effect.output_tokens
    if count is None and prompt.max_tokens is None:
        count = DEFAULT_REPLY_TOKENS
    elif count is None:
        count = prompt.max_tokens if finish == "length" else (prompt.max_tokens or 0) // 2
    offset = (prompt.seed + 7 * index) % len(_VOCABULARY)
    # Never fewer pieces than events ordered, so that each event has something to carry.
    return _CORPUS[offset : offset + min(max(count or 0, effect.events or 0, 1), MAX_REPLY_TOKENS)]


def split_text(text: str) -> tuple[str, ...]:
    """Cut a given text into pieces of four characters, each counted as a token."""
    return tuple(text[start : start + 4] for start in range(0, len(text), 4))


def grouped(pieces: Sequence[str], events: int | None) -> Iterator[tuple[str, int]]:
    """Yield (text, tokens so far) of each content event; `events` of them at most, else one a piece."""
    total = len(pieces)
    count = total if events is None else min(max(events, 1), total)
    done = 0
    for number in range(1, count + 1):
        upto = number * total // count
        yield "".join(pieces[done:upto]), upto
        done = upto


def usage_for(prompt: Prompt, output_tokens: int, effect: Effect) -> Usage:
    """Bill a prompt and the tokens generated for it."""
    reasoning = effect.reasoning_tokens or 0
    audio_in, audio_out = effect.audio_input_tokens or 0, effect.audio_output_tokens or 0
    given = effect.prompt_tokens
    return Usage(
        input_tokens=(prompt.input_tokens if given is None else given) + audio_in,
        output_tokens=output_tokens + reasoning + audio_out,
        cached_tokens=effect.cached_tokens or 0,
        cache_write_tokens=effect.cache_write_tokens or 0,
        audio_input_tokens=audio_in,
        image_input_tokens=prompt.image_tokens,
        reasoning_tokens=reasoning,
        audio_output_tokens=audio_out,
    )


def measure(node: Any) -> tuple[int, int]:
    """Return (characters of text, image tokens) of a message, a list of parts or any input item."""
    if isinstance(node, str):
        return len(node), 0
    if isinstance(node, list):
        measured = [measure(item) for item in node]
        return sum(row[0] for row in measured), sum(row[1] for row in measured)
    if isinstance(node, dict):
        return _measure_part(node)
    return 0, 0


def _measure_part(part: Mapping[str, Any]) -> tuple[int, int]:
    kind = part.get("type")
    if kind in ("image_url", "input_image"):
        image = part.get("image_url")
        detail = image.get("detail") if isinstance(image, dict) else part.get("detail")
        return 0, LOW_DETAIL_IMAGE_TOKENS if detail == "low" else IMAGE_TOKENS
    if kind in ("input_audio", "file", "input_file"):
        return 0, 0
    fields = ("content", "text", "output", "arguments", "refusal")
    return measure([part[name] for name in fields if name in part])


@lru_cache(maxsize=256)
def embedding(text: str, dimensions: int) -> tuple[float, ...]:
    """Return a unit-length vector that depends on the text alone."""
    raw = hashlib.shake_128(text.encode()).digest(2 * dimensions)
    values = [int.from_bytes(raw[at : at + 2]) / 32767.5 - 1.0 for at in range(0, len(raw), 2)]
    norm = sum(value * value for value in values) ** 0.5 or 1.0
    return tuple(value / norm for value in values)


def sample(schema: JsonObject, seed: int) -> Any:
    """Return a value that is valid under a JSON schema (of the kind that structured outputs accept)."""
    return _sample(schema, schema, seed, 0)


def _sample(schema: JsonObject, root: JsonObject, seed: int, depth: int) -> Any:
    if "$ref" in schema and depth < _MAX_SCHEMA_DEPTH:
        return _sample(_resolve(schema["$ref"], root), root, seed, depth + 1)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][seed % len(schema["enum"])]
    for union in ("anyOf", "oneOf", "allOf"):
        if schema.get(union):
            options = schema[union]
            # A recursive type ends where its last option (null, by custom) is taken.
            return _sample(options[0 if depth < _MAX_SCHEMA_DEPTH // 2 else -1], root, seed, depth + 1)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    if isinstance(kind, list):
        kind = kind[0]
    if kind == "object":
        properties = schema.get("properties", {})
        return {name: _sample(part, root, seed + at, depth + 1) for at, (name, part) in enumerate(properties.items())}
    if kind == "array":
        count = max(schema.get("minItems", 0), 0 if depth >= _MAX_SCHEMA_DEPTH // 2 else 1)
        return [_sample(schema.get("items", {}), root, seed + at, depth + 1) for at in range(count)]
    return _sample_scalar(kind, schema, seed)


def _sample_scalar(kind: str, schema: JsonObject, seed: int) -> Any:
    match kind:
        case "integer" | "number":
            low = schema.get("minimum", schema.get("exclusiveMinimum", -1) + 1)
            high = schema.get("maximum", low + 9)
            value = low + seed % (int(high - low) + 1)
            return value if kind == "integer" else float(value)
        case "boolean":
            return seed % 2 == 0
        case "null":
            return None
        case _:
            word = _VOCABULARY[seed % len(_VOCABULARY)].strip() or "word"
            return (word * -(-schema.get("minLength", 1) // len(word)))[: schema.get("maxLength", 1000)]


def _resolve(reference: str, root: JsonObject) -> JsonObject:
    node: Any = root
    for step in reference.removeprefix("#/").split("/") if reference != "#" else ():
        node = node[step]
    return node if isinstance(node, dict) else {}
