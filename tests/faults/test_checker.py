"""The checker finds what it is there to find: each rule broken by hand."""

from __future__ import annotations

import os
import time
from typing import Any

import psycopg
import pytest

from tests.faults.checker import Limits, Snapshots, Trace, check
from tests.support.rows import add_flow, of_class

LIMITS = Limits(ttl=2, slack=0.5)
RUNNER = "00000000-0000-4000-8000-000000000001"


class Story:
    """Writes rows and traces as a service would."""

    def __init__(self, db: psycopg.Connection[Any], trace: Trace) -> None:
        self.db, self.trace = db, trace
        self.flow = add_flow(db, "orders", of_class("Quick"))
        db.execute(
            "INSERT INTO data_flow_runners (id, host, pid) VALUES (%s, 'here', %s)", (RUNNER, os.getpid())
        )

    def row(self, status: str = "success", started: float = -10, ended: float = -9, slot: int = 0) -> int:
        """Insert a run; times are seconds from now. Returns its id."""
        row = self.db.execute(
            "INSERT INTO data_flow_runs"
            " (data_flow_id, runner_id, status, scheduled_for, started_at, ended_at)"
            " VALUES (%s, %s, %s, date_trunc('day', now()) + %s * interval '1 s',"
            " now() + %s * interval '1 s',"
            " CASE WHEN %s <> 'in_progress' THEN now() + %s * interval '1 s' END) RETURNING id",
            (self.flow, RUNNER, status, slot, started, status, ended),
        ).fetchone()
        assert row is not None
        self.db.execute("UPDATE data_flows SET last_run_status = %s", (status,))
        return int(row[0])

    def tell(self, event: str, run: int, at: float, pid: int = 1) -> None:
        """Write a line of the trace as a flow would, `at` seconds from now."""
        self.trace.mark(event, flow="orders", run=run, pid=pid)
        lines = self.trace.path.read_text().splitlines()
        moment = f'"mono": {time.monotonic() + at}, "wall": {time.time() + at}}}'
        lines[-1] = lines[-1].split('"mono"')[0] + moment
        self.trace.path.write_text("\n".join(lines) + "\n")


@pytest.fixture
def story(db: psycopg.Connection[Any], trace: Trace) -> Story:
    return Story(db, trace)


def violations(story: Story, snapshots: Snapshots | None = None, settled: bool = True) -> str:
    return "\n".join(check(story.trace, story.db, LIMITS, snapshots, settled=settled).violations)


def test_a_clean_story_has_no_violation(story: Story) -> None:
    for slot in (1, 2):
        run = story.row(started=-10 + 2 * slot, ended=-9 + 2 * slot, slot=slot)
        story.tell("begin", run, -10 + 2 * slot)
        story.tell("end", run, -9.5 + 2 * slot)
    assert violations(story) == ""


def test_a_run_that_began_twice_is_found(story: Story) -> None:
    run = story.row()
    story.tell("begin", run, -9.9, pid=1)
    story.tell("begin", run, -9.8, pid=2)
    story.tell("end", run, -9.7, pid=1)
    assert f"run {run} of orders began twice" in violations(story)


def test_a_slot_that_began_twice_is_found(story: Story) -> None:
    for started in (-10, -8):
        run = story.row(started=started, ended=started + 1, slot=5)
        story.tell("begin", run, started)
        story.tell("end", run, started + 0.5)
    assert "of orders began twice, as run" in violations(story)


def test_overlapping_runs_are_found(story: Story) -> None:
    first = story.row(status="failed", started=-10, ended=-9, slot=1)
    second = story.row(started=-8, ended=-7, slot=2)
    story.tell("begin", first, -10)
    story.tell("begin", second, -8)
    story.tell("end", second, -7.5)
    assert f"run {second} began in 1 while run {first} (still running)" in violations(story)
    story.trace.mark("paused", pid=1)  # a mark made now excuses nothing earlier
    assert "while run" in violations(story)


def test_overlapping_rows_are_found(story: Story) -> None:
    story.row(status="failed", started=-10, ended=-5, slot=1)
    story.row(status="failed", started=-8, ended=-7, slot=2)
    assert "overlap" in violations(story)


def test_a_success_without_an_end_is_found(story: Story) -> None:
    run = story.row()
    story.tell("begin", run, -10)
    assert f"run {run} of orders is success, but never returned" in violations(story)
    story.tell("raised", run, -9)
    assert f"run {run} of orders is success, but raised" in violations(story)


def test_an_ended_run_that_changes_is_found(story: Story) -> None:
    run = story.row(status="failed")
    snapshots = Snapshots()
    snapshots.take(story.db)
    story.db.execute("ALTER TABLE data_flow_runs DISABLE TRIGGER USER")
    story.db.execute("UPDATE data_flow_runs SET error = 'another'")
    assert f"run {run} had ended and was changed" in violations(story, snapshots)


def test_a_run_that_begins_after_its_end_is_found(story: Story) -> None:
    run = story.row(status="failed")
    story.tell("begin", run, -8)
    assert "after its end was recorded" in violations(story)


def test_a_live_run_of_a_dead_process_is_found(story: Story) -> None:
    run = story.row(status="in_progress")
    story.tell("begin", run, -10)
    story.tell("died", run, -9)
    assert f"run {run} of orders lives" in violations(story, settled=False)


def test_a_live_run_of_a_runner_that_is_gone_is_found(story: Story) -> None:
    story.row(status="in_progress")
    story.db.execute("DELETE FROM data_flow_runners")
    assert "its runner is not registered" in violations(story, settled=False)


def test_what_has_not_settled_is_found(story: Story) -> None:
    run = story.row(status="in_progress")
    assert f"run {run} of orders is still in_progress" in violations(story)
    story.db.execute("DELETE FROM data_flow_runs")
    story.row(status="failed")
    story.db.execute("UPDATE data_flows SET last_run_status = 'success'")
    assert "orders says its last run was success; it was failed" in violations(story)
