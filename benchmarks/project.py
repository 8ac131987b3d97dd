"""The project under test as the benchmark uses it: schema, statements, due flows, and running `serve` processes."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from types import TracebackType
from typing import IO, Any

import psycopg

from benchmarks.measure import MeasurementFailed, python_path
from heartbeat.postgres.queries import Queries

TOKEN = "benchmark-only"
PATH = "/data_flows/heartbeat"
START_LIMIT = 30.0


def session_options() -> str:
    """What the service's own sessions have from their start: a bare loop with less would flatter the service."""
    return Queries().session_options("begin_bounded", "bound_recording")


def migrate(url: str) -> None:
    """Lay the project's schema."""
    _command(url, "migrate")


def add_flows(
    url: str, count: int, *, class_name: str = "NoOp", ms: int = 0, prefix: str = "flow", due: bool = True
) -> None:
    """Insert flows that are due now, or spread over the coming day."""
    configuration = json.dumps({"class_name": class_name, "ms": ms})
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(
            """
            INSERT INTO data_flows (name, run_interval, configuration, next_run_at)
            SELECT
                %(prefix)s || '-' || number,
                86400,
                %(configuration)s,
                now() + CASE
                    WHEN %(due)s THEN interval '-1 second'
                    ELSE interval '1 hour' + random() * interval '1 day'
                END
            FROM generate_series(1, %(count)s) AS number
            """,
            {"prefix": prefix, "configuration": configuration, "due": due, "count": count},
        )


def add_history(url: str, count: int) -> None:
    """Insert ended runs, spread over the flows and the last twenty days; without foreign key checks, to be quick."""
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("SET session_replication_role = replica")
        conn.execute(
            """
            INSERT INTO data_flow_runs
                (data_flow_id, heartbeat_id, runner_id, status, scheduled_for, started_at, ended_at, created_at)
            SELECT
                1 + number %% (SELECT greatest(max(id), 1) FROM data_flows),
                number / 1000,
                '00000000-0000-0000-0000-000000000001',
                CASE WHEN number %% 50 = 0 THEN 'failed' ELSE 'success' END,
                moment, moment, moment + interval '10 ms', moment
            FROM generate_series(1, %(count)s) AS number,
                LATERAL (SELECT now() - interval '20 days' * (1 - number::float8 / %(count)s) AS moment)
            """,
            {"count": count},
        )


def make_due(url: str, count: int) -> None:
    """Make some flows due again, as a DBA would."""
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(
            "UPDATE data_flows SET next_run_at = now() WHERE id IN (SELECT id FROM data_flows ORDER BY id LIMIT %s)",
            [count],
        )


def check_runs(url: str, expected: int) -> None:
    """Raise MeasurementFailed unless so many runs succeeded and none is in another state."""
    with psycopg.connect(url) as conn:
        rows = conn.execute("SELECT status, count(*) FROM data_flow_runs GROUP BY status").fetchall()
    if dict(rows) != {"success": expected}:
        raise MeasurementFailed(f"expected {expected} successful runs, found {rows}")


class Service:
    """A context: `heartbeat serve` in a process of its own, ready to be posted to over one kept connection."""

    def __init__(self, url: str, **settings: Any) -> None:
        """`settings` are settings by their lower-case names."""
        self.url = url
        self.port = free_port()
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._connection: http.client.HTTPConnection | None = None

    def __enter__(self) -> Service:
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [*_heartbeat(), "serve", "--port", str(self.port)],
            cwd=tempfile.gettempdir(),
            env=_environment(self.url, {"token": TOKEN, "flows": "benchmarks.flows", **self._settings}),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        self._await_health()
        self._connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    @property
    def pid(self) -> int:
        """The serving process."""
        assert self._process is not None
        return self._process.pid

    def beat(self) -> dict[str, Any]:
        """POST one heartbeat and return the counts of the answer."""
        try:
            response, body = self._post()
        except (http.client.RemoteDisconnected, ConnectionError):
            response, body = self._post()  # the service closes connections that were idle for a few seconds
        if response.status != 200:
            raise MeasurementFailed(f"a heartbeat was answered {response.status}: {body!r}")
        answer: dict[str, Any] = json.loads(body)
        return answer

    def _post(self) -> tuple[http.client.HTTPResponse, bytes]:
        assert self._connection is not None
        self._connection.request("POST", PATH, headers={"Authorization": f"Bearer {TOKEN}"})
        response = self._connection.getresponse()
        return response, response.read()

    def drain(self) -> int:
        """Post heartbeats until nothing is left and nothing runs; return how many it took."""
        for number in range(1, 10_000):
            answer = self.beat()
            if answer["flows_remaining"] == 0 and answer["flows_running"] == 0:
                return number
        raise MeasurementFailed("the flows were not drained")

    def _await_health(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_LIMIT
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
                connection.request("GET", PATH.rpartition("/")[0] + "/health")
                if connection.getresponse().status == 200:
                    return
            except OSError:
                time.sleep(0.05)
            finally:
                connection.close()
        raise MeasurementFailed(f"serve did not start: {self.log()}")

    def log(self) -> str:
        """The last that the process wrote."""
        assert self._log is not None
        self._log.seek(0)
        return self._log.read()[-2000:].decode(errors="replace")


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _heartbeat() -> Sequence[str]:
    """The command, in this interpreter, wherever its script may be."""
    return [sys.executable, "-c", "from heartbeat.cli import main; main()"]


def _command(url: str, *arguments: str) -> None:
    done = subprocess.run(
        [*_heartbeat(), *arguments],
        cwd=tempfile.gettempdir(),
        env=_environment(url, {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode != 0:
        raise MeasurementFailed(f"heartbeat {' '.join(arguments)}: {done.stdout}{done.stderr}")


def _environment(url: str, settings: dict[str, Any]) -> dict[str, str]:
    """The caller's environment without its own heartbeat settings."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HEARTBEAT_")}
    given = {f"HEARTBEAT_{name.upper()}": str(value) for name, value in settings.items()}
    return {**inherited, "PYTHONPATH": python_path(), "HEARTBEAT_DATABASE_URL": url, **given}
