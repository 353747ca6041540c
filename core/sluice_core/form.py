"""Single fields of a multipart form, read from a part of it: uploads are not held as a whole for a name."""

from __future__ import annotations

import re
from typing import Final

LONGEST_VALUE: Final = 256
_BOUNDARY: Final = re.compile(r';\s*boundary=(?:"([^"]{1,70})"|([^\s;"]{1,70}))', re.IGNORECASE)


def _disposition(name: str) -> re.Pattern[bytes]:
    """Return what the head of a field has that is no file."""
    pattern = r'^content-disposition:[ \t]*form-data;[^\r\n]*\bname="?NAME"?[ \t]*(?:\r|;|$)'.replace(
        "NAME", re.escape(name)
    )
    return re.compile(pattern.encode(), re.IGNORECASE | re.MULTILINE)


def boundary_of(content_type: str) -> bytes | None:
    """Return what stands between the parts of a form, None if its Content-Type does not say."""
    found = _BOUNDARY.search(content_type)
    return (found[1] or found[2]).encode("latin-1", "replace") if found is not None else None


def field(form: bytes, boundary: bytes, name: str) -> str | None:
    """Return the value of a field that is whole in `form`, the beginning or the end of a body; None if it is not."""
    delimiter = b"--" + boundary + b"\r\n"
    wanted = _disposition(name)
    at = form.find(delimiter)
    while at >= 0:
        start = at + len(delimiter)
        head_end = form.find(b"\r\n\r\n", start)
        if head_end < 0:
            return None
        head = form[start:head_end]
        if wanted.search(head) is not None and b"filename" not in head.lower():
            end = form.find(b"\r\n--" + boundary, head_end + 4, head_end + 4 + LONGEST_VALUE + len(boundary) + 4)
            return form[head_end + 4 : end].decode("utf-8", "replace") if end >= 0 else None
        at = form.find(delimiter, head_end)
    return None
