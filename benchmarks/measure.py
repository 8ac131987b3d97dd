"""What is measured, how it is summed up, and how one measurement gets a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Measurement:
    """`items` done in `seconds`; `note` says how it was set up, `details` whatever else was seen."""

    seconds: float
    items: int
    note: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Items a second."""
        return self.items / self.seconds


class Unavailable(Exception):
    """A contestant cannot run on this machine; the message says what is missing."""


class MeasurementFailed(Exception):
    """A contestant ran and did not finish its work."""


UNAVAILABLE_STATUS = 77


def in_subprocess(
    module: str, url: str, items: int, options: Mapping[str, Any], timeout: float
) -> Measurement:
    """Call `module.run(url, items, **options)` in a fresh interpreter and bring its measurement back.

    A process of its own, so that no contestant inherits another's imports, event loop, threads or memory.
    """
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.child", module, url, str(items), json.dumps(options)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": python_path()},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if done.returncode == UNAVAILABLE_STATUS:
        raise Unavailable(done.stderr.strip().splitlines()[-1])
    if done.returncode != 0:
        raise MeasurementFailed(f"{module} {dict(options)}: {done.stderr.strip()[-2000:]}")
    return Measurement(**json.loads(done.stdout.splitlines()[-1]))


def python_path() -> str:
    """The repository first, then whatever the caller has."""
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def say(line: str) -> None:
    """Tell whoever waits what goes on."""
    print(line, file=sys.stderr, flush=True)
