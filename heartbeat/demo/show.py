"""The demo: the real service, a real pinger and real flows, watched for some seconds, then ended.

It prints nothing: what happens is handed to the command, which does.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from heartbeat.api import Heartbeat
from heartbeat.demo import next as next_steps
from heartbeat.demo.processes import Child, DemoFailed, started
from heartbeat.models import DataFlowRun
from heartbeat.postgres import migrate
from heartbeat.settings import PREFIX, SETTINGS, Settings

PING_SECONDS = 2

_FLOWS = "heartbeat.demo.flows"
_START_SECONDS = 30.0
_LISTENING = re.compile(r"listening on (http://\S+)")


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the demo that stands now; after the last one, things happen."""

    what: str
    text: str
    is_last: bool = False


@dataclass(frozen=True, slots=True)
class Finished:
    """How the flows stand in the end, as `Heartbeat.flow_status()`, and what to try next."""

    flows: list[dict[str, Any]]
    next_steps: str


Event = Part | DataFlowRun | dict[str, Any] | Finished
"""A run is one that has ended; a dict is what a heartbeat was answered, or the pinger's `error`."""


def watch(settings: Settings, url: str, seconds: float) -> Generator[Event]:
    """Run the demo on the database at `url`, and end everything that it started, also when closed half-way.

    Raises DemoFailed, with a process's last lines, when one ends too early.
    """
    migrate.upgrade(url)
    csv = _Measurements(settings.data_dir / "csv")
    reading = Heartbeat(settings=replace(settings, database_url=url, flows=(), sql_dir=None))
    with tempfile.TemporaryDirectory(prefix="heartbeat-demo-") as logs, closing(reading):
        news = _News(reading.start(run_flows=False))
        environ = _environment(settings)
        yield Part("Database", settings.database_label)
        with started(["serve", "--port", "0"], environ, Path(logs, "serve")) as service:
            endpoint = _wait_for_endpoint(service)
            yield Part("Service", f"{endpoint} (process {service.process.pid}), flows of {_FLOWS}")
            command = ["ping", endpoint, "--every", str(PING_SECONDS), "--json"]
            with started(command, environ, Path(logs, "ping")) as pinger:
                yield Part("Pinger", f"a heartbeat every {PING_SECONDS} s (process {pinger.process.pid})")
                yield Part("New input", f"a line a second, appended to {csv.file}", is_last=True)
                yield from _follow(news, csv, [service, pinger], seconds)
        yield from news.of(pinger)
        if not news.heartbeats:
            raise service.failure("answered no heartbeat")
        yield Finished(reading.flow_status(), next_steps.steps(settings, url, csv.file.parent))


def _follow(news: _News, csv: _Measurements, children: Sequence[Child], seconds: float) -> Iterator[Event]:
    """Say what happens as it happens, and give the flows something to import."""
    until = time.monotonic() + seconds
    measure_at = 0.0
    while (now := time.monotonic()) < until:
        if now >= measure_at:
            csv.append()
            measure_at = now + 1
        for child in children:
            child.require_alive()
        yield from news.of(children[-1])
        time.sleep(0.2)


class _News:
    """The runs that have ended and the heartbeats that were answered, each once."""

    def __init__(self, heartbeat: Heartbeat) -> None:
        self._heartbeat = heartbeat
        newest = heartbeat.runs(limit=1)
        self._before = newest[0].id if newest else 0
        self._seen: set[int] = set()
        self.heartbeats = 0

    def of(self, pinger: Child) -> Iterator[Event]:
        for run in sorted(self._heartbeat.runs(limit=50), key=lambda run: run.id):
            if run.ended_at is not None and run.id > self._before and run.id not in self._seen:
                self._seen.add(run.id)
                yield run
        for line in pinger.new_lines():
            answer = json.loads(line)
            self.heartbeats += "heartbeat_id" in answer
            yield answer


def _environment(settings: Settings) -> dict[str, str]:
    """Make the children's environment: the demo's settings, and the defaults for all others.

    An empty variable hides what a .env file says. The token goes this way because arguments are for all to see.
    """
    chosen = {
        "database_url": settings.database_url or "",
        "data_dir": str(settings.data_dir),
        "token": secrets.token_urlsafe(24),
        "flows": _FLOWS,
    }
    return {**os.environ, **{PREFIX + name.upper(): chosen.get(name, "") for name in SETTINGS}}


def _wait_for_endpoint(service: Child) -> str:
    """Wait until the service says where it listens."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if found := _LISTENING.search(service.log()):
            return found[1]
        service.require_alive()
        time.sleep(0.05)
    raise service.failure(f"does not listen after {_START_SECONDS:g} s")


class _Measurements:
    """A CSV file that gets a line with this machine's load and free disk whenever it is asked to."""

    def __init__(self, folder: Path) -> None:
        self.file = folder.absolute() / "machine.csv"
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            if not self.file.exists():
                self._write("measured_at,load_1m,load_5m,load_15m,disk_free_bytes")
        except OSError as exc:
            raise DemoFailed(f"{self.file} cannot be written: {exc.strerror}") from exc

    def append(self) -> None:
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        loads = ",".join(f"{load:.2f}" for load in os.getloadavg())
        self._write(f"{now},{loads},{shutil.disk_usage(self.file.parent).free}")

    def _write(self, line: str) -> None:
        with self.file.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
