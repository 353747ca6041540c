"""What a fault does to a call: one flat value whose unset fields change nothing."""

from statistics import NormalDist
from typing import Final, Literal, Self

import msgspec


class Delay(msgspec.Struct, frozen=True, kw_only=True):
    """
    A distribution of delays, in seconds.

    Written as a number (always that), `uniform(low,high)` or `lognormal(median,sigma)`.
    """

    kind: Literal["fixed", "uniform", "lognormal"] = "fixed"
    first: float = 0.0
    second: float = 0.0

    @classmethod
    def parse(cls, written: float | str) -> Self:
        """Read the written form; `ValueError` when it is none."""
        if isinstance(written, int | float):
            return cls(first=float(written))
        name, parenthesis, rest = written.strip().partition("(")
        if not parenthesis:
            return cls(first=float(name))
        if name not in ("uniform", "lognormal") or not rest.endswith(")"):
            raise ValueError(f"not a delay: {written!r}")
        first, _, second = rest[:-1].partition(",")
        return cls(kind="uniform" if name == "uniform" else "lognormal", first=float(first), second=float(second))

    def draw(self, quantile: float) -> float:
        """Return the delay at a quantile, which is in [0, 1)."""
        match self.kind:
            case "fixed":
                return self.first
            case "uniform":
                return self.first + (self.second - self.first) * quantile
            case "lognormal":
                inside = min(max(quantile, 1e-9), 1 - 1e-9)  # the ends are infinite
                return float(self.first * 2.718281828459045 ** (self.second * NormalDist().inv_cdf(inside)))


class Effect(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """
    Everything that can be ordered for a call.

    Refuse: `error` is a key of `errors.ERRORS`; `status`, `error_message` and `error_type` override its row.
    `retry_after` is the header's text, or `date:N` for the HTTP date N seconds ahead.
    Delay: see `Delay`; `latency_seconds` is before the headers, `gap_seconds` between events,
    `stall_seconds` once, before the headers or before event `stall_at_event` (0 is the first).
    Break: `reset` sends RST instead of an orderly end: at once, or at `cut_at_byte` of the body.
    """

    error: str | None = None
    status: int | None = None
    error_message: str | None = None
    error_type: str | None = None
    retry_after: str | None = None
    retry_after_ms: str | None = None
    should_retry: bool | None = None
    response_headers: dict[str, str] | None = None

    latency_seconds: float | str | None = None
    gap_seconds: float | str | None = None
    stall_seconds: float | None = None
    stall_at_event: int | None = None

    reset: bool | None = None
    cut_at_byte: int | None = None
    cut_at_event: int | None = None

    chunking: Literal["bytes", "random", "coalesced", "utf8"] | None = None
    crlf: bool | None = None
    comments: bool | None = None
    no_space: bool | None = None
    line_bytes: int | None = None  # one event whose line is at least this long

    html_body: bool | None = None
    gzip_body: bool | None = None
    http10: bool | None = None

    usage: Literal["with_choices", "omit"] | None = None
    no_done: bool | None = None
    stream_error: str | None = None  # an in-stream error event of this code
    response_failed: str | None = None  # responses: the terminal event is response.failed with this code
    fail_at_event: int | None = None  # where either of the two happens; default: after half of the content

    refusal: bool | None = None
    finish_reason: Literal["stop", "length", "content_filter"] | None = None
    service_tier: str | None = None
    served_model: str | None = None
    content: str | None = None
    events: int | None = None  # content events of a stream
    output_tokens: int | None = None  # text tokens of the reply
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None
    audio_input_tokens: int | None = None
    audio_output_tokens: int | None = None
    background_seconds: float | None = None  # how long a background response takes

    def __post_init__(self) -> None:
        for written in (self.latency_seconds, self.gap_seconds):
            if written is not None:
                Delay.parse(written)


NO_EFFECT: Final = Effect()


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """The delays of one call, parsed."""

    latency: Delay | None
    gap: Delay | None

    @classmethod
    def of(cls, effect: Effect) -> Self:
        """Read the delays of an effect."""
        return cls(
            latency=None if effect.latency_seconds is None else Delay.parse(effect.latency_seconds),
            gap=None if effect.gap_seconds is None else Delay.parse(effect.gap_seconds),
        )
