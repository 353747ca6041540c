"""Keys of answers: one for all spellings of a request, another for whatever a model could notice; and their keeping."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice_core.api.modelroute import Endpoint
from sluice_core.caching import MAX_KEYED_BYTES, NOISE, Obstacle, Wishes, answer_key, wishes_of, worth_keeping
from sluice_core.stored_answers import MAX_ANSWERS, OVERHEAD_BYTES, StoredAnswer, StoredAnswers

CHAT, RESPONSES, EMBEDDINGS = Endpoint.CHAT_COMPLETIONS, Endpoint.RESPONSES, Endpoint.EMBEDDINGS
SCOPE = ("team/chat/default", "team/openai", None)
COLD: dict[str, Any] = {"model": "m", "temperature": 0, "messages": [{"role": "user", "content": "hi"}]}

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-3, 3).map(float)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=4), children, max_size=3),
    max_leaves=10,
)
requests = st.builds(
    lambda temperature, extra: {**extra, **COLD, "temperature": temperature},
    st.sampled_from([0, 0.05, 0.1]),
    st.dictionaries(st.sampled_from(["seed", "stop", "logit_bias", "response_format", "x"]), json_values, max_size=3),
)


def key(request: Any, endpoint: Endpoint = CHAT, scope: Any = SCOPE) -> bytes | Obstacle:
    """Return the key of a request, given as a value or as text."""
    body = request if isinstance(request, bytes) else json.dumps(request).encode()
    return answer_key(endpoint, body, scope)


def spelt(value: Any, draw: random.Random) -> str:
    """Return a JSON value in another spelling: order, spaces, escapes, forms of numbers."""
    space = draw.choice(["", " ", "\n\t"])
    if isinstance(value, dict):
        members = [f"{spelt(name, draw)}{space}:{space}{spelt(inner, draw)}" for name, inner in value.items()]
        draw.shuffle(members)
        return "{" + space + f",{space}".join(members) + space + "}"
    if isinstance(value, list):
        return "[" + space + f"{space},".join(spelt(inner, draw) for inner in value) + space + "]"
    if isinstance(value, str):
        return '"' + "".join(_escaped(letter, draw) for letter in value) + '"'
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53:
        return draw.choice([str(value), f"{value}.0", f"{value}e0", f"{value}E+00", f"{value}.00e-0"])
    if isinstance(value, float):
        return draw.choice([repr(value), f"{value:.17e}", repr(value).replace("e", "E")])
    return json.dumps(value)


def _escaped(letter: str, draw: random.Random) -> str:
    if letter in '"\\' or letter < " " or draw.random() < 0.3:
        return "".join(f"\\u{unit:04x}" for unit in _utf16(letter))
    return letter


def _utf16(letter: str) -> list[int]:
    units = letter.encode("utf-16-be")
    return [int.from_bytes(units[at : at + 2], "big") for at in range(0, len(units), 2)]


def meaning(value: Any) -> Any:
    """Return what two equal requests have in common: numbers by value, and no number equal to a truth value."""
    if isinstance(value, dict):
        return frozenset((name, meaning(inner)) for name, inner in value.items())
    if isinstance(value, list):
        return ("list", *(meaning(inner) for inner in value))
    return (type(value).__name__ if isinstance(value, bool | str | None) else "number", value)


@given(requests, st.randoms(use_true_random=False))
def test_every_spelling_has_the_same_key(request: dict[str, Any], draw: random.Random) -> None:
    """Order of members, spaces, escapes and forms of numbers do not matter."""
    found = key(spelt(request, draw).encode())
    assert found == key(request)
    assert isinstance(found, bytes)
    assert len(found) == 32


@given(requests, requests)
def test_keys_are_equal_exactly_if_the_requests_mean_the_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Nothing that a model could notice is lost."""
    assert (key(one) == key(other)) is (meaning(one) == meaning(other))


@given(json_values, json_values)
def test_any_two_inputs_are_told_apart(one: Any, other: Any) -> None:
    """So are inputs of every shape."""
    same = key({"input": one}, EMBEDDINGS) == key({"input": other}, EMBEDDINGS)
    assert same is (meaning(one) == meaning(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"seed": 1}, {"seed": True}),
        ({"seed": 0}, {"seed": None}),
        ({"stop": "1"}, {"stop": 1}),
        ({"stop": ["a", "b"]}, {"stop": ["b", "a"]}),
        ({"seed": 2**60}, {"seed": 2**60 + 1}),
        ({"stop": "e\u0301"}, {"stop": "\u00e9"}),
        ({"stream": True}, {}),
    ],
)
def test_small_differences_make_another_key(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Types, order in lists, the last bit, and two spellings of a letter that are two inputs to a model."""
    assert key(COLD | one) != key(COLD | other)


@pytest.mark.parametrize("noise", sorted(NOISE - {"store"}))
def test_who_asks_does_not_matter_by_itself(noise: str) -> None:
    """Members that name the user or label the call change nothing about the answer."""
    assert key(COLD | {noise: "a"}) == key(COLD | {noise: "b"}) == key(COLD)


@given(st.lists(json_values, max_size=4), st.lists(json_values, max_size=4))
def test_scopes_never_run_into_one_another(one: list[Any], other: list[Any]) -> None:
    """Upstream, rule, arm and user are parts of the key, each with its own bounds."""
    assert (key(COLD, scope=one) == key(COLD, scope=other)) is (meaning(one) == meaning(other))
    assert key({"input": "a"}, EMBEDDINGS) != key({"input": "a"}, Endpoint.MODERATIONS)


STORED_NOT = {"model": "m", "input": "i", "temperature": 0, "store": False}
OBSTACLES: list[tuple[Endpoint, Any, Obstacle | None]] = [
    (CHAT, COLD, None),
    (CHAT, COLD | {"temperature": 0.1}, None),
    (CHAT, COLD | {"temperature": -0.0}, None),
    (CHAT, COLD | {"temperature": 0.11}, Obstacle.TEMPERATURE),
    (CHAT, COLD | {"temperature": None}, Obstacle.TEMPERATURE),
    (CHAT, COLD | {"temperature": "0"}, Obstacle.TEMPERATURE),
    (CHAT, COLD | {"temperature": False}, Obstacle.TEMPERATURE),
    (CHAT, {"model": "m", "messages": []}, Obstacle.TEMPERATURE),
    (CHAT, COLD | {"n": 1}, None),
    (CHAT, COLD | {"n": 2}, Obstacle.CHOICES),
    (CHAT, COLD | {"store": True}, Obstacle.STORED),
    (CHAT, COLD | {"store": False}, None),
    (CHAT, COLD | {"tools": [{"type": "function", "function": {"name": "f"}}, {"type": "custom"}]}, None),
    (CHAT, COLD | {"tools": [{"type": "web_search"}]}, Obstacle.TOOLS),
    (CHAT, COLD | {"tools": "all"}, Obstacle.TOOLS),
    (CHAT, COLD | {"web_search_options": {}}, Obstacle.TOOLS),
    (CHAT, COLD | {"modalities": ["text"]}, None),
    (CHAT, COLD | {"modalities": ["text", "audio"]}, Obstacle.AUDIO),
    (CHAT, COLD | {"audio": {"voice": "alloy"}}, Obstacle.AUDIO),
    (CHAT, COLD | {"messages": [{"content": [{"image_url": {"url": "data:image/png;base64,AA"}}]}]}, None),
    (CHAT, COLD | {"messages": [{"content": [{"image_url": {"url": "http://a/b"}}]}]}, Obstacle.REMOTE_INPUT),
    (CHAT, COLD | {"messages": [{"content": "http://a/b in image_url"}]}, None),
    (RESPONSES, STORED_NOT, None),
    (RESPONSES, STORED_NOT | {"store": True}, Obstacle.STORED),
    (RESPONSES, {"model": "m", "input": "i", "temperature": 0}, Obstacle.STORED),
    (RESPONSES, STORED_NOT | {"background": True}, Obstacle.STORED),
    (RESPONSES, STORED_NOT | {"previous_response_id": "resp_1"}, Obstacle.STORED),
    (RESPONSES, STORED_NOT | {"conversation": {"id": "conv_1"}}, Obstacle.STORED),
    (RESPONSES, STORED_NOT | {"prompt": {"id": "pmpt_1"}}, Obstacle.STORED),
    (RESPONSES, STORED_NOT | {"previous_response_id": None}, None),
    (RESPONSES, STORED_NOT | {"tools": [{"type": "web_search"}]}, Obstacle.TOOLS),
    (RESPONSES, STORED_NOT | {"tools": [{"type": "mcp"}]}, Obstacle.TOOLS),
    (RESPONSES, STORED_NOT | {"tools": [{"type": "function", "name": "f"}]}, None),
    (RESPONSES, STORED_NOT | {"input": [{"content": [{"file_url": "https://a/b"}]}]}, Obstacle.REMOTE_INPUT),
    (RESPONSES, STORED_NOT | {"input": [{"content": [{"image_url": "https://a/b"}]}]}, Obstacle.REMOTE_INPUT),
    (Endpoint.COMPLETIONS, {"model": "m", "prompt": "p", "temperature": 0}, None),
    (Endpoint.COMPLETIONS, {"model": "m", "prompt": "p"}, Obstacle.TEMPERATURE),
    (EMBEDDINGS, {"model": "m", "input": ["a", [1, 2]]}, None),
    (Endpoint.MODERATIONS, {"input": "a"}, None),
    (Endpoint.MODERATIONS, {"input": [{"image_url": {"url": "https://a/b"}}]}, Obstacle.REMOTE_INPUT),
    (Endpoint.IMAGES, {"prompt": "p"}, Obstacle.ENDPOINT),
    (Endpoint.AUDIO, {"input": "i"}, Obstacle.ENDPOINT),
    (Endpoint.REALTIME, {}, Obstacle.ENDPOINT),
    (CHAT, b"no json", Obstacle.BODY),
    (CHAT, b"[]", Obstacle.BODY),
    (CHAT, b'{"temperature":0,"seed":1e999}', Obstacle.BODY),
    (CHAT, b'{"temperature":0,"stop":"\\ud800"}', Obstacle.BODY),
    (CHAT, b'{"temperature":0,"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", Obstacle.BODY),
    (CHAT, b'{"temperature":0,"messages":' + b'{"a":[' * 5000 + b"]}" * 5000 + b"}", Obstacle.BODY),
    (CHAT, b" " * MAX_KEYED_BYTES + b"{}", Obstacle.SIZE),
]


@pytest.mark.parametrize(("endpoint", "request_", "obstacle"), OBSTACLES)
def test_only_a_call_that_gets_the_same_again_has_a_key(
    endpoint: Endpoint, request_: Any, obstacle: Obstacle | None
) -> None:
    """Sampled, stored, continued or acting calls have none, and nothing that cannot be read raises."""
    found = key(request_, endpoint)
    assert isinstance(found, bytes) if obstacle is None else found is obstacle


@pytest.mark.parametrize(
    ("endpoint", "status", "finish_reason", "response_status", "kept"),
    [
        (CHAT, 200, "stop", None, True),
        (CHAT, 200, "tool_calls", None, True),
        (CHAT, 200, "length", None, False),
        (CHAT, 200, "content_filter", None, False),
        (CHAT, 200, None, None, False),
        (CHAT, 201, "stop", None, False),
        (RESPONSES, 200, "stop", "completed", True),
        (RESPONSES, 200, "max_output_tokens", "incomplete", False),
        (RESPONSES, 200, None, "in_progress", False),
        (EMBEDDINGS, 200, None, None, True),
        (EMBEDDINGS, 500, None, None, False),
    ],
)
def test_only_whole_answers_are_kept(
    endpoint: Endpoint, status: int, finish_reason: str | None, response_status: str | None, kept: bool
) -> None:
    """What was cut or held back is given to nobody else."""
    assert worth_keeping(endpoint, status, finish_reason, response_status) is kept


INFINITE = float("inf")


@pytest.mark.parametrize(
    ("text", "reads", "keeps", "age"),
    [
        (None, True, True, INFINITE),
        ("", True, True, INFINITE),
        ("no-cache", False, True, INFINITE),
        ("No-Store", False, False, INFINITE),
        ("private, max-age=60", True, True, 60),
        ('max-age="5", max-age=60', True, True, 5),
        ("max-age=soon, max-stale", True, True, INFINITE),
        ("max-age=-1", True, True, INFINITE),
        ("max-age=" + "9" * 400, True, True, INFINITE),
        ("no-cache=x", True, True, INFINITE),
    ],
)
def test_wishes_of_the_caller(text: str | None, reads: bool, keeps: bool, age: float) -> None:
    """Directives are found in any case and company; what cannot be read is passed over."""
    assert wishes_of(text) == Wishes(reads=reads, keeps=keeps, max_age_seconds=age)


def answer(size: int, stored_at: float = 0.0) -> StoredAnswer:
    """Return an answer of so many bytes."""
    return StoredAnswer(content_type="application/json", body=b"x" * size, stream=False, stored_at=stored_at)


steps = st.lists(
    st.tuples(
        st.sampled_from(["put", "get", "tidy", "pass"]),
        st.integers(0, 9),
        st.integers(0, 4000),
        st.floats(0, 50),
    ),
    max_size=60,
)


@given(steps, st.integers(0, 40_000))
def test_what_is_kept_fits_and_has_its_time(taken: list[tuple[str, int, int, float]], room: int) -> None:
    """Whatever is put and got: it fits, nothing is given past its time, the newest counts."""
    kept, now, newest = StoredAnswers(room), 0.0, {}
    for step, name, size, seconds in taken:
        place = bytes([name])
        if step == "put":
            newest[place] = (answer(size, now), now + seconds)
            kept.put(place, newest[place][0], seconds)
        elif step == "get":
            found = kept.get(place, seconds, now)
            if found is not None:
                assert found is newest[place][0]
                assert now < newest[place][1]
                assert now - found.stored_at < seconds
        elif step == "tidy":
            kept.tidy(now)
        now += seconds if step == "pass" else 0.0
        assert 0 <= kept.bytes <= room
        assert kept.bytes == sum(each.size_bytes for each, _ in kept._answers.values())
        assert kept.bytes >= OVERHEAD_BYTES * len(kept)


def test_what_was_used_last_goes_last() -> None:
    """Room is made by dropping what nobody has asked for the longest."""
    kept = StoredAnswers(10 * (OVERHEAD_BYTES + 100))
    for number in range(10):
        kept.put(bytes([number]), answer(100), 60)
    assert kept.get(b"\0", 60, 1) is not None
    kept.put(b"new", answer(100), 60)
    assert (kept.get(b"\1", 60, 1), kept.evicted) == (None, 1)
    assert kept.get(b"\0", 60, 1) is not None


def test_the_number_of_answers_is_bounded_too() -> None:
    """Small ones do not pile up without end."""
    kept = StoredAnswers(1 << 40)
    for number in range(MAX_ANSWERS + 10):
        kept.put(number.to_bytes(4, "big"), answer(0), 60)
    assert (len(kept), kept.evicted) == (MAX_ANSWERS, 10)


def test_no_single_answer_takes_all_the_room() -> None:
    """One that is too large is not kept, and the one that it replaces is gone."""
    kept = StoredAnswers(80_000)
    kept.put(b"a", answer(10), 60)
    kept.put(b"a", answer(kept.largest_body_bytes + 1), 60)
    assert (len(kept), kept.bytes) == (0, 0)
    kept.put(b"a", answer(kept.largest_body_bytes), 60)
    assert len(kept) == 1
    assert StoredAnswers(0).largest_body_bytes == 0


def test_an_answer_does_not_show_its_text() -> None:
    """Whatever prints one by mistake prints its size."""
    assert "xxx" not in repr(answer(5)) + str([answer(5)])
