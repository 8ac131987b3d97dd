"""Runs that take longer than they may: their own record says so, nobody else waits for them."""

from __future__ import annotations

import pytest

from tests.faults.checker import Trace
from tests.faults.conftest import Rules
from tests.faults.harness import Fleet, beats_until_fresh_flow_ran, wait_begun
from tests.support.rows import Conn, add_flow, add_flows, make_due, of_class, runs_of, statuses_of
from tests.support.waiting import wait_until


def stuck_threads(db: Conn, name: str) -> int:
    row = db.execute("SELECT stuck_threads FROM data_flow_status WHERE name = %s", (name,)).fetchone()
    assert row is not None
    return int(row[0] or 0)


@pytest.mark.parametrize("flow", ["HangsUntilAsked", "AsyncHeld"])
def test_a_run_past_its_timeout_is_ended_and_its_flow_runs_again(
    fleet: Fleet, db: Conn, trace: Trace, rules: Rules, flow: str
) -> None:
    service = fleet(concurrency=1)
    add_flow(db, "late", of_class(flow), run_timeout=1)
    answer = service.ask()
    assert answer.status == 200
    assert answer.counts["flows_failed"] == 1
    assert 0.9 <= answer.seconds < 4
    [run] = runs_of(db, "late")
    assert run.status == "failed"
    assert "1 s" in run.error or "timeout" in run.error.lower() or "timed out" in run.error.lower()
    # Asked through `stopping`, or cancelled, it has left its thread: it may run again.
    wait_until(lambda: trace.of("end") + trace.of("raised"), what="the flow to leave")
    make_due(db, "late")
    wait_until(lambda: service.ask().counts.get("flows_triggered") == 1, what="the second run")
    assert statuses_of(db, "late") == ["failed", "failed"]
    rules(db)


def test_a_timeout_of_the_settings_holds_where_the_row_says_nothing(fleet: Fleet, db: Conn) -> None:
    service = fleet(run_timeout=1)
    add_flow(db, "late", of_class("AsyncHeld"))
    add_flow(db, "later", of_class("AsyncSlow", seconds=2), run_timeout=10)
    answer = service.ask()
    assert (answer.counts["flows_failed"], answer.counts["flows_succeeded"]) == (1, 1)


# The second of two that block the loop begins when it gets a loop of its own, up to two seconds later.
@pytest.mark.parametrize(("flow", "timeout"), [("Held", 1), ("SwallowsCancel", 1), ("BlocksLoop", 3)])
def test_a_flow_that_cannot_be_ended_costs_no_slot_and_does_not_start_again(
    fleet: Fleet, db: Conn, trace: Trace, rules: Rules, flow: str, timeout: int
) -> None:
    service, other = fleet.many(2, concurrency=2)
    for name in ("stuck-1", "stuck-2"):
        add_flow(db, name, of_class(flow), run_timeout=timeout)
    assert service.ask().counts["flows_failed"] == 2
    wait_until(lambda: stuck_threads(db, "stuck-1") == 1, what="data_flow_status to show the thread")
    # Both slots are free for others, on threads and on the loop.
    add_flows(db, "sync", 6, of_class("Quick"))
    add_flows(db, "async", 6, of_class("AsyncSlow", seconds=0.1))
    answer = service.ask()
    assert answer.counts["flows_succeeded"] == 12, (answer, runs_of(db, "%sync%"), service.log())
    assert answer.seconds < 4
    # Neither this process nor another starts it while it lives.
    make_due(db, "stuck-1", "stuck-2")
    assert service.ask().counts["flows_triggered"] == 0
    assert other.ask().counts["flows_triggered"] == 0
    assert service.ask_health().seconds < 1
    # Once it has left, it may.
    trace.let_go()
    both = ["failed", "failed", "success", "success"]
    wait_until(lambda: other.ask() and statuses_of(db, "stuck-%") == both, what="the second runs")
    assert stuck_threads(db, "stuck-1") == 0
    rules(db)


def test_an_async_flow_that_blocks_its_loop_keeps_no_other_from_running(
    fleet: Fleet, db: Conn, trace: Trace, rules: Rules
) -> None:
    service = fleet()
    add_flow(db, "blocks", of_class("BlocksLoop"))
    blocked = service.ask_in_background()
    wait_begun(trace, "blocks")
    add_flows(db, "async", 6, of_class("AsyncSlow", seconds=0.1))
    add_flows(db, "sync", 6, of_class("Quick"))
    waiting = service.ask_in_background()
    wait_until(lambda: statuses_of(db, "%sync-%") == ["success"] * 12, what="the other flows")
    assert waiting.result().counts["flows_succeeded"] == 12
    assert service.ask_health().seconds < 1
    trace.let_go("blocks")
    assert blocked.result().counts["flows_succeeded"] == 1
    rules(db)


def test_fifty_flows_that_hang_keep_no_other_from_running(
    fleet: Fleet, db: Conn, trace: Trace, rules: Rules
) -> None:
    service = fleet(run_timeout=0.5, drain_timeout=1)
    add_flows(db, "hang", 25, of_class("Held"))
    add_flows(db, "async-hang", 25, of_class("AsyncHeld"))
    waiting = service.ask_in_background()
    wait_begun(trace, "hang-1")
    assert service.ask_health().seconds < 1
    add_flows(db, "good", 20, of_class("Quick"))
    assert waiting.result().status == 200
    beats_until_fresh_flow_ran(db, service)
    wait_until(lambda: statuses_of(db, "good-%") == ["success"] * 20, what="the good flows")
    assert set(statuses_of(db, "%hang-%")) == {"failed"}
    assert service.ask_health().seconds < 1
    # Twenty-five threads that never end do not hold the exit either.
    service.stop(6)
    rules(db)
