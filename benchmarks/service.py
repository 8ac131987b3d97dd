"""Part 2, the service: due flows drained by POSTs to running `heartbeat serve` processes on 127.0.0.1."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

from benchmarks import project
from benchmarks.measure import Measurement
from benchmarks.server import settle

TITLE = "the service"
RECORDS = (
    "keeps history: a row a run with scheduled, started and ended times, status, result, error and traceback, "
    "its process and its heartbeat; the flow's row is stamped at the claim and again with the outcome"
)
WARM_UP = 200


def run(
    url: str,
    items: int,
    *,
    processes: int = 1,
    flow: str = "NoOp",
    ms: int = 0,
    settings: dict[str, Any] | None = None,
) -> Measurement:
    """Time from the first POST until nothing is left and nothing runs, in processes that have had a first heartbeat."""
    project.migrate(url)
    with ExitStack() as stack, ThreadPoolExecutor(processes) as pingers:
        services = [stack.enter_context(project.Service(url, **(settings or {}))) for _ in range(processes)]
        project.add_flows(url, WARM_UP, prefix="warm-up")
        for service in services:
            service.drain()
        project.add_flows(url, items, class_name=flow, ms=ms)
        settle(url)
        started = time.perf_counter()
        beats = sum(pingers.map(lambda service: service.drain(), services))
        seconds = time.perf_counter() - started
    project.check_runs(url, items + WARM_UP)
    return Measurement(seconds, items, _note(processes, flow, ms, settings), {"heartbeats": beats})


def _note(processes: int, flow: str, ms: int, settings: dict[str, Any] | None) -> str:
    parts = [f"{processes} process(es)", flow + (f" of {ms} ms" if ms else "")]
    return ", ".join([*parts, *(f"{name} {value}" for name, value in (settings or {}).items())])
