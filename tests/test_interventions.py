"""What a DBA does in psql while flows run: done at once, never undone, and in nobody else's way."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

import psycopg
import pytest

from heartbeat import BeatReport, DataFlow, Heartbeat
from tests.support.flow_classes import Gate, Noop, flow_class
from tests.support.rows import (
    Conn,
    add_flow,
    flow_row,
    heartbeat_row,
    live_runs,
    make_due,
    request_run,
    runs_of,
    statuses,
    statuses_of,
)
from tests.support.waiting import Background, wait_until

BY_HAND = (
    "UPDATE data_flow_runs SET status = 'failed', ended_at = now(), error = 'by hand' WHERE ended_at IS NULL"
)

# --- at once --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE data_flows SET enabled = false",
        "UPDATE data_flows SET run_interval = 5, configuration = '{}', name = 'renamed'",
        "UPDATE data_flows SET next_run_at = now()",
        "SELECT * FROM data_flows FOR UPDATE",
        "SELECT * FROM data_flow_runs FOR UPDATE",
        BY_HAND,
        "DELETE FROM data_flow_runs",
        "DELETE FROM data_flows",
        "LOCK TABLE data_flows, data_flow_runs, heartbeats",
    ],
)
def test_nothing_that_a_dba_does_waits_for_a_flow(db: Conn, database_url: str, statement: str) -> None:
    gate = Gate()
    add_flow(db, "Slow")
    with Heartbeat(flows=[gate.flow("Slow")], database_url=database_url) as hb:
        beat = Background(hb.beat)
        wait_until(lambda: gate.begun)
        db.execute("SET lock_timeout = '500ms'")
        with db.transaction():
            db.execute(statement)
        gate.open()
        assert beat.result().flows_triggered == 1


def test_a_pause_while_a_flow_runs_lets_it_end_and_not_start_again(db: Conn, database_url: str) -> None:
    gate = Gate()
    add_flow(db, "Slow", run_interval=1)
    with Heartbeat(flows=[gate.flow("Slow")], database_url=database_url) as hb:
        beat = Background(hb.beat)
        wait_until(lambda: gate.begun)
        db.execute("UPDATE data_flows SET enabled = false")
        gate.open()
        assert beat.result().flows_succeeded == 1
        make_due(db)
        assert hb.beat().flows_due == 0


def test_a_flow_held_while_it_runs_stays_held(db: Conn, database_url: str) -> None:
    gate = Gate()
    add_flow(db, "Slow", run_interval=1)
    with Heartbeat(flows=[gate.flow("Slow")], database_url=database_url) as hb:
        beat = Background(hb.beat)
        wait_until(lambda: gate.begun)
        db.execute("UPDATE data_flows SET next_run_at = '2100-01-01'")
        gate.open()
        beat.result()
    assert flow_row(db, "Slow").next_run_at.year == 2100
    assert flow_row(db, "Slow").last_run_status == "success"


# --- a run that was ended, or is gone -------------------------------------------------------------------


def test_a_run_ended_by_hand_stays_so_and_its_late_end_is_logged(
    db: Conn, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "heartbeat")
    gate = Gate()
    add_flow(db, "Slow")
    with Heartbeat(flows=[gate.flow("Slow")], database_url=database_url) as hb:
        beat = Background(hb.beat)
        wait_until(lambda: gate.begun)
        db.execute(BY_HAND)
        before = runs_of(db, "Slow")
        gate.open()
        report = beat.result()
        assert (report.flows_succeeded, report.flows_failed) == (0, 1), "as it stands on record"
        assert runs_of(db, "Slow") == before
        [warning] = [record for record in caplog.records if getattr(record, "event", "") == "late_outcome"]
        assert (warning.flow, warning.run_id) == ("Slow", before[0].id)


class Watching:
    """A flow that waits to be told to stop, and then for its gate; once the gate is open it ends at once."""

    def __init__(self) -> None:
        self.gate = Gate()
        self.told = threading.Event()

    def run(self, flow: DataFlow) -> None:
        if not self.gate.is_open() and flow.stopping.wait(30):
            self.told.set()
        self.gate.hold(flow)

    @property
    def flow(self) -> type[DataFlow]:
        return flow_class("Slow", lambda flow: self.run(flow))


def stuck_threads(db: Conn) -> int:
    [(count,)] = db.execute("SELECT count(*) FROM data_flow_stuck_threads").fetchall()
    return int(count)


@pytest.mark.parametrize(
    "statement",
    [
        BY_HAND,
        "UPDATE data_flow_runs SET status = 'success', ended_at = now()",
        "DELETE FROM data_flow_runs",
        "TRUNCATE data_flow_runs",
    ],
)
def test_a_run_given_up_by_hand_is_told_to_stop_and_its_flow_waits_for_the_end_of_its_thread(
    db: Conn, database_url: str, statement: str
) -> None:
    watching = Watching()
    add_flow(db, "Slow")
    with (
        Heartbeat(flows=[watching.flow], database_url=database_url, runner_ttl=1) as hb,
        Heartbeat(flows=[watching.flow], database_url=database_url) as other,
    ):
        beat = Background(hb.beat)
        wait_until(lambda: len(live_runs(db)) == 1)
        db.execute(statement)
        assert stuck_threads(db) == 1, "from that moment on, and not only once its process has heard of it"
        make_due(db)
        assert other.beat().flows_due == 0
        assert watching.told.wait(10)
        assert hb.health().stuck_threads == 1
        assert hb.beat().flows_due == 0
        watching.gate.open()
        beat.result()
        wait_until(lambda: stuck_threads(db) == 0, what="the note of its thread to go")
        assert hb.health().stuck_threads == 0
        make_due(db)
        assert other.beat().flows_succeeded == 1


def test_a_run_whose_flow_is_deleted_is_told_to_stop(db: Conn, database_url: str) -> None:
    watching = Watching()
    add_flow(db, "Slow")
    with Heartbeat(flows=[watching.flow], database_url=database_url, runner_ttl=1) as hb:
        beat = Background(hb.beat)
        wait_until(lambda: len(live_runs(db)) == 1)
        db.execute("DELETE FROM data_flows")
        assert watching.told.wait(10)
        watching.gate.open()
        assert beat.result().flows_failed == 1
        wait_until(lambda: stuck_threads(db) == 0, what="the note of its thread to go")


def test_a_run_that_ends_before_its_process_hears_that_it_was_given_up_leaves_no_note(
    db: Conn, database_url: str
) -> None:
    gate = Gate()
    add_flow(db, "Slow")
    with Heartbeat(flows=[gate.flow("Slow")], database_url=database_url) as hb:
        beat = Background(hb.beat)
        wait_until(lambda: gate.begun)
        db.execute(BY_HAND)
        assert stuck_threads(db) == 1
        gate.open()
        beat.result()
        wait_until(lambda: stuck_threads(db) == 0, what="the note of its thread to go")


def test_the_query_of_a_run_given_up_by_hand_is_cancelled(db: Conn, database_url: str) -> None:
    def run(flow: DataFlow) -> None:
        with flow.connection() as conn:
            conn.execute("SELECT pg_sleep(60)")

    add_flow(db, "Slow")
    sleeping = (
        "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)' AND state = 'active'"
    )
    with Heartbeat(flows=[flow_class("Slow", run)], database_url=database_url, runner_ttl=1) as hb:
        beat = Background(hb.beat)
        wait_until(lambda: db.execute(sleeping).fetchone() == (1,))
        db.execute(BY_HAND)
        beat.result()
        wait_until(lambda: db.execute(sleeping).fetchone() == (0,), what="the query to end")
        wait_until(lambda: stuck_threads(db) == 0, what="the note of its thread to go")


def test_a_run_in_progress_cannot_be_set_back_to_pending(db: Conn, database_url: str) -> None:
    gate = Gate()
    add_flow(db, "Slow")
    with Heartbeat(flows=[gate.flow("Slow")], database_url=database_url) as hb:
        beat = Background(hb.beat)
        wait_until(lambda: gate.begun)
        with pytest.raises(psycopg.errors.RestrictViolation, match="cannot wait again"):
            db.execute("UPDATE data_flow_runs SET status = 'pending', started_at = NULL, runner_id = NULL")
        gate.open()
        assert beat.result().flows_succeeded == 1


@pytest.mark.parametrize("ending", ["failed", "success"])
def test_the_next_heartbeat_puts_right_what_a_flow_says_of_a_run_ended_by_hand(
    db: Conn, database_url: str, ending: str
) -> None:
    gate = Gate()
    add_flow(db, "Slow")
    with Heartbeat(flows=[gate.flow("Slow")], database_url=database_url) as hb:
        beat = Background(hb.beat)
        wait_until(lambda: gate.begun)
        assert flow_row(db, "Slow").last_run_status == "in_progress"
        db.execute("UPDATE data_flow_runs SET status = %s, ended_at = now()", [ending])
        hb.beat()
        assert flow_row(db, "Slow").last_run_status == ending
        gate.open()
        beat.result()
    assert flow_row(db, "Slow").last_run_status == ending


def test_a_live_run_that_is_deleted_leaves_the_status_of_the_one_before(db: Conn, database_url: str) -> None:
    gate = Gate()
    gate.open()
    add_flow(db, "Slow")
    with Heartbeat(flows=[gate.flow("Slow")], database_url=database_url) as hb:
        hb.beat()
        db.execute(
            "INSERT INTO data_flow_runs (data_flow_id, status, started_at, runner_id) "
            "SELECT 1, 'in_progress', now(), id FROM data_flow_runners"
        )
        db.execute("UPDATE data_flows SET last_run_status = 'in_progress'")
        db.execute("DELETE FROM data_flow_runs WHERE status = 'in_progress'")
        hb.beat()
    assert flow_row(db, "Slow").last_run_status == "success"


def test_a_request_withdrawn_or_ended_by_hand_changes_no_status(db: Conn, database_url: str) -> None:
    add_flow(db, "Noop")
    with Heartbeat(flows=[Noop], database_url=database_url) as hb:
        hb.beat()
        for statement in ("DELETE FROM data_flow_runs WHERE ended_at IS NULL", BY_HAND):
            request_run(db, "Noop")
            db.execute(statement)
            assert hb.beat().flows_due == 0
            assert flow_row(db, "Noop").last_run_status == "success"


def test_a_flow_deleted_while_it_runs_takes_nothing_else_along(db: Conn, database_url: str) -> None:
    gate = Gate()
    add_flow(db, "Slow")
    add_flow(db, "Other", configuration={"class_name": "Slow"})
    with Heartbeat(flows=[gate.flow("Slow")], database_url=database_url) as hb:
        beat = Background(hb.beat)
        wait_until(lambda: gate.now == 2)
        db.execute("DELETE FROM data_flows WHERE name = 'Slow'")
        gate.open()
        report = beat.result()
        assert (report.flows_triggered, report.flows_succeeded, report.flows_running) == (2, 1, 0)
        assert statuses(db) == {"Other": ["success"]}
        assert heartbeat_row(db, report.heartbeat_id).finished_at is not None
        add_flow(db, "Slow")
        assert hb.beat().flows_succeeded == 1, "one of its name can be added again"
    assert db.execute("SELECT count(*) FROM data_flow_stale_statuses").fetchone() == (0,)


def test_a_runner_deleted_by_hand_begins_anew_and_its_runs_write_nothing(db: Conn, database_url: str) -> None:
    gate = Gate()
    add_flow(db, "Slow")
    with Heartbeat(flows=[gate.flow("Slow"), Noop], database_url=database_url, runner_ttl=1) as hb:
        beat = Background(hb.beat)
        wait_until(lambda: gate.begun)
        [(old,)] = db.execute("DELETE FROM data_flow_runners RETURNING id").fetchall()
        wait_until(
            lambda: (
                db.execute("SELECT count(*) FROM data_flow_runners WHERE id <> %s", [old]).fetchone() == (1,)
            ),
            what="a new registration",
        )
        wait_until(lambda: runs_of(db, "Slow")[0].status == "failed", what="its run to be failed")
        gate.open()
        assert beat.result().flows_failed == 1
        add_flow(db, "Noop")
        assert hb.beat().flows_succeeded == 1
    assert statuses(db) == {"Slow": ["failed"], "Noop": ["success"]}


# --- an open transaction --------------------------------------------------------------------------------

IN_THE_WAY = {
    "an edit": "UPDATE data_flows SET description = 'mine' WHERE name = 'Slow'",
    "a lock": "SELECT * FROM data_flows WHERE name = 'Slow' FOR UPDATE",
    "a deletion": "DELETE FROM data_flows WHERE name = 'Slow'",
    "an end by hand": BY_HAND + " AND data_flow_id = (SELECT id FROM data_flows WHERE name = 'Slow')",
    "a lock on the run": "SELECT * FROM data_flow_runs WHERE data_flow_id = 1 FOR UPDATE",
}


@pytest.mark.parametrize("statement", IN_THE_WAY.values(), ids=IN_THE_WAY.keys())
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_an_open_transaction_on_one_flow_delays_the_record_of_no_other(
    db: Conn, database_url: str, statement: str, end: str
) -> None:
    gate = Gate()
    assert add_flow(db, "Slow") == 1
    for number in range(5):
        add_flow(db, f"other {number}", configuration={"class_name": "Slow"})
    with (
        psycopg.connect(database_url) as dba,
        Heartbeat(flows=[gate.flow("Slow")], database_url=database_url, time_budget=3) as hb,
    ):
        beat = Background(hb.beat)
        wait_until(lambda: gate.now == 6)
        dba.execute(statement)
        gate.open()
        wait_until(lambda: statuses_of(db, "other %") == ["success"] * 5, what="the records of the others")
        dba.execute(end)
        beat.result()
        wait_until(lambda: not live_runs(db), what="the last record")
        wait_until(lambda: hb.beat() and stale_statuses(db) == [], what="the statuses to be put right")
        wait_until(lambda: stuck_threads(db) == 0, what="no flow to be kept from starting")
    if "DELETE" in statement and end == "commit":
        assert "Slow" not in statuses(db)
        return
    last = "failed" if statement.startswith(BY_HAND) and end == "commit" else "success"
    assert statuses_of(db, "Slow") == [last]
    assert flow_row(db, "Slow").last_run_status == last


@pytest.mark.parametrize("statement", ["SELECT * FROM data_flows WHERE name = 'Stuck' FOR UPDATE",
                                       "DELETE FROM data_flows WHERE name = 'Stuck'"])  # fmt: skip
def test_an_open_transaction_on_a_flow_that_timed_out_delays_the_record_of_no_other(
    db: Conn, database_url: str, statement: str
) -> None:
    gate, told = Gate(), threading.Event()

    def outlive_its_time(flow: DataFlow) -> None:
        if flow.stopping.wait(30):
            told.set()
        gate.hold(flow)

    flows = [flow_class("Stuck", outlive_its_time), gate.flow("Other")]
    add_flow(db, "Stuck", run_timeout=1)
    add_flow(db, "Other")
    with (
        psycopg.connect(database_url) as dba,
        Heartbeat(flows=flows, database_url=database_url, time_budget=5) as hb,
    ):
        beat = Background(hb.beat)
        wait_until(lambda: len(live_runs(db)) == 2 and gate.begun)
        dba.execute(statement)
        assert told.wait(30), "the timeout, whose note needs the locked row"
        gate.open()
        wait_until(lambda: statuses_of(db, "Other") == ["success"], what="the record of the other")
        dba.rollback()
        beat.result()
        wait_until(lambda: not live_runs(db), what="the last record")
    assert statuses(db) == {"Stuck": ["failed"], "Other": ["success"]}


def stale_statuses(db: Conn) -> list[Any]:
    return db.execute(
        "SELECT name FROM data_flows WHERE last_run_status IN ('pending', 'in_progress')"
    ).fetchall()


@pytest.mark.parametrize("statement", ["UPDATE data_flows SET description = 'x' WHERE name = 'Noop'",
                                       "INSERT INTO data_flow_runs (data_flow_id) VALUES (1)",
                                       "SELECT * FROM data_flows FOR KEY SHARE"])  # fmt: skip
def test_a_flow_in_an_open_transaction_waits_for_the_next_heartbeat_and_holds_none_up(
    db: Conn, database_url: str, statement: str
) -> None:
    assert add_flow(db, "Noop") == 1
    with psycopg.connect(database_url) as dba, Heartbeat(flows=[Noop], database_url=database_url) as hb:
        dba.execute(statement)
        begin = time.monotonic()
        report = hb.beat()
        assert time.monotonic() - begin < 2
        assert (report.flows_due, report.flows_triggered, report.flows_remaining) == (1, 0, 1)
        dba.commit()
        assert hb.beat().flows_succeeded == 1


def test_a_request_made_in_a_transaction_runs_once_it_is_committed(db: Conn, database_url: str) -> None:
    add_flow(db, "Noop", enabled=False)
    with psycopg.connect(database_url) as dba, Heartbeat(flows=[Noop], database_url=database_url) as hb:
        dba.execute("INSERT INTO data_flow_runs (data_flow_id) VALUES (1)")
        assert hb.beat().flows_due == 0
        dba.commit()
        assert hb.beat().flows_succeeded == 1


def test_a_race_for_the_same_slot_ends_with_one_live_run(db: Conn, database_url: str) -> None:
    add_flow(db, "Slow")
    gate = Gate()
    with Heartbeat(flows=[gate.flow("Slow")], database_url=database_url) as hb:
        beat = Background(hb.beat)
        wait_until(lambda: gate.begun)
        with pytest.raises(psycopg.errors.UniqueViolation) as refusal:
            request_run(db, "Slow")
        assert refusal.value.diag.constraint_name == "data_flow_runs_one_live_run_per_flow"
        gate.open()
        report: BeatReport = beat.result()
        assert report.flows_succeeded == 1


# --- the tables as other people's triggers see them -----------------------------------------------------


def test_settings_of_the_role_or_the_database_do_not_change_what_a_heartbeat_does(
    db: Conn, database_url: str
) -> None:
    """A DBA may have set these for the database; a statement of ours must not depend on them."""
    name = psycopg.sql.Identifier(db.info.dbname)
    for setting in (
        "timezone = 'Asia/Kathmandu'",
        "datestyle = 'German'",
        "intervalstyle = 'postgres_verbose'",
        "default_transaction_isolation = 'repeatable read'",
        "standard_conforming_strings = 'on'",
        "bytea_output = 'escape'",
        "extra_float_digits = 0",
    ):
        db.execute(psycopg.sql.SQL("ALTER DATABASE {} SET " + setting).format(name))
    add_flow(db, "Stamp")
    stamp = flow_class("Stamp", lambda self: {"name": self.name})

    class Failing(DataFlow):
        def run(self) -> None:
            raise ValueError("no")

    add_flow(db, "Failing")
    with Heartbeat(flows=[stamp, Failing], database_url=database_url) as hb:
        report = hb.beat()
        assert (report.flows_succeeded, report.flows_failed) == (1, 1)
        assert hb.runs("Stamp")[0].duration is not None
        assert report.next_due_at is not None
