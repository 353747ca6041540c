"""What was measured: samples by row, target and metric; medians, ratios, the table and the CSV."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterable
from pathlib import Path

import msgspec


class Key(msgspec.Struct, frozen=True, order=True):
    """What a sample is one of."""

    section: str
    row: str
    target: str
    metric: str
    unit: str


class Results:
    """All samples of one run of the benchmark, in the order in which their keys first came."""

    def __init__(self) -> None:
        self._samples: dict[Key, list[float]] = {}

    def add(self, section: str, row: str, target: str, metric: str, unit: str, value: float) -> None:
        """Keep one sample."""
        self._samples.setdefault(Key(section, row, target, metric, unit), []).append(value)

    def median(self, section: str, row: str, target: str, metric: str) -> float | None:
        """Return the median of the samples, or None if there are none."""
        for key, values in self._samples.items():
            if (key.section, key.row, key.target, key.metric) == (section, row, target, metric):
                return statistics.median(values)
        return None

    def write_csv(self, path: Path, machine: dict[str, str]) -> None:
        """Write every metric with its median and spread, the machine first."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["section", "row", "target", "metric", "unit", "median", "lowest", "highest", "runs"])
            for name, value in machine.items():
                writer.writerow(["machine", name, "", "", "", value, "", "", ""])
            for key, values in self._samples.items():
                figures = (statistics.median(values), min(values), max(values))
                writer.writerow([*msgspec.structs.astuple(key), *(_plain(each) for each in figures), len(values)])

    @classmethod
    def read_csv(cls, path: Path) -> tuple[Results, dict[str, str]]:
        """Return the medians that `write_csv` wrote, each as the one sample of its metric, and the machine."""
        results, machine = cls(), {}
        with path.open(newline="", encoding="utf-8") as file:
            for line in csv.DictReader(file):
                if line["section"] == "machine":
                    machine[line["row"]] = line["median"]
                else:
                    key = Key(line["section"], line["row"], line["target"], line["metric"], line["unit"])
                    results._samples[key] = [float(line["median"])]
        return results, machine

    def tables(self) -> str:
        """Return one Markdown table for each section: a line for each row and metric, a column for each target."""
        return "\n\n".join(self._table(section) for section in dict.fromkeys(key.section for key in self._samples))

    def _table(self, section: str) -> str:
        keys = [key for key in self._samples if key.section == section]
        here = {key.target for key in keys}
        targets = [name for name in dict.fromkeys(key.target for key in self._samples) if name in here]
        lines = list(dict.fromkeys((key.row, key.metric, key.unit) for key in keys))
        cells = [["", "", *targets]]
        for row, metric, unit in lines:
            figures = [self._samples.get(Key(section, row, target, metric, unit)) for target in targets]
            shown = ["" if values is None else short(statistics.median(values)) for values in figures]
            cells.append([row, f"{metric}, {unit}" if unit else metric, *shown])
        return f"### {section}\n\n{markdown(cells)}"


def markdown(cells: list[list[str]]) -> str:
    """Return a table; the first row is its head, columns after the second are aligned to the right."""
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    rule = ["-" * width if column < 2 else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
    lines = [_line(cells[0], widths), "| " + " | ".join(rule) + " |"]
    return "\n".join(lines + [_line(row, widths) for row in cells[1:]])


def _line(row: Iterable[str], widths: list[int]) -> str:
    aligned = (
        text.ljust(width) if column < 2 else text.rjust(width)
        for column, (text, width) in enumerate(zip(row, widths, strict=True))
    )
    return "| " + " | ".join(aligned) + " |"


def short(value: float) -> str:
    """Return a figure with three digits that count."""
    if value == 0 or abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"


def _plain(value: float) -> str:
    return f"{value:.6g}"
