"""How many tokens a call will be charged, before it is made: OpenAI's own rule, and what was learned where it has none.

OpenAI charges tokens per minute at once with the larger of the output limit that the call asks for and an estimate
from its characters (platform.openai.com/docs/guides/rate-limits). A call without an output limit is charged by what
models like it used lately: mean tokens per character of input, and about the 95th percentile of output. Both are
learned from the usage in answers, forget old traffic, and are bounded in number. Where the tokens of the text were
counted exactly, they stand instead of what was learned of characters. Media are charged by rule, never by the length of
their base64:

| input | tokens | source |
|---|---|---|
| image, low detail | 85 | OpenAI's vision guide |
| image, high or auto detail | 765: 85 and 170 for each of the four tiles of 1024 x 1024, as sizes are not decoded |
same | | audio | 10 a second, at the 16 kB a second of common MP3 | OpenAI's audio pricing |
| file | one for 64 bytes, at most 100 000 | a rule of thumb: text and page images vary widely |
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from sluice_core.api.base import Value
from sluice_core.api.modelroute import Endpoint
from sluice_core.request import RequestFacts
from sluice_core.usage import Usage

CHARACTERS_PER_TOKEN: Final = 4
LOW_DETAIL_TOKENS: Final = 85
HIGH_DETAIL_TOKENS: Final = 765
AUDIO_BYTES_PER_TOKEN: Final = 1_600
FILE_BYTES_PER_TOKEN: Final = 64
MAX_FILE_TOKENS: Final = 100_000

_FIRST_OUTPUT_GUESS: Final = 500.0
_SMALLEST_OUTPUT: Final = 1.0
_LARGEST_OUTPUT: Final = 128_000.0
_QUANTILE: Final = 0.95
_MAX_MODELS: Final = 64
_KEPT: Final = 0.99  # of the weight of older calls, per call
_PRIOR_CHARACTERS: Final = 2_000.0
_CHARGES_OUTPUT: Final = frozenset({Endpoint.CHAT_COMPLETIONS, Endpoint.RESPONSES, Endpoint.COMPLETIONS})
_FREE: Final = frozenset({Endpoint.MODERATIONS, Endpoint.FILES, Endpoint.BATCHES, Endpoint.MODELS})


class Estimate(Value, frozen=True, kw_only=True, gc=False):
    """What a call will probably use. `tokens` is to be reserved; `floor_tokens` the upstream charges in any case."""

    input_tokens: int
    output_tokens: int
    tokens: int
    floor_tokens: int

    @property
    def usage(self) -> Usage:
        """Return the estimate in the shape of real usage, to price it."""
        return Usage(input_tokens=self.input_tokens, output_tokens=self.output_tokens)


class _Learned:
    __slots__ = ("calls", "characters", "context_tokens", "output", "tokens")

    def __init__(self) -> None:
        self.characters = _PRIOR_CHARACTERS
        self.tokens = _PRIOR_CHARACTERS / CHARACTERS_PER_TOKEN
        self.context_tokens = 0.0
        self.output = _FIRST_OUTPUT_GUESS
        self.calls = 0

    def learn_output(self, output_tokens: int) -> None:
        # Robbins-Monro on the logarithm: steps up and down balance where 95 of 100 calls are below. Early steps are
        # larger, to leave the first guess; later ones stay large enough to follow the traffic.
        self.calls += 1
        step = max(0.1, 2.0 / (1.0 + self.calls / 4))
        factor = 1.0 + step * _QUANTILE if output_tokens > self.output else 1.0 / (1.0 + step * (1.0 - _QUANTILE))
        self.output = min(_LARGEST_OUTPUT, max(_SMALLEST_OUTPUT, self.output * factor))


class Estimator:
    """Estimates of one sidecar, learned per model."""

    __slots__ = ("_models",)

    def __init__(self) -> None:
        self._models: OrderedDict[str, _Learned] = OrderedDict()

    def estimate(self, facts: RequestFacts, model: str | None, max_output_tokens: int | None = None) -> Estimate:
        """Estimate a call to `model`, which may differ from the one in the request.

        `max_output_tokens` is the output limit that will be sent, if it is not the request's own.
        """
        if facts.endpoint in _FREE:
            return Estimate(input_tokens=0, output_tokens=0, tokens=0, floor_tokens=0)
        learned = self._models.get(model or "") or _Learned()
        text_tokens = facts.text_tokens
        if text_tokens is None:
            text_tokens = round(facts.text_characters * learned.tokens / learned.characters)
        input_tokens = text_tokens + _media_tokens(facts)
        if facts.previous_response_id is not None or facts.conversation is not None:
            input_tokens = max(input_tokens, round(learned.context_tokens))
        if facts.endpoint not in _CHARGES_OUTPUT:
            return Estimate(input_tokens=input_tokens, output_tokens=0, tokens=input_tokens, floor_tokens=input_tokens)
        limit = facts.max_output_tokens if max_output_tokens is None else max_output_tokens
        if limit is None:
            output_tokens = round(learned.output) * facts.n
            floor = -(-facts.text_characters // CHARACTERS_PER_TOKEN) + _media_tokens(facts)
            tokens = input_tokens + output_tokens
        else:
            output_tokens = max(0, limit) * facts.n
            tokens = floor = max(output_tokens, input_tokens)
        return Estimate(
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            tokens=tokens,
            floor_tokens=min(floor, tokens),
        )

    def likely_output(self, facts: RequestFacts, model: str | None, max_output_tokens: int | None = None) -> int:
        """Return how long an answer is at most in 95 of 100 calls, and no longer than it may be."""
        if facts.endpoint not in _CHARGES_OUTPUT:
            return 0
        likely = round((self._models.get(model or "") or _Learned()).output)
        limits = [limit for limit in (max_output_tokens, facts.max_output_tokens) if limit is not None]
        return min([likely, *limits]) * facts.n

    def learn(self, facts: RequestFacts, model: str | None, usage: Usage) -> None:
        """Learn from a call that ended well. `model` is the one that was given to `estimate`."""
        name = model or ""
        learned = self._models.get(name)
        if learned is None:
            if len(self._models) >= _MAX_MODELS:
                self._models.popitem(last=False)
            learned = self._models[name] = _Learned()
        else:
            self._models.move_to_end(name)
        if facts.previous_response_id is not None or facts.conversation is not None:
            learned.context_tokens += 0.1 * (usage.input_tokens - learned.context_tokens)
        elif usage.input_tokens > 0 and facts.text_characters > 0 and not _media_tokens(facts):
            learned.characters = learned.characters * _KEPT + facts.text_characters
            learned.tokens = learned.tokens * _KEPT + usage.input_tokens
        if facts.endpoint in _CHARGES_OUTPUT and usage.output_tokens > 0:
            learned.learn_output(usage.output_tokens // max(1, facts.n))


def _media_tokens(facts: RequestFacts) -> int:
    if not (facts.images or facts.audio_bytes or facts.file_bytes):
        return 0
    images = sum(LOW_DETAIL_TOKENS if detail == "low" else HIGH_DETAIL_TOKENS for detail in facts.images)
    audio = facts.audio_bytes // AUDIO_BYTES_PER_TOKEN
    files = min(MAX_FILE_TOKENS, facts.file_bytes // FILE_BYTES_PER_TOKEN)
    return images + audio + files
