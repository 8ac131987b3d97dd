"""The threads of a process: as few as it needs, and what becomes of it where the system gives no more."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from heartbeat import DataFlow, Heartbeat
from tests.support.flow_classes import Gate, Noop, flow_class
from tests.support.rows import Conn, add_flow, add_flows, make_due, of_class, runs_of, statuses_of
from tests.support.threads import no_more_threads, threads_of
from tests.support.waiting import Background, wait_until

FLOW = "heartbeat-flow"


@pytest.fixture
def gate() -> Iterator[Gate]:
    """A gate that is open at the end, so that no thread outlives its test."""
    gate = Gate()
    yield gate
    gate.open()


def test_a_service_that_has_run_nothing_has_no_more_threads_than_it_needs(database_url: str) -> None:
    before = set(threading.enumerate())
    with Heartbeat(flows=[Noop], database_url=database_url) as hb:
        for _ in range(3):
            hb.beat()
        started = Counter(thread.name for thread in set(threading.enumerate()) - before)
    own_pool = {name: count for name, count in started.items() if name.startswith("heartbeat-own-")}
    assert started - Counter(own_pool) == Counter(
        ["heartbeat-deadlines", "heartbeat-lease", "heartbeat-recorder", "heartbeat-maintenance"]
    )
    assert sum(own_pool.values()) <= 3


def test_no_more_threads_start_than_there_are_flows_to_run_and_they_are_used_again(
    db: Conn, database_url: str, gate: Gate
) -> None:
    add_flows(db, "slow", 3, of_class("Slow"))
    with Heartbeat(flows=[gate.flow("Slow")], database_url=database_url, concurrency=8) as hb:
        beat = Background(hb.beat)
        wait_until(lambda: gate.now == 3)
        threads = set(threads_of(FLOW))
        assert len(threads) == 3
        gate.open()
        beat.result()
        for _ in range(3):
            make_due(db)
            assert hb.beat().flows_succeeded == 3
        assert set(threads_of(FLOW)) == threads


def test_threads_that_have_nothing_to_run_end_and_new_ones_start_when_there_is(
    db: Conn, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("heartbeat.engine.workers._IDLE_SECONDS", 0.05)
    add_flows(db, "noop", 20, of_class("Noop"))
    with Heartbeat(flows=[Noop], database_url=database_url) as hb:
        for _ in range(3):
            make_due(db)
            assert hb.beat().flows_succeeded == 20
            wait_until(lambda: not threads_of(FLOW), what="the threads to end")


def test_threads_that_end_while_runs_arrive_lose_none(
    db: Conn, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("heartbeat.engine.workers._IDLE_SECONDS", 0.0)
    add_flows(db, "noop", 4, of_class("Noop"))
    with Heartbeat(flows=[Noop], database_url=database_url, concurrency=4) as hb:
        for _ in range(50):
            make_due(db)
            assert hb.beat().flows_succeeded == 4


def test_threads_end_with_their_service(db: Conn, database_url: str) -> None:
    add_flows(db, "noop", 4, of_class("Noop"))
    with Heartbeat(flows=[Noop], database_url=database_url) as hb:
        hb.beat()
        assert threads_of(FLOW)
    wait_until(lambda: not threads_of(FLOW), what="the threads to end")


# --- where the system gives no more ---------------------------------------------------------------------


def test_where_no_thread_can_be_started_nothing_is_claimed_and_the_flows_stay_due(
    db: Conn, database_url: str
) -> None:
    add_flows(db, "noop", 3, of_class("Noop"))
    with Heartbeat(flows=[Noop], database_url=database_url, time_budget=0.5) as hb:
        with no_more_threads(FLOW):
            begin = time.monotonic()
            report = hb.beat()
            assert time.monotonic() - begin < 3
        assert (report.flows_due, report.flows_triggered, report.flows_remaining) == (3, 0, 3)
        assert runs_of(db, "noop-%") == []
        assert hb.beat().flows_succeeded == 3


def test_with_fewer_threads_than_it_may_have_a_process_runs_all_the_same(db: Conn, database_url: str) -> None:
    add_flow(db, "first", of_class("Noop"))
    with Heartbeat(flows=[Noop], database_url=database_url, concurrency=8) as hb:
        hb.beat()
        add_flows(db, "noop", 50, of_class("Noop"))
        with no_more_threads(FLOW):
            assert hb.beat().flows_succeeded == 50
        assert len(threads_of(FLOW)) == 1


def test_threads_that_could_not_be_started_are_started_as_soon_as_they_can(
    db: Conn, database_url: str, gate: Gate
) -> None:
    add_flow(db, "first", of_class("Noop"))
    with Heartbeat(flows=[gate.flow("Slow"), Noop], database_url=database_url, concurrency=3) as hb:
        hb.beat()
        held = len(threads_of(FLOW))
        add_flows(db, "slow", 3, of_class("Slow"))
        with no_more_threads(FLOW):
            beat = Background(hb.beat)
            wait_until(lambda: gate.now == held)
        wait_until(lambda: gate.now == 3, seconds=5, what="the other threads")
        gate.open()
        assert beat.result().flows_succeeded == 3


def test_time_outs_still_come_where_no_thread_can_be_started_and_no_slot_is_lost(
    db: Conn, database_url: str, gate: Gate
) -> None:
    def hold_with_a_query(self: DataFlow) -> None:
        with self.connection() as conn:
            conn.execute("SELECT 1")
            gate.hold(self)

    add_flows(db, "slow", 2, of_class("Slow"))
    db.execute("UPDATE data_flows SET run_timeout = 1")
    flows = [flow_class("Slow", hold_with_a_query), Noop]
    with Heartbeat(flows=flows, database_url=database_url, concurrency=2) as hb:
        beat = Background(hb.beat)
        wait_until(lambda: gate.now == 2)
        with no_more_threads():
            wait_until(lambda: statuses_of(db, "slow-%") == ["failed"] * 2, seconds=5, what="both time-outs")
        assert beat.result().flows_failed == 2
        add_flows(db, "noop", 5, of_class("Noop"))
        assert hb.beat().flows_succeeded == 5, "while both threads are stuck"
        gate.open()
        wait_until(lambda: len(threads_of(FLOW)) <= 2, seconds=5, what="the stuck threads to end")
