"""Files and uploads in parts: kept on disk, streamed in and out."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from sluice_cli.mock.answers import Answer, BytesAnswer, JsonAnswer
from sluice_cli.mock.errors import bad_request, missing
from sluice_cli.mock.forms import FilePart, Form, read_form
from sluice_cli.mock.state import Call, State
from sluice_cli.mock.wire import JsonObject, page

_CHUNK_BYTES: Final = 1 << 18
_UPLOAD_LIFE_SECONDS: Final = 3600
_PURPOSES: Final = frozenset({"assistants", "batch", "fine-tune", "vision", "user_data", "evals"})


class StoredFile:
    """A file and where it lies."""

    __slots__ = ("body", "path", "sha256")

    def __init__(self, body: JsonObject, path: Path, sha256: str) -> None:
        self.body = body
        self.path = path
        self.sha256 = sha256


class Upload:
    """An upload in parts."""

    __slots__ = ("body", "parts")

    def __init__(self, body: JsonObject) -> None:
        self.body = body
        self.parts: dict[str, Path] = {}


def store(state: State, path: Path, filename: str, purpose: str, sha256: str = "") -> StoredFile:
    """Put a file that lies in the server's folder on the shelf; the oldest one may have to go."""
    body: JsonObject = {
        "id": state.new_id("file-"),
        "object": "file",
        "bytes": path.stat().st_size,
        "created_at": state.created_at(),
        "expires_at": None,
        "filename": filename,
        "purpose": purpose,
        "status": "processed",
        "status_details": None,
    }
    stored = StoredFile(body, path, sha256)
    dropped: StoredFile | None = state.shelf("file").put(body["id"], stored)
    if dropped is not None:
        dropped.path.unlink(missing_ok=True)
    return stored


async def create(call: Call) -> Answer:
    """Answer `POST /files`."""
    state = call.state
    path = state.folder / state.new_id("upload-")
    try:
        form = await read_form(call.request, path)
        parts, purpose = _checked(form)
        stored = store(state, path, parts[0].filename, purpose, parts[0].sha256)
    except BaseException:
        path.unlink(missing_ok=True)  # also of an upload that its client broke off
        raise
    call.entry.received_bytes = form.size_bytes
    call.entry.object_id = stored.body["id"]
    return JsonAnswer(payload=stored.body)


def _checked(form: Form) -> tuple[list[FilePart], str]:
    parts, purpose = form.files.get("file"), form.fields.get("purpose", "")
    if not parts:
        raise missing("file")
    if purpose not in _PURPOSES:
        raise bad_request(f"'{purpose}' is not one of {sorted(_PURPOSES)} - 'purpose'", "purpose")
    return parts, purpose


async def list_files(call: Call) -> Answer:
    """Answer `GET /files`."""
    purpose = call.query.get("purpose")
    bodies = [stored.body for stored in call.state.shelf("file").values()]
    return JsonAnswer(payload=page([body for body in bodies if purpose in (None, body["purpose"])], call.query))


async def retrieve(call: Call) -> Answer:
    """Answer `GET /files/{id}`."""
    return JsonAnswer(payload=call.state.shelf("file").get(call.args[0]).body)


async def delete(call: Call) -> Answer:
    """Answer `DELETE /files/{id}`."""
    stored: StoredFile = call.state.shelf("file").pop(call.args[0])
    stored.path.unlink(missing_ok=True)
    return JsonAnswer(payload={"id": call.args[0], "object": "file", "deleted": True})


async def content(call: Call) -> Answer:
    """Answer `GET /files/{id}/content`."""
    stored: StoredFile = call.state.shelf("file").get(call.args[0])
    call.entry.object_id = call.args[0]
    return BytesAnswer(
        content_type="application/octet-stream",
        chunks=_read(stored.path),
        length_bytes=stored.body["bytes"],
        headers={"Content-Disposition": f'attachment; filename="{stored.body["id"]}"'},
    )


async def _read(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as source:
        while chunk := source.read(_CHUNK_BYTES):
            yield chunk


async def create_upload(call: Call) -> Answer:
    """Answer `POST /uploads`."""
    state, body = call.state, call.body
    for name in ("filename", "purpose", "bytes", "mime_type"):
        if name not in body:
            raise missing(name)
    created_at = state.created_at()
    upload: JsonObject = {
        "id": state.new_id("upload_"),
        "object": "upload",
        "bytes": body["bytes"],
        "created_at": created_at,
        "expires_at": created_at + _UPLOAD_LIFE_SECONDS,
        "filename": body["filename"],
        "purpose": body["purpose"],
        "status": "pending",
        "file": None,
    }
    state.shelf("upload").put(upload["id"], Upload(upload))
    call.entry.object_id = upload["id"]
    return JsonAnswer(payload=upload)


def _pending(call: Call) -> Upload:
    upload: Upload = call.state.shelf("upload").get(call.args[0])
    if upload.body["status"] != "pending":
        raise bad_request(f"Upload {call.args[0]} is {upload.body['status']}.")
    return upload


async def create_part(call: Call) -> Answer:
    """Answer `POST /uploads/{id}/parts`."""
    state = call.state
    upload = _pending(call)
    part_id = state.new_id("part_")
    path = state.folder / part_id
    form = await read_form(call.request, path)
    if "data" not in form.files:
        raise missing("data")
    upload.parts[part_id] = path
    call.entry.received_bytes = form.size_bytes
    payload = {
        "id": part_id,
        "object": "upload.part",
        "created_at": state.created_at(),
        "upload_id": upload.body["id"],
    }
    return JsonAnswer(payload=payload)


async def complete_upload(call: Call) -> Answer:
    """Answer `POST /uploads/{id}/complete`: the parts, in the order given, become a file."""
    state = call.state
    upload = _pending(call)
    wanted = call.body.get("part_ids") or []
    unknown = [part for part in wanted if part not in upload.parts]
    if not wanted or unknown:
        raise bad_request(f"No such parts: {unknown}", "part_ids")
    path = state.folder / state.new_id("joined-")
    await asyncio.to_thread(_join, [upload.parts[part] for part in wanted], path)
    if path.stat().st_size != upload.body["bytes"]:
        path.unlink()
        raise bad_request("The number of bytes uploaded does not match the number of bytes declared.", "bytes")
    stored = store(state, path, upload.body["filename"], upload.body["purpose"])
    upload.body |= {"status": "completed", "file": stored.body}
    _discard_parts(upload)
    return JsonAnswer(payload=upload.body)


async def cancel_upload(call: Call) -> Answer:
    """Answer `POST /uploads/{id}/cancel`."""
    upload = _pending(call)
    upload.body["status"] = "cancelled"
    _discard_parts(upload)
    return JsonAnswer(payload=upload.body)


def _join(parts: list[Path], into: Path) -> None:
    with into.open("wb") as sink:
        for part in parts:
            with part.open("rb") as source:
                shutil.copyfileobj(source, sink, _CHUNK_BYTES)


def _discard_parts(upload: Upload) -> None:
    for path in upload.parts.values():
        path.unlink(missing_ok=True)
    upload.parts.clear()
