"""The checker can fail: each protection taken out, one at a time, and the damage seen.

The same three settings with the protections in are `test_5000_due_flows_and_8_processes_make_5000_runs`,
`test_a_run_that_a_dba_ended_stays_as_it_was_left` and
`test_runs_of_a_killed_process_end_failed_within_the_ttl_and_a_heartbeat`: there the checker finds nothing.
"""

from __future__ import annotations

from pathlib import Path

import psycopg

from tests.faults.checker import Limits, Snapshots, Trace, check
from tests.faults.harness import Fleet, wait_begun
from tests.faults.sabotage import spoiled
from tests.support.rows import Conn, add_flow, of_class, statuses_of
from tests.support.waiting import wait_until

LIMITS = Limits(ttl=1, beat=0.5, slack=1)


def test_without_skip_locked_the_checker_finds_a_slot_that_began_twice(
    fleet: Fleet, db: Conn, database_url: str, trace: Trace, tmp_path: Path
) -> None:
    late, early = fleet.many(2, runner_ttl=10, sql_dir=spoiled("skip-locked", tmp_path))
    add_flow(db, "first", of_class("Quick"))
    add_flow(db, "second", of_class("Quick"))
    db.execute("UPDATE data_flows SET next_run_at = now() - id * interval '-1 s' - interval '1 min'")
    with psycopg.connect(database_url) as dba:
        # One process chooses both flows, and is held up while it inserts the first one's run.
        dba.execute(
            "INSERT INTO data_flow_runs (data_flow_id) SELECT id FROM data_flows WHERE name = 'first'"
        )
        waiting = late.ask_in_background()
        held_up = (
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        wait_until(lambda: db.execute(held_up).fetchone() == (1,), what="the claim to be held up")
        # Meanwhile the other one runs the second flow, from beginning to end.
        db.execute("UPDATE data_flows SET enabled = false WHERE name = 'first'")
        assert early.ask().counts["flows_succeeded"] == 1
        dba.rollback()
    assert waiting.result().status == 200
    assert "of second began twice, as run" in str(check(trace, db, LIMITS))


def test_without_the_outcomes_guard_the_checker_finds_an_ended_run_that_changed(
    fleet: Fleet, db: Conn, trace: Trace, tmp_path: Path
) -> None:
    # The database refuses it too; that the statement does by itself is what this is about.
    db.execute("ALTER TABLE data_flow_runs DISABLE TRIGGER USER")
    service = fleet(sql_dir=spoiled("guard", tmp_path))
    add_flow(db, "long", of_class("Held"))
    waiting = service.ask_in_background()
    wait_begun(trace, "long")
    db.execute("UPDATE data_flow_runs SET status = 'failed', ended_at = now(), error = 'by hand'")
    snapshots = Snapshots()
    snapshots.take(db)
    trace.let_go("long")
    waiting.result()
    assert "had ended and was changed" in str(check(trace, db, LIMITS, snapshots, settled=False))


def test_without_the_reaper_the_checker_finds_live_runs_of_the_dead(
    fleet: Fleet, db: Conn, trace: Trace, tmp_path: Path
) -> None:
    killed, survivor = fleet.many(2, runner_ttl=1, sql_dir=spoiled("reaper", tmp_path))
    add_flow(db, "long", of_class("Held"))
    killed.ask_in_background()
    wait_begun(trace, "long")
    killed.kill()

    def found() -> bool:
        assert survivor.ask().status == 200
        report = str(check(trace, db, LIMITS, settled=False))
        return "of long lives" in report and f"after {killed.pid} died" in report

    wait_until(found, what="the checker to miss the burial")
    assert statuses_of(db, "long") == ["in_progress"]
