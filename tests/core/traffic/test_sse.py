"""Cutting streams into events: any framing, any chunking, bounded memory."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sluice_core.sse import Fragment, SSESplitter, event_fields

EOLS = (b"\n", b"\r\n", b"\r")
TEXT = st.text(st.characters(exclude_characters="\r\n", codec="utf-8"), max_size=12).map(str.encode)

lines = st.one_of(
    TEXT.map(lambda text: b"data: " + text),
    TEXT.map(lambda text: b"data:" + text),
    TEXT.map(lambda text: b": " + text),
    TEXT.map(lambda text: b"event: " + text),
    st.just(b"id: 7"),
    st.just(b"retry"),
    st.just(b""),
)


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """A stream of any lines, with the line ends of one server or of several behind one another."""
    eols = draw(st.sampled_from([(eol,) for eol in EOLS] + [EOLS]))
    body = b"".join(line + draw(st.sampled_from(eols)) for line in draw(st.lists(lines, max_size=20)))
    return draw(st.sampled_from([b"", b"\xef\xbb\xbf"])) + body


def chunked(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[start:stop] for start, stop in pairwise(places)]


def run(chunks: list[bytes], max_event_bytes: int = 1 << 20) -> list[bytes]:
    splitter = SSESplitter(max_event_bytes)
    events = [event for chunk in chunks for event in splitter.feed(chunk)]
    return [*events, splitter.flush()]


def by_the_standard(stream: bytes) -> list[tuple[bytes, bytes]]:
    """Read a whole stream line by line, as the HTML standard says: the oracle."""
    text = stream.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    found, name, data = [], b"", []
    for line in text.split(b"\n"):
        if line == b"":
            if data:
                found.append((name, b"\n".join(data)))
            name, data = b"", []
        elif line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" "))
        elif line.startswith(b"event:"):
            name = line[6:].removeprefix(b" ")
    return found


def read(events: list[bytes]) -> list[tuple[bytes, bytes]]:
    """Fields of the complete events that have data."""
    fields = []
    for event in events[:-1]:
        has_data = any(line.startswith(b"data:") for line in event.removeprefix(b"\xef\xbb\xbf").splitlines())
        if has_data:
            fields.append(event_fields(event))
    return fields


@given(streams(), st.lists(st.integers(0, 1 << 16), max_size=12))
@example(b"data: x\n\n\n", [])
@example(b"data: x\n\n\ndata: y\n\n", [])
@example(b"data: x\r\n\r\n", [10])
def test_any_chunking_gives_the_same_events(stream: bytes, cuts: list[int]) -> None:
    """The cuts of the network never show: the same events, and joined they are the bytes that came."""
    events = run(chunked(stream, cuts))
    assert b"".join(events) == stream
    assert events == run([bytes([byte]) for byte in stream])


@given(streams(), st.lists(st.integers(0, 1 << 16), max_size=12))
def test_events_are_those_of_the_standard(stream: bytes, cuts: list[int]) -> None:
    """A stream that ends in complete lines is read as the HTML standard reads it."""
    stream += b"\n\n\n"
    assert read([*run(chunked(stream, cuts)), b""]) == by_the_standard(stream)


@given(streams(), st.lists(st.integers(0, 1 << 16), max_size=12), st.integers(4, 30))
def test_an_event_above_the_bound_leaves_in_fragments(stream: bytes, cuts: list[int], bound: int) -> None:
    """No more than the bound is held, nothing is lost, and small events around a large one are still whole."""
    splitter = SSESplitter(bound)
    sent, events = 0, []
    for chunk in chunked(stream, cuts):
        sent += len(chunk)
        events += splitter.feed(chunk)
        assert sent - sum(map(len, events)) <= bound
    events.append(splitter.flush())
    assert b"".join(events) == stream
    small = [event for event in events[:-1] if type(event) is not Fragment]
    assert small == [event for event in run([stream])[:-1] if len(event) <= bound]


@pytest.mark.parametrize(
    ("event", "fields"),
    [
        (b"data: [DONE]\n\n", (b"", b"[DONE]")),
        (b'data: {"a":1}\n\n', (b"", b'{"a":1}')),
        (b'data:{"a":1}\r\n\r\n', (b"", b'{"a":1}')),
        (b": ping\n\n", (b"", b"")),
        (b"event: error\ndata: x\ndata: y\n\n", (b"error", b"x\ny")),
        (b"\xef\xbb\xbfdata: x\r\r", (b"", b"x")),
        (b"data\n\n", (b"", b"")),
        (b'data: {"a":1}\ndata: {"b":2}\n\n', (b"", b'{"a":1}\n{"b":2}')),
        (b"dataset: x\n\n", (b"", b"")),
        (b'data: {\r"a":1}\n\n', (b"", b"{")),
    ],
)
def test_fields_of_one_event(event: bytes, fields: tuple[bytes, bytes]) -> None:
    """Name and data are found in any framing; comments and unknown fields are not mistaken for data."""
    assert event_fields(event) == fields


def test_a_line_of_20_megabytes_in_small_chunks_takes_linear_time() -> None:
    """A huge line costs no more per byte than a small one."""
    splitter = SSESplitter()
    chunk = b"x" * 16_384
    started = time.process_time()
    passed = sum(len(event) for _ in range(1280) for event in splitter.feed(chunk))
    assert passed + len(splitter.flush()) == 1280 * 16_384
    assert time.process_time() - started < 2.0
