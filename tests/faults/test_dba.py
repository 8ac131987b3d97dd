"""A DBA is in the way, or at work: nobody waits for anybody longer than a statement."""

from __future__ import annotations

import threading

import psycopg
import pytest

from tests.faults.checker import Trace
from tests.faults.conftest import Rules
from tests.faults.harness import Fleet, beats_until_fresh_flow_ran, wait_begun
from tests.support.rows import Conn, add_flow, add_flows, of_class, runs_of, statuses_of
from tests.support.waiting import Background, wait_until


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
    add_flow(db, "long", of_class("Held"))
    add_flows(db, "quick", 5, of_class("Quick"))
    waiting = service.ask_in_background()
    wait_begun(trace, "long")
    db.execute("SET statement_timeout = '2 s'")  # a deed that waits for the flow waits for ever
    db.execute(deed)
    trace.let_go("long")
    assert waiting.result().status == 200
    assert statuses_of(db, "long") == ([] if deed.startswith("DELETE") else ["success"])
    beats_until_fresh_flow_ran(db, service, limit=1)


def test_a_run_that_a_dba_ended_stays_as_it_was_left(
    fleet: Fleet, db: Conn, trace: Trace, rules: Rules
) -> None:
    service = fleet()
    add_flow(db, "long", of_class("Held"))
    waiting = service.ask_in_background()
    wait_begun(trace, "long")
    db.execute("UPDATE data_flow_runs SET status = 'failed', ended_at = now(), error = 'by hand'")
    service.ask()
    assert last_statuses(db) == {"failed"}
    trace.let_go("long")
    assert waiting.result().status == 200
    assert [(run.status, run.error) for run in runs_of(db, "long")] == [("failed", "by hand")]
    assert last_statuses(db) == {"failed"}
    assert beats_until_fresh_flow_ran(db, service) == 1
    rules(db)


def test_edits_that_are_committed_while_flows_are_claimed_break_no_heartbeat(
    fleet: Fleet, db: Conn, database_url: str, rules: Rules
) -> None:
    processes = fleet.many(2)
    add_flows(db, "work", 4000, of_class("Quick"))
    stopped = threading.Event()
    edits: list[int] = []

    def edit() -> None:
        """Commit edits of flows that are due, a fiftieth of them at a time."""
        due = "UPDATE data_flows SET description = 'edited' WHERE last_run_at IS NULL AND id %% 50 = %s"
        with psycopg.connect(database_url, autocommit=True) as dba:
            while not stopped.is_set():
                edits.append(dba.execute(due, (len(edits) % 50,)).rowcount)

    editing = Background(edit)
    try:
        waiting = [process.ask_in_background() for process in processes for _ in range(2)]
        answers = [asked.result() for asked in waiting] + [process.ask() for process in processes]
    finally:
        stopped.set()
        editing.result()
    assert {answer.status for answer in answers} == {200}, processes[0].log()[-3000:]
    assert statuses_of(db, "work-%") == ["success"] * 4000
    assert sum(edits) > 1000
    rules(db)


def test_an_open_transaction_on_one_running_flow_delays_no_other_record(
    fleet: Fleet, db: Conn, database_url: str, trace: Trace, rules: Rules
) -> None:
    service = fleet()
    add_flow(db, "edited", of_class("Held"))
    add_flows(db, "other", 6, of_class("Held"))
    waiting = service.ask_in_background()
    wait_begun(trace, "edited", *(f"other-{n}" for n in range(1, 7)))
    with psycopg.connect(database_url) as dba:
        dba.execute("UPDATE data_flows SET description = 'being edited' WHERE name = 'edited'")
        trace.let_go()
        wait_until(lambda: statuses_of(db, "other-%") == ["success"] * 6, what="the others' records")
        # Heartbeats are bounded meanwhile, and what is new runs.
        beats_until_fresh_flow_ran(db, service, limit=2)
        wait_until(lambda: last_statuses(db, "other-%") == {"success"}, what="the others' status")
        dba.commit()
    assert waiting.result().status == 200
    wait_until(lambda: statuses_of(db, "edited") == ["success"], what="the edited flow's record")

    def put_right() -> bool:
        service.ask()
        return last_statuses(db, "edited") == {"success"}

    wait_until(put_right, what="last_run_status to be put right")
    rules(db)


def test_a_locked_table_delays_records_and_bounds_heartbeats(
    fleet: Fleet, db: Conn, database_url: str, trace: Trace, rules: Rules
) -> None:
    service = fleet()
    add_flows(db, "work", 4, of_class("Held"))
    waiting = service.ask_in_background()
    wait_begun(trace, *(f"work-{n}" for n in range(1, 5)))
    with psycopg.connect(database_url) as dba:
        dba.execute("LOCK TABLE data_flows")
        trace.let_go()
        answers = [service.ask() for _ in range(3)]
        recorded = "SELECT DISTINCT status FROM data_flow_runs"  # the runs' own rows are locked by nobody
        wait_until(lambda: db.execute(recorded).fetchall() == [("success",)], what="the records")
        dba.rollback()
    assert {answer.status for answer in answers} <= {200, 503}
    assert max(answer.seconds for answer in answers) <= 6
    assert waiting.result().status in (200, 503)
    assert beats_until_fresh_flow_ran(db, service, limit=2) <= 2
    assert statuses_of(db, "work-%") == ["success"] * 4
    assert last_statuses(db) == {"success"}
    rules(db)
