"""A claimed run: its one outcome, what its flow sees of it, and the process's list of them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from heartbeat import HeartbeatError
from heartbeat.engine.lease import Lease
from heartbeat.engine.live_runs import LiveRuns
from heartbeat.engine.run import Interrupted, Outcome, Run
from tests.support.waiting import Background, wait_until


def claimed(timeout: float = 60.0) -> Run:
    row = SimpleNamespace(run_id=1, name="orders", class_name="Orders", configuration="{}")
    return Run(row, timeout, Lease(30.0))


class Shelf:
    """Connections to be borrowed: lends whatever it is given, and keeps what comes back."""

    def __init__(self) -> None:
        self.back: list[Any] = []

    def lend(self) -> Any:
        return Lent()

    def take_back(self, conn: Any) -> None:
        self.back.append(conn)


class Lent:
    closed = False

    def __enter__(self) -> Lent:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def close(self) -> None:
        self.closed = True


# --- its one outcome ------------------------------------------------------------------------------------


def test_a_run_has_one_outcome_whoever_is_first() -> None:
    ended, given_up = claimed(), claimed()
    assert ended.end(Outcome(ended, "success"), Shelf())  # type: ignore[arg-type]
    assert ended.give_up(Interrupted("too late")) is None
    outcome = given_up.give_up(Interrupted("the process stops"))
    assert outcome is not None
    assert (outcome.status, outcome.error) == ("failed", "Interrupted: the process stops")
    assert not given_up.end(Outcome(given_up, "success"), Shelf())  # type: ignore[arg-type]
    assert given_up.give_up(Interrupted("again")) is None
    assert ended.is_decided
    assert given_up.is_decided


def test_of_an_end_and_a_giving_up_at_the_same_moment_one_counts() -> None:
    with ThreadPoolExecutor(2) as threads:
        for _ in range(300):
            run = claimed()
            end = threads.submit(run.end, Outcome(run, "success"), Shelf())  # type: ignore[arg-type]
            give_up = threads.submit(run.give_up, Interrupted("now"))
            assert end.result() == (give_up.result() is None)


def test_a_runs_clock_starts_when_it_begins_and_never_where_it_has_no_limit() -> None:
    run, endless = claimed(timeout=5), claimed(timeout=0)
    assert not run.is_overdue(1e12)
    assert not run.has_begun
    for one in (run, endless):
        one.begin()
    assert run.has_begun
    assert run.is_overdue(1e12)
    assert not run.is_overdue(0)
    assert not endless.is_overdue(1e12)


# --- what its flow sees ---------------------------------------------------------------------------------


def test_a_flow_that_watches_is_told() -> None:
    run = claimed()
    stopping = run.stopping()
    assert not stopping.is_set()
    run.ask_to_stop()
    assert stopping.is_set()


def test_a_flow_that_looks_for_the_first_time_after_it_was_told_knows_it() -> None:
    run = claimed()
    run.ask_to_stop()
    assert run.stopping().is_set()
    assert run.stopping() is run.stopping()


def test_a_connection_that_a_flow_kept_is_closed_and_given_back_at_its_end_and_only_once() -> None:
    run, shelf = claimed(), Shelf()
    block = run.borrow(shelf)  # type: ignore[arg-type]
    kept: Any = block.__enter__()
    run.end(Outcome(run, "success"), shelf)  # type: ignore[arg-type]
    assert (shelf.back, kept.closed) == ([kept], True)
    block.__exit__(None, None, None)
    assert shelf.back == [kept]


def test_after_its_end_a_run_borrows_nothing_and_what_it_took_is_back() -> None:
    run, shelf = claimed(), Shelf()
    run.end(Outcome(run, "success"), shelf)  # type: ignore[arg-type]
    with pytest.raises(HeartbeatError, match="has ended"), run.borrow(shelf):  # type: ignore[arg-type]
        pass
    assert len(shelf.back) == 1


def test_a_connection_of_a_run_that_timed_out_is_closed_before_another_gets_it() -> None:
    run, shelf = claimed(), Shelf()
    with run.borrow(shelf) as conn:  # type: ignore[arg-type]
        run.give_up(Interrupted("it took too long"), body_lives=True)
    assert shelf.back == [conn]
    assert conn.closed


# --- the runs of the process ----------------------------------------------------------------------------


def test_a_run_without_an_outcome_keeps_the_process() -> None:
    live_runs, run = LiveRuns(), claimed()
    live_runs.add([run])
    assert live_runs.undecided
    run.give_up(Interrupted("the process stops"))
    assert not live_runs.undecided
    assert list(live_runs) == [run], "until it is on record"
    live_runs.remove(run)
    live_runs.remove(run)
    assert len(live_runs) == 0


def test_who_asks_what_is_unknown_waits_for_the_claims_under_way_and_for_no_later_one() -> None:
    live_runs, run = LiveRuns(), claimed()
    under_way = live_runs.claiming()
    under_way.__enter__()
    asked = Background(lambda: live_runs.unknown({run.run_id, 2}))
    live_runs.add([run])
    assert not asked.done

    def hand_over() -> bool:
        """Begin a claim before the last one ends: at every moment there is one under way."""
        nonlocal under_way
        last, under_way = under_way, live_runs.claiming()
        under_way.__enter__()
        last.__exit__(None, None, None)
        return asked.done

    wait_until(hand_over, what="it to stop waiting")
    assert asked.result() == {2}
