"""What the log says of runs, of the process that runs them, and of a database that is away."""

from __future__ import annotations

import logging
import time
from typing import Any

import psycopg
import pytest

from heartbeat import DataFlow, Heartbeat
from heartbeat.engine.outage import Outage
from heartbeat.errors import DatabaseUnavailable, LockTimeout
from tests.support.flow_classes import Gate, Noop, flow_class
from tests.support.rows import Conn, add_flow, add_flows, of_class, runs_of, statuses
from tests.support.waiting import wait_until
from tests.test_runners import add_dead_runner, add_run_of


@pytest.fixture(autouse=True)
def _from_info_on(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "heartbeat")


def lines(caplog: pytest.LogCaptureFixture, event: str) -> list[dict[str, Any]]:
    found = [{**vars(record), "said": record.getMessage()} for record in caplog.records]
    return [line for line in found if line.get("event") == event]


def raises(self: DataFlow) -> None:
    raise ValueError("no such order\nsecond line")


# --- runs -----------------------------------------------------------------------------------------------


def test_a_run_that_raised_is_a_warning_with_its_flow_its_numbers_and_the_first_line_of_its_error(
    db: Conn, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    add_flow(db, "Bad")
    with Heartbeat(flows=[flow_class("Bad", raises)], database_url=database_url) as hb:
        report = hb.beat()
    [line] = lines(caplog, "run_failed")
    [run] = runs_of(db, "Bad")
    assert line["levelname"] == "WARNING"
    assert (line["flow"], line["run_id"], line["heartbeat_id"]) == ("Bad", run.id, report.heartbeat_id)
    assert line["error"] == "ValueError: no such order"
    assert 0 <= line["duration_ms"] < 10_000
    assert line["said"] == f"run {run.id} of Bad failed: ValueError: no such order"


def test_a_run_by_itself_has_its_line_and_no_heartbeat(
    db: Conn, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    add_flow(db, "Bad")
    with Heartbeat(flows=[flow_class("Bad", raises)], database_url=database_url) as hb:
        with pytest.raises(ValueError, match="no such order"):
            hb.trigger_run("Bad")
        [line] = lines(caplog, "run_failed")
        assert "heartbeat_id" not in line


def test_a_run_past_its_time_and_one_that_the_end_interrupts_are_told_apart(
    db: Conn, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    add_flow(db, "Overstays", of_class("Slow"), run_timeout=1)
    add_flow(db, "Slow")
    settings: dict[str, Any] = {"time_budget": 0.2, "drain_timeout": 0.1}
    with Heartbeat(flows=[gate.flow("Slow")], database_url=database_url, **settings) as hb:
        hb.beat()
        [timed_out] = wait_until(lambda: lines(caplog, "run_timed_out"), what="the time to be over")
    [interrupted] = lines(caplog, "run_interrupted")
    gate.open()
    assert (timed_out["flow"], interrupted["flow"]) == ("Overstays", "Slow")
    assert timed_out["duration_ms"] >= 1000
    assert "stopped while this ran" in interrupted["error"]
    assert lines(caplog, "run_failed") == []


def test_of_many_failures_in_one_heartbeat_a_hundred_are_named_and_the_others_counted(
    db: Conn, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    add_flows(db, "bad", 130, of_class("Bad"))
    with Heartbeat(flows=[flow_class("Bad", raises)], database_url=database_url) as hb:
        report = hb.beat(until_all_ended=True)
    assert report.flows_failed == 130
    assert len(lines(caplog, "run_failed")) == 100
    [rest] = lines(caplog, "more_runs_failed")
    assert (rest["count"], rest["heartbeat_id"]) == (30, report.heartbeat_id)


def test_failures_that_come_after_the_heartbeats_answer_are_counted_too(
    db: Conn, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()

    def fail_late(self: DataFlow) -> None:
        gate.hold(self)
        raise ValueError

    add_flows(db, "late", 103, of_class("Late"))
    with Heartbeat(
        flows=[flow_class("Late", fail_late)], database_url=database_url, concurrency=110, time_budget=2
    ) as hb:
        assert hb.beat().flows_running == 103
        gate.open()
        [rest] = wait_until(lambda: lines(caplog, "more_runs_failed"), what="the rest to be counted")
    assert rest["count"] == 3


@pytest.mark.parametrize(("level", "told"), [(logging.DEBUG, 1), (logging.INFO, 0)])
def test_a_success_is_told_at_debug_level_only(
    db: Conn, database_url: str, caplog: pytest.LogCaptureFixture, level: int, told: int
) -> None:
    caplog.set_level(level, "heartbeat")
    add_flow(db, "Noop")
    with Heartbeat(flows=[Noop], database_url=database_url) as hb:
        hb.beat()
    assert [line["flow"] for line in lines(caplog, "run_succeeded")] == ["Noop"] * told


def test_each_run_of_a_dead_process_is_told_as_lost_and_of_many_how_many_more(
    db: Conn, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    runner = add_dead_runner(db)
    for number in range(103):
        add_run_of(db, f"orders {number}", runner)
    with Heartbeat(database_url=database_url, runner_ttl=1):
        wait_until(lambda: lines(caplog, "more_runs_failed"), what="the dead one's runs to be failed")
    lost = lines(caplog, "run_lost")
    assert [line["flow"] for line in lost] == [f"orders {number}" for number in range(100)]
    assert runner in lost[0]["error"]
    assert [line["count"] for line in lines(caplog, "more_runs_failed")] == [3]


def test_a_run_whose_claim_was_cut_off_is_told_as_lost(
    db: Conn, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Heartbeat(flows=[Noop], database_url=database_url, runner_ttl=1):
        [(runner,)] = db.execute("SELECT id FROM data_flow_runners").fetchall()
        run_id = add_run_of(db, "Noop", str(runner))
        [line] = wait_until(lambda: lines(caplog, "run_lost"), what="the lost run to be told")
    assert (line["flow"], line["run_id"]) == ("Noop", run_id)
    assert "never began" in line["error"]
    assert statuses(db) == {"Noop": ["failed"]}


# --- the process ----------------------------------------------------------------------------------------


def test_a_start_and_an_end_name_the_runner_the_version_and_the_counts(
    db: Conn, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    add_flow(db, "Noop")
    add_flow(db, "Bad")
    with Heartbeat(flows=[Noop, flow_class("Bad", raises)], database_url=database_url) as hb:
        [(runner,)] = db.execute("SELECT id FROM data_flow_runners").fetchall()
        hb.beat()
        hb.trigger_run("Noop")
    [started], [stopped] = lines(caplog, "started"), lines(caplog, "stopped")
    assert started["runner_id"] == stopped["runner_id"] == runner
    assert started["version"] == stopped["version"] in started["said"]
    assert started["flows"] == 2
    assert (stopped["runs_succeeded"], stopped["runs_failed"]) == (2, 1)


# --- the database, away ---------------------------------------------------------------------------------


def test_an_outage_is_one_line_when_it_begins_and_one_when_it_ends_however_many_threads_meet_it(
    db: Conn, database_url: str, server_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    name = db.info.dbname
    with (
        psycopg.connect(server_url, autocommit=True) as admin,
        Heartbeat(database_url=database_url, runner_ttl=1),
    ):
        before = len(caplog.records)
        admin.execute(f'ALTER DATABASE "{name}" WITH ALLOW_CONNECTIONS false')
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
        [began] = wait_until(lambda: lines(caplog, "outage_began"), what="the outage to be noticed")
        time.sleep(2.5)  # each thread tries again and again: this waits for a clock, not for luck
        admin.execute(f'ALTER DATABASE "{name}" WITH ALLOW_CONNECTIONS true')
        [ended] = wait_until(lambda: lines(caplog, "outage_ended"), seconds=10, what="the outage to end")
    during = [record.getMessage() for record in caplog.records[before:] if record.levelno > logging.INFO]
    assert began["reason"] in began["said"]
    assert ended["duration_ms"] > 2000
    during = [said for said in during if not said.startswith("discarding closed")]  # the pool's, at once
    assert during == [began["said"], ended["said"]]


def test_a_lock_is_no_outage_and_who_has_not_met_one_does_not_end_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    outage = Outage()
    assert not outage.met("lease", LockTimeout("somebody holds a lock"))
    assert not outage.met("lease", ValueError("ours"))
    assert outage.met("lease", DatabaseUnavailable("connection refused"))
    assert outage.met("maintenance", DatabaseUnavailable("connection refused"))
    outage.over("recorder")
    outage.over("lease")
    assert lines(caplog, "outage_ended") == [], "the maintenance still waits"
    outage.over("maintenance")
    outage.over("maintenance")
    assert [len(lines(caplog, event)) for event in ("outage_began", "outage_ended")] == [1, 1]


def test_an_attempt_that_began_during_an_outage_and_fails_after_it_is_no_second_one(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    outage, away = Outage(), DatabaseUnavailable("connection refused")
    outage.met("lease", away)
    outage.over("lease")
    assert outage.met("maintenance", away)
    assert len(lines(caplog, "outage_began")) == 1
    monkeypatch.setattr("heartbeat.engine.outage._SETTLING", 0)
    outage.met("maintenance", away)
    assert len(lines(caplog, "outage_began")) == 2


def test_the_pools_are_silent_only_while_an_outage_lasts(caplog: pytest.LogCaptureFixture) -> None:
    outage, pools = Outage(), logging.getLogger("psycopg.pool")
    outage.quiet_pools()
    try:
        pools.warning("before")
        outage.met("lease", DatabaseUnavailable("connection refused"))
        pools.warning("meanwhile")
        outage.over("lease")
        pools.warning("after")
    finally:
        outage.close()
    said = [record.getMessage() for record in caplog.records if record.name == "psycopg.pool"]
    assert said == ["before", "after"]
