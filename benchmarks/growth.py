"""Part 5, how it grows: due flows, serving processes, flows that take their time, concurrency, a slow batch."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from benchmarks import project
from benchmarks.measure import Measurement, in_subprocess
from benchmarks.server import Server, settle

SLOW_FLOWS = 8
SLOW_MS = 100


@dataclass(frozen=True, slots=True)
class Case:
    """One point of one plot."""

    series: str
    x: int
    items: int
    options: dict[str, Any] = field(default_factory=dict)


def cases(
    *,
    due: tuple[int, ...],
    processes: tuple[int, ...],
    process_items: int,
    flow_ms: tuple[int, ...],
    concurrency: tuple[int, ...],
    most: int,
) -> list[Case]:
    """List the points; flows that take their time are as many as eight at once do in about two seconds."""
    made = [Case("due flows", count, count) for count in due]
    made += [Case("serving processes", count, process_items, {"processes": count}) for count in processes]
    for name, flow in (("sync", "Sleep"), ("async", "AsyncSleep")):
        for ms in flow_ms:
            flow_name = flow if ms else ("NoOp" if name == "sync" else "AsyncNoOp")
            made.append(
                Case(f"{name} flows, ms each", ms, _items(ms, 8, most), {"flow": flow_name, "ms": ms})
            )
    for ms in (0, 10):
        for count in concurrency:
            options = {"flow": "Sleep" if ms else "NoOp", "ms": ms, "settings": {"concurrency": count}}
            made.append(Case(f"concurrency, {ms} ms each", count, _items(ms, count, most), options))
    return made


def measure_case(server: Server, case: Case, timeout: float) -> Measurement:
    """Measure one point on a fresh database."""
    with server.database() as url:
        return in_subprocess("benchmarks.service", url, case.items, case.options, timeout)


def slow_batch(server: Server, beats: int) -> dict[str, Any]:
    """Time heartbeats with 8 flows of 100 ms due, at concurrency 8: seconds each."""
    with server.database() as url:
        project.migrate(url)
        project.add_flows(url, SLOW_FLOWS, class_name="Sleep", ms=SLOW_MS)
        settle(url)
        seconds = []
        with project.Service(url, concurrency=SLOW_FLOWS) as service:
            service.drain()
            for _ in range(beats):
                project.make_due(url, SLOW_FLOWS)
                started = time.perf_counter()
                answer = service.beat()
                seconds.append(time.perf_counter() - started)
                assert answer["flows_succeeded"] == SLOW_FLOWS, answer
    return {"flows": SLOW_FLOWS, "ms": SLOW_MS, "seconds": seconds}


def _items(ms: int, at_once: int, most: int) -> int:
    return min(most, 2000 // ms * at_once) if ms else most
