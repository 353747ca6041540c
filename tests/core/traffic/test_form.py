"""What is read of a form without holding it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice_core.form import boundary_of, field

FILE = b'Content-Disposition: form-data; name="file"; filename="model"\r\nContent-Type: audio/mpeg\r\n\r\n'
MODEL = b'Content-Disposition: form-data; name="model"\r\n\r\nwhisper-1'


def form(*parts: bytes, boundary: bytes = b"x") -> bytes:
    return b"".join(b"--" + boundary + b"\r\n" + part + b"\r\n" for part in parts) + b"--" + boundary + b"--\r\n"


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ("multipart/form-data; boundary=x", b"x"),
        ('multipart/form-data; charset=utf-8; Boundary="a b"', b"a b"),
        ("multipart/form-data", None),
        ("multipart/form-data; boundary=", None),
        ("application/json", None),
    ],
)
def test_the_boundary_is_that_of_the_content_type(content_type: str, boundary: bytes | None) -> None:
    """Quoted or not."""
    assert boundary_of(content_type) == boundary


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (form(MODEL, FILE + b"sound"), "whisper-1"),
        (form(FILE + b"sound", MODEL), "whisper-1"),
        (form(MODEL.replace(b'"model"', b"model")), "whisper-1"),
        (form(MODEL.replace(b"name", b"NAME").replace(b"Content", b"content")), "whisper-1"),
        (form(b'Content-Disposition: form-data; name="model"\r\nContent-Type: text/plain\r\n\r\nm'), "m"),
        (form(FILE + MODEL), None),  # inside a file
        (form(b'Content-Disposition: form-data; name="model"; filename="a"\r\n\r\nm'), None),
        (form(b'Content-Disposition: form-data; name="other_model"\r\n\r\nm'), None),
        (form(MODEL + b"x" * 1000), None),  # no model has such a name
        (form(MODEL)[:60], None),  # not whole yet
        (b"", None),
    ],
)
def test_a_field_is_found_wherever_it_stands(text: bytes, value: str | None) -> None:
    """Before the files or after them; never in one of them, and never half of it."""
    assert field(text, b"x", "model") == value


@given(st.binary(max_size=200), st.binary(min_size=1, max_size=5))
def test_no_form_crashes(text: bytes, boundary: bytes) -> None:
    """Any bytes have the field or not."""
    for each in (text, b"--" + boundary + b"\r\n" + text, form(MODEL, text, boundary=boundary)):
        found = field(each, boundary, "model")
        assert found is None or len(found) <= 256
