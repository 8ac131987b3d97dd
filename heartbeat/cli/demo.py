"""What `heartbeat demo` prints: everything that happens, as it happens."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import click

from heartbeat.cli import console
from heartbeat.demo.processes import DemoFailed
from heartbeat.demo.show import Event, Finished, Part
from heartbeat.logs import escape
from heartbeat.models import DataFlowRun


def show(events: Iterable[Event]) -> None:
    """Print what `demo.watch` gives; of a process that failed, its last lines too."""
    try:
        for event in events:
            _show(event)
    except DemoFailed as exc:
        for line in exc.log:
            click.echo(f"  {escape(line)}", err=True)
        raise


def _show(event: Event) -> None:
    match event:
        case Part():
            click.echo(click.style(f"{event.what:10}", bold=True) + escape(event.text) + "\n" * event.is_last)
        case DataFlowRun():
            _show_run(event)
        case Finished():
            click.echo("\nThe service and the pinger have stopped. This is how the flows stand:\n")
            console.print_flows(event.flows)
            click.echo(event.next_steps)
        case answer:
            _show_heartbeat(answer)


def _show_heartbeat(answer: Mapping[str, Any]) -> None:
    if "heartbeat_id" not in answer:
        click.secho(f"  no heartbeat: {escape(str(answer.get('error')))}", fg="red")
        return
    local = datetime.fromisoformat(answer["timestamp"]).astimezone()
    line = f"  {local:%H:%M:%S}  heartbeat {answer['heartbeat_id']}: {console.heartbeat_counts(answer)}"
    click.secho(line, bold=True)


def _show_run(run: DataFlowRun) -> None:
    assert run.ended_at is not None
    took = "" if run.duration is None else console.duration(run.duration)
    status = click.style(f"{run.status:8}", fg="green" if run.status == "success" else "red")
    line = f"  {run.ended_at.astimezone():%H:%M:%S}  {escape(run.flow_name):22}  {status}  {took:>7}  "
    room = shutil.get_terminal_size().columns - len(click.unstyle(line)) if console.on_terminal() else 300
    click.echo(line + escape(console.outcome(run))[: max(room, 30)])
