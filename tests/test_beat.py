"""One heartbeat: what it claims, in which order and how much at once, and what it answers."""

from __future__ import annotations

import random
import time
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest

from heartbeat import DataFlow, Heartbeat
from tests.support.flow_classes import Gate, Noop, flow_class
from tests.support.rows import (
    Conn,
    add_flow,
    flow_row,
    heartbeat_row,
    make_due,
    request_run,
    runs_of,
    statuses,
)
from tests.support.waiting import Background, wait_until


def add_noops(db: Conn, count: int) -> None:
    db.execute(
        "INSERT INTO data_flows (name, run_interval, configuration) "
        """SELECT 'noop ' || n, 3600, '{"class_name": "Noop"}' FROM generate_series(1, %s) AS n""",
        [count],
    )


def move(db: Conn, name: str, when: str) -> Any:
    """Set a flow's next run to so far from now, and return it."""
    db.execute("UPDATE data_flows SET next_run_at = now() + %s::interval WHERE name = %s", [when, name])
    return flow_row(db, name).next_run_at


# --- what is due ----------------------------------------------------------------------------------------


def test_a_due_flow_runs_and_is_due_again_an_interval_later(db: Conn, database_url: str) -> None:
    add_flow(db, "Noop", run_interval=60)
    slot = move(db, "Noop", "-10 s")
    with Heartbeat(flows=[Noop], database_url=database_url) as hb:
        report = hb.beat()
        again = hb.beat()
    flow, [run] = flow_row(db, "Noop"), runs_of(db, "Noop")
    assert (flow.last_run_at, flow.last_run_status) == (report.timestamp, "success")
    assert flow.next_run_at == report.timestamp + timedelta(seconds=60)
    assert (run.status, run.scheduled_for, run.heartbeat_id) == ("success", slot, report.heartbeat_id)
    assert report.timestamp <= run.started_at <= run.ended_at
    assert again.flows_due == 0


def test_missed_slots_are_one_run_not_many(db: Conn, database_url: str) -> None:
    add_flow(db, "Noop", run_interval=60)
    move(db, "Noop", "-1 day")
    with Heartbeat(flows=[Noop], database_url=database_url) as hb:
        assert [hb.beat().flows_triggered for _ in range(3)] == [1, 0, 0]
    assert statuses(db) == {"Noop": ["success"]}


@pytest.mark.parametrize(
    ("change", "runs"),
    [
        ("enabled = false", 0),
        ("next_run_at = now() + interval '1 day'", 0),
        ("next_run_at = now()", 1),
        ("next_run_at = now() + interval '1 day', run_interval = 1", 0),
        ("last_run_at = now() - interval '1 hour', run_interval = 60", 1),
        ("last_run_at = now() - interval '1 hour', run_interval = 7200", 0),
    ],
)
def test_what_a_dba_changes_counts_at_the_next_heartbeat(
    db: Conn, database_url: str, change: str, runs: int
) -> None:
    add_flow(db, "Noop")
    with Heartbeat(flows=[Noop], database_url=database_url) as hb:
        db.execute(f"UPDATE data_flows SET {change}")
        assert hb.beat().flows_triggered == runs


def test_a_flow_that_was_added_while_the_service_runs_is_run(db: Conn, database_url: str) -> None:
    with Heartbeat(flows=[Noop], database_url=database_url) as hb:
        assert hb.beat().flows_due == 0
        add_flow(db, "Noop")
        assert hb.beat().flows_succeeded == 1


def test_a_minutes_flow_runs_on_every_ping_of_a_minute_with_jitter(db: Conn, database_url: str) -> None:
    add_flow(db, "Noop", run_interval=60)
    dice = random.Random(1)
    pings = [60 * minute + dice.uniform(-0.2, 0.2) for minute in range(30)]
    with Heartbeat(flows=[Noop], database_url=database_url) as hb:
        for earlier, later in pairwise(pings):
            assert hb.beat().flows_triggered == 1
            # The minute passes: everything in the table is that much longer ago.
            db.execute(
                "UPDATE data_flows SET last_run_at = last_run_at - %(s)s * interval '1 s', "
                "next_run_at = next_run_at - %(s)s * interval '1 s'",
                {"s": later - earlier},
            )


@pytest.mark.parametrize(
    ("run_interval", "early", "due"),
    [(3600, "20 s", 1), (3600, "60 s", 0), (60, "4 s", 1), (60, "20 s", 0)],
    ids=["within", "beyond", "within a tenth", "beyond a tenth"],
)
def test_a_little_early_is_due_at_most_a_tenth_of_the_interval(
    db: Conn, database_url: str, run_interval: int, early: str, due: int
) -> None:
    add_flow(db, "Noop", run_interval=run_interval)
    move(db, "Noop", early)
    with Heartbeat(flows=[Noop], database_url=database_url, run_tolerance=30) as hb:
        assert len(hb.due_to_run()) == due
        assert hb.beat().flows_due == due
    assert len(runs_of(db, "Noop")) == due


def test_with_no_tolerance_early_is_not_due(db: Conn, database_url: str) -> None:
    add_flow(db, "Noop", run_interval=315_576_000)
    move(db, "Noop", "10 s")
    with Heartbeat(flows=[Noop], database_url=database_url, run_tolerance=0) as hb:
        assert hb.beat().flows_due == 0


def test_a_heartbeat_runs_a_flow_once_however_short_its_interval(db: Conn, database_url: str) -> None:
    add_flow(db, "Short", run_interval=1)
    for number in range(3):
        add_flow(db, f"slow {number}", configuration={"class_name": "Slow"})
    flows = [flow_class("Short", lambda self: None), flow_class("Slow", lambda self: time.sleep(0.5))]
    with Heartbeat(flows=flows, database_url=database_url, concurrency=1) as hb:
        assert hb.beat().flows_triggered == 4
        assert len(runs_of(db, "Short")) == 1
        assert hb.beat().flows_triggered == 1, "it has been due since"


# --- what is asked for ----------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["due", "not due", "paused", "held"])
def test_a_run_that_is_asked_for_runs_whatever_the_schedule_says(
    db: Conn, database_url: str, state: str
) -> None:
    add_flow(db, "Noop", enabled=state != "paused")
    if state in ("not due", "held"):
        move(db, "Noop", "1 hour" if state == "not due" else "30 days")
    requested = request_run(db, "Noop")
    asked_for_at = runs_of(db, "Noop")[0].created_at
    with Heartbeat(flows=[Noop], database_url=database_url) as hb:
        report = hb.beat()
    assert (report.flows_due, report.flows_triggered, report.flows_succeeded) == (1, 1, 1)
    [run] = runs_of(db, "Noop")
    assert (run.id, run.status, run.heartbeat_id) == (requested, "success", report.heartbeat_id)
    assert run.scheduled_for == asked_for_at
    assert flow_row(db, "Noop").last_run_status == "success"


@pytest.mark.parametrize("when", ["5 s", "59 s", "61 s", "30 days"])
def test_a_run_that_is_asked_for_never_brings_the_next_one_forward(
    db: Conn, database_url: str, when: str
) -> None:
    add_flow(db, "Noop", run_interval=60)
    before = move(db, "Noop", when)
    request_run(db, "Noop")
    with Heartbeat(flows=[Noop], database_url=database_url) as hb:
        hb.beat()
    assert flow_row(db, "Noop").next_run_at >= before


def test_a_flow_that_is_asked_for_twice_in_a_row_runs_twice(db: Conn, database_url: str) -> None:
    add_flow(db, "Noop", enabled=False)
    with Heartbeat(flows=[Noop], database_url=database_url) as hb:
        for _ in range(2):
            request_run(db, "Noop")
            assert hb.beat().flows_triggered == 1
        assert hb.beat().flows_due == 0


# --- in which order, and by whom ------------------------------------------------------------------------


def test_requests_come_first_then_the_oldest(db: Conn, database_url: str) -> None:
    gate = Gate()
    gate.open()
    for name, when in [("c", "-1 min"), ("a", "-3 min"), ("b", "-2 min"), ("asked", "1 hour")]:
        add_flow(db, name, configuration={"class_name": "Slow"})
        move(db, name, when)
    request_run(db, "asked")
    with Heartbeat(flows=[gate.flow("Slow")], database_url=database_url, concurrency=1) as hb:
        assert hb.beat().flows_succeeded == 4
    assert gate.begun == ["asked", "a", "b", "c"]


def test_heartbeats_of_several_processes_at_once_claim_each_flow_once(db: Conn, database_url: str) -> None:
    add_noops(db, 600)
    services = [Heartbeat(flows=[Noop], database_url=database_url, concurrency=4).start() for _ in range(3)]
    reports = [background.result() for background in [Background(hb.beat) for hb in services * 2]]
    for hb in services:
        hb.close()
    assert sum(report.flows_triggered for report in reports) == 600
    assert sum(report.flows_succeeded for report in reports) == 600
    assert set(map(tuple, statuses(db).values())) == {("success",)}
    assert db.execute("SELECT count(DISTINCT data_flow_id), count(*) FROM data_flow_runs").fetchone() == (
        600,
        600,
    )


def test_a_retried_heartbeat_starts_nothing_twice(db: Conn, database_url: str) -> None:
    gate = Gate()
    add_flow(db, "Slow", run_interval=1)
    with Heartbeat(flows=[gate.flow("Slow")], database_url=database_url) as hb:
        first = Background(hb.beat)
        wait_until(lambda: gate.begun)
        move(db, "Slow", "-1 hour")
        retry = hb.beat()
        assert (retry.flows_due, retry.flows_triggered, retry.flows_remaining) == (0, 0, 0)
        gate.open()
        assert first.result().flows_succeeded == 1
    assert gate.begun == ["Slow"]


def test_no_more_run_at_once_than_the_concurrency_says(db: Conn, database_url: str) -> None:
    gate = Gate()
    for number in range(12):
        add_flow(db, f"slow {number}", configuration={"class_name": "Slow"})
    with Heartbeat(flows=[gate.flow("Slow")], database_url=database_url, concurrency=3) as hb:
        beats = [Background(hb.beat) for _ in range(3)]
        wait_until(lambda: gate.now == 3)
        gate.open()
        assert sum(beat.result().flows_succeeded for beat in beats) == 12
    assert gate.most == 3


def test_slow_flows_are_not_claimed_before_there_is_a_thread_for_them(db: Conn, database_url: str) -> None:
    gate = Gate()
    for number in range(30):
        add_flow(db, f"slow {number}", configuration={"class_name": "Slow"})
    slow = gate.flow("Slow")
    with (
        Heartbeat(flows=[slow], database_url=database_url, concurrency=2, time_budget=1) as busy,
        Heartbeat(flows=[slow], database_url=database_url, concurrency=3, time_budget=1) as helper,
    ):
        one, other = busy.beat(), helper.beat()
        assert (one.flows_triggered, one.flows_running, one.flows_remaining) == (2, 2, 28)
        assert (other.flows_triggered, other.flows_running, other.flows_remaining) == (3, 3, 25)
        gate.open()


def test_quick_flows_travel_by_the_hundred(db: Conn, database_url: str) -> None:
    add_noops(db, 1000)
    with Heartbeat(flows=[Noop], database_url=database_url, concurrency=2) as hb:
        assert hb.beat().flows_succeeded == 1000
    claims = db.execute("SELECT count(DISTINCT started_at) FROM data_flow_runs").fetchone()[0]
    assert claims < 200, "runs of one claim have one time"


# --- what it answers ------------------------------------------------------------------------------------


def fail(self: DataFlow) -> None:
    raise ValueError("no")


def test_the_counts_add_up(db: Conn, database_url: str) -> None:
    for number in range(5):
        add_flow(db, f"good {number}", configuration={"class_name": "Noop"})
    for number in range(3):
        add_flow(db, f"bad {number}", configuration={"class_name": "Bad"})
    request_run(db, "good 0")  # asked for and due: it counts once
    with Heartbeat(flows=[Noop, flow_class("Bad", fail)], database_url=database_url) as hb:
        report = hb.beat("192.0.2.7")
    assert (report.flows_due, report.flows_triggered, report.flows_succeeded, report.flows_failed) == (
        8,
        8,
        5,
        3,
    )
    assert (report.flows_running, report.flows_remaining) == (0, 0)
    row = heartbeat_row(db, report.heartbeat_id)
    assert (row.flows_due, row.flows_triggered, row.flows_succeeded, row.flows_failed) == (8, 8, 5, 3)
    assert row.received_at == report.timestamp
    assert row.finished_at >= row.received_at
    assert str(row.client_ip) == "192.0.2.7"


def test_a_heartbeat_with_nothing_to_do_is_on_record_too(db: Conn, database_url: str) -> None:
    with Heartbeat(flows=[Noop], database_url=database_url) as hb:
        report = hb.beat()
    assert (report.flows_due, report.flows_triggered, report.flows_remaining, report.next_due_at) == (
        0,
        0,
        0,
        None,
    )
    row = heartbeat_row(db, report.heartbeat_id)
    assert (row.client_ip, row.flows_due, row.finished_at is not None) == (None, 0, True)


def test_the_next_due_time_is_the_earliest_future_one_of_an_enabled_flow(db: Conn, database_url: str) -> None:
    add_flow(db, "Noop", run_interval=600)
    with Heartbeat(flows=[Noop], database_url=database_url) as hb:
        first = hb.beat()
        assert first.next_due_at == first.timestamp + timedelta(seconds=600)
        add_flow(db, "paused", enabled=False)
        move(db, "paused", "1 min")
        add_flow(db, "sooner")
        sooner = move(db, "sooner", "2 min")
        assert hb.beat().next_due_at == sooner


def test_at_the_end_of_its_budget_a_heartbeat_says_what_runs_and_what_remains(
    db: Conn, database_url: str
) -> None:
    gate = Gate()
    for number in range(3):
        add_flow(db, f"slow {number}", configuration={"class_name": "Slow"})
    with Heartbeat(
        flows=[gate.flow("Slow")], database_url=database_url, concurrency=1, time_budget=0.5
    ) as hb:
        begin = time.monotonic()
        report = hb.beat()
        assert 0.4 < time.monotonic() - begin < 3
        assert (report.flows_due, report.flows_triggered, report.flows_running, report.flows_remaining) == (
            3,
            1,
            1,
            2,
        )
        assert report.flows_succeeded == 0
        row = heartbeat_row(db, report.heartbeat_id)
        assert (row.flows_triggered, row.flows_succeeded, row.finished_at) == (1, 0, None)

        gate.open()
        row = wait_until(lambda: closed(db, report.heartbeat_id), what="the heartbeat's row to be closed")
        assert (row.flows_due, row.flows_triggered, row.flows_succeeded, row.flows_failed) == (3, 1, 1, 0)
        assert hb.beat().flows_triggered == 2, "what remained is due at the next"


def closed(db: Conn, heartbeat_id: int) -> Any:
    row = heartbeat_row(db, heartbeat_id)
    return row if row.finished_at else None


def test_a_heartbeat_that_finds_all_threads_busy_waits_and_then_says_what_remains(
    db: Conn, database_url: str
) -> None:
    gate = Gate()
    add_flow(db, "Slow")
    with Heartbeat(
        flows=[gate.flow("Slow"), Noop], database_url=database_url, concurrency=1, time_budget=0.5
    ) as hb:
        assert hb.beat().flows_running == 1
        add_flow(db, "Noop")
        begin = time.monotonic()
        report = hb.beat()
        assert 0.4 < time.monotonic() - begin < 3
        assert (report.flows_due, report.flows_triggered, report.flows_remaining) == (1, 0, 1)
        row = heartbeat_row(db, report.heartbeat_id)
        assert (row.flows_triggered, row.finished_at is not None) == (0, True)
        gate.open()


def test_a_heartbeat_that_waits_for_a_thread_takes_the_first_that_is_free(
    db: Conn, database_url: str
) -> None:
    gate = Gate()
    add_flow(db, "Slow")
    with Heartbeat(flows=[gate.flow("Slow"), Noop], database_url=database_url, concurrency=1) as hb:
        first = Background(hb.beat)
        wait_until(lambda: gate.begun)
        add_flow(db, "Noop")
        second = Background(hb.beat)
        wait_until(lambda: db.execute("SELECT count(*) FROM heartbeats").fetchone() == (2,))
        gate.open()
        assert first.result().flows_succeeded + second.result().flows_succeeded == 2


def test_a_heartbeat_can_be_told_to_wait_for_the_last_end(db: Conn, database_url: str) -> None:
    gate = Gate()
    add_flow(db, "Slow")
    with Heartbeat(flows=[gate.flow("Slow")], database_url=database_url, time_budget=0.1) as hb:
        beat = Background(lambda: hb.beat(until_all_ended=True))
        wait_until(lambda: gate.begun)
        time.sleep(0.3)  # past the budget
        assert not beat.done
        gate.open()
        assert beat.result().flows_succeeded == 1


def test_what_another_heartbeat_started_is_not_counted_as_remaining(db: Conn, database_url: str) -> None:
    gate = Gate()
    add_flow(db, "Slow")
    add_flow(db, "Slow 2", configuration={"class_name": "Slow"})
    slow = gate.flow("Slow")
    with (
        Heartbeat(flows=[slow], database_url=database_url, concurrency=1, time_budget=0.5) as one,
        Heartbeat(flows=[slow], database_url=database_url, concurrency=1, time_budget=0.5) as two,
    ):
        first = Background(one.beat)
        wait_until(lambda: gate.begun)
        assert two.beat().flows_remaining == 0
        assert first.result().flows_remaining == 0
        gate.open()


def test_a_failed_flow_does_not_fail_the_heartbeat_and_runs_again_when_due(
    db: Conn, database_url: str
) -> None:
    add_flow(db, "Bad", run_interval=60)
    with Heartbeat(flows=[flow_class("Bad", fail)], database_url=database_url) as hb:
        assert hb.beat().flows_failed == 1
        assert hb.beat().flows_due == 0, "not before its interval has passed"
        make_due(db, "Bad")
        assert hb.beat().flows_failed == 1


# --- what it tidies up ----------------------------------------------------------------------------------


def test_a_heartbeat_has_what_is_too_old_pruned(db: Conn, database_url: str) -> None:
    add_flow(db, "Noop", enabled=False)
    db.execute(
        "INSERT INTO data_flow_runs (data_flow_id, status, started_at, ended_at) "
        "SELECT 1, 'success', now() - days * interval '1 day', now() - days * interval '1 day' "
        "FROM unnest(ARRAY[31, 29]) AS days, generate_series(1, 100)"
    )
    db.execute(
        "INSERT INTO heartbeats (received_at, finished_at) "
        "SELECT now() - days * interval '1 day', now() - days * interval '1 day' "
        "FROM unnest(ARRAY[31, 29]) AS days, generate_series(1, 100)"
    )
    with Heartbeat(flows=[Noop], database_url=database_url) as hb:
        hb.beat()
        wait_until(lambda: db.execute("SELECT count(*) FROM data_flow_runs").fetchone() == (100,))
        wait_until(lambda: db.execute("SELECT count(*) FROM heartbeats").fetchone() == (101,))


def test_with_a_retention_of_nought_nothing_is_pruned(db: Conn, database_url: str) -> None:
    add_flow(db, "Noop")
    db.execute("INSERT INTO heartbeats (received_at, finished_at) VALUES ('2001-01-01', '2001-01-01')")
    with Heartbeat(flows=[Noop], database_url=database_url, retention_days=0) as hb:
        hb.beat()
        hb.beat()
    assert db.execute("SELECT count(*) FROM heartbeats").fetchone() == (3,)
