"""Levels of service in `sluice dev`: a change in a file is in force at once, and is told."""

from __future__ import annotations

from pathlib import Path

from dev_process import lives

EXAMPLE = Path(__file__).parents[3] / "examples" / "levels" / "policies.yaml"


def test_a_level_set_in_a_file_is_in_force_shown_and_taken_back(tmp_path: Path) -> None:
    """In the status and its table, as an event, and in what calls get."""
    file, text = tmp_path / "policies.yaml", EXAMPLE.read_text()
    with lives(tmp_path, text) as begin:
        dev = begin()
        assert dev.call("gpt-4.1")[0] == 200
        dev.until(lambda: dev.status("QuotaAllocation").get("level") == "Full", "the full service")
        file.write_text(text.replace("level: Full", "level: Static"))
        dev.until(lambda: "level=Static" in dev.call("gpt-4.1")[1].get("x-sluice-decision", ""), "a fixed answer")
        dev.until(lambda: "openai: Static: chat is at Static, set by hand" in dev.printed, "the event")
        status = dev.status("QuotaAllocation")
        assert status["level"] == "Static"
        assert (status["allocations"][0]["level"], status["allocations"][0]["levelCause"]) == ("Static", "Hand")
        dev.until(lambda: "Static (Hand)" in dev.printed, "why a call was answered so")
        file.write_text(text)
        dev.until(lambda: "x-sluice-decision" not in dev.call("gpt-4.1")[1], "an answer of the upstream")
        dev.until(lambda: "openai: Full: every allocation has the full service" in dev.printed, "the event")
