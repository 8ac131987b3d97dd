"""How it grows: due flows, flows that take their time, and how many of them run at once."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from benchmarks import project
from benchmarks.measure import in_subprocess, say
from benchmarks.record import Figure, Rounds
from benchmarks.server import Server, settle
from benchmarks.serving import Service, migrate

TITLE = "Growth"
ABOUT = "One serving process. Flows that take their time sleep, as a flow waits for a database or an API."
UNIT = "flows a second"
SLOW_FLOWS, SLOW_MS, SLOW_BEATS = 8, 100, 20


@dataclass(frozen=True, slots=True)
class Sizes:
    """Rounds; how many are due, what each takes, and how many run at once."""

    rounds: int
    due: tuple[int, ...]
    flow_ms: tuple[int, ...]
    concurrency: tuple[int, ...]


SIZES = {
    "full": Sizes(3, (1_000, 10_000, 100_000), (1, 10, 100), (1, 8, 64)),
    "quick": Sizes(1, (1_000, 20_000), (10,), (1, 64)),
}


@dataclass(frozen=True, slots=True)
class Case:
    """One line of the table."""

    name: str
    items: int
    options: dict[str, Any] = field(default_factory=dict)


def measure(server: Server, size: str) -> list[Figure]:
    """Return flows a second of each case, and the time of a heartbeat with a few slow flows."""
    sizes, rounds = SIZES[size], Rounds()
    cases = _cases(sizes)
    for number in range(sizes.rounds):
        for case in cases:
            with server.database() as url:
                rate = in_subprocess("benchmarks.service", url, case.items, case.options, 600).rate
            rounds.add(case.name, number, rate)
            say(f"   round {number + 1}  {case.name}: {rate:,.0f} {UNIT}")
    few, many = _due(min(sizes.due)), _due(max(sizes.due))
    return [
        *(rounds.figure(case.name, UNIT, f"{case.items:,} flows") for case in cases),
        rounds.ratio("many due flows against few", many, few),
        *_slow_batch(server),
    ]


def _cases(sizes: Sizes) -> list[Case]:
    made = [Case(_due(count), count) for count in sizes.due]
    for kind, flow in (("sync", "Sleep"), ("async", "AsyncSleep")):
        made += [
            Case(f"{kind} flows of {ms} ms", _two_seconds_of(ms, 8), {"flow": flow, "ms": ms})
            for ms in sizes.flow_ms
        ]
    for count in sizes.concurrency:
        options = {"flow": "Sleep", "ms": 10, "settings": {"concurrency": count}}
        made.append(Case(f"sync flows of 10 ms, {count} at once", _two_seconds_of(10, count), options))
    return made


def _slow_batch(server: Server) -> list[Figure]:
    """Time heartbeats with 8 flows of 100 ms due, at concurrency 8."""
    name = f"{SLOW_FLOWS} flows of {SLOW_MS} ms at concurrency {SLOW_FLOWS}"
    with server.database() as url:
        migrate(url)
        project.add_flows(url, SLOW_FLOWS, class_name="Sleep", ms=SLOW_MS)
        settle(url)
        milliseconds = []
        with Service(url, concurrency=SLOW_FLOWS) as service:
            service.drain()
            for _ in range(SLOW_BEATS):
                project.make_due(url, SLOW_FLOWS)
                started = time.perf_counter()
                answer = service.beat()
                milliseconds.append((time.perf_counter() - started) * 1000)
                assert answer["flows_succeeded"] == SLOW_FLOWS, answer
    ratios = [spent / SLOW_MS for spent in milliseconds]
    return [
        Figure.of(f"heartbeat of {name}", "ms", milliseconds),
        Figure.of(f"{name} against one flow's time", "ratio", ratios),
    ]


def _due(count: int) -> str:
    return f"{count:,} due flows"


def _two_seconds_of(ms: int, at_once: int) -> int:
    return min(20_000, 2000 // ms * at_once)
