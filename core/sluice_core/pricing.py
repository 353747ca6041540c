"""What a call cost: usage, the model and service tier that the answer names, and the day, through the price book.

    cost = tier * ( band_in * [ (input - cached - written) * p_in + cached * p_cached + written * p_write ]
                  + band_out * output * p_out )

with audio and image tokens at their own prices, and the long-context band applied to the whole request (OpenAI's price
list and prompt-caching guide). Prices are whole micro-dollars per million tokens and factors are fractions, so that the
sum is exact; it is rounded once, at the end, half to even. A model or tier that is not in the book costs None, never 0.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction

from sluice_core.api.upstream import Price
from sluice_core.prices import PRICES, TIERS, VERSION, ModelPrice
from sluice_core.usage import Usage

MAX_KNOWN_NAMES = 1024
"""Names whose look-up is remembered; they come from answers, so their number must be bounded, and their length."""

LONGEST_KNOWN_NAME = 256

LATEST = float("inf")
"""As a time: after every change of prices that the book knows."""

_SNAPSHOT_SUFFIX = re.compile(r"-(?:\d{4}-\d{2}-\d{2}|\d{4})$")
_TOKENS_PER_PRICE = 1_000_000
_MILLISECONDS_PER_MINUTE = 60_000
_ONE = (1, 1)

_Ratio = tuple[int, int]


class _Rates:
    """One entry of the book, compiled to integers: micro-dollars per million tokens."""

    __slots__ = (
        "audio_input",
        "audio_output",
        "band_input",
        "band_output",
        "cache_write",
        "cached",
        "image_input",
        "image_output",
        "input",
        "long_above",
        "minute",
        "output",
        "since",
        "tiers",
    )

    def __init__(self, price: ModelPrice, tiers: Mapping[str, str]) -> None:
        self.since = _unix_day(price.since)
        self.input = _micros(price.input)
        self.output = _micros(price.output)
        self.cached = _micros(price.cached, self.input)
        self.cache_write = _micros(price.cache_write, self.input)
        self.audio_input = _micros(price.audio_input, self.input)
        self.audio_output = _micros(price.audio_output, self.output)
        self.image_input = _micros(price.image_input, self.input)
        self.image_output = _micros(price.image_output, self.output)
        self.minute = _micros(price.minute, 0)
        self.tiers = {name: _ratio(factor) for name, factor in {**tiers, **price.tiers}.items()}
        band = price.long_context
        self.long_above = band.input_tokens if band is not None else None
        self.band_input = _ratio(band.input_factor) if band is not None else _ONE
        self.band_output = _ratio(band.output_factor) if band is not None else _ONE

    def cost(self, usage: Usage, tier: str) -> int | None:
        factor = self.tiers.get(tier)
        if factor is None:
            return None
        # Nearly always the input is all fresh text and the output all text: then the sums are two products.
        into, out = usage.input_tokens * self.input, usage.output_tokens * self.output
        if (
            usage.cached_input_tokens
            or usage.cache_write_tokens
            or usage.audio_input_tokens
            or usage.image_input_tokens
        ):
            into = self._input_cost(usage)
        if usage.audio_output_tokens or usage.image_output_tokens:
            out = self._output_cost(usage)
        numerator, denominator = (into + out) * factor[0], _TOKENS_PER_PRICE * factor[1]
        if self.long_above is not None and usage.input_tokens > self.long_above:
            (in_up, in_down), (out_up, out_down) = self.band_input, self.band_output
            numerator = (into * in_up * out_down + out * out_up * in_down) * factor[0]
            denominator *= in_down * out_down
        if usage.audio_input_milliseconds and self.minute:
            spoken = self.minute * usage.audio_input_milliseconds * factor[0]
            numerator = numerator * _MILLISECONDS_PER_MINUTE * factor[1] + spoken * denominator
            denominator *= _MILLISECONDS_PER_MINUTE * factor[1]
        quotient, remainder = divmod(numerator, denominator)
        twice = 2 * remainder  # rounded half to even
        return quotient + (twice > denominator or (twice == denominator and quotient % 2 == 1))

    def _input_cost(self, usage: Usage) -> int:
        total = usage.input_tokens
        cached = min(usage.cached_input_tokens, total)
        written = min(usage.cache_write_tokens, total - cached)
        fresh = total - cached - written
        cost = cached * self.cached + written * self.cache_write
        if not usage.audio_input_tokens and not usage.image_input_tokens:
            return cost + fresh * self.input
        # How the cached part is divided is not reported; the cache holds the beginning, which is text first.
        text = max(0, total - usage.audio_input_tokens - usage.image_input_tokens)
        fresh_text = min(fresh, max(0, text - cached - written))
        audio = min(usage.audio_input_tokens, fresh - fresh_text)
        image = fresh - fresh_text - audio
        return cost + fresh_text * self.input + audio * self.audio_input + image * self.image_input

    def _output_cost(self, usage: Usage) -> int:
        total = usage.output_tokens
        audio = min(usage.audio_output_tokens, total)
        image = min(usage.image_output_tokens, total - audio)
        text = total - audio - image  # reasoning tokens are part of it
        return text * self.output + audio * self.audio_output + image * self.image_output


class PriceBook:
    """Prices by model and day. Immutable but for what it remembers of look-ups."""

    __slots__ = ("_by_model", "_exact", "_known", "_prefixes", "version")

    def __init__(self, by_model: Mapping[str, list[_Rates]], overrides: Iterable[Price], version: str) -> None:
        self.version = version
        self._by_model = by_model
        self._exact: dict[str, list[_Rates]] = {}
        prefixes: list[tuple[str, list[_Rates]]] = []
        for price in overrides:
            rates = [_override(price)]
            if price.model.endswith("*"):
                prefixes.append((price.model[:-1], rates))
            else:
                self._exact[price.model] = rates
        self._prefixes = sorted(prefixes, key=lambda entry: -len(entry[0]))
        self._known: dict[str, list[_Rates] | None] = {}

    @classmethod
    def from_data(
        cls,
        prices: Iterable[ModelPrice] = PRICES,
        tiers: Mapping[str, str] = TIERS,
        overrides: Iterable[Price] = (),
        version: str = VERSION,
    ) -> PriceBook:
        """Return the book for these prices, with an account's own prices before them.

        Raises:
            ValueError: a price, factor or date is none.
        """
        by_model: dict[str, list[_Rates]] = {}
        for price in prices:
            by_model.setdefault(price.model, []).append(_Rates(price, tiers))
        for entries in by_model.values():
            entries.sort(key=lambda rates: rates.since)
        return cls(by_model, overrides, version)

    def knows(self, model: str | None) -> bool:
        """Tell whether the model has a price."""
        return model is not None and self._find(model) is not None

    def cost_usd_micros(
        self, usage: Usage, model: str | None, service_tier: str | None = None, at_unix: float = LATEST
    ) -> int | None:
        """Return the cost in micro-dollars; None if the model or the tier has no known price.

        `model` and `service_tier` are those of the answer, which says what was served, not what was asked for. Without
        `at_unix` the latest prices hold.
        """
        if model is None:
            return None
        entries = self._known[model] if model in self._known else self._find(model)
        if entries is None:
            return None
        if len(entries) == 1:
            return entries[0].cost(usage, service_tier or "default")
        index = bisect_right(entries, at_unix, key=lambda rates: rates.since) - 1
        return entries[max(0, index)].cost(usage, service_tier or "default")

    def _find(self, model: str) -> list[_Rates] | None:
        try:
            return self._known[model]
        except KeyError:
            if len(self._known) >= MAX_KNOWN_NAMES:
                self._known.clear()
            found = self._look_up(model)
            if len(model) <= LONGEST_KNOWN_NAME:
                self._known[model] = found
            return found

    def _look_up(self, model: str) -> list[_Rates] | None:
        """Return the entries of a model: by its name, by its name without the date of a snapshot, by prefix."""
        family = _SNAPSHOT_SUFFIX.sub("", model)
        for name in (model, family):
            if name in self._exact:
                return self._exact[name]
        for prefix, rates in self._prefixes:
            if model.startswith(prefix):
                return rates
        return self._by_model.get(model) or self._by_model.get(family)


def _override(price: Price) -> _Rates:
    return _Rates(
        ModelPrice(
            model=price.model,
            input=price.input_per_million,
            output=price.output_per_million,
            cached=price.cached_input_per_million,
            cache_write=price.cache_write_per_million,
        ),
        TIERS,
    )


def _micros(usd: str | None, otherwise: int = 0) -> int:
    """Return whole micro-dollars; more digits than that are an error in the data."""
    if usd is None:
        return otherwise
    micros = Decimal(usd) * 1_000_000
    if micros != micros.to_integral_value() or micros < 0:
        raise ValueError(f"{usd} US dollars is no whole, non-negative number of micro-dollars")
    return int(micros)


def _ratio(text: str) -> _Ratio:
    ratio = Fraction(text)
    return ratio.numerator, ratio.denominator


def _unix_day(day: str) -> float:
    return datetime.strptime(day, "%Y-%m-%d").replace(tzinfo=UTC).timestamp() if day else 0.0
