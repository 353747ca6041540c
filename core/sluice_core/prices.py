"""The built-in price book: what OpenAI charges, as data.

Sources, and how far to trust them: OpenAI's public price list (openai.com/api/pricing and its documentation site)
for the GPT-4, GPT-4o, GPT-4.1, GPT-5, o-series, audio, image and embedding models; public trackers of price changes for
the GPT-5.6, GPT-6 and GPT-6.1 models; the prompt-caching guide for cache writes (1.25 times the input price from
GPT-5.6 on). Prices change and accounts have their own: `Upstream.spec.prices` overrides any entry. A price that is
absent here is not guessed: cached tokens without a price of their own cost as much as other input, and an unknown
model has no cost.
"""

from __future__ import annotations

from sluice_core.api.base import Value

VERSION = "2026-11"


class LongContext(Value, frozen=True, kw_only=True):
    """Above `input_tokens`, the whole request costs more by these factors."""

    input_tokens: int
    input_factor: str
    output_factor: str


class ModelPrice(Value, frozen=True, kw_only=True):
    """US dollars per million tokens, as decimal strings; `minute` per minute of audio.

    `since` is the day (UTC) from which the entry holds, empty for the first known. `tiers` are factors by the service
    tier of the answer, as fractions, where they differ from the general ones.
    """

    model: str
    input: str = "0"
    output: str = "0"
    cached: str | None = None
    cache_write: str | None = None
    audio_input: str | None = None
    audio_output: str | None = None
    image_input: str | None = None
    image_output: str | None = None
    minute: str | None = None
    since: str = ""
    tiers: dict[str, str] = {}
    long_context: LongContext | None = None


TIERS: dict[str, str] = {
    "default": "1",
    "auto": "1",
    "standard": "1",
    "scale": "1",
    "batch": "1/2",
    "flex": "1/2",
    "priority": "2",
    "fast": "2",
}
"""General factors by service tier. A tier that is not listed has no known price."""

LONG_272K = LongContext(input_tokens=272_000, input_factor="2", output_factor="3/2")


def _text(model: str, into: str, out: str, cached: str | None = None, priority: str | None = None) -> ModelPrice:
    tiers = {"priority": priority, "fast": priority} if priority is not None else {}
    return ModelPrice(model=model, input=into, output=out, cached=cached, tiers=tiers)


PRICES: tuple[ModelPrice, ...] = (
    _text("gpt-3.5-turbo", "0.50", "1.50"),
    _text("gpt-3.5-turbo-1106", "1", "2"),
    _text("gpt-3.5-turbo-0613", "1.50", "2"),
    _text("gpt-3.5-turbo-instruct", "1.50", "2"),
    _text("davinci-002", "2", "2"),
    _text("babbage-002", "0.40", "0.40"),
    _text("gpt-4", "30", "60"),
    _text("gpt-4-turbo", "10", "30"),
    _text("gpt-4o", "2.50", "10", "1.25", priority="17/10"),
    _text("gpt-4o-2024-05-13", "5", "15", priority="7/4"),
    _text("chatgpt-4o-latest", "5", "15"),
    _text("gpt-4o-mini", "0.15", "0.60", "0.075", priority="5/3"),
    _text("gpt-4.1", "2", "8", "0.50", priority="7/4"),
    _text("gpt-4.1-mini", "0.40", "1.60", "0.10", priority="7/4"),
    _text("gpt-4.1-nano", "0.10", "0.40", "0.025"),
    _text("o1", "15", "60", "7.50"),
    _text("o1-pro", "150", "600"),
    _text("o3", "2", "8", "0.50", priority="7/4"),
    _text("o3-pro", "20", "80"),
    _text("o3-mini", "1.10", "4.40", "0.55"),
    _text("o4-mini", "1.10", "4.40", "0.275", priority="20/11"),
    _text("gpt-5", "1.25", "10", "0.125"),
    _text("gpt-5-mini", "0.25", "2", "0.025", priority="9/5"),
    _text("gpt-5-nano", "0.05", "0.40", "0.005"),
    _text("gpt-5-chat-latest", "1.25", "10", "0.125"),
    _text("gpt-5-codex", "1.25", "10", "0.125"),
    _text("gpt-5-pro", "15", "120"),
    _text("gpt-5.1", "1.25", "10", "0.125"),
    _text("gpt-5.2", "1.75", "14", "0.175"),
    ModelPrice(model="gpt-5.6-luna", input="1", output="6", cache_write="1.25", long_context=LONG_272K),
    ModelPrice(
        model="gpt-5.6-luna",
        input="0.20",
        output="1.20",
        cache_write="0.25",
        since="2026-07-30",
        long_context=LONG_272K,
    ),
    ModelPrice(model="gpt-5.6-sol", input="5", output="30", cache_write="6.25", long_context=LONG_272K),
    ModelPrice(
        model="gpt-5.6-sol", input="4", output="20", cache_write="5", since="2026-08-21", long_context=LONG_272K
    ),
    ModelPrice(model="gpt-6-astra", input="10", output="50", cached="1", cache_write="12.50", long_context=LONG_272K),
    ModelPrice(model="gpt-6-sol", input="2", output="10", cached="0.20", cache_write="2.50", long_context=LONG_272K),
    ModelPrice(
        model="gpt-6-luna", input="0.10", output="0.50", cached="0.01", cache_write="0.125", long_context=LONG_272K
    ),
    ModelPrice(model="gpt-6.1-sol", input="2", output="10", cached="0.10", cache_write="2.50", long_context=LONG_272K),
    ModelPrice(model="gpt-6.1-terra", input="1", output="5", cached="0.05", cache_write="1.25", long_context=LONG_272K),
    ModelPrice(model="gpt-4o-audio-preview", input="2.50", output="10", audio_input="40", audio_output="80"),
    ModelPrice(model="gpt-4o-mini-audio-preview", input="0.15", output="0.60", audio_input="10", audio_output="20"),
    ModelPrice(model="gpt-audio", input="2.50", output="10", audio_input="32", audio_output="64"),
    ModelPrice(
        model="gpt-realtime",
        input="4",
        output="16",
        cached="0.40",
        audio_input="32",
        audio_output="64",
        image_input="5",
    ),
    ModelPrice(
        model="gpt-4o-realtime-preview", input="5", output="20", cached="2.50", audio_input="40", audio_output="80"
    ),
    ModelPrice(model="gpt-4o-transcribe", input="2.50", output="10", audio_input="6"),
    ModelPrice(model="gpt-4o-mini-transcribe", input="1.25", output="5", audio_input="3"),
    ModelPrice(model="whisper-1", minute="0.006"),
    ModelPrice(model="gpt-4o-mini-tts", input="0.60", output="12"),
    ModelPrice(model="gpt-image-1", input="5", output="40", cached="1.25", image_input="10", image_output="40"),
    ModelPrice(model="gpt-image-1-mini", input="2", output="8", cached="0.20", image_input="2.50", image_output="8"),
    _text("text-embedding-3-small", "0.02", "0"),
    _text("text-embedding-3-large", "0.13", "0"),
    _text("text-embedding-ada-002", "0.10", "0"),
    _text("omni-moderation-latest", "0", "0"),
    _text("omni-moderation", "0", "0"),
    _text("text-moderation-latest", "0", "0"),
)
