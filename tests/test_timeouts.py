"""Runs that take longer than they may: failed, asked to end, and in nobody's way."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from heartbeat import AlreadyRunning, DataFlow, Heartbeat
from tests.support.flow_classes import Gate, Noop, flow_class
from tests.support.rows import Conn, add_flow, flow_row, make_due, runs_of, statuses
from tests.support.waiting import Background, wait_until


@pytest.fixture
def gate() -> Iterator[Gate]:
    """A gate that is open at the end, so that no thread outlives its test."""
    gate = Gate()
    yield gate
    gate.open()


def stuck_runs(db: Conn) -> int:
    return int(db.execute("SELECT count(*) FROM data_flow_stuck_threads").fetchone()[0])


def failed(db: Conn, name: str) -> Any:
    """Wait until a flow's newest run has failed, and return it."""
    return wait_until(
        lambda: [run for run in runs_of(db, name)[-1:] if run.status == "failed"], what=f"{name}'s failure"
    )[0]


def test_a_run_past_its_time_is_failed_with_a_message_that_says_so(
    db: Conn, database_url: str, gate: Gate
) -> None:
    add_flow(db, "Slow", run_timeout=1)
    with Heartbeat(flows=[gate.flow("Slow")], database_url=database_url) as hb:
        begin = time.monotonic()
        report = hb.beat()
        assert 0.9 < time.monotonic() - begin < 3
        assert (report.flows_failed, report.flows_running) == (1, 0)
        [run] = runs_of(db, "Slow")
        assert "longer than 1 s" in run.error
        assert flow_row(db, "Slow").last_run_status == "failed"
        gate.open()


@pytest.mark.parametrize(("of_the_row", "of_the_settings"), [(None, 0.2), (1, 0), (1, 3600)])
def test_the_rows_timeout_wins_over_the_settings(
    db: Conn, database_url: str, gate: Gate, of_the_row: int | None, of_the_settings: float
) -> None:
    add_flow(db, "Slow", run_timeout=of_the_row)
    with Heartbeat(flows=[gate.flow("Slow")], database_url=database_url, run_timeout=of_the_settings) as hb:
        assert hb.beat().flows_failed == 1
        gate.open()


def test_a_timeout_of_nought_is_none(db: Conn, database_url: str, gate: Gate) -> None:
    add_flow(db, "Slow")
    with Heartbeat(flows=[gate.flow("Slow")], database_url=database_url, run_timeout=0) as hb:
        beat = Background(hb.beat)
        wait_until(lambda: gate.begun)
        time.sleep(0.2)
        assert statuses(db) == {"Slow": ["in_progress"]}
        gate.open()
        assert beat.result().flows_succeeded == 1


def test_a_sync_flow_is_asked_to_stop_and_loses_no_slot(db: Conn, database_url: str) -> None:
    ended = threading.Event()

    def polite(self: DataFlow) -> None:
        assert self.stopping.wait(10)
        ended.set()

    add_flow(db, "Polite", run_timeout=1)
    with Heartbeat(
        flows=[flow_class("Polite", polite), Noop], database_url=database_url, concurrency=1
    ) as hb:
        assert hb.beat().flows_failed == 1
        assert ended.wait(5)
        wait_until(lambda: stuck_runs(db) == 0, seconds=3, what="the note of its thread to go")
        add_flow(db, "Noop")
        assert hb.beat().flows_succeeded == 1
        assert statuses(db)["Polite"] == ["failed"], "its late end changes nothing"


def test_a_thread_that_lives_on_is_replaced_shown_and_its_flow_not_started_again(
    db: Conn, database_url: str, gate: Gate
) -> None:
    add_flow(db, "Slow", run_timeout=1)
    slow = gate.flow("Slow")
    with Heartbeat(flows=[slow, Noop], database_url=database_url, concurrency=1) as hb:
        assert hb.beat().flows_failed == 1
        assert stuck_runs(db) == 1
        assert hb.health().stuck_threads == 1
        assert db.execute("SELECT stuck_threads FROM data_flow_status").fetchone() == (1,)

        add_flow(db, "Noop")
        make_due(db)
        db.execute("INSERT INTO data_flow_runs (data_flow_id) SELECT id FROM data_flows WHERE name = 'Slow'")
        report = hb.beat()
        assert (report.flows_due, report.flows_succeeded, report.flows_remaining) == (1, 1, 0)
        assert [flow.name for flow in hb.due_to_run()] == []
        db.execute("DELETE FROM data_flow_runs WHERE status = 'pending'")
        with pytest.raises(AlreadyRunning, match="thread"):
            hb.trigger_run("Slow")
        with Heartbeat(flows=[slow], database_url=database_url) as other:
            assert other.beat().flows_due == 0, "nor by another process"

        gate.open()
        wait_until(lambda: stuck_runs(db) == 0, what="the note of its thread to go")
        assert hb.health().stuck_threads == 0
        make_due(db, "Slow")
        assert hb.beat().flows_succeeded == 1


def test_notes_of_threads_go_with_their_process(db: Conn, database_url: str, gate: Gate) -> None:
    add_flow(db, "Slow", run_timeout=1)
    with Heartbeat(flows=[gate.flow("Slow")], database_url=database_url, drain_timeout=0) as hb:
        hb.beat()
        assert stuck_runs(db) == 1
    assert stuck_runs(db) == 0
    assert statuses(db) == {"Slow": ["failed"]}


def test_flows_that_all_hang_keep_no_other_from_running(db: Conn, database_url: str, gate: Gate) -> None:
    for number in range(20):
        add_flow(db, f"hang {number}", run_timeout=1, configuration={"class_name": "Slow"})
    with Heartbeat(flows=[gate.flow("Slow"), Noop], database_url=database_url, concurrency=10) as hb:
        assert hb.beat().flows_failed == 20
        assert hb.health().ok
        add_flow(db, "Noop")
        assert hb.beat().flows_succeeded == 1
        gate.open()


# --- async ----------------------------------------------------------------------------------------------


def test_an_async_flow_is_cancelled_and_can_run_again(db: Conn, database_url: str) -> None:
    seen: list[str] = []

    async def endless(self: DataFlow) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    add_flow(db, "Endless", run_timeout=1)
    with Heartbeat(flows=[flow_class("Endless", endless)], database_url=database_url, concurrency=1) as hb:
        assert hb.beat().flows_failed == 1
        wait_until(lambda: seen == ["cancelled"])
        wait_until(lambda: stuck_runs(db) == 0, seconds=3, what="the note of its thread to go")
        make_due(db)
        assert hb.beat().flows_failed == 1
    assert "longer than 1 s" in runs_of(db, "Endless")[0].error


def test_an_async_flow_that_will_not_be_cancelled_is_a_thread_that_lives_on(
    db: Conn, database_url: str
) -> None:
    let_go = threading.Event()

    async def stubborn(self: DataFlow) -> None:
        while not let_go.is_set():
            try:
                await asyncio.sleep(0.02)
            except asyncio.CancelledError:
                continue

    add_flow(db, "Stubborn", run_timeout=1)
    with Heartbeat(flows=[flow_class("Stubborn", stubborn)], database_url=database_url, concurrency=1) as hb:
        assert hb.beat().flows_failed == 1
        assert stuck_runs(db) == 1
        make_due(db)
        assert hb.beat().flows_due == 0
        let_go.set()
        wait_until(lambda: stuck_runs(db) == 0)


def test_a_flow_that_blocks_the_loop_is_named_and_keeps_no_later_async_flow_from_running(
    db: Conn, database_url: str, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    async def block(self: DataFlow) -> None:
        gate.hold(self)

    async def fine(self: DataFlow) -> str:
        await asyncio.sleep(0.01)
        return "fine"

    add_flow(db, "Block")
    add_flow(db, "Fine", enabled=False)
    flows = [flow_class("Block", block), flow_class("Fine", fine)]
    with Heartbeat(flows=flows, database_url=database_url, concurrency=2) as hb:
        beat = Background(hb.beat)
        wait_until(lambda: gate.begun)
        for _ in range(2):
            assert Background(lambda: hb.trigger_run("Fine")).result(5).result == "fine"
        [blocked] = [vars(record) for record in caplog.records if vars(record).get("event") == "loop_blocked"]
        assert (blocked["flow"], blocked["run_id"]) == ("Block", runs_of(db, "Block")[0].id)
        gate.open()
        assert beat.result().flows_succeeded == 1


def test_async_flows_on_a_blocked_loop_are_failed_at_their_own_time(
    db: Conn, database_url: str, gate: Gate
) -> None:
    async def block(self: DataFlow) -> None:
        await asyncio.sleep(0.1)
        gate.hold(self)

    async def wait(self: DataFlow) -> None:
        await asyncio.sleep(30)

    add_flow(db, "Block", run_timeout=3)
    add_flow(db, "Wait", run_timeout=1)
    flows = [flow_class("Block", block), flow_class("Wait", wait)]
    with Heartbeat(flows=flows, database_url=database_url, concurrency=2, drain_timeout=0) as hb:
        beat = Background(hb.beat)
        begin = time.monotonic()
        assert "longer than 1 s" in failed(db, "Wait").error
        assert time.monotonic() - begin < 2.5
        gate.open()
        beat.result()


# --- a query that is under way --------------------------------------------------------------------------


def test_the_query_of_a_run_past_its_time_is_cancelled(db: Conn, database_url: str) -> None:
    def query(self: DataFlow) -> None:
        with self.connection() as conn:
            conn.execute("SELECT pg_sleep(60)")

    sleeping = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'active' "
        "AND query LIKE '%pg_sleep(60)%' AND pid <> pg_backend_pid()"
    )
    add_flow(db, "Query", run_timeout=1)
    with Heartbeat(flows=[flow_class("Query", query)], database_url=database_url) as hb:
        assert hb.beat().flows_failed == 1
        wait_until(lambda: db.execute(sleeping).fetchone() == (0,), what="the query to be cancelled")
        wait_until(lambda: stuck_runs(db) == 0, what="the thread to end")
    assert "longer than 1 s" in runs_of(db, "Query")[0].error


def test_cancelling_one_runs_query_cancels_no_other_runs(
    db: Conn, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancel = psycopg.Connection.cancel_safe

    def cancel_slowly(self: Conn, *, timeout: float = 30.0) -> None:
        time.sleep(0.5)  # as over a slow network: by then another flow may have the connection
        cancel(self, timeout=timeout)

    def polite(self: DataFlow) -> None:
        with self.connection() as conn:
            conn.execute("SELECT 1")
            self.stopping.wait(10)

    def query(self: DataFlow) -> None:
        with self.connection() as conn:
            conn.execute("SELECT pg_sleep(1)")

    monkeypatch.setattr(psycopg.Connection, "cancel_safe", cancel_slowly)
    add_flow(db, "Polite", run_timeout=1)
    add_flow(db, "Query", enabled=False)
    flows = [flow_class("Polite", polite), flow_class("Query", query)]
    with Heartbeat(flows=flows, database_url=database_url, concurrency=1) as hb:
        assert hb.beat().flows_failed == 1
        wait_until(lambda: hb.health().stuck_threads == 0, what="the connection to be given back")
        assert hb.trigger_run("Query").status == "success"


def test_a_class_that_hides_what_we_use_loses_no_slot(db: Conn, database_url: str, gate: Gate) -> None:
    class Hiding(DataFlow):
        stopping = None  # type: ignore[assignment]

        def run(self) -> None:
            gate.hold(self)

    add_flow(db, "Hiding", run_timeout=1)
    with Heartbeat(
        flows=[Hiding, Noop], database_url=database_url, concurrency=1, time_budget=5, drain_timeout=0
    ) as hb:
        assert hb.beat().flows_failed == 1
        add_flow(db, "Noop")
        assert hb.beat().flows_succeeded == 1
        gate.open()
