"""The API's paths: what answers each, how its body is read and what the limiter charges for it."""

from collections.abc import Awaitable, Callable
from typing import Final, Literal
from urllib.parse import unquote

import msgspec

from sluice_cli.mock import (
    audio,
    batches,
    chat,
    completions,
    conversations,
    embeddings,
    files,
    images,
    models,
    moderations,
    realtime,
    responses,
    responses_socket,
    vector_stores,
)
from sluice_cli.mock.answers import Answer
from sluice_cli.mock.ledger import LedgerEntry
from sluice_cli.mock.state import Call
from sluice_cli.mock.wire import JsonObject

Handler = Callable[[Call], Awaitable[Answer]]
Charge = Callable[[JsonObject], int]
Describe = Callable[[JsonObject, LedgerEntry], None]


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """
    One method on one path.

    `reader` is how the body is read: decoded before the faults are matched ("json"; "form" keeps no file),
    or left to the handler ("own"). A route without `charge` is not rate limited.
    """

    endpoint: str
    handler: Handler
    reader: Literal["none", "json", "form", "own"] = "none"
    charge: Charge | None = None
    describe: Describe | None = None


class Match(msgspec.Struct, frozen=True, kw_only=True):
    """A path that is part of the API; `route` is None when the method is not."""

    route: Route | None
    args: tuple[str, ...] = ()


def _post(
    endpoint: str,
    handler: Handler,
    charge: Charge | None = None,
    describe: Describe | None = None,
    reader: Literal["json", "form", "own"] = "json",
) -> Route:
    return Route(endpoint=endpoint, handler=handler, reader=reader, charge=charge, describe=describe)


def _get(endpoint: str, handler: Handler) -> Route:
    return Route(endpoint=endpoint, handler=handler)


_ROUTES: Final[dict[tuple[str, str], Route]] = {
    ("POST", "/chat/completions"): _post(
        "chat.completions", chat.create, lambda body: chat.prompt_of(body).charged_tokens, chat.describe
    ),
    ("POST", "/completions"): _post(
        "completions",
        completions.create,
        lambda body: completions.prompt_of(body).charged_tokens,
        chat.describe,
    ),
    ("POST", "/embeddings"): _post("embeddings", embeddings.create, embeddings.charge),
    ("GET", "/models"): _get("models", models.list_models),
    ("GET", "/models/*"): _get("models", models.retrieve),
    ("DELETE", "/models/*"): _get("models", models.delete),
    ("POST", "/responses"): _post(
        "responses",
        responses.create,
        lambda body: responses.prompt_of(body).charged_tokens,
        responses.describe,
    ),
    ("POST", "/responses/input_tokens"): _post("responses.input_tokens", responses.input_tokens),
    ("POST", "/responses/compact"): _post("responses.compact", responses.compact),
    ("GET", "/responses/*"): _get("responses.retrieve", responses.retrieve),
    ("DELETE", "/responses/*"): _get("responses.delete", responses.delete),
    ("POST", "/responses/*/cancel"): _get("responses.cancel", responses.cancel),
    ("GET", "/responses/*/input_items"): _get("responses.input_items", responses.input_items),
    ("POST", "/conversations"): _post("conversations", conversations.create),
    ("GET", "/conversations/*"): _get("conversations", conversations.retrieve),
    ("POST", "/conversations/*"): _post("conversations", conversations.update),
    ("DELETE", "/conversations/*"): _get("conversations", conversations.delete),
    ("GET", "/conversations/*/items"): _get("conversations", conversations.list_items),
    ("POST", "/conversations/*/items"): _post("conversations", conversations.create_items),
    ("GET", "/conversations/*/items/*"): _get("conversations", conversations.retrieve_item),
    ("DELETE", "/conversations/*/items/*"): _get("conversations", conversations.delete_item),
    ("POST", "/files"): _post("files", files.create, reader="own"),
    ("GET", "/files"): _get("files", files.list_files),
    ("GET", "/files/*"): _get("files", files.retrieve),
    ("DELETE", "/files/*"): _get("files", files.delete),
    ("GET", "/files/*/content"): _get("files.content", files.content),
    ("POST", "/uploads"): _post("uploads", files.create_upload),
    ("POST", "/uploads/*/parts"): _post("uploads", files.create_part, reader="own"),
    ("POST", "/uploads/*/complete"): _post("uploads", files.complete_upload),
    ("POST", "/uploads/*/cancel"): _get("uploads", files.cancel_upload),
    ("GET", "/responses"): _get("responses.websocket", responses_socket.connect),
    ("GET", "/realtime"): _get("realtime", realtime.connect),
    ("POST", "/realtime/client_secrets"): _post("realtime.client_secrets", realtime.create_secret),
    ("POST", "/moderations"): _post("moderations", moderations.create),
    ("POST", "/images/generations"): _post("images.generations", images.generate, images.charge),
    ("POST", "/images/edits"): _post("images.edits", images.edit, images.charge, reader="form"),
    ("POST", "/images/variations"): _post("images.variations", images.vary, images.charge, reader="form"),
    ("POST", "/audio/transcriptions"): _post("audio.transcriptions", audio.transcribe, reader="form"),
    ("POST", "/audio/translations"): _post("audio.translations", audio.translate, reader="form"),
    ("POST", "/audio/speech"): _post("audio.speech", audio.speak),
    ("POST", "/batches"): _post("batches", batches.create),
    ("GET", "/batches"): _get("batches", batches.list_batches),
    ("GET", "/batches/*"): _get("batches", batches.retrieve),
    ("POST", "/batches/*/cancel"): _get("batches", batches.cancel),
    ("POST", "/vector_stores"): _post("vector_stores", vector_stores.create),
    ("GET", "/vector_stores"): _get("vector_stores", vector_stores.list_stores),
    ("GET", "/vector_stores/*"): _get("vector_stores", vector_stores.retrieve),
    ("POST", "/vector_stores/*"): _post("vector_stores", vector_stores.update),
    ("DELETE", "/vector_stores/*"): _get("vector_stores", vector_stores.delete),
    ("POST", "/vector_stores/*/files"): _post("vector_stores", vector_stores.create_file),
    ("GET", "/vector_stores/*/files"): _get("vector_stores", vector_stores.list_files),
    ("GET", "/vector_stores/*/files/*"): _get("vector_stores", vector_stores.retrieve_file),
    ("DELETE", "/vector_stores/*/files/*"): _get("vector_stores", vector_stores.delete_file),
    ("POST", "/vector_stores/*/search"): _post("vector_stores", vector_stores.search),
}


def _by_path() -> dict[tuple[str, ...], dict[str, Route]]:
    tree: dict[tuple[str, ...], dict[str, Route]] = {}
    for (method, path), route in _ROUTES.items():
        tree.setdefault(tuple(path.split("/")[1:]), {})[method] = route
    return tree


_TREE: Final = _by_path()


def find(method: str, raw_path: str) -> Match | None:
    """Find what answers a path below `/v1`, which begins with a slash; None for no part of the API."""
    parts = tuple(raw_path.rstrip("/").split("/")[1:])
    if parts in _TREE:
        return Match(route=_TREE[parts].get(method))
    # No fixed path: every second part is an object's id, as the API has it throughout.
    pattern = tuple("*" if at % 2 else part for at, part in enumerate(parts))
    if pattern not in _TREE:
        return None
    return Match(route=_TREE[pattern].get(method), args=tuple(unquote(part) for part in parts[1::2]))
