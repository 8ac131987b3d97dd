"""The project's contestant: due flows drained by POSTs to running `heartbeat serve` processes on 127.0.0.1."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

from benchmarks import drained, project
from benchmarks.measure import Measurement
from benchmarks.serving import Service, migrate

TITLE = "the service"
RECORDS = (
    "keeps history: a row a run with scheduled, started and ended times, status, result, error and traceback, "
    "its process and its heartbeat; the flow's row is stamped at the claim and again with the outcome"
)
WARM_UP = 200


def run(url: str, items: int, **options: Any) -> Measurement:
    """Time from the first POST until nothing is left and nothing runs."""
    return drained.once(opened(url, **options), url, items)


@contextmanager
def opened(
    url: str,
    *,
    processes: int = 1,
    flow: str = "NoOp",
    ms: int = 0,
    settings: dict[str, Any] | None = None,
) -> Iterator[drained.Queue]:
    """Serving processes that have drained a first few flows."""
    migrate(url)
    with ExitStack() as stack:
        services = [stack.enter_context(Service(url, **(settings or {}))) for _ in range(processes)]
        project.add_flows(url, WARM_UP, prefix="warm-up")
        for service in services:
            service.drain()
        yield _Flows(url, services, flow, ms)


class _Flows:
    def __init__(self, url: str, services: Sequence[Service], flow: str, ms: int) -> None:
        self._url = url
        self._services = services
        self._flow = flow
        self._ms = ms
        self._filled = False
        self.note = ""

    def fill(self, items: int) -> None:
        if self._filled:
            project.make_due(self._url, items)
        else:
            project.add_flows(self._url, items, class_name=self._flow, ms=self._ms)
            self._filled = True

    def drain(self) -> float:
        with ThreadPoolExecutor(len(self._services)) as pingers:
            started = time.perf_counter()
            list(pingers.map(lambda service: service.drain(), self._services))
            return time.perf_counter() - started

    def check(self, items: int) -> None:
        project.check_runs(self._url, items + WARM_UP)
