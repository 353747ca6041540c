"""The pure parts of the shell: targets, header fields, labels, trace context, keys, scores."""

from __future__ import annotations

import pickle
from pathlib import Path
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice_sidecar import headers
from sluice_sidecar.config import parse_labels
from sluice_sidecar.credentials import Credentials, Secret
from sluice_sidecar.headers import HOP_BY_HOP, BadFieldError, Fields, RequestFields
from sluice_sidecar.target import BadTargetError, parse
from sluice_sidecar.telemetry.trace import traceparent

_pieces = st.sampled_from(
    ["/", ".", "..", "%2e", "%2F", "%252e", "v1", "a", "//", "\\", "%5c", ";", "?", "@", ":", "%00"]
)


@given(st.lists(_pieces, max_size=12).map("".join))
def test_no_target_climbs_out_of_the_api(raw: str) -> None:
    """Whatever is accepted stays below /v1, however often it is decoded and whatever counts as a separator."""
    try:
        target = parse(raw)
    except BadTargetError:
        return
    if target is None:
        return
    path = f"/v1{target.path}"
    for _ in range(4):
        depth = 0
        for segment in path.replace("\\", "/").split("/")[1:]:
            depth += -1 if segment.partition(";")[0] == ".." else segment not in ("", ".")
            assert depth >= 1
        path = unquote(path)
    assert raw.startswith("/v1")
    assert f"/v1{target.suffix}".rstrip("?") == raw.rstrip("?")


@pytest.mark.parametrize(
    ("raw", "plain"),
    [
        ("/v1/chat/completions", "/chat/completions"),
        ("/v1/chat%2Fcompletions/", "/chat/completions"),
        ("/v1", ""),
        ("/v1/models/ft:gpt-4.1:org::id", "/models/ft:gpt-4.1:org::id"),
    ],
)
def test_another_spelling_is_no_way_around_a_rule(raw: str, plain: str) -> None:
    """Policy looks at the decoded path; the upstream gets the one that was written."""
    target = parse(raw)
    assert target is not None
    assert target.plain == plain
    assert "/v1" + target.path == raw


def test_header_fields_are_replaced_whatever_their_case() -> None:
    """A field that Sluice sets stands once."""
    fields = RequestFields(
        Fields([(b"AUTHORIZATION", b"Bearer x"), (b"x-a", b"1"), (b"X-A", b"2"), (b"User-Agent", b"u")])
    )
    assert fields.with_fields([("X-a", "3"), ("Authorization", "ours")]) == [
        ("User-Agent", "u"),
        ("X-a", "3"),
        ("Authorization", "ours"),
    ]
    fields.keep_authorization()
    assert ("AUTHORIZATION", "Bearer x") in fields.with_fields([])


_names = st.sampled_from(
    ["X-A", "x-b", "Authorization", "OpenAI-Project", "Connection", "Keep-Alive", "TE", "Host", "Content-Length", "X%b"]
)
_values = st.one_of(st.sampled_from(["close", "x-b, X%b", "keep-alive, x-a"]), st.text("abc %\u00e4", max_size=4))
_fields = st.lists(st.tuples(_names, _values.map(str.strip)), max_size=8)


def _raw(fields: list[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode("latin-1")) for name, value in fields]


def _one_hop(fields: list[tuple[str, str]]) -> set[str]:
    listed = {each.strip().lower() for name, value in fields if name == "Connection" for each in value.split(",")}
    return (listed - {"close", "keep-alive"}) | HOP_BY_HOP


@given(_fields, st.lists(st.tuples(st.sampled_from(["x-a", "Authorization", "New"]), st.text("abc", max_size=3))))
def test_what_goes_upstream_is_what_the_application_sent_but_for_what_is_ours_or_the_hops(
    fields: list[tuple[str, str]], ours: list[tuple[str, str]]
) -> None:
    """In order, repeated and spelled as sent; the same for the first message with these names as for the next."""
    dropped = _one_hop(fields) | {"host", "content-length", "authorization", "openai-project"}
    dropped |= {name.lower() for name, _ in ours}
    expected = [field for field in fields if field[0].lower() not in dropped] + ours
    for _ in range(2):
        lines = RequestFields(Fields(_raw(fields))).lines(ours)
        assert lines == b"".join(f"{name}: {value}\r\n".encode("latin-1") for name, value in expected)
    assert RequestFields(Fields(_raw(fields))).with_fields(ours) == expected


@given(_fields, st.sampled_from([frozenset[str](), frozenset({"content-length"}), frozenset({"x-a"})]))
def test_what_comes_back_is_what_the_upstream_sent_but_for_its_hop(
    fields: list[tuple[str, str]], drop: frozenset[str]
) -> None:
    """A field of one hop stays there, whoever declared it so; and the first value of a name is found in any case."""
    dropped = _one_hop(fields) | drop
    kept = [field for field in fields if field[0].lower() not in dropped]
    answer = Fields(_raw(fields))
    assert answer.passed_back(drop) == b"".join(f"{name}: {value}\r\n".encode("latin-1") for name, value in kept)
    assert dict(answer) == {name.lower(): value for name, value in reversed(fields)}
    assert answer.pairs() == fields
    assert answer.get("absent") is None


@pytest.mark.parametrize(
    ("name", "value"), [("x", "a\r\nEvil: 1"), ("x", "a\nb"), ("x\r\n", "a"), ("x", "\0"), ("x", "\u20ac")]
)
def test_a_field_of_ours_cannot_break_out_of_its_line(name: str, value: str) -> None:
    """A request with such a field is not written at all."""
    with pytest.raises(BadFieldError):
        RequestFields(Fields([(b"a", b"b")])).lines([(name, value)])


def test_what_is_remembered_of_header_names_is_bounded() -> None:
    """Names that are made up for each message take no more memory than names that are not, and are treated alike."""
    for number in range(3000):
        Fields([(b"x-%d" % number, b"1")])
    Fields([(b"x" * 100_000, b"1")])
    fields = RequestFields(Fields([(b"x-2999", b"1")]))
    for number in range(100):
        assert fields.lines([(f"y-{number}", "2")]) == b"x-2999: 1\r\ny-%d: 2\r\n" % number
    assert len(headers._layouts) <= 256
    assert sum(len(name) for names in headers._layouts for name in names) < 256 * 4096
    assert len(fields.first._layout.templates) <= 16


def test_labels_of_the_downward_api_are_read() -> None:
    """Values are quoted and may hold anything that a label may."""
    assert parse_labels('app="chat"\nempty=""\nx.y/z="a-b_c"\n\nnonsense\n') == {
        "app": "chat",
        "empty": "",
        "x.y/z": "a-b_c",
    }


TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.mark.parametrize(
    ("incoming", "outgoing"),
    [
        (f"00-{TRACE}-b7ad6b7169203331-01", f"00-{TRACE}-{'2' * 16}-01"),
        (f"cc-{TRACE}-b7ad6b7169203331-01-later", f"00-{TRACE}-{'2' * 16}-01"),
        (None, f"00-{'1' * 32}-{'2' * 16}-00"),
        ("nonsense", f"00-{'1' * 32}-{'2' * 16}-00"),
        (f"00-{'0' * 32}-b7ad6b7169203331-01", f"00-{'1' * 32}-{'2' * 16}-00"),
        (f"ff-{TRACE}-b7ad6b7169203331-01", f"00-{'1' * 32}-{'2' * 16}-00"),
    ],
)
def test_a_trace_goes_on_or_begins(incoming: str | None, outgoing: str) -> None:
    """A valid context keeps its trace and sampling; anything else is replaced."""
    assert traceparent(incoming, "1" * 32, "2" * 16) == outgoing


def test_a_secret_shows_itself_to_nothing_but_reveal() -> None:
    """Neither printing nor formatting nor pickling gives it away."""
    secret = Secret("sk-hidden")
    shown = f"{secret} {secret!r} {secret!s} {[secret]} {{'k': secret}}"
    assert "sk-hidden" not in shown + f"{secret:>40}"
    with pytest.raises(TypeError):
        pickle.dumps(secret)
    assert secret.reveal() == "sk-hidden"


def test_keys_outlive_the_deletion_of_their_secret_by_hand(tmp_path: Path) -> None:
    """A mount without the operator's marker is damaged and keeps the last keys; one that has it is obeyed."""
    keys = Credentials(tmp_path)
    (tmp_path / "primary").write_text("sk-1")
    (tmp_path / ".complete").touch()
    assert keys.refresh()

    for path in (tmp_path / "primary", tmp_path / ".complete"):
        path.unlink()
    assert not keys.refresh()
    assert keys.get("primary") is not None

    (tmp_path / ".complete").touch()
    assert keys.refresh()
    assert keys.get("primary") is None


def test_keys_that_cannot_stand_in_a_header_count_as_missing(tmp_path: Path) -> None:
    """A key with a line break inside, an empty one and a huge one are none; white space around one is dropped."""
    for name, content in {"good": " sk-1\n", "broken": "sk\r\nX: 1", "empty": "\n", "huge": "s" * 20_000}.items():
        (tmp_path / name).write_text(content)
    keys = Credentials(tmp_path)
    assert keys.refresh()
    assert not keys.refresh()
    found = {name for name in ("good", "broken", "empty", "huge") if keys.get(name)}
    assert found == {"good"}
    good = keys.get("good")
    assert good is not None
    assert good.reveal() == "sk-1"
