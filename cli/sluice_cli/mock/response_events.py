"""The body of a response and the events of its stream, as values."""

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from sluice_cli.mock.chat import token_logprobs
from sluice_cli.mock.content import Prompt, Reply, ToolCall, grouped
from sluice_cli.mock.effects import Effect
from sluice_cli.mock.errors import ERRORS
from sluice_cli.mock.ledger import Usage
from sluice_cli.mock.wire import JsonObject

_OBFUSCATION: Final = "qW8eR2tY6uI0oP4aS7dF1gH5jK9lZ3xC"
_ARGUMENT_DELTA_CHARACTERS: Final = 8
# Request fields that the response object repeats, with the defaults that it shows.
_ECHOED: Final[dict[str, Any]] = {
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "safety_identifier": None,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}, "verbosity": "medium"},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
}


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """One response, decided: every body and event of it follows from this."""

    id: str
    created_at: int
    model: str
    tier: str
    request: JsonObject
    prompt: Prompt
    reply: Reply
    usage: Usage
    effect: Effect
    conversation_id: str | None = None

    @property
    def status(self) -> str:
        """How the response ends."""
        if self.effect.response_failed:
            return "failed"
        return "incomplete" if self.reply.finish_reason in ("length", "content_filter") else "completed"

    def item_id(self, prefix: str, position: int = 0) -> str:
        """Name an item of the output."""
        return f"{prefix}_{self.id.removeprefix('resp_')}{position:02d}"


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One event, and the tokens generated once it is sent."""

    payload: JsonObject
    output_tokens: int = 0


def usage_body(usage: Usage) -> JsonObject:
    """Write usage as responses report it."""
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
        },
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.total_tokens,
    }


def response_body(plan: Plan, status: str) -> JsonObject:
    """Write the response object as it is at a status; output and usage come with the terminal ones."""
    request = plan.request
    done = status in ("completed", "incomplete")
    body: JsonObject = {
        "id": plan.id,
        "object": "response",
        "created_at": plan.created_at,
        "completed_at": plan.created_at if status == "completed" else None,
        "status": status,
        "background": bool(request.get("background")),
        "error": None,
        "incomplete_details": None,
        "model": plan.model,
        "output": output_items(plan) if done else [],
        "reasoning": {"effort": None, "summary": None} | (request.get("reasoning") or {}),
        "service_tier": plan.tier if status in ("completed", "incomplete", "failed") else "auto",
        "store": request.get("store", True),
        "usage": usage_body(plan.usage) if done and plan.effect.usage != "omit" else None,
    }
    for name, default in _ECHOED.items():
        given = request.get(name)
        body[name] = default if given is None else given
    if plan.conversation_id is not None:
        body["conversation"] = {"id": plan.conversation_id}
    if status == "incomplete":
        filtered = plan.reply.finish_reason == "content_filter"
        body["incomplete_details"] = {"reason": "content_filter" if filtered else "max_output_tokens"}
    if status == "failed":
        code = plan.effect.response_failed or "server_error"
        shape = ERRORS.get(code, ERRORS["server_error"])
        body["error"] = {"code": code, "message": shape.message}
    return body


def output_items(plan: Plan) -> list[JsonObject]:
    """Write the finished output."""
    items: list[JsonObject] = []
    if plan.usage.reasoning_tokens:
        items.append(_reasoning_item(plan, done=True))
    if plan.reply.tool_calls:
        return items + [
            _call_item(plan, position, call, done=True) for position, call in enumerate(plan.reply.tool_calls)
        ]
    if plan.reply.finish_reason == "content_filter":
        return items
    status = "incomplete" if plan.status == "incomplete" else "completed"
    return [*items, _message_item(plan, [_part(plan, plan.reply.text)], status)]


def _message_item(plan: Plan, content: list[JsonObject], status: str) -> JsonObject:
    return {
        "id": plan.item_id("msg"),
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": content,
    }


def _part(plan: Plan, text: str) -> JsonObject:
    if plan.reply.refusal:
        return {"type": "refusal", "refusal": text}
    part: JsonObject = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    if text and "message.output_text.logprobs" in (plan.request.get("include") or ()):
        part["logprobs"] = token_logprobs(plan.reply.pieces, int(plan.request.get("top_logprobs") or 0))
    return part


def _reasoning_item(plan: Plan, *, done: bool) -> JsonObject:
    item: JsonObject = {"id": plan.item_id("rs"), "type": "reasoning", "summary": []}
    if done and _summarises(plan):
        item["summary"] = [{"type": "summary_text", "text": _summary(plan)}]
    if "reasoning.encrypted_content" in (plan.request.get("include") or ()):
        item["encrypted_content"] = "bW9jaw=="
    return item


def _summarises(plan: Plan) -> bool:
    return bool((plan.request.get("reasoning") or {}).get("summary"))


def _summary(plan: Plan) -> str:
    return f"**Weighing the answer** in {plan.usage.reasoning_tokens} tokens."


def _call_item(plan: Plan, position: int, call: ToolCall, *, done: bool) -> JsonObject:
    return {
        "id": plan.item_id("fc", position),
        "type": "function_call",
        "status": "completed" if done else "in_progress",
        "call_id": plan.item_id("call", position),
        "name": call.name,
        "arguments": call.arguments if done else "",
    }


class EventStream:
    """Numbers and yields the events of one response."""

    __slots__ = ("_number", "_obfuscate", "_padding_bytes", "_plan", "_tokens")

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._number = -1
        self._tokens = 0
        self._padding_bytes = plan.effect.line_bytes or 0
        options = plan.request.get("stream_options") or {}
        self._obfuscate = options.get("include_obfuscation", True)

    def events(self) -> Iterator[Event]:
        """Yield every event up to the terminal one."""
        plan = self._plan
        yield self._response("response.created", "queued" if plan.request.get("background") else "in_progress")
        if plan.request.get("background"):
            yield self._response("response.queued", "queued")
        yield self._response("response.in_progress", "in_progress")
        yield from self._content()
        if plan.effect.stream_error is not None:
            shape = ERRORS[plan.effect.stream_error]
            yield self._event("error", code=shape.code or shape.type, message=shape.message, param=shape.param)
            return
        status = plan.status
        self._tokens = plan.usage.output_tokens if status != "failed" else self._tokens
        yield self._response(f"response.{status}", status)

    def _content(self) -> Iterator[Event]:
        plan = self._plan
        index = 0
        if plan.usage.reasoning_tokens:
            yield from self._reasoning(index)
            index += 1
        if plan.reply.tool_calls:
            for position, call in enumerate(plan.reply.tool_calls):
                yield from self._function_call(index + position, position, call)
        elif plan.reply.finish_reason != "content_filter":
            yield from self._message(index)

    def _reasoning(self, index: int) -> Iterator[Event]:
        plan = self._plan
        item = _reasoning_item(plan, done=False)
        yield self._event("response.output_item.added", output_index=index, item=item)
        self._tokens += plan.usage.reasoning_tokens
        if _summarises(plan):
            at = {"item_id": item["id"], "output_index": index, "summary_index": 0}
            text = _summary(plan)
            name = "response.reasoning_summary"
            yield self._event(f"{name}_part.added", **at, part={"type": "summary_text", "text": ""})
            yield self._delta(f"{name}_text.delta", text, at)
            yield self._event(f"{name}_text.done", **at, text=text)
            yield self._event(f"{name}_part.done", **at, part={"type": "summary_text", "text": text})
        done = _reasoning_item(plan, done=True)
        yield self._event("response.output_item.done", output_index=index, item=done)

    def _message(self, index: int) -> Iterator[Event]:
        plan = self._plan
        refusal = plan.reply.refusal
        at: JsonObject = {"item_id": plan.item_id("msg"), "output_index": index, "content_index": 0}
        started = _message_item(plan, [], "in_progress")
        yield self._event("response.output_item.added", output_index=index, item=started)
        yield self._event("response.content_part.added", **at, part=_part(plan, ""))
        name = "response.refusal" if refusal else "response.output_text"
        extra: JsonObject = {} if refusal else {"logprobs": []}
        start, broken = self._tokens, False
        pieces = list(grouped(plan.reply.pieces, plan.effect.events))
        fail_at = len(pieces) // 2 if plan.effect.fail_at_event is None else plan.effect.fail_at_event
        for number, (text, upto) in enumerate(pieces):
            if number >= fail_at and (plan.effect.stream_error or plan.effect.response_failed):
                broken = True
                break
            self._tokens = start + upto
            yield self._delta(f"{name}.delta", text, at | extra)
        if broken:
            return
        text = plan.reply.text
        yield self._event(f"{name}.done", **at, **({"refusal": text} if refusal else {"text": text} | extra))
        yield self._event("response.content_part.done", **at, part=_part(plan, text))
        done = output_items(plan)[-1]
        yield self._event("response.output_item.done", output_index=index, item=done)

    def _function_call(self, index: int, position: int, call: ToolCall) -> Iterator[Event]:
        plan = self._plan
        started = _call_item(plan, position, call, done=False)
        at: JsonObject = {"item_id": started["id"], "output_index": index}
        yield self._event("response.output_item.added", output_index=index, item=started)
        name = "response.function_call_arguments"
        for start in range(0, len(call.arguments), _ARGUMENT_DELTA_CHARACTERS):
            piece = call.arguments[start : start + _ARGUMENT_DELTA_CHARACTERS]
            self._tokens += -(-len(piece) // 4)
            yield self._delta(f"{name}.delta", piece, at)
        yield self._event(f"{name}.done", **at, name=call.name, arguments=call.arguments)
        self._tokens += 8
        done = _call_item(plan, position, call, done=True)
        yield self._event("response.output_item.done", output_index=index, item=done)

    def _response(self, kind: str, status: str) -> Event:
        return self._event(kind, response=response_body(self._plan, status))

    def _delta(self, kind: str, text: str, at: JsonObject) -> Event:
        fields = at | {"delta": text}
        if self._obfuscate:
            fields["obfuscation"] = _OBFUSCATION[: 3 + (self._number * 5) % 13]
        if self._padding_bytes:
            fields["obfuscation"] = "x" * self._padding_bytes
            self._padding_bytes = 0
        return self._event(kind, **fields)

    def _event(self, kind: str, **fields: Any) -> Event:
        self._number += 1
        payload = {"type": kind, "sequence_number": self._number, **fields}
        return Event(payload=payload, output_tokens=self._tokens)
