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
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
from psycopg.types.json import Jsonb

from tests.faults.checker import Trace
from tests.support.serving import Service
from tests.support.waiting import wait_until

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

    def later(self, *, timeout: float = 60) -> Later:
        """Send a heartbeat from a thread, and go on."""
        return Later(lambda: self.ask(timeout=timeout))

    def resident_mb(self) -> float:
        """Memory that the process holds; 0 where the system does not say."""
        status = Path(f"/proc/{self.pid}/status")
        if not status.exists():
            return 0.0
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1]) / 1024


class Later:
    """An answer that is still to come."""

    def __init__(self, ask: Callable[[], Answer]) -> None:
        self._answers: list[Answer] = []
        self._thread = threading.Thread(target=lambda: self._answers.append(ask()), daemon=True)
        self._thread.start()

    @property
    def arrived(self) -> bool:
        return bool(self._answers)

    def answer(self, seconds: float = 40) -> Answer:
        self._thread.join(seconds)
        assert self._answers, f"no answer within {seconds} s"
        return self._answers[0]


class Fleet:
    """Starts processes on one database and ends them all; `fleet(runner_ttl=2)` returns one that listens."""

    def __init__(self, directory: Path, trace: Trace, **defaults: Any) -> None:
        self.directory = directory
        self.trace = trace
        self.defaults = {"runner_ttl": 2, **defaults}
        self.processes: list[Process] = []

    def __call__(self, *, wait: bool = True, **settings: Any) -> Process:
        process = Process(self.directory, self.trace, **{**self.defaults, **settings})
        self.processes.append(process)
        return process.wait_until_listening() if wait else process  # type: ignore[return-value]

    def many(self, number: int, **settings: Any) -> list[Process]:
        """Start several at once: they spend their first second importing."""
        started = [self(wait=False, **settings) for _ in range(number)]
        for process in started:
            process.wait_until_listening(60)
        return started

    def living(self) -> list[Process]:
        return [process for process in self.processes if process.alive()]

    def end_all(self) -> None:
        for process in self.processes:
            if process.process.poll() is None:
                process.kill()


class Pinger:
    """Beats every process again and again from threads, as pingers would, and keeps the answers.

    A process is asked once its last answer is there and `every` seconds have passed.
    """

    def __init__(self, processes: Callable[[], Iterable[Process]], every: float = 0.5) -> None:
        self.answers: list[Answer] = []
        self._processes = processes
        self._every = every
        self._stopped = threading.Event()
        self._asking: dict[int, Later] = {}
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Pinger:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join(60)

    def longest(self) -> float:
        return max((answer.seconds for answer in self.answers), default=0.0)

    def _run(self) -> None:
        while not self._stopped.wait(self._every):
            self._collect()
            for process in self._processes():
                if process.url and process.pid not in self._asking:
                    self._asking[process.pid] = process.later()
        while self._asking:
            self._collect()
            time.sleep(0.02)

    def _collect(self) -> None:
        for pid, later in list(self._asking.items()):
            if later.arrived:
                self.answers.append(later.answer())
                del self._asking[pid]


def add_flow(
    conn: psycopg.Connection[Any],
    name: str,
    class_name: str,
    *,
    run_interval: int = 3600,
    run_timeout: int | None = None,
    **options: Any,
) -> int:
    """Insert a flow that is due at once, as a DBA would, and return its id."""
    row = conn.execute(
        "INSERT INTO data_flows (name, run_interval, run_timeout, configuration)"
        " VALUES (%s, %s, %s, %s) RETURNING id",
        (name, run_interval, run_timeout, Jsonb({"class_name": class_name, **options})),
    ).fetchone()
    assert row is not None
    return int(row[0])


def add_flows(
    conn: psycopg.Connection[Any], prefix: str, number: int, class_name: str, **options: Any
) -> None:
    """Insert many alike: `prefix-1`, `prefix-2`, …"""
    conn.execute(
        "INSERT INTO data_flows (name, run_interval, configuration)"
        " SELECT %s || '-' || n, 3600, %s FROM generate_series(1, %s) AS n",
        (prefix, Jsonb({"class_name": class_name, **options}), number),
    )


def make_due(conn: psycopg.Connection[Any], like: str) -> None:
    conn.execute("UPDATE data_flows SET next_run_at = now() WHERE name LIKE %s", (like,))


def runs_of(conn: psycopg.Connection[Any], like: str) -> list[tuple[str, str, str | None]]:
    """The runs of flows by name, oldest first, as (name, status, error)."""
    return conn.execute(
        "SELECT flow.name, run.status, run.error FROM data_flow_runs AS run"
        " JOIN data_flows AS flow ON flow.id = run.data_flow_id WHERE flow.name LIKE %s ORDER BY run.id",
        (like,),
    ).fetchall()


def statuses(conn: psycopg.Connection[Any], like: str) -> list[str]:
    return [status for _, status, _ in runs_of(conn, like)]


def warm_up(conn: psycopg.Connection[Any], process: Process, number: int = 20) -> None:
    """Have flows use the database, so that both pools hold connections when the fault comes."""
    add_flows(conn, "warm", number, "UsesConnection")
    assert process.ask().status == 200
    bad = [run for run in runs_of(conn, "warm-%") if run[1] != "success"]
    assert not bad, bad


def live_runs(conn: psycopg.Connection[Any]) -> int:
    row = conn.execute("SELECT count(*) FROM data_flow_runs WHERE ended_at IS NULL").fetchone()
    assert row is not None
    return int(row[0])


def wait_begun(trace: Trace, flow: str, times: int = 1, seconds: float = 15) -> None:
    """Wait until a flow's code has begun."""
    wait_until(lambda: len(trace.of("begin", flow)) >= times, seconds=seconds, what=f"{flow} to begin")


def beats_until_fresh_flow_ran(
    conn: psycopg.Connection[Any], process: Process, limit: int = 2, name: str | None = None
) -> int:
    """Add a flow and beat until it has run; fails past `limit` heartbeats. Returns how many it took."""
    name = name or f"fresh-{time.monotonic_ns()}"
    add_flow(conn, name, "Quick")
    answers = []
    for beat in range(1, limit + 1):
        answers.append(process.ask())
        if statuses(conn, name) == ["success"]:
            return beat
    found = runs_of(conn, name)
    raise AssertionError(
        f"{name} did not run within {limit} heartbeats: {answers} {found}\n{process.log()[-3000:]}"
    )
