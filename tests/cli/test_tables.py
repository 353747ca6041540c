"""The tables of `kubectl get`, rebuilt from the columns of the CRDs."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from sluice_cli.tables import age, lookup, render, table

DOCUMENT = {
    "metadata": {"name": "chat", "creationTimestamp": "2026-01-01T00:00:00Z"},
    "spec": {"mode": "Enforce", "on": True},
    "status": {
        "weight": 0,
        "conditions": [{"type": "Ready", "status": "True"}, {"type": "Stalled", "status": "False"}],
    },
}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (".spec.mode", "Enforce"),
        (".status.weight", 0),
        ('.status.conditions[?(@.type=="Stalled")].status', "False"),
        ('.status.conditions[?(@.type=="Paused")].status', None),
        (".status.conditions.status", None),
        (".nothing.here", None),
    ],
)
def test_paths_of_printer_columns_are_followed(path: str, value: object) -> None:
    """Plain steps and the one filter that the CRDs use; what is absent is no error."""
    assert lookup(DOCUMENT, path) == value


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "0s"), (0, "0s"), (119, "119s"), (120, "2m"), (200, "3m20s"), (3599, "59m"), (10_800, "3h"), (172_800, "2d")],
)
def test_ages_are_written_as_kubectl_writes_them(seconds: float, text: str) -> None:
    """Short, and never negative."""
    assert age(seconds) == text


def test_a_table_shows_wide_columns_only_when_asked() -> None:
    """Priority 1 and above is for `-o wide`; a zero is shown, an absent value is empty."""
    columns = [
        {"name": "Weight", "jsonPath": ".status.weight", "type": "integer"},
        {"name": "Gone", "jsonPath": ".status.gone", "type": "string"},
        {"name": "Age", "jsonPath": ".metadata.creationTimestamp", "type": "date"},
        {"name": "On", "jsonPath": ".spec.on", "type": "boolean", "priority": 1},
    ]
    now = datetime(2026, 1, 1, 0, 0, 45, tzinfo=UTC)

    assert table(columns, [DOCUMENT], now) == (["NAME", "WEIGHT", "GONE", "AGE"], [["chat", "0", "", "45s"]])
    assert table(columns, [DOCUMENT], now, wide=True)[1] == [["chat", "0", "", "45s", "true"]]


def test_columns_are_aligned_and_lines_have_no_trailing_blanks() -> None:
    """As kubectl prints them."""
    assert render(["NAME", "X"], [["a", ""], ["longer", "1"]]) == "NAME     X\na\nlonger   1"
