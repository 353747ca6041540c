"""
Audio: transcription and translation of an upload, speech as a stream of bytes.

An upload lasts its size / 32000 seconds (16 kHz, 16 bit) and costs ten tokens a second; speech has 1200 bytes
and costs a token and a quarter per character. `whisper-1` is billed by the second.
"""

import asyncio
import base64
import math
from collections.abc import AsyncIterator, Iterator
from typing import Final

from sluice_cli.mock.answers import Answer, BytesAnswer, Frame, JsonAnswer, StreamAnswer
from sluice_cli.mock.content import Prompt, grouped, reply_for
from sluice_cli.mock.errors import missing
from sluice_cli.mock.forms import FilePart, Form
from sluice_cli.mock.ledger import Usage
from sluice_cli.mock.state import Call
from sluice_cli.mock.wire import JsonObject, sse_data, sse_event

BYTES_PER_SECOND: Final = 32_000
TOKENS_PER_SECOND: Final = 10
SPEECH_BYTES_PER_CHARACTER: Final = 1200
_SPEECH_CHUNK_BYTES: Final = 8192
_CONTENT_TYPES: Final = {
    "mp3": "audio/mpeg",
    "opus": "audio/opus",
    "aac": "audio/aac",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
}
_PATTERN: Final = bytes(range(256)) * (_SPEECH_CHUNK_BYTES // 256)


def _upload(call: Call) -> FilePart:
    files = call.form.files.get("file") if isinstance(call.form, Form) else None
    if not files:
        raise missing("file")
    if not call.body.get("model"):
        raise missing("model")
    return files[0]


async def transcribe(call: Call) -> Answer:
    """Answer `POST /audio/transcriptions`."""
    upload = _upload(call)
    seconds = round(upload.size_bytes / BYTES_PER_SECOND, 3)
    prompt = Prompt(model=call.body["model"], seed=int(upload.sha256[:12], 16), characters=0, messages=0)
    pieces = reply_for(prompt, call.effect).pieces
    if call.body["model"].startswith("whisper"):
        usage = Usage(audio_seconds=seconds)
        usage_body: JsonObject = {"type": "duration", "seconds": seconds}
    else:
        audio_tokens = max(1, math.ceil(seconds * TOKENS_PER_SECOND))
        usage = Usage(
            input_tokens=audio_tokens,
            audio_input_tokens=audio_tokens,
            output_tokens=len(pieces),
            audio_seconds=seconds,
        )
        usage_body = {
            "type": "tokens",
            "input_tokens": audio_tokens,
            "input_token_details": {"audio_tokens": audio_tokens, "text_tokens": 0},
            "output_tokens": len(pieces),
            "total_tokens": audio_tokens + len(pieces),
        }
    if call.body.get("stream") is True:
        return StreamAnswer(frames=_transcript_frames(call, pieces, usage_body), usage=usage)
    return _transcript(str(call.body.get("response_format", "json")), "".join(pieces), seconds, usage, usage_body)


def _transcript(form: str, text: str, seconds: float, usage: Usage, usage_body: JsonObject) -> Answer:
    if form in ("text", "srt", "vtt"):
        stamp = f"00:00:00,000 --> 00:00:{int(seconds) % 60:02d},000"
        written = {
            "text": f"{text}\n",
            "srt": f"1\n{stamp}\n{text}\n\n",
            "vtt": f"WEBVTT\n\n{stamp.replace(',', '.')}\n{text}\n\n",
        }[form]
        return BytesAnswer(content_type="text/plain; charset=utf-8", chunks=written.encode(), usage=usage)
    payload: JsonObject = {"text": text, "usage": usage_body}
    if form == "verbose_json":
        segment = {
            "id": 0,
            "seek": 0,
            "start": 0.0,
            "end": seconds,
            "text": text,
            "tokens": [1, 2, 3],
            "temperature": 0.0,
            "avg_logprob": -0.25,
            "compression_ratio": 1.0,
            "no_speech_prob": 0.01,
        }
        payload |= {
            "task": "transcribe",
            "language": "english",
            "duration": seconds,
            "segments": [segment],
            "usage": {"type": "duration", "seconds": seconds},
        }
    return JsonAnswer(payload=payload, usage=usage)


def _transcript_frames(call: Call, pieces: tuple[str, ...], usage_body: JsonObject) -> Iterator[Frame]:
    done = 0
    for text, upto in grouped(pieces, call.effect.events):
        done = upto
        yield Frame(data=sse_data({"type": "transcript.text.delta", "delta": text}), output_tokens=done)
    ending = {"type": "transcript.text.done", "text": "".join(pieces), "usage": usage_body}
    yield Frame(data=sse_data(ending), output_tokens=done)


async def translate(call: Call) -> Answer:
    """Answer `POST /audio/translations`, which are billed by the second."""
    upload = _upload(call)
    prompt = Prompt(model=call.body["model"], seed=int(upload.sha256[:12], 16), characters=0, messages=0)
    seconds = round(upload.size_bytes / BYTES_PER_SECOND, 3)
    return JsonAnswer(payload={"text": reply_for(prompt, call.effect).text}, usage=Usage(audio_seconds=seconds))


async def speak(call: Call) -> Answer:
    """Answer `POST /audio/speech`."""
    body = call.body
    text = body.get("input")
    for name in ("model", "input", "voice"):
        if not body.get(name):
            raise missing(name)
    text = str(text)
    audio_tokens = -(-len(text) * 5 // 4)
    usage = Usage(input_tokens=-(-len(text) // 4), output_tokens=audio_tokens, audio_output_tokens=audio_tokens)
    size_bytes = len(text) * SPEECH_BYTES_PER_CHARACTER
    if body.get("stream_format") == "sse":
        return StreamAnswer(frames=_speech_frames(size_bytes, usage), usage=usage)
    content_type = _CONTENT_TYPES.get(str(body.get("response_format", "mp3")), "audio/mpeg")
    return BytesAnswer(content_type=content_type, chunks=_speech(size_bytes), usage=usage)


async def _speech(size_bytes: int) -> AsyncIterator[bytes]:
    for at in range(0, size_bytes, _SPEECH_CHUNK_BYTES):
        yield _PATTERN[: min(_SPEECH_CHUNK_BYTES, size_bytes - at)]
        await asyncio.sleep(0)


def _speech_frames(size_bytes: int, usage: Usage) -> Iterator[Frame]:
    for at in range(0, size_bytes, _SPEECH_CHUNK_BYTES):
        chunk = _PATTERN[: min(_SPEECH_CHUNK_BYTES, size_bytes - at)]
        event = {"type": "speech.audio.delta", "audio": base64.b64encode(chunk).decode()}
        yield Frame(data=sse_event(event), output_tokens=usage.output_tokens * (at + len(chunk)) // size_bytes)
    figures = {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "total_tokens": usage.total_tokens,
    }
    ending = sse_event({"type": "speech.audio.done", "usage": figures})
    yield Frame(data=ending, output_tokens=usage.output_tokens)
