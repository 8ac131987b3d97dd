"""The event loop that async flows share: a limit of its own, and what a flow may do to it."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from heartbeat import DataFlow, Heartbeat
from tests.support.flow_classes import Gate, Noop, flow_class
from tests.support.rows import Conn, add_flow, add_flows, make_due, of_class, runs_of, statuses_of
from tests.support.threads import no_more_threads, threads_of
from tests.support.waiting import Background, wait_until


class AsyncGate(Gate):
    """Holds async flows, without blocking their loop."""

    async def wait(self, flow: DataFlow) -> None:
        self.begun.append(flow.name)
        self.now += 1
        self.most = max(self.most, self.now)
        while not self.is_open():
            await asyncio.sleep(0.01)
        self.now -= 1

    def flow(self, name: str, **attributes: Any) -> type[DataFlow]:
        async def run(flow: DataFlow) -> None:
            await self.wait(flow)

        return flow_class(name, run, **attributes)


class Fine(DataFlow):
    """Waits for nothing, and succeeds."""

    async def run(self) -> None:
        pass


@pytest.fixture
def gate() -> Iterator[Gate]:
    """A gate for sync flows that is open at the end, so that no thread outlives its test."""
    gate = Gate()
    yield gate
    gate.open()


@pytest.fixture
def async_gate() -> Iterator[AsyncGate]:
    gate = AsyncGate()
    yield gate
    gate.open()


def stuck_threads(db: Conn) -> int:
    return int(db.execute("SELECT count(*) FROM data_flow_stuck_threads").fetchone()[0])


LOOP, FLOW = "heartbeat-async-flows", "heartbeat-flow"


# --- how many at once -----------------------------------------------------------------------------------


def test_more_async_flows_run_at_once_than_there_are_threads_and_never_more_than_their_own_limit(
    db: Conn, database_url: str, async_gate: AsyncGate
) -> None:
    add_flows(db, "quick", 300, of_class("Fine"))  # first: so that the slow ones are claimed ahead
    add_flows(db, "slow", 15, of_class("Slow"))
    flows, limits = [async_gate.flow("Slow"), Fine], {"concurrency": 2, "async_concurrency": 6}
    with Heartbeat(flows=flows, database_url=database_url, **limits) as hb:
        beats = [Background(hb.beat) for _ in range(2)]
        wait_until(lambda: async_gate.now == 6, what="six to run at once")
        async_gate.open()
        assert sum(beat.result().flows_succeeded for beat in beats) == 315
    assert async_gate.most == 6


def test_slow_sync_flows_on_every_thread_keep_no_async_flow_waiting(
    db: Conn, database_url: str, gate: Gate
) -> None:
    add_flows(db, "slow", 3, of_class("Slow"))
    add_flows(db, "quick", 30, of_class("Fine"))
    flows = [gate.flow("Slow"), Fine]
    with Heartbeat(flows=flows, database_url=database_url, concurrency=1, async_concurrency=2) as hb:
        beat = Background(hb.beat)
        wait_until(lambda: statuses_of(db, "quick-%") == ["success"] * 30, what="the async flows to end")
        assert statuses_of(db, "slow-%") == ["in_progress"], "no more than there is a thread for"
        gate.open()
        assert beat.result().flows_succeeded == 33


def test_slow_async_flows_keep_no_sync_flow_waiting(
    db: Conn, database_url: str, async_gate: AsyncGate
) -> None:
    add_flows(db, "slow", 3, of_class("Slow"))
    add_flows(db, "quick", 30, of_class("Noop"))
    flows = [async_gate.flow("Slow"), Noop]
    with Heartbeat(flows=flows, database_url=database_url, concurrency=2, async_concurrency=1) as hb:
        beat = Background(hb.beat)
        wait_until(lambda: statuses_of(db, "quick-%") == ["success"] * 30, what="the sync flows to end")
        assert statuses_of(db, "slow-%") == ["in_progress"], "no more than may run at once"
        async_gate.open()
        assert beat.result().flows_succeeded == 33


def test_three_hundred_that_wait_half_a_second_take_one_quick_heartbeat_and_no_thread_more(
    db: Conn, database_url: str
) -> None:
    threads: list[int] = []

    async def wait(self: DataFlow) -> None:
        threads.append(threading.active_count())
        await asyncio.sleep(0.5)

    add_flow(db, "first", of_class("Wait"))
    flows = [flow_class("Wait", wait)]
    with Heartbeat(flows=flows, database_url=database_url, async_concurrency=300) as hb:
        assert hb.beat().flows_succeeded == 1
        add_flows(db, "wait", 300, of_class("Wait"))
        begin = time.monotonic()
        assert hb.beat().flows_succeeded == 300
        assert time.monotonic() - begin < 5
    assert max(threads) <= threads[0] + 1, "the claim's helper"


# --- a run that goes on on the loop ---------------------------------------------------------------------


def returns(name: str, work: Callable[[], Coroutine[Any, Any, Any]]) -> type[DataFlow]:
    """Make a class whose `run` is sync and returns something to be awaited."""
    return flow_class(name, lambda self: work())


def test_what_a_sync_run_returns_to_be_awaited_goes_on_on_the_loop_and_its_thread_is_free(
    db: Conn, database_url: str
) -> None:
    seen: list[str] = []
    go = threading.Event()

    async def work() -> str:
        seen.append(threading.current_thread().name)
        while not go.is_set():
            await asyncio.sleep(0.01)
        return "awaited"

    add_flow(db, "Returns")
    add_flow(db, "Noop", enabled=False)
    flows = [returns("Returns", work), Noop]
    with Heartbeat(flows=flows, database_url=database_url, concurrency=1) as hb:
        beat = Background(hb.beat)
        wait_until(lambda: seen, what="the work to begin")
        assert Background(lambda: hb.trigger_run("Noop")).result(5).status == "success"
        go.set()
        assert beat.result().flows_succeeded == 1
        assert runs_of(db, "Returns")[0].result == "awaited"
    assert seen == [LOOP]


def test_a_run_whose_time_is_over_before_its_awaitable_begins_is_ended_and_costs_no_thread_more(
    db: Conn, database_url: str
) -> None:
    seen: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    def run(self: DataFlow) -> Any:
        assert self.stopping.wait(10)  # until it is given up
        return work()

    add_flow(db, "Late", run_timeout=1)
    add_flow(db, "Fine")
    add_flow(db, "Noop")
    flows, limits = [flow_class("Late", run), Fine, Noop], {"concurrency": 1, "async_concurrency": 1}
    with Heartbeat(flows=flows, database_url=database_url, **limits) as hb:
        hb.beat()
        assert statuses_of(db, "Late") == ["failed"]
        wait_until(lambda: stuck_threads(db) == 0, seconds=5, what="the run to end")
        assert seen in (["cancelled"], [])
        make_due(db)
        report = hb.beat()
        assert (report.flows_succeeded, report.flows_failed) == (2, 1), (
            "there is room for others, of both kinds"
        )
        wait_until(lambda: len(threads_of(FLOW)) == 1, seconds=5, what="the replaced thread to end")


def test_a_run_with_a_time_limit_that_goes_on_on_the_loop_is_cancelled_there(
    db: Conn, database_url: str
) -> None:
    seen: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            seen.append(threading.current_thread().name)
            raise

    add_flow(db, "Endless", run_timeout=1)
    with Heartbeat(flows=[returns("Endless", work)], database_url=database_url) as hb:
        assert hb.beat().flows_failed == 1
        wait_until(lambda: seen == [LOOP], what="it to be cancelled")
        wait_until(lambda: stuck_threads(db) == 0, what="the run to end")


# --- what a flow may do to the loop ---------------------------------------------------------------------


def test_a_loop_that_was_blocked_ends_with_its_thread_once_the_flow_lets_go(
    db: Conn, database_url: str, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("heartbeat.engine.eventloop._PATIENCE", 0.1)

    async def block(self: DataFlow) -> None:
        gate.hold(self)

    def files() -> int:
        return len(list(Path("/dev/fd").iterdir()))

    add_flow(db, "Block", enabled=False)
    add_flow(db, "Fine", enabled=False)
    flows = [flow_class("Block", block), Fine]
    with Heartbeat(flows=flows, database_url=database_url) as hb:
        hb.trigger_run("Fine")
        before = files()
        blocking = Background(lambda: hb.trigger_run("Block"))
        wait_until(lambda: gate.begun)
        hb.trigger_run("Fine")
        assert len(threads_of(LOOP)) == 2
        assert files() > before
        gate.open()
        assert blocking.result().status == "success"
        wait_until(lambda: len(threads_of(LOOP)) == 1, what="the first loop's thread to end")
        wait_until(lambda: files() <= before, what="its files to be closed")
        hb.trigger_run("Fine")
    wait_until(lambda: not threads_of(LOOP), what="the last loop to end with the service")


def test_a_flow_that_stops_the_loop_ends_no_other(db: Conn, database_url: str, async_gate: AsyncGate) -> None:
    async def stop(self: DataFlow) -> None:
        asyncio.get_running_loop().stop()

    add_flows(db, "slow", 5, of_class("Slow"))
    flows = [async_gate.flow("Slow"), flow_class("Stop", stop)]
    with Heartbeat(flows=flows, database_url=database_url) as hb:
        beat = Background(hb.beat)
        wait_until(lambda: async_gate.now == 5)
        add_flows(db, "stop", 5, of_class("Stop"))
        assert hb.beat().flows_succeeded == 5
        async_gate.open()
        assert beat.result().flows_succeeded == 5
        make_due(db)
        assert hb.beat().flows_succeeded == 10


def test_where_no_loop_can_be_started_nothing_async_is_claimed(db: Conn, database_url: str) -> None:
    add_flow(db, "Fine")
    add_flow(db, "Noop")
    flows = [Fine, Noop]
    with Heartbeat(flows=flows, database_url=database_url, time_budget=1) as hb:
        with no_more_threads(LOOP):
            report = hb.beat()
        assert (report.flows_due, report.flows_triggered, report.flows_remaining) == (2, 1, 1)
        assert statuses_of(db, "Fine") == []
        assert hb.beat().flows_succeeded == 1


def test_what_still_runs_when_the_service_closes_is_cancelled_and_says_nothing_more(
    db: Conn, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    ended: list[str] = []

    async def endless(self: DataFlow) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(self.name)

    add_flows(db, "endless", 3, of_class("Endless"))
    flows = [flow_class("Endless", endless)]
    with Heartbeat(flows=flows, database_url=database_url, time_budget=0.2, drain_timeout=0) as hb:
        assert hb.beat().flows_running == 3
    assert statuses_of(db, "endless-%") == ["failed"] * 3
    wait_until(lambda: len(ended) == 3 and not threads_of(LOOP), what="the flows and their loop to end")
    gc.collect()
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []
