"""What the commands print: tables for people, JSON for programs, a progress bar on a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

import click

from heartbeat.logs import escape
from heartbeat.models import DataFlowRun
from heartbeat.utc import utc_text

_CELL = 300
"""Characters of a text that a table shows; --json has the rest."""

_COLOURS = {"success": "green", "failed": "red", "in_progress": "yellow", "pending": "yellow"}


def on_terminal() -> bool:
    """Whether a person looks at what is printed."""
    return sys.stdout is not None and sys.stdout.isatty()


# ── JSON ─────────────────────────────────────────────────────────────────────────────────────────────────────


def print_json(value: object, *, indent: bool = True) -> None:
    """Print a JSON document: on a terminal indented, unless told not to, in a pipe as one line."""
    click.echo(json.dumps(value, default=_plain, indent=2 if indent and on_terminal() else None))


def _plain(value: object) -> object:
    """Make JSON of what JSON has no word for: times are UTC, intervals are seconds."""
    if isinstance(value, datetime):
        return utc_text(value)
    if isinstance(value, timedelta):
        return value.total_seconds()
    return str(value)


# ── tables ───────────────────────────────────────────────────────────────────────────────────────────────────


def print_flows(flows: Sequence[Mapping[str, Any]]) -> None:
    """Print how flows stand: rows of `Heartbeat.flow_status()`."""
    headings = ("FLOW", "EVERY", "STATE", "LAST RUN", "STATUS", "NEXT RUN", "LAST ERROR")
    rows = [
        (
            flow["name"],
            duration(timedelta(seconds=flow["run_interval"])),
            _state(flow),
            flow["last_run_at"],
            flow["last_run_status"],
            flow["next_run_at"],
            flow["last_error"],
        )
        for flow in flows
    ]
    _print_table(headings, rows)


def print_runs(runs: Sequence[DataFlowRun]) -> None:
    """Print runs, and of each the first line of its error, or else its result."""
    headings = ("RUN", "FLOW", "STATUS", "STARTED", "TOOK", "HEARTBEAT", "ERROR OR RESULT")
    rows = [
        (
            run.id,
            run.flow_name,
            run.status,
            run.started_at,
            None if run.duration is None else duration(run.duration),
            run.heartbeat_id,
            outcome(run),
        )
        for run in runs
    ]
    _print_table(headings, rows)


def outcome(run: DataFlowRun) -> str:
    """Return the first line of a run's error, or else its result as JSON; empty where there is neither."""
    if run.error is not None:
        return run.error.split("\n", 1)[0]
    return "" if run.result is None else json.dumps(run.result, ensure_ascii=False)


_UNITS = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))


def duration(value: timedelta) -> str:
    """Say how long, to two units at most: 12 ms, 3.4 s, 5 min 30 s, 2 h, 7 d."""
    seconds = value.total_seconds()
    if seconds < 60:
        return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"
    parts, rest = [], round(seconds)
    for unit, size in _UNITS:
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2])


def _state(flow: Mapping[str, Any]) -> str:
    if flow["running"]:
        return f"running {duration(flow['running_for'])} on {flow['running_on']}"
    if flow["stuck_threads"]:
        return "stuck: a timed-out thread lives"
    if flow["requested"]:
        return "requested"
    if not flow["enabled"]:
        return "paused"
    return f"due for {duration(flow['overdue_by'])}" if flow["overdue"] else ""


def _print_table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table: fitted to a terminal, plain and one line a row in a pipe."""
    cells = [[_cell(value) for value in row] for row in rows]
    if on_terminal():
        _print_fitted(headings, cells)
    else:
        _print_plain([headings, *cells])


def _print_fitted(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console  # takes a while to import, and most commands print no table
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        # Not a bare str: brackets in a name would be read as markup.
        table.add_row(*(Text(cell, style=_COLOURS.get(cell, "")) for cell in row))
    Console().print(table)


def _print_plain(rows: Sequence[Sequence[str]]) -> None:
    from rich.cells import cell_len  # some characters are two columns wide

    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )
    click.echo("\n".join(line.rstrip() for line in lines))


def _cell(value: object) -> str:
    if isinstance(value, datetime):
        return _moment(value)
    text = "" if value is None else escape(str(value))
    return text if len(text) <= _CELL else f"{text[:_CELL]}…"


def _moment(value: datetime) -> str:
    """Show a time: in a pipe UTC, on a terminal the local one, today's without its date."""
    if not on_terminal():
        return utc_text(value, "seconds")
    local = value.astimezone()
    today = local.date() == datetime.now(local.tzinfo).date()
    return local.strftime("%H:%M:%S") if today else local.strftime("%Y-%m-%d %H:%M:%S")


# ── lines ────────────────────────────────────────────────────────────────────────────────────────────────────


def heartbeat_line(answer: Mapping[str, Any]) -> str:
    """Say in one line what a heartbeat did, from the object that answers it."""
    next_due = answer.get("next_due_at")
    when = f"next due {next_due}" if next_due else "nothing due later"
    head = f"{answer.get('timestamp')} heartbeat {answer.get('heartbeat_id')}: "
    return f"{escape(head)}{heartbeat_counts(answer)}; {escape(when)}"


def heartbeat_counts(answer: Mapping[str, Any]) -> str:
    """Say how many flows; what still runs or remains only where something does."""
    always, sometimes = ("due", "triggered", "succeeded", "failed"), ("running", "remaining")
    shown = [*always, *(count for count in sometimes if answer.get(f"flows_{count}"))]
    return escape(", ".join(f"{answer.get(f'flows_{count}', '?')} {count}" for count in shown))


@contextmanager
def row_progress(description: str) -> Iterator[Callable[[int], None] | None]:
    """Show a count of rows that grows, on a terminal; None where there is none."""
    if not on_terminal():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TextColumn("{task.completed:,} rows"))
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(description, total=None)
        yield lambda count: progress.advance(task, count)
