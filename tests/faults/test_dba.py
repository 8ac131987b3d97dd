"""A DBA is in the way, or at work: nobody waits for anybody longer than a statement."""

from __future__ import annotations

import threading
import time
from typing import Any

import psycopg
import pytest

from tests.faults.checker import Trace
from tests.faults.conftest import Rules
from tests.faults.harness import (
    Fleet,
    add_flow,
    add_flows,
    beats_until_fresh_flow_ran,
    runs_of,
    statuses,
    wait_begun,
)
from tests.support.waiting import wait_until

Conn = psycopg.Connection[Any]


def last_statuses(db: Conn, like: str = "%") -> set[str | None]:
    return {
        row[0] for row in db.execute("SELECT last_run_status FROM data_flows WHERE name LIKE %s", (like,))
    }


@pytest.mark.parametrize(
    "deed",
    ["UPDATE data_flows SET enabled = false", "DELETE FROM data_flows", "TABLE data_flows FOR UPDATE"],
)
def test_what_a_dba_does_to_a_running_flow_is_done_at_once(
    fleet: Fleet, db: Conn, trace: Trace, deed: str
) -> None:
    service = fleet()
    add_flow(db, "long", "Slow", seconds=2)
    add_flows(db, "quick", 5, "Quick")
    waiting = service.later()
    wait_begun(trace, "long")
    begin = time.monotonic()
    db.execute(deed)
    assert time.monotonic() - begin < 0.5
    assert waiting.answer().status == 200
    assert statuses(db, "long") == ([] if deed.startswith("DELETE") else ["success"])
    beats_until_fresh_flow_ran(db, service, limit=1)


def test_a_run_that_a_dba_ended_stays_as_it_was_left(
    fleet: Fleet, db: Conn, trace: Trace, rules: Rules
) -> None:
    service = fleet()
    add_flow(db, "long", "Slow", seconds=2)
    waiting = service.later()
    wait_begun(trace, "long")
    db.execute("UPDATE data_flow_runs SET status = 'failed', ended_at = now(), error = 'by hand'")
    service.ask()
    assert last_statuses(db) == {"failed"}
    assert waiting.answer().status == 200
    assert runs_of(db, "long") == [("long", "failed", "by hand")]
    assert last_statuses(db) == {"failed"}
    assert beats_until_fresh_flow_ran(db, service) == 1
    rules(db)


def test_edits_that_are_committed_while_flows_are_claimed_break_no_heartbeat(
    fleet: Fleet, db: Conn, database_url: str, rules: Rules
) -> None:
    processes = fleet.many(2)
    add_flows(db, "work", 4000, "Quick")
    stopped = threading.Event()
    edits: list[int] = []

    def edit() -> None:
        """Commit edits of flows that are due, a fiftieth of them at a time."""
        due = "UPDATE data_flows SET description = 'edited' WHERE last_run_at IS NULL AND id %% 50 = %s"
        with psycopg.connect(database_url, autocommit=True) as dba:
            while not stopped.is_set():
                edits.append(dba.execute(due, (len(edits) % 50,)).rowcount)

    editing = threading.Thread(target=edit, daemon=True)
    editing.start()
    try:
        waiting = [process.later() for process in processes for _ in range(2)]
        answers = [later.answer() for later in waiting] + [process.ask() for process in processes]
    finally:
        stopped.set()
        editing.join(10)
    assert {answer.status for answer in answers} == {200}, processes[0].log()[-3000:]
    assert statuses(db, "work-%") == ["success"] * 4000
    assert sum(edits) > 1000
    rules(db)


def test_an_open_transaction_on_one_running_flow_delays_no_other_record(
    fleet: Fleet, db: Conn, database_url: str, trace: Trace, rules: Rules
) -> None:
    service = fleet()
    add_flow(db, "edited", "Slow", seconds=1)
    add_flows(db, "other", 6, "Slow", seconds=1)
    waiting = service.later()
    wait_begun(trace, "edited")
    wait_begun(trace, "other-6")
    with psycopg.connect(database_url) as dba:
        dba.execute("UPDATE data_flows SET description = 'being edited' WHERE name = 'edited'")
        wait_until(lambda: len(trace.of("end")) == 7, what="the flows to return")
        wait_until(lambda: statuses(db, "other-%") == ["success"] * 6, seconds=5, what="the others' records")
        # Heartbeats are bounded meanwhile, and what is new runs.
        begin = time.monotonic()
        beats_until_fresh_flow_ran(db, service, limit=2)
        assert time.monotonic() - begin < 6
        wait_until(lambda: last_statuses(db, "other-%") == {"success"}, seconds=5, what="the others' status")
        dba.commit()
    assert waiting.answer().status == 200
    wait_until(lambda: statuses(db, "edited") == ["success"], seconds=5, what="the edited flow's record")

    def put_right() -> bool:
        service.ask()
        return last_statuses(db, "edited") == {"success"}

    wait_until(put_right, seconds=5, what="last_run_status to be put right")
    rules(db)


def test_a_locked_table_delays_records_and_bounds_heartbeats(
    fleet: Fleet, db: Conn, database_url: str, trace: Trace, rules: Rules
) -> None:
    service = fleet()
    add_flows(db, "work", 4, "Slow", seconds=2)
    waiting = service.later()
    wait_begun(trace, "work-4")
    with psycopg.connect(database_url) as dba:
        dba.execute("LOCK TABLE data_flows")
        until = time.monotonic() + 10
        answers = []
        while time.monotonic() < until:
            answers.append(service.ask())
            time.sleep(0.2)
        runs = db.execute("SELECT DISTINCT status FROM data_flow_runs").fetchall()
        dba.rollback()
    assert {answer.status for answer in answers} <= {200, 503}
    assert max(answer.seconds for answer in answers) <= 5
    assert runs == [("success",)], "the runs' own rows were locked by nobody"
    assert waiting.answer().status in (200, 503)
    assert beats_until_fresh_flow_ran(db, service, limit=2) <= 2
    assert statuses(db, "work-%") == ["success"] * 4
    assert last_statuses(db) == {"success"}
    rules(db)
