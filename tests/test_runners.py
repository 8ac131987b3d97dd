"""Processes: their sign of life, what is done about the dead, and what a process leaves when it stops."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from heartbeat import DatabaseUnavailable, DataFlow, Heartbeat, Stopping
from tests.support.flow_classes import Gate, Noop, flow_class
from tests.support.rows import Conn, add_flow, flow_row, heartbeat_row, request_run, runs_of, statuses
from tests.support.waiting import Background, wait_until


def runners(db: Conn) -> int:
    return int(db.execute("SELECT count(*) FROM data_flow_runners").fetchone()[0])


def add_dead_runner(db: Conn) -> str:
    """Register a process that was last seen an hour ago."""
    # The server's own start counts as everybody's sign of life: it has to be a while ago.
    age = "SELECT clock_timestamp() - pg_postmaster_start_time() > interval '1.5 s'"
    wait_until(lambda: db.execute(age).fetchone() == (True,), what="the server to be older than a TTL")
    runner = str(uuid4())
    db.execute(
        "INSERT INTO data_flow_runners (id, host, pid, started_at, last_seen_at) "
        "VALUES (%s, 'host-a', 4711, now() - interval '2 hours', now() - interval '1 hour')",
        [runner],
    )
    return runner


def add_run_of(db: Conn, name: str, runner: str, heartbeat_id: int | None = None) -> int:
    """Claim a flow for a runner, as it would have."""
    flow_id = add_flow(db, name, last_run_status="in_progress", next_run_at="2100-01-01")
    row = db.execute(
        "INSERT INTO data_flow_runs (data_flow_id, heartbeat_id, runner_id, status, started_at) "
        "VALUES (%s, %s, %s, 'in_progress', now() - interval '1 hour') RETURNING id",
        [flow_id, heartbeat_id, runner],
    ).fetchone()
    return int(row[0])


# --- the dead -------------------------------------------------------------------------------------------


def test_the_runs_of_a_dead_process_are_failed_with_who_it_was(db: Conn, database_url: str) -> None:
    runner = add_dead_runner(db)
    add_run_of(db, "orders", runner)
    with Heartbeat(database_url=database_url, runner_ttl=1) as hb:
        hb.beat()
        [run] = runs_of(db, "orders")
        assert run.status == "failed"
        for part in (runner, "host-a", "4711", "last seen"):
            assert part in run.error
        assert flow_row(db, "orders").last_run_status == "failed"
        wait_until(lambda: runners(db) == 1, what="the dead one's row to go")


def test_a_run_of_nobody_is_failed_too(db: Conn, database_url: str) -> None:
    add_run_of(db, "orders", str(uuid4()))
    with Heartbeat(database_url=database_url) as hb:
        hb.beat()
        wait_until(lambda: statuses(db) == {"orders": ["failed"]})
    assert "gone" in runs_of(db, "orders")[0].error


def test_what_the_dead_ran_is_due_in_the_same_heartbeat(db: Conn, database_url: str) -> None:
    runner = add_dead_runner(db)
    add_run_of(db, "Noop", runner)
    db.execute("UPDATE data_flows SET next_run_at = now() - interval '1 min'")
    with Heartbeat(flows=[Noop], database_url=database_url, runner_ttl=1) as hb:
        report = hb.beat()
    assert statuses(db) == {"Noop": ["failed", "success"]}
    assert (report.flows_due, report.flows_triggered) == (1, 1)


def test_the_heartbeat_of_a_dead_process_is_finished_with_what_its_runs_say(
    db: Conn, database_url: str
) -> None:
    runner = add_dead_runner(db)
    [(heartbeat_id,)] = db.execute(
        "INSERT INTO heartbeats (runner_id, received_at, flows_due) VALUES (%s, now() - interval '1 hour', 3) "
        "RETURNING id",
        [runner],
    ).fetchall()
    add_run_of(db, "a", runner, heartbeat_id)
    done = add_run_of(db, "b", runner, heartbeat_id)
    db.execute("UPDATE data_flow_runs SET status = 'success', ended_at = now() WHERE id = %s", [done])
    with Heartbeat(database_url=database_url, runner_ttl=1) as hb:
        hb.beat()
        wait_until(lambda: heartbeat_row(db, heartbeat_id).finished_at, what="the heartbeat to be finished")
    row = heartbeat_row(db, heartbeat_id)
    assert (row.flows_due, row.flows_triggered, row.flows_succeeded, row.flows_failed) == (3, 2, 1, 1)


def test_the_living_are_left_in_peace_however_long_their_runs_take(db: Conn, database_url: str) -> None:
    gate = Gate()
    add_flow(db, "Slow")
    with (
        Heartbeat(flows=[gate.flow("Slow")], database_url=database_url, runner_ttl=1) as one,
        Heartbeat(flows=[Noop], database_url=database_url, runner_ttl=1) as two,
    ):
        beat = Background(one.beat)
        wait_until(lambda: gate.begun)
        until = time.monotonic() + 2.5  # past the TTL, with renewals
        while time.monotonic() < until:
            two.beat()
            assert statuses(db) == {"Slow": ["in_progress"]}
            time.sleep(0.1)
        gate.open()
        assert beat.result().flows_succeeded == 1


def test_a_process_renews_its_sign_of_life_without_any_heartbeat(db: Conn, database_url: str) -> None:
    with Heartbeat(database_url=database_url, runner_ttl=1):
        seen = "SELECT last_seen_at FROM data_flow_runners"
        first = db.execute(seen).fetchone()
        wait_until(lambda: db.execute(seen).fetchone() > first, seconds=3, what="a renewal")


def test_a_process_that_pings_for_itself_repairs_without_a_heartbeat(db: Conn, database_url: str) -> None:
    with Heartbeat(database_url=database_url, runner_ttl=1):
        add_run_of(db, "orders", add_dead_runner(db))
        wait_until(lambda: statuses(db) == {"orders": ["failed"]}, seconds=5)


def test_a_run_that_its_living_process_does_not_know_is_closed_by_it(db: Conn, database_url: str) -> None:
    with Heartbeat(flows=[Noop], database_url=database_url, runner_ttl=1) as hb:
        [(runner,)] = db.execute("SELECT id FROM data_flow_runners").fetchall()
        add_run_of(db, "Noop", str(runner))
        wait_until(lambda: statuses(db) == {"Noop": ["failed"]}, seconds=5, what="the lost run to be closed")
        assert "never began" in runs_of(db, "Noop")[0].error
        db.execute("UPDATE data_flows SET next_run_at = now()")
        assert hb.beat().flows_succeeded == 1


# --- the end --------------------------------------------------------------------------------------------


def test_a_service_that_closes_waits_for_what_runs(db: Conn, database_url: str) -> None:
    def end_late(self: DataFlow) -> str:
        assert self.stopping.wait(20)
        time.sleep(0.3)
        return "ended"

    add_flow(db, "Late")
    hb = Heartbeat(flows=[flow_class("Late", end_late)], database_url=database_url, time_budget=0.1).start()
    assert hb.beat().flows_running == 1
    hb.close()
    assert runs_of(db, "Late")[0].result == "ended"
    assert runners(db) == 0
    assert db.execute("SELECT bool_and(finished_at IS NOT NULL) FROM heartbeats").fetchone() == (True,)


def test_what_outlives_the_drain_is_failed_as_interrupted_before_the_close_returns(
    db: Conn, database_url: str
) -> None:
    gate = Gate()
    for number in range(3):
        add_flow(db, f"slow {number}", configuration={"class_name": "Slow"})
    hb = Heartbeat(
        flows=[gate.flow("Slow")],
        database_url=database_url,
        concurrency=2,
        time_budget=0.1,
        drain_timeout=0.2,
    ).start()
    hb.beat()
    begin = time.monotonic()
    hb.close()
    assert time.monotonic() - begin < 3
    runs = [run for number in range(3) for run in runs_of(db, f"slow {number}")]
    assert [run.status for run in runs] == ["failed"] * 2
    assert all("Interrupted" in run.error and "stopped" in run.error for run in runs)
    assert runners(db) == 0
    gate.open()


def test_a_flow_that_watches_is_told_when_the_service_stops(db: Conn, database_url: str) -> None:
    add_flow(db, "Watch")
    watch = flow_class("Watch", lambda self: self.stopping.wait(20))
    hb = Heartbeat(flows=[watch], database_url=database_url, time_budget=0.1).start()
    assert hb.beat().flows_running == 1
    begin = time.monotonic()
    hb.close()
    assert time.monotonic() - begin < 5
    assert runs_of(db, "Watch")[0].result is True


def test_after_it_was_told_to_stop_a_service_claims_nothing(db: Conn, database_url: str) -> None:
    add_flow(db, "Noop")
    with Heartbeat(flows=[Noop], database_url=database_url) as hb:
        hb.stop_claiming()
        with pytest.raises(Stopping):
            hb.beat()
        with pytest.raises(Stopping):
            hb.trigger_run("Noop")
    assert runs_of(db, "Noop") == []


def test_a_heartbeat_under_way_is_answered_while_the_service_drains(db: Conn, database_url: str) -> None:
    gate = Gate()
    for number in range(3):
        add_flow(db, f"slow {number}", configuration={"class_name": "Slow"})
    with Heartbeat(flows=[gate.flow("Slow")], database_url=database_url, concurrency=1) as hb:
        beat = Background(hb.beat)
        wait_until(lambda: gate.begun)
        hb.stop_claiming()
        gate.open()
        report = beat.result()
    assert (report.flows_triggered, report.flows_succeeded, report.flows_remaining) == (1, 1, 2)


@pytest.mark.parametrize("how", ["a heartbeat", "a triggered run"])
def test_a_claim_under_way_when_the_service_closes_leaves_no_live_run(
    db: Conn, database_url: str, how: str
) -> None:
    gate = Gate()
    add_flow(db, "Slow")
    hb = Heartbeat(flows=[gate.flow("Slow")], database_url=database_url, drain_timeout=0.2).start()
    with psycopg.connect(database_url) as dba:
        dba.execute("LOCK TABLE data_flow_runs IN SHARE MODE")  # the claim's insert waits; reading does not
        call = Background(hb.beat if how == "a heartbeat" else lambda: hb.trigger_run("Slow"))
        wait_until(lambda: waits_for_a_lock(db), what="the claim to be under way")
        closing = Background(hb.close)
        time.sleep(0.3)  # let it get as far as it can
    closing.result()
    wait_until(lambda: call.done, what="the caller to be told")
    gate.open()
    assert [run.status for run in runs_of(db, "Slow")] in ([], ["failed"])
    assert runners(db) == 0


def waits_for_a_lock(db: Conn) -> bool:
    row = db.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' "
        "AND query ~ '(requested|wanted) AS MATERIALIZED'"  # a claim, and not the housekeeper, who waits too
    ).fetchone()
    return row == (1,)


# --- the database, gone for a while ---------------------------------------------------------------------


@pytest.fixture
def outage(db: Conn, server_url: str) -> Any:
    """Take this test's database away and give it back: `outage.begin()`, `outage.end()`."""
    return Outage(server_url, db.info.dbname)


class Outage:
    def __init__(self, server_url: str, database: str) -> None:
        self._server_url = server_url
        self._name = psycopg.sql.Identifier(database)
        self._database = database

    def begin(self) -> None:
        self._allow(False)
        with psycopg.connect(self._server_url, autocommit=True) as conn:
            conn.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [self._database]
            )

    def end(self) -> None:
        self._allow(True)

    def _allow(self, allowed: bool) -> None:
        with psycopg.connect(self._server_url, autocommit=True) as conn:
            conn.execute(
                psycopg.sql.SQL("ALTER DATABASE {} WITH ALLOW_CONNECTIONS {}").format(
                    self._name, psycopg.sql.Literal(allowed)
                )
            )


def test_a_heartbeat_without_a_database_fails_in_bounded_time_and_the_next_one_works(
    database_url: str, outage: Outage
) -> None:
    with Heartbeat(flows=[Noop], database_url=database_url) as hb:
        hb.add_flow("Noop", run_interval=60)
        outage.begin()
        begin = time.monotonic()
        with pytest.raises(DatabaseUnavailable) as refusal:
            hb.beat()
        assert time.monotonic() - begin < 5
        assert "\n" not in str(refusal.value)
        assert not hb.health().ok
        outage.end()
        assert hb.beat().flows_succeeded == 1
        assert hb.health().ok


def test_an_outcome_is_kept_until_the_database_is_back_and_so_is_the_heartbeats_end(
    database_url: str, outage: Outage
) -> None:
    gate = Gate()
    with Heartbeat(flows=[gate.flow("Slow")], database_url=database_url, time_budget=1) as hb:
        hb.add_flow("Slow", run_interval=60)
        beat = Background(hb.beat)
        wait_until(lambda: gate.begun)
        outage.begin()
        gate.open()
        with pytest.raises(DatabaseUnavailable):
            beat.result()
        outage.end()
        wait_until(lambda: hb.runs()[0].status == "success", what="the outcome to be written")
        with psycopg.connect(database_url, autocommit=True) as db:
            wait_until(lambda: finished(db), what="the heartbeat to be finished")
            row = heartbeat_row(db, 1)
        assert (row.flows_triggered, row.flows_succeeded) == (1, 1)


def finished(db: Conn) -> bool:
    return db.execute("SELECT bool_and(finished_at IS NOT NULL) FROM heartbeats").fetchone() == (True,)


def test_health_says_that_an_outcome_has_waited_for_longer_than_the_ttl(db: Conn, database_url: str) -> None:
    gate = Gate()
    add_flow(db, "Slow")
    with (
        psycopg.connect(database_url) as dba,
        Heartbeat(flows=[gate.flow("Slow")], database_url=database_url, runner_ttl=1, time_budget=1) as hb,
    ):
        beat = Background(hb.beat)
        wait_until(lambda: gate.begun)
        dba.execute("LOCK TABLE data_flow_runs IN SHARE MODE")  # its flows are read, and nothing is recorded
        gate.open()
        assert hb.health().ok
        wait_until(lambda: not hb.health().ok, what="the outcome to have waited for long")
        assert "could not be recorded" in (hb.health().reason or "")
        dba.rollback()
        wait_until(lambda: hb.health().ok, what="the record")
        beat.result()


def test_a_triggered_run_comes_back_though_the_database_was_away_when_it_ended(
    database_url: str, outage: Outage
) -> None:
    gate = Gate()
    with Heartbeat(flows=[gate.flow("Slow")], database_url=database_url) as hb:
        hb.add_flow("Slow", run_interval=60)
        call = Background(lambda: hb.trigger_run("Slow"))
        wait_until(lambda: gate.begun)
        outage.begin()
        gate.open()
        time.sleep(0.2)
        outage.end()
        assert call.result().status == "success"


def test_a_process_that_lost_its_lease_stops_claiming_and_says_so(
    db: Conn, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "heartbeat")
    gate = Gate()

    def hold(self: DataFlow) -> None:
        gate.hold(self)

    add_flow(db, "Slow")
    with (
        psycopg.connect(database_url) as dba,
        Heartbeat(
            flows=[flow_class("Slow", hold), Noop], database_url=database_url, runner_ttl=1, time_budget=1
        ) as hb,
    ):
        assert hb.beat().flows_running == 1
        dba.execute("LOCK TABLE data_flow_runners IN SHARE MODE")  # no renewal gets through
        wait_until(lambda: any("lease" in record.getMessage() for record in caplog.records))
        time.sleep(1)  # past the TTL: this waits for a clock, not for luck
        add_flow(db, "Noop")
        cpu = time.process_time()
        with suppress(DatabaseUnavailable):
            assert hb.beat().flows_triggered == 0
        assert time.process_time() - cpu < 0.7, "and it does not spin while it waits"
        dba.commit()
        wait_until(lambda: hb.beat().flows_succeeded == 1, what="it to work again")
        gate.open()
    assert request_run(db, "Noop")
