"""The threads that carry heartbeats: bounded, not joined at exit, shared where one call serves all."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from heartbeat.threads import Busy, SharedCall, ThreadPool, result_of


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
