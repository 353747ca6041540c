"""What the verbs print: their help, and the story of a call."""

from __future__ import annotations

import pytest

from sluice_cli.cluster import Dev
from sluice_cli.explain import explain
from sluice_cli.main import main
from sluice_core.api.modelroute import Endpoint
from sluice_core.caching import CacheUse
from sluice_core.records import CallRecord, Outcome


@pytest.mark.parametrize("verb", ["promote", "abort", "pause", "resume", "retry"])
def test_the_help_tells_the_annotation_that_does_the_same(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It can be copied as it stands."""
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    assert f"kubectl annotate canarysplit NAME --overwrite sluice.dev/{verb}=$(date +%s)" in " ".join(
        capsys.readouterr().out.split()
    )


def test_what_is_printed_looks_where_the_request_was_made(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Namespace and address are those of the request."""
    asked: list[tuple[str, object]] = []
    monkeypatch.setattr(Dev, "_ask", lambda _, path, order=None: asked.append((path, order)))
    assert main(["pause", "chat", "-n", "shop", "--dev", "http://127.0.0.1:9"]) == 0
    assert [path for path, _ in asked] == ["/dev/annotate"]
    assert "`sluice status chat -n shop --dev http://127.0.0.1:9`" in capsys.readouterr().out


def test_the_help_keeps_names_as_they_are_written(capsys: pytest.CaptureFixture[str]) -> None:
    """Only the first letter becomes a capital."""
    with pytest.raises(SystemExit):
        main(["dev", "--help"])
    assert "Run policies from a folder" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["mock-openai", "--help"])
    assert "OpenAI API" in capsys.readouterr().out


def test_explain_tells_of_a_call_that_a_fallback_answered() -> None:
    """The first is 0, as in `x-sluice-fallback` and in the record."""
    record = CallRecord(
        call_id="call-1",
        time=0.0,
        namespace="team",
        endpoint=Endpoint.CHAT_COMPLETIONS,
        status=200,
        outcome=Outcome.SUCCESS,
        fallback=0,
        cache=CacheUse.BYPASS,
        refused_by="team/openai/breaker",
    )
    told = list(explain(record))
    assert "refused by team/openai/breaker" in told  # the answer was another's, so there is no error
    assert "answered by fallback 0, counted from 0" in told
    assert "no answer to such a call is kept; the header x-sluice-cache said why" in told
