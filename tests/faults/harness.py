"""Processes of `heartbeat serve` that leave a trace, and what the fault tests do with them."""

from __future__ import annotations

import http.client
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg

from tests.faults.checker import Trace
from tests.support.rows import add_flow, add_flows, of_class, runs_of, statuses_of
from tests.support.serving import Service, Services
from tests.support.waiting import Background, wait_until

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Answer:
    """What came back, or did not: `status` is None where the connection broke, and `error` says how.

    `at` is when, on the monotonic clock, and `pid` who was asked.
    """

    status: int | None
    seconds: float
    pid: int
    at: float
    headers: dict[str, str] = field(default_factory=dict)
    counts: dict[str, Any] = field(default_factory=dict)
    error: str | None = None


class Process(Service):
    """A `heartbeat serve` with the flows of `flows.py`, whose deaths and pauses stand in the trace."""

    def __init__(self, directory: Path, trace: Trace, **settings: Any) -> None:
        self.trace = trace
        path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
        environ = {"FAULTS_TRACE": str(trace.path), "PYTHONPATH": path}
        super().__init__(directory, environ=environ, **{"flows": "flows", **settings})
        self.buried = False

    def kill(self) -> int:
        status = super().kill()
        self.bury()
        return status

    def wait(self, seconds: float = 30) -> int:
        status = super().wait(seconds)
        self.bury()
        return status

    def bury(self) -> None:
        """Note once that the process is gone."""
        if not self.buried:
            self.buried = True
            self.trace.mark("died", pid=self.pid)

    def alive(self) -> bool:
        if self.process.poll() is None:
            return True
        self.bury()
        return False

    def pause(self) -> None:
        """Stop the process where it stands, as a frozen virtual machine would."""
        self.trace.mark("paused", pid=self.pid)
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.signal(signal.SIGCONT)
        self.trace.mark("resumed", pid=self.pid)

    def ask(self, method: str = "POST", path: str | None = None, *, timeout: float = 40) -> Answer:
        """Send one request and return whatever happens: never raises."""
        where = urlsplit(self.url)
        assert where.hostname is not None
        connection = http.client.HTTPConnection(where.hostname, where.port, timeout=timeout)
        begin = time.monotonic()
        try:
            headers = {"Authorization": f"Bearer {self.token}"}
            connection.request(method, path or where.path, headers=headers)
            response = connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException) as exc:
            now = time.monotonic()
            return Answer(None, now - begin, self.pid, now, error=repr(exc))
        finally:
            connection.close()
        now = time.monotonic()
        found = {name.lower(): value for name, value in response.getheaders()}
        is_json = found.get("content-type", "").startswith("application/json")
        counts = json.loads(body) if is_json else {}
        return Answer(response.status, now - begin, self.pid, now, found, counts)

    def ask_health(self, *, timeout: float = 10) -> Answer:
        path = urlsplit(self.url).path.rpartition("/")[0] + "/health"
        return self.ask("GET", path, timeout=timeout)

    def ask_in_background(self, *, timeout: float = 60) -> Background:
        """Send a heartbeat, and go on."""
        return Background(lambda: self.ask(timeout=timeout))

    def resident_mb(self) -> float:
        """Memory that the process holds; 0 where the system does not say."""
        status = Path(f"/proc/{self.pid}/status")
        if not status.exists():
            return 0.0
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1]) / 1024


class Fleet(Services[Process]):
    """Starts processes on one database and ends them all; `fleet(runner_ttl=2)` returns one that listens."""

    def __init__(self, directory: Path, trace: Trace, **defaults: Any) -> None:
        super().__init__(partial(Process, directory, trace), **{"runner_ttl": 2, **defaults})

    def many(self, number: int, **settings: Any) -> list[Process]:
        """Start several at once: they spend their first second importing."""
        started = [self(wait=False, **settings) for _ in range(number)]
        for process in started:
            process.wait_until_listening(60)
        return started

    def living(self) -> list[Process]:
        return [process for process in self.started if process.alive()]


class Pinger:
    """Beats every process again and again from threads, as pingers would, and keeps the answers.

    A process is asked once its last answer is there and `every` seconds have passed.
    """

    def __init__(self, processes: Callable[[], Iterable[Process]], every: float = 0.5) -> None:
        self.answers: list[Answer] = []
        self._processes = processes
        self._every = every
        self._stopped = threading.Event()
        self._asking: dict[int, Background] = {}
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Pinger:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join(90)

    def longest(self) -> float:
        return max((answer.seconds for answer in self.answers), default=0.0)

    def _run(self) -> None:
        while not self._stopped.wait(self._every):
            self._collect()
            for process in self._processes():
                if process.url and process.pid not in self._asking:
                    self._asking[process.pid] = process.ask_in_background()
        self.answers += [asked.result(60) for asked in self._asking.values()]

    def _collect(self) -> None:
        for pid, asked in list(self._asking.items()):
            if asked.done:
                self.answers.append(asked.result())
                del self._asking[pid]


def warm_up(conn: psycopg.Connection[Any], process: Process, number: int = 20) -> None:
    """Have flows use the database, so that both pools hold connections when the fault comes."""
    add_flows(conn, "warm", number, of_class("UsesConnection"))
    assert process.ask().status == 200
    bad = [run for run in runs_of(conn, "warm-%") if run.status != "success"]
    assert not bad, bad


def wait_begun(trace: Trace, *flows: str) -> None:
    """Wait until the code of every one of these flows has begun."""
    for flow in flows:
        wait_until(lambda flow=flow: trace.of("begin", flow), seconds=30, what=f"{flow} to begin")


def beats_until_fresh_flow_ran(
    conn: psycopg.Connection[Any], process: Process, limit: int = 2, name: str | None = None
) -> int:
    """Add a flow and beat until it has run; fails past `limit` heartbeats. Returns how many it took."""
    name = name or f"fresh-{time.monotonic_ns()}"
    add_flow(conn, name, of_class("Quick"))
    answers = []
    for beat in range(1, limit + 1):
        answers.append(process.ask())
        if statuses_of(conn, name) == ["success"]:
            return beat
    found = runs_of(conn, name)
    raise AssertionError(
        f"{name} did not run within {limit} heartbeats: {answers} {found}\n{process.log()[-3000:]}"
    )
