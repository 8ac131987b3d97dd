"""What the figures were measured on: the machine and the versions, as it says so itself."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

import psutil

DISTRIBUTIONS = (
    "data-flow-heartbeat",
    "psycopg",
    "starlette",
    "uvicorn",
    "pgqueuer",
    "asyncpg",
    "procrastinate",
    "APScheduler",
    "SQLAlchemy",
)


def describe() -> dict[str, str]:
    """The machine, in words."""
    return {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """Versions of the project, its libraries and the peers, as installed."""
    found = {name: _version(name) for name in DISTRIBUTIONS}
    if shutil.which("node"):
        found["node"] = subprocess.run(
            ["node", "--version"], capture_output=True, text=True, check=False
        ).stdout.strip()
    return {name: version for name, version in found.items() if version}


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or "unknown"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""
