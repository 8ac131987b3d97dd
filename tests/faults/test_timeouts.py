"""Runs that take longer than they may: their own record says so, nobody else waits for them."""

from __future__ import annotations

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
    make_due,
    runs_of,
    statuses,
    wait_begun,
)
from tests.support.waiting import wait_until

Conn = psycopg.Connection[Any]


def stuck_threads(db: Conn, name: str) -> int:
    row = db.execute("SELECT stuck_threads FROM data_flow_status WHERE name = %s", (name,)).fetchone()
    assert row is not None
    return int(row[0] or 0)


@pytest.mark.parametrize("flow", ["HangsUntilAsked", "AsyncHangs"])
def test_a_run_past_its_timeout_is_ended_and_its_flow_runs_again(
    fleet: Fleet, db: Conn, trace: Trace, rules: Rules, flow: str
) -> None:
    service = fleet(concurrency=1)
    add_flow(db, "late", flow, run_timeout=1)
    answer = service.ask()
    assert answer.status == 200
    assert answer.counts["flows_failed"] == 1
    assert 0.9 <= answer.seconds < 4
    ((_, status, error),) = runs_of(db, "late")
    assert status == "failed"
    assert (
        "1 s" in (error or "") or "timeout" in (error or "").lower() or "timed out" in (error or "").lower()
    )
    # Asked through `stopping`, or cancelled, it has left its thread: it may run again.
    wait_until(lambda: trace.of("end") + trace.of("raised"), what="the flow to leave")
    make_due(db, "late")
    wait_until(lambda: service.ask().counts.get("flows_triggered") == 1, seconds=15, what="the second run")
    assert statuses(db, "late") == ["failed", "failed"]
    rules(db)


def test_a_timeout_of_the_settings_holds_where_the_row_says_nothing(fleet: Fleet, db: Conn) -> None:
    service = fleet(run_timeout=1)
    add_flow(db, "late", "AsyncHangs")
    add_flow(db, "later", "AsyncSlow", seconds=2, run_timeout=10)
    answer = service.ask()
    assert (answer.counts["flows_failed"], answer.counts["flows_succeeded"]) == (1, 1)


# The second of two that block the loop begins when it gets a loop of its own, up to two seconds later.
@pytest.mark.parametrize(("flow", "timeout"), [("Hangs", 1), ("SwallowsCancel", 1), ("BlocksLoop", 3)])
def test_a_flow_that_cannot_be_ended_costs_no_slot_and_does_not_start_again(
    fleet: Fleet, db: Conn, trace: Trace, rules: Rules, flow: str, timeout: int
) -> None:
    service, other = fleet.many(2, concurrency=2)
    for name in ("stuck-1", "stuck-2"):
        add_flow(db, name, flow, seconds=5 + timeout, run_timeout=timeout)
    assert service.ask().counts["flows_failed"] == 2
    wait_until(lambda: stuck_threads(db, "stuck-1") == 1, what="data_flow_status to show the thread")
    # Both slots are free for others, on threads and on the loop.
    add_flows(db, "sync", 6, "Quick")
    add_flows(db, "async", 6, "AsyncSlow", seconds=0.1)
    answer = service.ask()
    assert answer.counts["flows_succeeded"] == 12, (answer, runs_of(db, "%sync%"), service.log())
    assert answer.seconds < 4
    # Neither this process nor another starts it while it lives.
    make_due(db, "stuck-%")
    assert service.ask().counts["flows_triggered"] == 0
    assert other.ask().counts["flows_triggered"] == 0
    assert service.ask_health().seconds < 1
    # Once it has left, it may.
    wait_until(lambda: len(trace.of("end")) == 14, seconds=12, what="the flows to return")
    wait_until(lambda: stuck_threads(db, "stuck-1") == 0, what="the thread to be forgotten")
    db.execute("UPDATE data_flows SET configuration = configuration || '{\"seconds\": 0}'")
    wait_until(lambda: other.ask().counts.get("flows_triggered") == 2, seconds=5, what="the second run")
    assert statuses(db, "stuck-1") == ["failed", "success"]
    rules(db)


def test_an_async_flow_that_blocks_its_loop_keeps_no_other_from_running(
    fleet: Fleet, db: Conn, trace: Trace, rules: Rules
) -> None:
    service = fleet()
    add_flow(db, "blocks", "BlocksLoop", seconds=7)
    blocked = service.later()
    wait_begun(trace, "blocks")
    add_flows(db, "async", 6, "AsyncSlow", seconds=0.1)
    add_flows(db, "sync", 6, "Quick")
    waiting = service.later()
    wait_until(lambda: statuses(db, "%sync-%") == ["success"] * 12, seconds=5, what="the other flows")
    assert waiting.answer().counts["flows_succeeded"] == 12
    assert service.ask_health().seconds < 1
    assert blocked.answer().counts["flows_succeeded"] == 1
    rules(db)


def test_fifty_flows_that_hang_keep_no_other_from_running(
    fleet: Fleet, db: Conn, trace: Trace, rules: Rules
) -> None:
    service = fleet(run_timeout=0.5, drain_timeout=1)
    add_flows(db, "hang", 25, "Hangs")
    add_flows(db, "async-hang", 25, "AsyncHangs")
    waiting = service.later()
    wait_begun(trace, "hang-1")
    assert service.ask_health().seconds < 1
    add_flows(db, "good", 20, "Quick")
    assert waiting.answer(30).status == 200
    beats_until_fresh_flow_ran(db, service)
    wait_until(lambda: statuses(db, "good-%") == ["success"] * 20, what="the good flows")
    assert set(statuses(db, "%hang-%")) == {"failed"}
    assert service.ask_health().seconds < 1
    # Twenty-five threads that never end do not hold the exit either.
    service.stop(6)
    rules(db)
