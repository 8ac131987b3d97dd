"""What the figures should be: each aim names a ratio or a figure of the record."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.parts.async_flows import WAITED
from benchmarks.parts.start import FIRST_ANSWER
from benchmarks.record import RATIO, Figure, Record


@dataclass(frozen=True, slots=True)
class Aim:
    """A figure of a part should be at least, or at most, so much."""

    part: str
    figure: str
    at_least: float | None = None
    at_most: float | None = None

    def row(self, record: Record) -> tuple[str, str, str, str]:
        """Measure, aim, measured, met."""
        figure = record[self.part].figures.get(self.figure) if self.part in record else None
        unit = f" {figure.unit}" if figure and figure.unit != RATIO else ""
        sense, bound = ("at most", self.at_most) if self.at_least is None else ("at least", self.at_least)
        aim = f"{sense} {bound:g}{unit}"
        if figure is None or figure.median is None:
            return self.figure, aim, figure.note if figure else "not measured", ""
        return self.figure, aim, shown(figure), "yes" if self.is_met(figure.median) else "no"

    def is_met(self, value: float) -> bool:
        """Whether a value is on the right side."""
        return (self.at_least is None or value >= self.at_least) and (
            self.at_most is None or value <= self.at_most
        )


AIMS = (
    Aim("drain", "the service against graphile-worker at its best", at_least=0.75),
    Aim("drain", "the service against the same SQL under pgbench, 2 clients", at_least=0.85),
    Aim("drain", "the service against PgQueuer at its best", at_least=1.5),
    Aim("drain", "the service against APScheduler 3 at its best", at_least=10),
    Aim("drain", "the service against Procrastinate at its best", at_least=10),
    Aim("processes", "2 processes against one", at_least=1.0),
    Aim("processes", "4 processes against one", at_least=0.95),
    Aim("async", "async no-op flows against sync ones", at_least=0.6),
    Aim("async", WAITED, at_most=5),
    Aim("latency", "heartbeat with one flow due against an idle one", at_most=2.0),
    Aim("latency", "idle heartbeat against an insert and an empty response", at_most=1.5),
    Aim("start", FIRST_ANSWER, at_most=0.3),
    Aim("snapshot", "the service: open snapshot against none", at_least=0.5),
    Aim("growth", "many due flows against few", at_least=0.8),
    Aim("growth", "8 flows of 100 ms at concurrency 8 against one flow's time", at_most=1.3),
    Aim("tables", "idle heartbeat on large tables against empty ones", at_most=1.3),
    Aim("memory", "memory growth by a heartbeat, lower end of the 95 % interval", at_most=0),
)


def rows(record: Record) -> list[tuple[str, str, str, str]]:
    """All aims, as lines of a table."""
    return [aim.row(record) for aim in AIMS]


def shown(figure: Figure) -> str:
    """The median, and the lowest and the highest where there are several values."""
    if figure.median is None:
        return "–"
    return number(figure.median) + (f" ({spread(figure)})" if figure.count > 1 else "")


def spread(figure: Figure) -> str:
    """Lowest–highest."""
    if figure.lowest is None or figure.highest is None or figure.count < 2:
        return ""
    return f"{number(figure.lowest)}–{number(figure.highest)}"


def number(value: float) -> str:
    """Three digits of a small number, and a large one to the unit."""
    if abs(value) < 0.005:  # no -0.00
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"
