"""Copies of `sql/` with one protection taken out each, to show that the checker sees what it is there for."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import heartbeat

_PACKAGE = Path(heartbeat.__file__).parent
SQL = _PACKAGE / "sql" if (_PACKAGE / "sql").is_dir() else _PACKAGE.parent / "sql"


def _statement(text: str, name: str) -> re.Match[str]:
    found = re.search(rf"^-- name: {name}\(.*?(?=^-- name: |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"no statement is named {name}"
    return found


def _edit(file: Path, name: str, pattern: str, replacement: str) -> None:
    """Replace every match of a pattern within one statement; there must be one."""
    text = file.read_text()
    found = _statement(text, name)
    edited, count = re.subn(pattern, replacement, found[0])
    assert count, f"{name} has nothing that matches {pattern!r}"
    file.write_text(text[: found.start()] + edited + text[found.end() :])


def _no_skip_locked(sql: Path) -> None:
    _edit(sql / "data_flows.sql", "claim", r"(?m)^\s*FOR (NO KEY )?UPDATE( OF \w+)? SKIP LOCKED\n", "")


def _no_guard(sql: Path) -> None:
    for name in ("record_outcomes", "record_outcomes_only"):
        _edit(
            sql / "data_flow_runs.sql",
            name,
            r"run\.runner_id = :runner_id::uuid",
            ":runner_id::uuid IS NOT NULL",
        )
        _edit(sql / "data_flow_runs.sql", name, r"run\.ended_at IS NULL", "true")


def _no_reaper(sql: Path) -> None:
    _edit(
        sql / "data_flow_runs.sql",
        "fail_runs_of_dead_runners",
        r"WHERE run\.id = dead\.id",
        "WHERE false AND run.id = dead.id",
    )


SABOTAGES: dict[str, Callable[[Path], None]] = {
    "skip-locked": _no_skip_locked,
    "guard": _no_guard,
    "reaper": _no_reaper,
}


def spoiled(which: str, directory: Path) -> Path:
    """Copy `sql/` into a directory, take one protection out, and return the copy, for `HEARTBEAT_SQL_DIR`."""
    copy = directory / f"sql-without-{which}"
    shutil.copytree(SQL, copy)
    SABOTAGES[which](copy)
    return copy
