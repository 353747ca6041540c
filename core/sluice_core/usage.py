"""What a call used, as the upstream reported it, in one shape for every endpoint."""

from __future__ import annotations

from sluice_core.api.base import Value


class Usage(Value, frozen=True, kw_only=True):
    """Tokens of one call.

    `cached_input_tokens` and `cache_write_tokens` are parts of `input_tokens`; `reasoning_tokens` is part of
    `output_tokens`; audio and image tokens are parts of the input or output that they name. A transcription may be
    charged by the length of its audio instead of by tokens.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    audio_input_tokens: int = 0
    audio_output_tokens: int = 0
    image_input_tokens: int = 0
    image_output_tokens: int = 0
    audio_input_milliseconds: int = 0

    @property
    def total_tokens(self) -> int:
        """Return input and output together."""
        return self.input_tokens + self.output_tokens
