"""What a process that a test starts is given: its environment, and a module of flows to import."""

from __future__ import annotations

import os
import textwrap
import time
from pathlib import Path
from typing import Any


def environment(**settings: Any) -> dict[str, str]:
    """Return this environment with no `HEARTBEAT_…` but `settings`, which are given by lower-case name."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HEARTBEAT_")}
    return inherited | {f"HEARTBEAT_{name.upper()}": _text(value) for name, value in settings.items()}


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(value)


def write_flows(directory: Path, source: str) -> str:
    """Write a module of flows where a process started in `directory` can import it, and return its name."""
    name = f"flows_{time.monotonic_ns()}"
    (directory / f"{name}.py").write_text(textwrap.dedent(source))
    return name
