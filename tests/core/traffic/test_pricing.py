"""What calls cost: exact, by what was served, never silently free."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice_core.api.upstream import Price
from sluice_core.prices import PRICES, TIERS, LongContext, ModelPrice
from sluice_core.pricing import MAX_KNOWN_NAMES, PriceBook
from sluice_core.usage import Usage

BOOK = PriceBook.from_data()
MILLION = 1_000_000
JULY_29, JULY_30 = 1_785_283_200.0, 1_785_369_600.0  # midnight UTC, 2026


@pytest.mark.parametrize(
    ("model", "tier", "usage", "usd_micros"),
    [
        ("gpt-4.1", None, Usage(input_tokens=1000, output_tokens=1000), 2000 + 8000),
        ("gpt-4.1-mini-2025-04-14", "default", Usage(input_tokens=1000, output_tokens=100), 400 + 160),
        ("gpt-4.1-mini", None, Usage(input_tokens=1000, cached_input_tokens=600), 160 + 60),
        ("gpt-4o", "flex", Usage(input_tokens=1000, output_tokens=1000), 1250 + 5000),
        ("gpt-4o", "batch", Usage(input_tokens=1000, output_tokens=1000), 1250 + 5000),
        ("gpt-4.1", "priority", Usage(input_tokens=1000, output_tokens=1000), 3500 + 14_000),
        ("gpt-4o-2024-05-13", None, Usage(input_tokens=1000), 5000),  # a snapshot with a price of its own
        ("gpt-4-0613", None, Usage(input_tokens=1000), 30_000),
        ("o3", None, Usage(output_tokens=1000, reasoning_tokens=900), 8000),  # reasoning is part of the output
        ("text-embedding-3-small", None, Usage(input_tokens=1_000_000), 20_000),
        ("text-embedding-3-large", None, Usage(input_tokens=1), 0),  # 0.13 micro-dollars
        ("gpt-5.6-sol", None, Usage(input_tokens=1000, cache_write_tokens=400), 600 * 5 + 2500),
        ("gpt-audio", None, Usage(input_tokens=1000, audio_input_tokens=400), 1500 + 12_800),
        ("gpt-audio", None, Usage(output_tokens=1000, audio_output_tokens=400), 6000 + 25_600),
        ("gpt-image-1", None, Usage(input_tokens=100, image_input_tokens=60, output_tokens=10), 200 + 600 + 400),
        ("whisper-1", None, Usage(audio_input_milliseconds=30_000), 3000),
        ("omni-moderation-latest", None, Usage(input_tokens=50), 0),
    ],
)
def test_prices_of_known_models(model: str, tier: str | None, usage: Usage, usd_micros: int) -> None:
    """Cached, written, audio and image tokens at their own prices; the tier that was served counts (P19)."""
    assert BOOK.cost_usd_micros(usage, model, tier, at_unix=0.0) == usd_micros


@pytest.mark.parametrize(
    ("model", "tier"),
    [("gpt-99", None), (None, None), ("", None), ("ft:gpt-4.1-mini-2025-04-14:org::x", None), ("gpt-4.1", "ultrafast")],
)
def test_an_unknown_model_or_tier_has_no_cost(model: str | None, tier: str | None) -> None:
    """Unknown is not free (P19)."""
    assert BOOK.cost_usd_micros(Usage(input_tokens=1000), model, tier) is None


def test_the_price_of_the_day_counts() -> None:
    """A price change holds from its day on."""
    usage = Usage(input_tokens=MILLION // 10)
    assert BOOK.cost_usd_micros(usage, "gpt-5.6-luna", None, JULY_29) == 100_000
    assert BOOK.cost_usd_micros(usage, "gpt-5.6-luna", None, JULY_30) == 20_000
    assert BOOK.cost_usd_micros(usage, "gpt-5.6-luna") == 20_000


def test_above_the_long_context_bound_the_whole_request_costs_more() -> None:
    """Twice the input price and one and a half times the output price, for every token of the request."""
    at, above = (Usage(input_tokens=count, output_tokens=1000) for count in (272_000, 272_001))
    assert BOOK.cost_usd_micros(at, "gpt-6-sol") == 272_000 * 2 + 10_000
    assert BOOK.cost_usd_micros(above, "gpt-6-sol") == 272_001 * 4 + 15_000


def test_prices_of_the_account_go_first() -> None:
    """An exact name before a prefix, a longer prefix before a shorter one, all before the book."""
    book = PriceBook.from_data(
        overrides=(
            Price(model="gpt-4.1*", input_per_million="3", output_per_million="0"),
            Price(model="gpt-4.1-m*", input_per_million="4", output_per_million="0"),
            Price(model="gpt-4.1-mini", input_per_million="5", output_per_million="0", cached_input_per_million="1"),
            Price(model="my-deployment", input_per_million="0.000001", output_per_million="0"),
        )
    )
    usage = Usage(input_tokens=MILLION)
    models = ("gpt-4.1", "gpt-4.1-medium", "gpt-4.1-mini-2025-04-14", "my-deployment", "gpt-4o")
    costs = [book.cost_usd_micros(usage, model) for model in models]
    assert costs == [3 * MILLION, 4 * MILLION, 5 * MILLION, 1, 2_500_000]
    assert book.cost_usd_micros(Usage(input_tokens=1000, cached_input_tokens=1000), "gpt-4.1-mini") == 1000


def test_usage_that_contradicts_itself_never_costs_less_than_nothing() -> None:
    """Parts larger than their whole are cut down to it."""
    usage = Usage(input_tokens=10, cached_input_tokens=50, cache_write_tokens=50, audio_input_tokens=90)
    assert BOOK.cost_usd_micros(usage, "gpt-4.1") == 5
    assert BOOK.cost_usd_micros(Usage(output_tokens=10, audio_output_tokens=99), "gpt-audio") == 640


tokens = st.integers(0, 3_000_000)


@given(
    price=st.tuples(*[st.decimals(0, 200, places=6)] * 4),
    tier=st.sampled_from(sorted(TIERS)),
    counts=st.tuples(tokens, st.floats(0, 1), st.floats(0, 1), tokens),
    band=st.none() | st.integers(0, 500_000),
)
def test_the_cost_is_the_formula_rounded_once(
    price: tuple[Decimal, ...], tier: str, counts: tuple[int, float, float, int], band: int | None
) -> None:
    """Against exact fractions: no drift, half to even, for any prices, tiers and bands."""
    into, cached_share, write_share, out = counts
    cached = int(into * cached_share)
    written = int((into - cached) * write_share)
    usage = Usage(input_tokens=into, output_tokens=out, cached_input_tokens=cached, cache_write_tokens=written)
    p_in, p_cached, p_write, p_out = (Fraction(each) for each in price)
    entry = ModelPrice(
        model="m",
        input=str(price[0]),
        cached=str(price[1]),
        cache_write=str(price[2]),
        output=str(price[3]),
        long_context=LongContext(input_tokens=band, input_factor="2", output_factor="3/2")
        if band is not None
        else None,
    )
    is_long = band is not None and into > band
    input_cost = (into - cached - written) * p_in + cached * p_cached + written * p_write
    exact = Fraction(TIERS[tier]) * (
        input_cost * (2 if is_long else 1) + out * p_out * Fraction(3 if is_long else 2, 2)
    )
    cost = PriceBook.from_data([entry]).cost_usd_micros(usage, "m", tier)
    assert cost == round(exact)  # Fraction rounds half to even


@given(st.sampled_from([price.model for price in PRICES]), tokens, tokens)
def test_cached_tokens_never_cost_more_than_fresh_ones(model: str, into: int, cached: int) -> None:
    """A sanity check on the data itself."""
    cached = min(into, cached)
    fresh = BOOK.cost_usd_micros(Usage(input_tokens=into), model, None, 2e9)
    warm = BOOK.cost_usd_micros(Usage(input_tokens=into, cached_input_tokens=cached), model, None, 2e9)
    assert fresh is not None
    assert warm is not None
    assert warm <= fresh


@pytest.mark.parametrize("usd", ["-1", "0.0000001", "NaN"])
def test_a_price_that_is_no_whole_number_of_micro_dollars_is_refused(usd: str) -> None:
    """Data that could not be summed exactly never becomes a book."""
    with pytest.raises(ValueError):
        PriceBook.from_data([ModelPrice(model="m", input=usd)])


def test_names_remembered_are_bounded() -> None:
    """Model names come from answers; whatever they are, memory stays bounded and prices right."""
    book = PriceBook.from_data()
    for number in range(3 * MAX_KNOWN_NAMES):
        assert not book.knows(f"model-{number}")
    assert book.knows("gpt-4.1")
    assert len(book._known) <= MAX_KNOWN_NAMES


def test_rounding_is_half_to_even() -> None:
    """0.5 micro-dollars are 0, 1.5 are 2."""
    book = PriceBook.from_data([ModelPrice(model="m", input="0.50")])
    for count in range(12):
        exact = Decimal(count) / 2
        assert book.cost_usd_micros(Usage(input_tokens=count), "m") == int(exact.quantize(Decimal(1), ROUND_HALF_EVEN))
