"""What local mode shows: the tables of `kubectl get`, breakers and the last decisions, live or as plain text."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Final

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sluice_cli.tables import render
from sluice_core.api.base import Value
from sluice_core.api.degradation import Cause
from sluice_core.caching import ANSWERED
from sluice_core.records import CallRecord

MAX_DECISIONS: Final = 10
MAX_EVENTS: Final = 8


class Section(Value, frozen=True, kw_only=True):
    """One titled table."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...] = ()


class Decisions:
    """The last calls, newest last."""

    __slots__ = ("_last", "total")

    def __init__(self) -> None:
        self._last: deque[tuple[str, CallRecord]] = deque(maxlen=MAX_DECISIONS)
        self.total = 0

    def add(self, workload: str, record: CallRecord) -> None:
        """Remember one call."""
        self._last.append((workload, record))
        self.total += 1

    def section(self) -> Section:
        """Return the table of the last calls."""
        return Section(
            title=f"last of {self.total} calls",
            header=("TIME", "WORKLOAD", "CALL", "MODEL", "VERSION", "STATUS", "OUTCOME", "WHY", "MS"),
            rows=tuple(_decision(workload, record) for workload, record in self._last),
        )


def _decision(workload: str, record: CallRecord) -> tuple[str, ...]:
    return (
        datetime.fromtimestamp(record.time, UTC).strftime("%H:%M:%S"),
        workload,
        record.endpoint.value,
        record.model or record.requested_model or "",
        record.version or "",
        str(record.status or ""),
        record.outcome.value,
        _why(record),
        f"{record.duration_ms:.0f}",
    )


def _why(record: CallRecord) -> str:
    """Return the most telling thing that happened to a call."""
    if record.refused_by:
        return record.refused_by
    if record.level is not None:
        return f"{record.level.value} ({(record.level_cause or Cause.HAND).value})"
    if record.cache is not None and record.cache in ANSWERED:
        return f"cache: {record.cache.value.lower()}"
    if record.fallback is not None:
        return f"fallback {record.fallback}"
    if len(record.attempts) > 1:
        return f"{len(record.attempts)} attempts"
    if record.queue_ms >= 1:
        return f"waited {record.queue_ms:.0f} ms"
    return record.error_code or ""


def plain(sections: Iterable[Section]) -> str:
    """Return the tables as text for a log or a pipe, without ages: a table is new when something in it is."""
    sections = [_without(section, "AGE") for section in sections]
    return "\n\n".join(
        f"{section.title}\n{render(section.header, section.rows)}" for section in sections if section.rows
    )


def _without(section: Section, column: str) -> Section:
    if column not in section.header:
        return section
    index = section.header.index(column)
    header, *rows = ((*row[:index], *row[index + 1 :]) for row in (section.header, *section.rows))
    return Section(title=section.title, header=header, rows=tuple(rows))


def _rich(section: Section) -> Table:
    table = Table(title=section.title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for name in section.header:
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    for row in section.rows:
        table.add_row(*(Text(cell) for cell in row))  # Text: a cell is never read as markup
    return table


class Screen:
    """Shows sections: redrawn in place on a terminal, printed when they change elsewhere."""

    __slots__ = ("_console", "_intro", "_live", "_shown", "_told")

    def __init__(self, intro: Sequence[str], *, live: bool) -> None:
        self._console = Console()
        self._intro = tuple(intro)
        self._live = Live(console=self._console, auto_refresh=False, screen=False) if live else None
        self._shown = ""
        self._told: frozenset[str] = frozenset()

    def start(self) -> None:
        """Show the introduction; on a terminal, begin to redraw."""
        if self._live is not None:
            self._live.start()
        else:
            self.say(*self._intro)

    def stop(self) -> None:
        """Leave the terminal as it was."""
        if self._live is not None:
            self._live.stop()

    def say(self, *lines: str) -> None:
        """Print lines once."""
        for line in lines:
            self._console.print(Text(line), soft_wrap=True)

    def show(self, sections: Sequence[Section], events: Sequence[str]) -> None:
        """Show the present state."""
        if self._live is not None:
            intro = Text("\n".join(self._intro))
            log = Text("\n".join(events[-MAX_EVENTS:]), style="dim")
            self._live.update(Group(intro, Text(), *(_rich(each) for each in sections if each.rows), log), refresh=True)
            return
        text = plain(sections)
        if text and text != self._shown:
            self._shown = text
            self.say("", text)
        self.say(*(event for event in events if event not in self._told))
        self._told = frozenset(events)
