"""The threads that carry heartbeats: bounded, not joined at exit, shared where one call serves all; and repeaters."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from heartbeat.postgres.deadlines import Deadlines
from heartbeat.threads import Busy, Repeater, SharedCall, ThreadPool, result_of
from tests.support.waiting import wait_until


def held() -> tuple[threading.Event, Callable[[], bool]]:
    go = threading.Event()
    return go, lambda: go.wait(10)


def test_a_call_beyond_the_limit_is_refused_until_another_has_ended() -> None:
    threads = ThreadPool("t", 2)
    go, wait = held()
    running = [threads.submit(wait) for _ in range(2)]
    with pytest.raises(Busy):
        threads.submit(wait)
    go.set()
    assert [future.result(10) for future in running] == [True, True]
    assert [threads.submit(lambda: 7).result(10) for _ in range(100)] == [7] * 100, "no slot was lost"


def test_whatever_a_call_raises_is_its_callers_and_the_thread_lives_on() -> None:
    threads = ThreadPool("t", 1)

    def leave() -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        threads.submit(leave).result(10)
    assert threads.submit(lambda: 7).result(10) == 7


def test_threads_are_daemons_and_idle_ones_are_used_again() -> None:
    threads = ThreadPool("t", 8)
    used = [threads.submit(threading.current_thread).result(10) for _ in range(10)]
    assert len(set(used)) == 1
    assert used[0].daemon


def test_idle_threads_end_and_new_ones_take_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("heartbeat.threads._IDLE_SECONDS", 0.001)
    threads = ThreadPool("t", 2)
    first = threads.submit(threading.current_thread).result(10)
    first.join(10)
    assert not first.is_alive()
    assert [threads.submit(lambda: 7).result(10) for _ in range(200)] == [7] * 200


def test_where_the_system_has_no_more_threads_the_call_is_refused_and_no_slot_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads = ThreadPool("t", 1)

    def none_left(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as without:
        without.setattr(threading.Thread, "start", none_left)
        with pytest.raises(Busy, match="can't start new thread"):
            threads.submit(lambda: 7)
    assert threads.submit(lambda: 7).result(10) == 7


def test_one_shared_call_serves_all_who_ask_while_it_runs_and_the_next_is_made_anew() -> None:
    go, wait = held()
    calls: list[bool] = []
    shared = SharedCall("t", lambda: calls.append(wait()))
    asked = [shared.ask() for _ in range(100)]
    go.set()
    for future in asked:
        future.result(10)
    assert len(calls) == 1
    shared.ask().result(10)
    assert len(calls) == 2


def test_who_gives_up_waiting_stops_nothing() -> None:
    go, wait = held()
    future = ThreadPool("t", 1).submit(wait)

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(result_of(future), 0.01)

    asyncio.run(give_up())
    go.set()
    assert future.result(10) is True


# --- a call made again and again ------------------------------------------------------------------------


@pytest.fixture
def repeat() -> Iterator[Callable[[Callable[[], float | None]], Repeater]]:
    """Start repeaters that are stopped at the end: `repeat(call)`."""
    started: list[Repeater] = []

    def start(call: Callable[[], float | None]) -> Repeater:
        started.append(Repeater("t", call))
        started[-1].start()
        return started[-1]

    yield start
    for repeater in started:
        repeater.stop()


def test_a_call_is_repeated_after_the_pause_that_it_asks_for(
    repeat: Callable[[Callable[[], float | None]], Repeater],
) -> None:
    calls: list[float] = []

    def call() -> float:
        calls.append(time.monotonic())
        return 0.05 if len(calls) < 3 else 3600

    repeat(call)
    wait_until(lambda: len(calls) == 3, what="three calls")
    assert all(later - sooner >= 0.05 for sooner, later in itertools.pairwise(calls))


def test_a_call_that_has_nothing_to_do_is_made_again_when_it_is_woken_and_not_before(
    repeat: Callable[[Callable[[], float | None]], Repeater],
) -> None:
    calls: list[int] = []
    repeater = repeat(lambda: calls.append(1))
    wait_until(lambda: len(calls) == 1, what="the first call")
    for _ in range(3):
        made = len(calls)
        repeater.wake()
        wait_until(lambda made=made: len(calls) == made + 1, what="another call")


def test_who_is_woken_during_a_call_is_called_once_more(
    repeat: Callable[[Callable[[], float | None]], Repeater],
) -> None:
    calls: list[int] = []
    begun, go = threading.Event(), threading.Event()

    def call() -> None:
        calls.append(1)
        begun.set()
        go.wait(10)

    repeater = repeat(call)
    assert begun.wait(5)
    for _ in range(5):
        repeater.wake()
    go.set()
    wait_until(lambda: len(calls) == 2, what="the call that was asked for during the first")


def test_a_call_that_raises_is_logged_and_made_again(
    repeat: Callable[[Callable[[], float | None]], Repeater],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("heartbeat.threads._AFTER_AN_ERROR", 0.01)
    caplog.set_level(logging.ERROR, "heartbeat")
    calls: list[int] = []

    def call() -> float:
        calls.append(1)
        if len(calls) < 3:
            raise ValueError("no")
        return 3600

    repeat(call)
    wait_until(lambda: len(calls) == 3, what="the call to be made again")
    assert [record.exc_info is not None for record in caplog.records] == [True, True]


class LeavesWithEachLine(logging.Handler):
    """A log handler, of a host or a flow, that raises what no `except Exception` takes."""

    def handle(self, record: logging.LogRecord) -> bool:
        raise SystemExit(3)


@pytest.fixture
def log_that_raises() -> Iterator[None]:
    handler = LeavesWithEachLine()
    logging.getLogger("heartbeat").addHandler(handler)
    yield
    logging.getLogger("heartbeat").removeHandler(handler)


@pytest.mark.usefixtures("log_that_raises")
def test_no_exception_ends_a_repeater_not_even_one_of_the_log_that_tells_it(
    repeat: Callable[[Callable[[], float | None]], Repeater], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("heartbeat.threads._AFTER_AN_ERROR", 0.01)
    calls: list[int] = []

    def call() -> float:
        calls.append(1)
        raise (SystemExit, MemoryError, KeyboardInterrupt, GeneratorExit)[len(calls) % 4]

    repeat(call)
    wait_until(lambda: len(calls) >= 8, what="the call to be made again")


@pytest.mark.usefixtures("log_that_raises")
def test_no_exception_ends_the_looks_at_the_clock() -> None:
    deadlines = Deadlines()
    looks: list[int] = []

    def leave() -> None:
        raise SystemExit(3)

    deadlines.at_every_look(leave)
    deadlines.at_every_look(lambda: looks.append(1))
    deadlines.add(0, leave)
    deadlines.start()
    try:
        wait_until(lambda: len(looks) >= 3, what="three looks")
    finally:
        deadlines.stop()


def test_after_its_stop_a_repeater_calls_no_more_and_its_pause_is_cut_short() -> None:
    calls: list[int] = []
    begun = threading.Event()

    def call() -> float:
        calls.append(1)
        begun.set()
        repeater.pause(30)
        return 0

    repeater = Repeater("t", call)
    repeater.start()
    assert begun.wait(5)
    begin = time.monotonic()
    repeater.stop(10)
    assert time.monotonic() - begin < 5
    assert repeater.is_stopped
    assert calls == [1]
    assert not any(thread.name == "heartbeat-t" for thread in threading.enumerate())


def test_a_repeater_that_never_started_can_be_stopped() -> None:
    Repeater("t", lambda: None).stop()
