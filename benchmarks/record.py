"""The record of the benchmark: docs/performance/figures.json, one line for each thing that was measured.

A part (drain, latency, ...) is replaced as a whole when it is measured again, and carries when, how and on what it was
measured. So the record can be of several runs, and says of which; nothing in it is typed by hand.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

RATIO = "ratio"
DIGITS = 4
NOTE_LENGTH = 300


@dataclass(frozen=True, slots=True)
class Figure:
    """The middle, the lowest and the highest of `count` values; without any, `note` says why there are none."""

    name: str
    unit: str
    median: float | None = None
    lowest: float | None = None
    highest: float | None = None
    count: int = 0
    note: str = ""
    course: tuple[float, ...] = ()  # one value after the other, where the order is what is to be seen

    @classmethod
    def of(
        cls, name: str, unit: str, values: Iterable[float], note: str = "", course: Iterable[float] = ()
    ) -> Figure:
        """Sum values up."""
        known, note = list(values), " ".join(note.split())[:NOTE_LENGTH]
        if not known:
            return cls(name, unit, note=note or "not measured")
        return cls(
            name,
            unit,
            _rounded(statistics.median(known)),
            _rounded(min(known)),
            _rounded(max(known)),
            len(known),
            note,
            tuple(_rounded(value) for value in course),
        )


@dataclass(slots=True)
class Rounds:
    """What was measured of each case, round by round: cases are compared within a round, for machines drift."""

    values: dict[str, dict[int, float]] = field(default_factory=dict)

    def add(self, case: str, number: int, value: float) -> None:
        """Enter what a round measured of a case."""
        self.values.setdefault(case, {})[number] = value

    def figure(self, case: str, unit: str, note: str = "") -> Figure:
        """Sum a case up."""
        return Figure.of(case, unit, self.values.get(case, {}).values(), note)

    def ratio(self, name: str, case: str, *others: str) -> Figure:
        """Compare a case with another one, or with several together, in the rounds that have them all."""
        ours, theirs = self.values.get(case, {}), [self.values.get(other, {}) for other in others]
        shared = [number for number in ours if all(number in found for found in theirs)]
        ratios = (ours[number] / sum(found[number] for found in theirs) for number in shared)
        return Figure.of(name, RATIO, ratios)


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the record: `run` says when, with what command, and on what it was measured."""

    run: dict[str, Any]
    figures: dict[str, Figure]

    def median(self, name: str) -> float | None:
        """The middle of a figure; None where it was not measured."""
        return self.figures[name].median if name in self.figures else None


Record = dict[str, Part]


def load(file: Path) -> Record:
    """Read a record; an absent file is an empty one."""
    if not file.exists():
        return {}
    return {
        name: Part(part["run"], {figure: Figure(figure, **row) for figure, row in part["figures"].items()})
        for name, part in json.loads(file.read_text()).items()
    }


def save(record: Record, file: Path) -> None:
    """Write a record, a line for each figure, so that a diff shows which of them changed."""
    parts = (f"{json.dumps(name)}: {_part(part)}" for name, part in record.items())
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("{\n" + ",\n".join(parts) + "\n}\n")


def _part(part: Part) -> str:
    run = _lines(part.run)
    figures = _lines({name: _row(figure) for name, figure in part.figures.items()})
    return f'{{\n"run": {{\n{run}\n}},\n"figures": {{\n{figures}\n}}\n}}'


def _row(figure: Figure) -> dict[str, Any]:
    return {
        key: value for key, value in asdict(figure).items() if key != "name" and value not in (None, "", ())
    }


def _lines(entries: dict[str, Any]) -> str:
    return ",\n".join(
        f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in entries.items()
    )


def _rounded(value: float) -> float:
    """Four digits: more of them would be noise, and a longer diff."""
    short = float(f"{value:.{DIGITS}g}")
    return int(short) if abs(short) >= 10 ** (DIGITS - 1) else short
