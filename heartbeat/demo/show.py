"""`heartbeat demo`: the real service, a real pinger and real flows, watched for some seconds, then ended."""

from __future__ import annotations

import json
import os
import queue
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import click

from heartbeat.api import Heartbeat
from heartbeat.cli import console
from heartbeat.demo import next as next_steps
from heartbeat.errors import HeartbeatError
from heartbeat.logs import escape
from heartbeat.models import DataFlowRun
from heartbeat.postgres import migrate
from heartbeat.process import signals_held
from heartbeat.settings import PREFIX, SETTINGS, Settings

PING_SECONDS = 2

_FLOWS = "heartbeat.demo.flows"
_START_SECONDS = 30.0
_STOP_SECONDS = 10.0
_LISTENING = re.compile(r"listening on (http://\S+)")


class DemoFailed(HeartbeatError):
    """Something that the demo started has ended, or does not answer."""


def watch(settings: Settings, url: str, seconds: float) -> None:
    """Run the demo on the database at `url`, and end everything that it started.

    Raises DemoFailed, with a process's last lines, when one ends too early.
    """
    migrate.upgrade(url)
    csv = _Measurements(settings.data_dir / "csv")
    reading = Heartbeat(settings=replace(settings, database_url=url, flows=(), sql_dir=None))
    with tempfile.TemporaryDirectory(prefix="heartbeat-demo-") as logs:
        try:
            news = _News(reading.start(run_flows=False))
            environ = _environment(settings)
            _say("Database", settings.database_label)
            with _child(["serve", "--port", "0"], environ, Path(logs, "serve")) as service:
                endpoint = _wait_for_endpoint(service)
                _say("Service", f"{endpoint} (process {service.process.pid}), flows of {_FLOWS}")
                command = ["ping", endpoint, "--every", str(PING_SECONDS), "--json"]
                with _child(command, environ, Path(logs, "ping")) as pinger:
                    _say("Pinger", f"a heartbeat every {PING_SECONDS} s (process {pinger.process.pid})")
                    _say("New input", f"a line a second, appended to {csv.file}")
                    click.echo()
                    _follow(news, csv, [service, pinger], seconds)
            news.show(pinger)
            if not news.heartbeats:
                raise service.failure("answered no heartbeat")
            click.echo("\nThe service and the pinger have stopped. This is how the flows stand:\n")
            console.print_flows(reading.flow_status())
        finally:
            reading.close()
    click.echo(next_steps.steps(settings, url, csv.file.parent))


def _follow(news: _News, csv: _Measurements, children: Sequence[_Child], seconds: float) -> None:
    """Print what happens as it happens, and give the flows something to import."""
    until = time.monotonic() + seconds
    measure_at = 0.0
    while (now := time.monotonic()) < until:
        if now >= measure_at:
            csv.append()
            measure_at = now + 1
        for child in children:
            child.require_alive()
        news.show(children[-1])
        time.sleep(0.2)


class _News:
    """Prints the runs that have ended and the heartbeats that were answered, each once."""

    def __init__(self, heartbeat: Heartbeat) -> None:
        self._heartbeat = heartbeat
        newest = heartbeat.runs(limit=1)
        self._before = newest[0].id if newest else 0
        self._shown: set[int] = set()
        self.heartbeats = 0

    def show(self, pinger: _Child) -> None:
        runs = self._heartbeat.runs(limit=50)
        for run in sorted(runs, key=lambda run: run.id):
            if run.ended_at is not None and run.id > self._before and run.id not in self._shown:
                self._shown.add(run.id)
                _show_run(run, run.ended_at)
        for line in pinger.new_lines():
            answer = json.loads(line)
            self.heartbeats += "heartbeat_id" in answer
            _show_heartbeat(answer)


def _show_heartbeat(answer: Mapping[str, Any]) -> None:
    if "heartbeat_id" not in answer:
        click.secho(f"  no heartbeat: {escape(str(answer.get('error')))}", fg="red")
        return
    local = datetime.fromisoformat(answer["timestamp"]).astimezone()
    line = f"  {local:%H:%M:%S}  heartbeat {answer['heartbeat_id']}: {console.heartbeat_counts(answer)}"
    click.secho(line, bold=True)


def _show_run(run: DataFlowRun, ended_at: datetime) -> None:
    took = "" if run.duration is None else console.duration(run.duration)
    status = click.style(f"{run.status:8}", fg="green" if run.status == "success" else "red")
    line = f"  {ended_at.astimezone():%H:%M:%S}  {escape(run.flow_name):22}  {status}  {took:>7}  "
    room = shutil.get_terminal_size().columns - len(click.unstyle(line)) if console.on_terminal() else 300
    click.echo(line + escape(console.outcome(run))[: max(room, 30)])


def _say(what: str, text: str) -> None:
    click.echo(click.style(f"{what:10}", bold=True) + escape(text))


# ── the processes ────────────────────────────────────────────────────────────────────────────────────────────


class _Child:
    """A `heartbeat` command in a process of its own, whose log goes to a file and its output to us."""

    def __init__(self, name: str, process: subprocess.Popen[str], log: Path) -> None:
        self.process = process
        self._name = name
        self._log = log
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        assert process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(process.stdout,), daemon=True)
        self._reader.start()

    def _read(self, output: IO[str]) -> None:
        with output:
            for line in output:
                self._lines.put(line)

    def new_lines(self) -> Iterator[str]:
        """Give the lines that it has printed since the last time."""
        while not self._lines.empty():
            yield self._lines.get()

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def require_alive(self) -> None:
        if (status := self.process.poll()) is not None:
            raise self.failure(f"ended with status {status}")

    def failure(self, what: str) -> DemoFailed:
        """Make the exception that says what went wrong and shows the end of the log."""
        lines = self.log().splitlines()[-10:]
        for line in lines:
            click.echo(f"  {self._name}: {escape(line)}", err=True)
        log = "its last lines are above" if lines else "it logged nothing"
        return DemoFailed(f"`heartbeat {self._name}` {what}; {log}")

    def stop(self) -> None:
        """Ask it to end; one that does not is killed."""
        self.process.terminate()
        try:
            self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reader.join(1)


@contextmanager
def _child(arguments: Sequence[str], environ: Mapping[str, str], log: Path) -> Iterator[_Child]:
    """Start a command, and end it however the block ends."""
    child = None
    try:
        with signals_held():  # one that came half-way would leave a process that nobody knows of
            child = _start(arguments, environ, log)
        yield child
    finally:
        if child is not None:
            child.stop()


def _start(arguments: Sequence[str], environ: Mapping[str, str], log: Path) -> _Child:
    with log.open("w") as stderr:
        process = subprocess.Popen(  # noqa: S603 - this program itself
            [sys.executable, "-m", "heartbeat", *arguments],
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    return _Child(arguments[0], process, log)


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


def _wait_for_endpoint(service: _Child) -> str:
    """Wait until the service says where it listens."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if found := _LISTENING.search(service.log()):
            return found[1]
        service.require_alive()
        time.sleep(0.05)
    raise service.failure(f"does not listen after {_START_SECONDS:g} s")


# ── the input ────────────────────────────────────────────────────────────────────────────────────────────────


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
