"""The project as its users run it: `heartbeat migrate`, `heartbeat serve` as a process, and heartbeats by HTTP."""

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
from types import TracebackType
from typing import IO, Any

from benchmarks.measure import MeasurementFailed, python_path

TOKEN = "benchmark-only"
PATH = "/data_flows/heartbeat"
START_LIMIT = 30.0

# The command, in this interpreter, wherever its script may be.
COMMAND = (sys.executable, "-c", "from heartbeat.cli import main; main()")


def migrate(url: str) -> None:
    """Lay the project's schema."""
    done = subprocess.run(
        [*COMMAND, "migrate"],
        cwd=tempfile.gettempdir(),
        env=_environment(url, {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode != 0:
        raise MeasurementFailed(f"heartbeat migrate: {done.stdout}{done.stderr}")


class Service:
    """A context: a serving process that has answered a first heartbeat, posted to over one kept connection."""

    def __init__(self, url: str, **settings: Any) -> None:
        """`settings` are settings by their lower-case names."""
        self.url = url
        self.port = free_port()
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)

    def __enter__(self) -> Service:
        self._log = tempfile.TemporaryFile()
        started = time.monotonic()
        self._process = subprocess.Popen(
            [*COMMAND, "serve", "--port", str(self.port)],
            cwd=tempfile.gettempdir(),
            env=_environment(self.url, {"token": TOKEN, "flows": "benchmarks.flows", **self._settings}),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        self._await_first_answer(started + START_LIMIT)
        self.start_seconds = time.monotonic() - started
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
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
            status, body = self._post()
        except (http.client.RemoteDisconnected, ConnectionError):
            status, body = self._post()  # the service closes connections that were idle for a few seconds
        if status != 200:
            raise MeasurementFailed(f"a heartbeat was answered {status}: {body!r}")
        answer: dict[str, Any] = json.loads(body)
        return answer

    def drain(self) -> int:
        """Post heartbeats until nothing is left and nothing runs; return how many it took."""
        for number in range(1, 10_000):
            answer = self.beat()
            if answer["flows_remaining"] == 0 and answer["flows_running"] == 0:
                return number
        raise MeasurementFailed("the flows were not drained")

    def _post(self) -> tuple[int, bytes]:
        self._connection.request("POST", PATH, headers={"Authorization": f"Bearer {TOKEN}"})
        response = self._connection.getresponse()
        return response.status, response.read()

    def _await_first_answer(self, deadline: float) -> None:
        assert self._process is not None
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                if self._post()[0] == 200:
                    return
            except (OSError, http.client.HTTPException):
                self._connection.close()
            time.sleep(0.002)
        raise MeasurementFailed(f"serve did not start: {self._last_words()}")

    def _last_words(self) -> str:
        assert self._log is not None
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it wrote nothing"


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _environment(url: str, settings: dict[str, Any]) -> dict[str, str]:
    """The caller's environment without its own heartbeat settings."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HEARTBEAT_")}
    given = {f"HEARTBEAT_{name.upper()}": str(value) for name, value in settings.items()}
    return {**inherited, "PYTHONPATH": python_path(), "HEARTBEAT_DATABASE_URL": url, **given}
