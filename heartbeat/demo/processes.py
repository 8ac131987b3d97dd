"""The demo's `heartbeat serve` and `heartbeat ping`, as processes that end with it."""

from __future__ import annotations

import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from heartbeat.errors import HeartbeatError
from heartbeat.process import signals_held

_STOP_SECONDS = 10.0


class DemoFailed(HeartbeatError):
    """Something that the demo started has ended, or does not answer; `log` has its last lines."""

    def __init__(self, message: str, log: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.log = log


class Child:
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
        """Make the exception that says what went wrong, with the end of the log."""
        lines = [f"{self._name}: {line}" for line in self.log().splitlines()[-10:]]
        log = "its last lines are above" if lines else "it logged nothing"
        return DemoFailed(f"`heartbeat {self._name}` {what}; {log}", lines)

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
def started(arguments: Sequence[str], environ: Mapping[str, str], log: Path) -> Iterator[Child]:
    """Start a command, and end it however the block ends."""
    child = None
    try:
        with signals_held():  # one that came half-way would leave a process that nobody knows of
            child = _start(arguments, environ, log)
        yield child
    finally:
        if child is not None:
            child.stop()


def _start(arguments: Sequence[str], environ: Mapping[str, str], log: Path) -> Child:
    with log.open("w") as stderr:
        process = subprocess.Popen(  # noqa: S603 - this program itself
            [sys.executable, "-m", "heartbeat", *arguments],
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    return Child(arguments[0], process, log)
