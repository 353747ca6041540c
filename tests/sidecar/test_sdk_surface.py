"""Every method of the official client that makes a request: through the sidecar it does what it does directly."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import openai
import pytest

KEY = "sk-planted-primary-5f1c9a"
HELPERS = re.compile(
    r"connect$|_and_poll$|poll$|wait_for|unwrap|verify_|prepare|for_result|_chunked$|_and_stream$|_stream$"
)
"""Methods that make no request, open a WebSocket, or repeat other methods with pauses between them."""

GIVEN: dict[str, Any] = {
    "file": ("a.jsonl", b'{"a":1}\n'),
    "image": ("i.png", b"\x89PNG"),
    "recording": ("r.wav", b"RIFF"),
    "video": ("v.mp4", b"video"),
    "data": b"abc",
    "model": "gpt-4.1-mini",
    "messages": [{"role": "user", "content": "hi"}],
    "metadata": {"a": "b"},
    "bytes": 7,
    "start_time": 1,
    "status_code": 486,
    "threshold_amount": 1,
    **{key: ["a"] for key in ("part_ids", "certificate_ids", "project_ids", "model_ids", "event_types", "permissions")},
    **{key: [] for key in ("items", "files", "tool_outputs", "testing_criteria", "events", "questions")},
    **{key: {"type": "a"} for key in ("session", "transport", "environment", "data_source", "grader", "attributes")},
    **{key: {"type": "a"} for key in ("notification_channel", "auth", "target", "workflow", "data_source_config")},
}
MODELS = {
    "images.generate": {"model": "gpt-image-1"},
    "embeddings.create": {"model": "text-embedding-3-small"},
    "audio.speech.create": {"model": "gpt-4o-mini-tts"},
    "audio.transcriptions.create": {"model": "whisper-1"},
    "completions.create": {"model": "gpt-3.5-turbo-instruct"},
    **{key: {"model": "gpt-4.1", "input": "hi"} for key in ("responses.create", "responses.parse", "responses.stream")},
}
PER_CALL = {"x-request-id", "date", "openai-processing-ms", "content-length", "transfer-encoding", "x-sluice-call-id"}
VARYING = re.compile(
    rb'[a-z]+[-_][0-9a-zA-Z]{12,}|"(created|expires|completed)(_at)?":\s?\d+|"obfuscation":"[^"]*"|--[0-9a-f]{16,}'
)


def methods(resource: Any, path: str = "") -> Iterator[str]:
    """Yield the path of every method below a resource."""
    for name in sorted(set(dir(type(resource)))):
        if name.startswith(("_", "with_")) or name == "copy":
            continue
        found = getattr(resource, name)
        if type(found).__module__.startswith("openai.resources"):
            yield from methods(found, f"{path}{name}.")
        elif inspect.ismethod(found) and path and not HELPERS.search(name):
            yield path + name


with openai.OpenAI(api_key="x", admin_api_key="x") as _client:
    METHODS = list(methods(_client))
GROUPS = sorted({path.split(".")[0] for path in METHODS})


class Recorder:
    """An official client that keeps what comes over the wire."""

    def __init__(self, base_url: str, key: str) -> None:
        self.answers: list[Any] = []
        transport = httpx2.Client(event_hooks={"response": [self._keep]})
        self.api = openai.OpenAI(
            base_url=base_url, api_key=key, admin_api_key=key, max_retries=0, timeout=10, http_client=transport
        )

    def _keep(self, response: httpx2.Response) -> None:
        body = VARYING.sub(b"~", response.read())
        fields = [(name.lower(), value) for name, value in response.headers.multi_items()]
        kept = sorted(each for each in fields if each[0] not in PER_CALL and not each[0].startswith("x-ratelimit-"))
        self.answers.append((response.request.method, response.request.url.raw_path, response.status_code, kept, body))

    def call(self, path: str, arguments: dict[str, Any]) -> Any:
        """Return the type of the result or of the error, and all answers that led to it."""
        self.answers.clear()
        method: Any = self.api
        for name in path.split("."):
            method = getattr(method, name)
        try:
            result = method(**arguments)
            if isinstance(result, openai.Stream):
                with result:
                    found: Any = [type(event) for event in result]
            else:
                found = type(result)
        except (
            openai.OpenAIError,
            AttributeError,
            TypeError,
            ValueError,
        ) as error:  # a client's own faults are its own
            found = type(error)
        return found, list(self.answers)


def arguments_of(function: Callable[..., Any], path: str) -> dict[str, Any]:
    """Return something for every argument that has no default."""
    named = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    wanted = [
        name
        for name, each in inspect.signature(function).parameters.items()
        if each.default is each.empty and each.kind in named
    ]
    return {**{name: GIVEN.get(name, "x-1") for name in wanted}, **MODELS.get(path, {})}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # deprecated methods are part of the surface
@pytest.mark.parametrize("group", GROUPS)
def test_every_method_does_what_it_does_directly(plain: Any, mock: Any, group: str) -> None:
    """The same requests, statuses, headers, bytes and results or errors; also where the API knows no such path."""
    direct, through = Recorder(mock.base_url, KEY), Recorder(plain.base_url, "sk-placeholder-of-the-application")
    with direct.api, through.api:
        for path in (each for each in METHODS if each.split(".")[0] == group):
            function: Any = direct.api
            for name in path.split("."):
                function = getattr(function, name)
            arguments = arguments_of(function, path)
            variants = [{}, {"stream": True}] if "stream" in inspect.signature(function).parameters else [{}]
            for variant in variants:
                mock.reset()
                expected = direct.call(path, arguments | variant)
                mock.reset()
                assert through.call(path, arguments | variant) == expected, path


def test_the_surface_is_whole() -> None:
    """The walk finds the client's resources: a changed client must not make these tests empty."""
    assert len(METHODS) > 300
    assert {"chat", "responses", "files", "uploads", "batches", "vector_stores", "realtime", "videos"} <= set(GROUPS)
