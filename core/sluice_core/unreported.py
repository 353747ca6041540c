"""What an answer used that does not say so: speech, transcripts as plain text, upstreams that report no usage.

Estimates, from what is known of the call; they are marked as such. Sources: a minute of OpenAI's speech is about 1250
audio tokens (its price list: 0.015 US dollars a minute at 12 a million), and English is read at about 900 characters a
minute; for the rest see `limits.estimate`.
"""

from __future__ import annotations

from typing import Final

from sluice_core.api.modelroute import Endpoint
from sluice_core.limits.estimate import AUDIO_BYTES_PER_TOKEN, CHARACTERS_PER_TOKEN
from sluice_core.request import RequestFacts
from sluice_core.usage import Usage

_SPEECH_TOKENS_PER_MINUTE: Final = 1250
_SPEECH_CHARACTERS_PER_MINUTE: Final = 900
_AUDIO_BYTES_PER_MILLISECOND: Final = 16
_TEXT: Final = frozenset({Endpoint.CHAT_COMPLETIONS, Endpoint.RESPONSES, Endpoint.COMPLETIONS})


def unreported_usage(
    facts: RequestFacts, input_tokens: int, pieces: int, *, request_bytes: int, response_bytes: int
) -> Usage | None:
    """Return what a whole answer without usage probably used; None where nothing is charged.

    Args:
        facts: of the call.
        input_tokens: the estimate of its input.
        pieces: how many pieces of text came, if it was a stream.
        request_bytes: the length of the call's body: that of an upload is mostly its audio.
        response_bytes: the length of the answer's body.
    """
    match facts.endpoint:
        case Endpoint.AUDIO if facts.text_characters:
            spoken = -(-facts.text_characters * _SPEECH_TOKENS_PER_MINUTE // _SPEECH_CHARACTERS_PER_MINUTE)
            return Usage(input_tokens=input_tokens, output_tokens=spoken, audio_output_tokens=spoken)
        case Endpoint.AUDIO:
            heard = request_bytes // AUDIO_BYTES_PER_TOKEN
            return Usage(
                input_tokens=heard,
                audio_input_tokens=heard,
                output_tokens=response_bytes // CHARACTERS_PER_TOKEN,
                audio_input_milliseconds=request_bytes // _AUDIO_BYTES_PER_MILLISECOND,
            )
        case Endpoint.EMBEDDINGS | Endpoint.IMAGES:
            return Usage(input_tokens=input_tokens)
        case endpoint if endpoint in _TEXT:
            return Usage(input_tokens=input_tokens, output_tokens=pieces or response_bytes // CHARACTERS_PER_TOKEN)
        case _:
            return None
