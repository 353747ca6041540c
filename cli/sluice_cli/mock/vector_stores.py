"""Vector stores: their own life and that of the files in them; a search returns the files in order."""

from typing import Final

from sluice_cli.mock.answers import Answer, JsonAnswer
from sluice_cli.mock.errors import missing, not_found
from sluice_cli.mock.files import StoredFile
from sluice_cli.mock.state import Call
from sluice_cli.mock.wire import JsonObject, page

_MAX_FILES: Final = 10_000  # of one store, as the API has it


class VectorStore:
    """One store and its files."""

    __slots__ = ("body", "files")

    def __init__(self, body: JsonObject) -> None:
        self.body = body
        self.files: dict[str, JsonObject] = {}

    def count(self) -> None:
        """Bring the counts up to date."""
        number = len(self.files)
        self.body["file_counts"] = {
            "in_progress": 0,
            "completed": number,
            "failed": 0,
            "cancelled": 0,
            "total": number,
        }
        self.body["usage_bytes"] = sum(file["usage_bytes"] for file in self.files.values())


def _find(call: Call) -> VectorStore:
    store: VectorStore = call.state.shelf("vector_store").get(call.args[0])
    return store


async def create(call: Call) -> Answer:
    """Answer `POST /vector_stores`."""
    state, body = call.state, call.body
    store = VectorStore(
        {
            "id": state.new_id("vs_"),
            "object": "vector_store",
            "created_at": state.created_at(),
            "last_active_at": state.created_at(),
            "name": body.get("name") or "",
            "status": "completed",
            "metadata": body.get("metadata") or {},
            "expires_after": body.get("expires_after"),
            "expires_at": None,
        }
    )
    for file_id in body.get("file_ids") or ():
        _attach(call, store, file_id)
    store.count()
    state.shelf("vector_store").put(store.body["id"], store)
    call.entry.object_id = store.body["id"]
    return JsonAnswer(payload=store.body)


def _attach(call: Call, store: VectorStore, file_id: str) -> JsonObject:
    stored: StoredFile = call.state.shelf("file").get(file_id)
    attached: JsonObject = {
        "id": file_id,
        "object": "vector_store.file",
        "created_at": call.state.created_at(),
        "vector_store_id": store.body["id"],
        "usage_bytes": stored.body["bytes"],
        "status": "completed",
        "last_error": None,
        "attributes": call.body.get("attributes") or {},
        "chunking_strategy": {
            "type": "static",
            "static": {"max_chunk_size_tokens": 800, "chunk_overlap_tokens": 400},
        },
    }
    if len(store.files) < _MAX_FILES:
        store.files[file_id] = attached
    return attached


async def list_stores(call: Call) -> Answer:
    """Answer `GET /vector_stores`."""
    stores = call.state.shelf("vector_store").values()
    return JsonAnswer(payload=page([store.body for store in stores], call.query))


async def retrieve(call: Call) -> Answer:
    """Answer `GET /vector_stores/{id}`."""
    return JsonAnswer(payload=_find(call).body)


async def update(call: Call) -> Answer:
    """Answer `POST /vector_stores/{id}`."""
    store = _find(call)
    store.body |= {name: call.body[name] for name in ("name", "metadata", "expires_after") if name in call.body}
    return JsonAnswer(payload=store.body)


async def delete(call: Call) -> Answer:
    """Answer `DELETE /vector_stores/{id}`."""
    call.state.shelf("vector_store").pop(call.args[0])
    return JsonAnswer(payload={"id": call.args[0], "object": "vector_store.deleted", "deleted": True})


async def create_file(call: Call) -> Answer:
    """Answer `POST /vector_stores/{id}/files`."""
    store = _find(call)
    if "file_id" not in call.body:
        raise missing("file_id")
    attached = _attach(call, store, call.body["file_id"])
    store.count()
    return JsonAnswer(payload=attached)


async def list_files(call: Call) -> Answer:
    """Answer `GET /vector_stores/{id}/files`."""
    return JsonAnswer(payload=page(list(_find(call).files.values()), call.query))


async def retrieve_file(call: Call) -> Answer:
    """Answer `GET /vector_stores/{id}/files/{file}`."""
    attached = _find(call).files.get(call.args[1])
    if attached is None:
        raise not_found("file", call.args[1])
    return JsonAnswer(payload=attached)


async def delete_file(call: Call) -> Answer:
    """Answer `DELETE /vector_stores/{id}/files/{file}`."""
    store = _find(call)
    if store.files.pop(call.args[1], None) is None:
        raise not_found("file", call.args[1])
    store.count()
    return JsonAnswer(payload={"id": call.args[1], "object": "vector_store.file.deleted", "deleted": True})


async def search(call: Call) -> Answer:
    """Answer `POST /vector_stores/{id}/search`."""
    store = _find(call)
    if not call.body.get("query"):
        raise missing("query")
    wanted = int(call.body.get("max_num_results") or 10)
    found: list[JsonObject] = []
    for rank, file_id in enumerate(list(store.files)[:wanted]):
        stored: StoredFile = call.state.shelf("file").get(file_id)
        found.append(
            {
                "file_id": file_id,
                "filename": stored.body["filename"],
                "score": 1.0 / (rank + 1),
                "attributes": store.files[file_id]["attributes"],
                "content": [{"type": "text", "text": f"Part of {stored.body['filename']}"}],
            }
        )
    payload: JsonObject = {
        "object": "vector_store.search_results.page",
        "search_query": [call.body["query"]],
        "data": found,
        "has_more": False,
        "next_page": None,
    }
    return JsonAnswer(payload=payload)
