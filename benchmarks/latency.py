"""Part 4, what one heartbeat takes: nothing due and one due, on empty and on large tables, beside a reference.

All services run at once on databases of their own, and are posted to in turn, one heartbeat each, so that whatever
happens to the machine happens to all of them.
"""

from __future__ import annotations

import gc
import http.client
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg

from benchmarks import project
from benchmarks.measure import ROOT, MeasurementFailed, percentile
from benchmarks.server import Server, settle

WARM_UP = 20


def measure(server: Server, *, flows: int, runs: int, beats: int) -> dict[str, Any]:
    """Return milliseconds of every heartbeat: {"samples": {label: [...]}, "flows": …, "runs": …}."""
    cases = {
        "empty tables": (0, 0),
        f"{flows:,} flows not due": (flows, 0),
        f"{runs:,} ended runs": (min(flows, 1000), runs),
        f"{flows:,} flows not due and {runs:,} ended runs": (flows, runs),
    }
    with ExitStack() as stack:
        actions: dict[str, Callable[[], float]] = {}
        for label, (flow_count, run_count) in cases.items():
            url = stack.enter_context(server.database())
            _fill(url, flow_count, run_count)
            service = stack.enter_context(project.Service(url, retention_days=0))
            actions[f"idle, {label}"] = _timed(service.beat)
            actions[f"one due, {label}"] = _one_due(stack, url, service)
        actions["reference: insert and commit"] = _insert(stack, stack.enter_context(server.database()))
        actions["reference: empty Starlette response"] = stack.enter_context(_empty_response())
        samples = _in_turn(actions, beats)
    return {
        "flows": flows,
        "runs": runs,
        "samples": samples,
        "p50": {label: percentile(values, 50) for label, values in samples.items()},
        "p95": {label: percentile(values, 95) for label, values in samples.items()},
    }


def _in_turn(actions: dict[str, Callable[[], float]], beats: int) -> dict[str, list[float]]:
    for action in actions.values():
        for _ in range(WARM_UP):
            action()
    samples: dict[str, list[float]] = {label: [] for label in actions}
    gc.disable()
    try:
        for _ in range(beats):
            for label, action in actions.items():
                samples[label].append(action() * 1000)
    finally:
        gc.enable()
    return samples


def _fill(url: str, flows: int, runs: int) -> None:
    project.migrate(url)
    project.add_flows(url, 1, prefix="the-one", due=False)
    project.add_flows(url, flows, due=False)
    if runs:
        project.add_history(url, runs)
    settle(url)


def _timed(call: Callable[[], Any]) -> Callable[[], float]:
    def action() -> float:
        started = time.perf_counter()
        call()
        return time.perf_counter() - started

    return action


def _one_due(stack: ExitStack, url: str, service: project.Service) -> Callable[[], float]:
    conn = stack.enter_context(psycopg.connect(url, autocommit=True))

    def action() -> float:
        conn.execute("UPDATE data_flows SET next_run_at = now() WHERE name = 'the-one-1'")
        started = time.perf_counter()
        answer = service.beat()
        seconds = time.perf_counter() - started
        if answer["flows_succeeded"] != 1:
            raise MeasurementFailed(f"one flow was due, and the answer was {answer}")
        return seconds

    return action


def _insert(stack: ExitStack, url: str) -> Callable[[], float]:
    """A single-row insert with commit; the connection is made as the service makes its own."""
    from heartbeat.postgres.database import bounded_conninfo

    conn = stack.enter_context(psycopg.connect(bounded_conninfo(url), autocommit=True, prepare_threshold=2))
    conn.execute(
        "CREATE TABLE reference (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, at timestamptz)"
    )
    return _timed(lambda: conn.execute("INSERT INTO reference (at) VALUES (now())"))


@contextmanager
def _empty_response() -> Iterator[Callable[[], float]]:
    port = project.free_port()
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.reference_app", str(port)], cwd=ROOT)
    try:
        connection = _connected(port)

        def post() -> None:
            connection.request("POST", "/")
            connection.getresponse().read()

        yield _timed(post)
        connection.close()
    finally:
        process.terminate()
        process.wait()


def _connected(port: int) -> http.client.HTTPConnection:
    for _ in range(200):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.connect()
            return connection
        except OSError:
            time.sleep(0.05)
    raise MeasurementFailed("the reference app did not start")
