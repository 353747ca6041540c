"""Reading multipart bodies: fields whole, files by the chunk, so that memory stays flat."""

import hashlib
from pathlib import Path
from typing import Final

import msgspec
from aiohttp import BodyPartReader, web

from sluice_cli.mock.errors import bad_request

_MAX_FIELD_BYTES: Final = 1 << 20
_CHUNK_BYTES: Final = 1 << 18


class FilePart(msgspec.Struct, frozen=True, kw_only=True):
    """An uploaded file: what is known of it, and where it is if it was kept."""

    filename: str
    size_bytes: int
    sha256: str
    path: Path | None = None


class Form(msgspec.Struct, frozen=True, kw_only=True):
    """A multipart body."""

    fields: dict[str, str]
    files: dict[str, list[FilePart]]
    size_bytes: int


async def read_form(request: web.BaseRequest, keep: Path | None = None) -> Form:
    """
    Read a multipart body to its end.

    The file parts are written to `keep` (one after the other, so it is for bodies of one file) or only hashed.
    A field `name[]` or one that comes again keeps its last value; 400 in OpenAI's shape for anything else.
    """
    if not request.content_type.startswith("multipart/"):
        raise bad_request("Invalid Content-Type: expected 'multipart/form-data'.")
    fields: dict[str, str] = {}
    files: dict[str, list[FilePart]] = {}
    size_bytes = 0
    try:
        async for part in await request.multipart():
            if not isinstance(part, BodyPartReader) or part.name is None:
                raise bad_request("We could not parse the multipart body of your request.")
            name = part.name.removesuffix("[]")
            if part.filename is None:
                raw = await part.read(decode=False)
                if len(raw) > _MAX_FIELD_BYTES:
                    raise bad_request("A form field is too large.", name)
                fields[name] = bytes(raw).decode("utf-8", "replace")
                size_bytes += len(raw)
            else:
                stored = await _read_file(part, keep)
                files.setdefault(name, []).append(stored)
                size_bytes += stored.size_bytes
    except ValueError as exc:
        raise bad_request("We could not parse the multipart body of your request.") from exc
    return Form(fields=fields, files=files, size_bytes=size_bytes)


async def _read_file(part: BodyPartReader, keep: Path | None) -> FilePart:
    size_bytes = 0
    digest = hashlib.sha256()
    sink = None if keep is None else keep.open("wb")
    try:
        while chunk := await part.read_chunk(_CHUNK_BYTES):
            size_bytes += len(chunk)
            digest.update(chunk)
            if sink is not None:
                sink.write(chunk)
    finally:
        if sink is not None:
            sink.close()
    return FilePart(filename=part.filename or "upload", size_bytes=size_bytes, sha256=digest.hexdigest(), path=keep)
