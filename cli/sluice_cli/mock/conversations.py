"""Conversations: items kept across responses."""

from typing import Any, Final

from sluice_cli.mock.answers import Answer, JsonAnswer
from sluice_cli.mock.errors import missing, not_found
from sluice_cli.mock.state import Call, State
from sluice_cli.mock.wire import JsonObject, listing, page

_MAX_ITEMS: Final = 10_000  # of one conversation; the oldest go first


class Conversation:
    """One conversation and its items, oldest first."""

    __slots__ = ("body", "items")

    def __init__(self, body: JsonObject) -> None:
        self.body = body
        self.items: list[JsonObject] = []

    def extend(self, items: list[JsonObject]) -> None:
        """Append items."""
        self.items = (self.items + items)[-_MAX_ITEMS:]


def to_items(state: State, given: Any) -> list[JsonObject]:
    """Write input (a text or a list of items) as stored items, each with an id, type and status."""
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    items: list[JsonObject] = []
    for item in given or ():
        kind = item.get("type", "message")
        stored = {"id": state.new_id("msg_" if kind == "message" else "item_"), "type": kind, **item}
        if kind == "message":
            stored["status"] = "completed"
            if isinstance(item.get("content"), str):
                part = "output_text" if item.get("role") == "assistant" else "input_text"
                stored["content"] = [{"type": part, "text": item["content"]}]
                if part == "output_text":
                    stored["content"][0]["annotations"] = []
        items.append(stored)
    return items


def find(state: State, identifier: str) -> Conversation:
    """Find a conversation; the API's 404 when there is none."""
    conversation: Conversation = state.shelf("conversation").get(identifier)
    return conversation


async def create(call: Call) -> Answer:
    """Answer `POST /conversations`."""
    state = call.state
    body: JsonObject = {
        "id": state.new_id("conv_"),
        "object": "conversation",
        "created_at": state.created_at(),
        "metadata": call.body.get("metadata") or {},
    }
    conversation = Conversation(body)
    conversation.extend(to_items(state, call.body.get("items")))
    state.shelf("conversation").put(body["id"], conversation)
    call.entry.object_id = body["id"]
    return JsonAnswer(payload=body)


async def retrieve(call: Call) -> Answer:
    """Answer `GET /conversations/{id}`."""
    return JsonAnswer(payload=find(call.state, call.args[0]).body)


async def update(call: Call) -> Answer:
    """Answer `POST /conversations/{id}`."""
    conversation = find(call.state, call.args[0])
    if "metadata" not in call.body:
        raise missing("metadata")
    conversation.body["metadata"] = call.body["metadata"] or {}
    return JsonAnswer(payload=conversation.body)


async def delete(call: Call) -> Answer:
    """Answer `DELETE /conversations/{id}`."""
    call.state.shelf("conversation").pop(call.args[0])
    return JsonAnswer(payload={"id": call.args[0], "object": "conversation.deleted", "deleted": True})


async def list_items(call: Call) -> Answer:
    """Answer `GET /conversations/{id}/items`."""
    return JsonAnswer(payload=page(find(call.state, call.args[0]).items, call.query))


async def create_items(call: Call) -> Answer:
    """Answer `POST /conversations/{id}/items`."""
    items = to_items(call.state, call.body.get("items"))
    find(call.state, call.args[0]).extend(items)
    return JsonAnswer(payload=listing(items))


async def retrieve_item(call: Call) -> Answer:
    """Answer `GET /conversations/{id}/items/{item}`."""
    for item in find(call.state, call.args[0]).items:
        if item["id"] == call.args[1]:
            return JsonAnswer(payload=item)
    raise not_found("item", call.args[1])


async def delete_item(call: Call) -> Answer:
    """Answer `DELETE /conversations/{id}/items/{item}`."""
    conversation = find(call.state, call.args[0])
    conversation.items = [item for item in conversation.items if item["id"] != call.args[1]]
    return JsonAnswer(payload=conversation.body)
