"""Processes that are killed, stopped and let go on: nothing is lost, nothing runs twice."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest

from tests.faults.checker import Limits, Snapshots, Trace
from tests.faults.conftest import Rules
from tests.faults.harness import Fleet, Pinger, beats_until_fresh_flow_ran, wait_begun
from tests.support.rows import Conn, add_flow, add_flows, live_runs, of_class, runs_of, statuses_of
from tests.support.waiting import wait_until

TTL = 2.0
SLACK = 1.5  # what a loaded machine may add


def runner_of(db: Conn, pid: int) -> list[Any]:
    return db.execute("SELECT id FROM data_flow_runners WHERE pid = %s", (pid,)).fetchall()


@pytest.mark.parametrize("every", [0.5, None], ids=["with-heartbeats", "with-renewals-alone"])
def test_runs_of_a_killed_process_end_failed_within_the_ttl_and_a_heartbeat(
    fleet: Fleet, db: Conn, trace: Trace, rules: Rules, every: float | None
) -> None:
    killed, survivor = fleet.many(2)
    for number in range(3):
        add_flow(db, f"long-{number}", of_class("Held"))
    killed.ask_in_background()
    wait_begun(trace, "long-0", "long-1", "long-2")
    add_flow(db, "unrelated", of_class("Held"))
    waiting = survivor.ask_in_background()
    wait_begun(trace, "unrelated")

    killed.kill()
    died = time.monotonic()
    with Pinger(lambda: [survivor] if every else [], every or 1):
        wait_until(lambda: statuses_of(db, "long-%") == ["failed"] * 3, what="the burial")
        taken = time.monotonic() - died
        wait_until(lambda: not runner_of(db, killed.pid), what="the dead runner's row to go")

    assert taken <= TTL + (every or TTL / 3) + SLACK
    for run in runs_of(db, "long-%"):
        assert f"pid {killed.pid}" in run.error
        assert "last seen" in run.error
    trace.let_go()
    assert waiting.result().status == 200
    assert statuses_of(db, "unrelated") == ["success"]
    beats_until_fresh_flow_ran(db, survivor)
    rules(db)


@pytest.mark.parametrize("flow", ["Exits", "Crashes"])
def test_a_flow_that_takes_its_process_along_ends_failed_and_harms_no_other(
    fleet: Fleet, db: Conn, rules: Rules, flow: str
) -> None:
    doomed, survivor = fleet.many(2)
    add_flow(db, "fatal", of_class(flow))
    assert doomed.ask().status is None
    doomed.wait()
    add_flows(db, "other", 20, of_class("Quick"))
    with Pinger(lambda: [survivor], 0.3):
        wait_until(lambda: statuses_of(db, "fatal") == ["failed"], what="the burial")
    wait_until(lambda: statuses_of(db, "other-%") == ["success"] * 20, what="the others")
    rules(db)


def test_random_kills_lose_nothing_and_run_nothing_twice(
    fleet: Fleet, db: Conn, trace: Trace, rules: Rules
) -> None:
    chance = random.Random(3)
    snapshots = Snapshots()
    fleet.many(6, concurrency=2)  # all there from the start: to start one takes longer than the work
    add_flows(db, "work", 1200, of_class("Slow", seconds=0.03))
    with Pinger(fleet.living, 0.05):
        for _ in range(4):
            begun = len(trace.of("begin"))
            wait_until(lambda begun=begun: len(trace.of("begin")) > begun + 30, seconds=30, what="work")
            snapshots.take(db)
            chance.choice(fleet.living()).kill()
        wait_until(
            lambda: len(statuses_of(db, "work-%")) == 1200 and not live_runs(db),
            seconds=40,
            what="all runs to end",
        )
        snapshots.take(db)
    report = rules(db, snapshots)
    assert len(statuses_of(db, "work-%")) == 1200  # each once: the interval is an hour
    assert 0 < report.figures["failed"] < 400, "a kill costs what was claimed at that moment, no more"
    beats_until_fresh_flow_ran(db, fleet.living()[0])


def test_5000_due_flows_and_8_processes_make_5000_runs(fleet: Fleet, db: Conn, rules: Rules) -> None:
    processes = fleet.many(8)
    add_flows(db, "due", 5000, of_class("Quick"))
    waiting = [process.ask_in_background() for process in processes for _ in range(2)]
    answers = [asked.result() for asked in waiting]
    assert {answer.status for answer in answers} == {200}
    assert sum(answer.counts["flows_triggered"] for answer in answers) == 5000
    assert statuses_of(db, "due-%") == ["success"] * 5000
    report = rules(db)
    assert report.figures["begun"] == 5000


def test_a_process_that_was_stopped_past_its_ttl_writes_nothing_late_and_begins_anew(
    fleet: Fleet, db: Conn, trace: Trace, rules: Rules
) -> None:
    snapshots = Snapshots()
    frozen, survivor = fleet.many(2, log_format="json")
    old = runner_of(db, frozen.pid)
    add_flow(db, "long", of_class("Held"))
    add_flows(db, "work", 1000, of_class("Slow", seconds=0.005))
    waiting = frozen.ask_in_background()
    wait_begun(trace, "long")
    wait_until(lambda: len(trace.of("begin")) > 150, what="work")
    frozen.pause()
    with Pinger(lambda: [survivor], 0.3):
        wait_until(lambda: not live_runs(db) and not runner_of(db, frozen.pid), seconds=15, what="the burial")
        snapshots.take(db)
        given_up = {row[0] for row in db.execute("SELECT id FROM data_flow_runs WHERE status = 'failed'")}
        trace.let_go("long")
        frozen.resume()
        assert waiting.result().status in (200, 503)
        late = {event["run"] for event in trace.of("end")} & given_up
        assert late, "no run of the stopped process returned late: the test tests nothing"
        beats_until_fresh_flow_ran(db, frozen)
    new = wait_until(lambda: runner_of(db, frozen.pid), what="a fresh runner")
    assert new != old
    warnings = [line for line in frozen.log().splitlines() if '"warning"' in line.lower()]
    assert any(str(run) in line for run in late for line in warnings), frozen.log()[-3000:]
    rules(db, snapshots)


def test_a_process_stopped_for_less_than_its_ttl_keeps_its_runs(
    fleet: Fleet, db: Conn, trace: Trace, rules: Rules
) -> None:
    frozen, survivor = fleet.many(2, runner_ttl=8)
    add_flow(db, "long", of_class("Held"))
    waiting = frozen.ask_in_background()
    wait_begun(trace, "long")
    frozen.pause()
    with Pinger(lambda: [survivor], 0.3) as pinger:
        wait_until(lambda: len(pinger.answers) >= 10, what="heartbeats for longer than a renewal takes")
        frozen.resume()
        trace.let_go("long")
        assert waiting.result().status == 200
    assert statuses_of(db, "long") == ["success"]
    rules(db, limits=Limits(ttl=8))
