"""`heartbeat` as its users type it: a process, its output and its exit status."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.support.environment import environment, write_flows

PROGRAM = (sys.executable, "-m", "heartbeat")


class Command:
    """Runs `heartbeat` in a directory: `command("flows", "--json")`, with settings by lower-case name."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        self.directory = directory
        self.settings = settings

    def define(self, source: str) -> None:
        """Have every later command find the flows of this source text."""
        self.settings["flows"] = write_flows(self.directory, source)

    def __call__(self, *arguments: str, timeout: float = 60, **settings: Any) -> Done:
        """Run it to its end, without a terminal."""
        with self.start(*arguments, **settings) as process:
            try:
                out, err = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        return Done(process.returncode, out, err)

    def start(self, *arguments: str, **settings: Any) -> subprocess.Popen[str]:
        """Start it, with pipes for its output."""
        return subprocess.Popen(
            [*PROGRAM, *arguments],
            cwd=self.directory,
            env=self.environment(**settings),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def on_a_terminal(self, *arguments: str, typed: str = "", columns: int = 80, **settings: Any) -> Done:
        """Run it with a terminal for everything, on which `typed` has been typed; what it shows is in `out`."""
        environ = self.environment(**settings) | {"COLUMNS": str(columns), "TERM": "xterm"}
        main, terminal = pty.openpty()
        os.write(main, typed.encode())
        with subprocess.Popen(
            [*PROGRAM, *arguments],
            cwd=self.directory,
            env=environ,
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
        ) as process:
            os.close(terminal)
            shown = b""
            while True:
                try:
                    piece = os.read(main, 65_536)
                except OSError:  # the other side is closed
                    break
                if not piece:
                    break
                shown += piece
            os.close(main)
        return Done(process.returncode, shown.decode(), "")

    def environment(self, **settings: Any) -> dict[str, str]:
        chosen = {name: value for name, value in {**self.settings, **settings}.items() if value is not None}
        return environment(**chosen)


class Done:
    """What a command that has ended left behind."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status = status
        self.out = out
        self.err = err

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    def failed_with(self, status: int) -> str:
        """Check that it failed as people like it: nothing on stdout, one line on stderr. Return the line."""
        assert (self.status, self.out, "Traceback" in self.err) == (status, "", False), self
        (line,) = self.err.splitlines()
        assert line.startswith("Error: ")
        return line

    def __repr__(self) -> str:
        return f"status {self.status}\n--- out\n{self.out}\n--- err\n{self.err}"


def leftovers(directory: Path) -> list[str]:
    """Return the command lines of the processes that stand in a directory or name it; Linux only."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
            stands_there = (process / "cwd").resolve() == directory.resolve()
        except OSError:
            continue  # it has ended, or is none of ours
        if process.name != str(os.getpid()) and (stands_there or str(directory) in words):
            found.append(words)
    return found


def ended(process: subprocess.Popen[str], seconds: float = 30) -> Done:
    """Wait for a started command."""
    began = time.monotonic()
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"still ran after {time.monotonic() - began:.0f} s\n{out}\n{err}") from None
    return Done(process.returncode, out, err)
