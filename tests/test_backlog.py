"""What is claimed and not begun, and how much more to claim: as much as ends soon, and never past the limit."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

from heartbeat.engine.backlog import CLAIM, Backlog, Lane, Pace
from heartbeat.engine.lease import Lease
from heartbeat.engine.run import Run
from tests.support.waiting import Background


def claimed(number: int = 1) -> list[Run]:
    rows = [
        SimpleNamespace(run_id=n, name=f"flow {n}", class_name="Noop", configuration="{}")
        for n in range(number)
    ]
    return [Run(row, 0.0, Lease(30.0)) for row in rows]


def lane(limit: int = 4) -> Lane:
    return Backlog(limit, 1).threads


# --- how fast runs end ----------------------------------------------------------------------------------


def test_nothing_is_expected_before_anything_was_seen_to_end() -> None:
    pace = Pace()
    assert pace.expected(100.0, 0, 0.1) == 0
    assert pace.expected(100.01, 0, 0.1) == 0


def test_as_many_are_expected_as_ended_in_the_time_before() -> None:
    pace = Pace()
    for look in range(20):
        expected = pace.expected(100 + look * 0.01, look * 30, 0.1)
    assert expected == 300


def test_where_the_work_has_just_begun_its_rate_so_far_counts() -> None:
    pace = Pace()
    pace.expected(100.0, 0, 0.1)
    assert pace.expected(100.05, 40, 0.1) == 80


def test_a_few_quick_runs_promise_no_more_than_eight_times_as_many() -> None:
    pace = Pace()
    pace.expected(100.0, 0, 0.1)
    assert pace.expected(100.0001, 8, 0.1) == 64


def test_what_ended_before_a_pause_promises_nothing() -> None:
    pace = Pace()
    pace.expected(100.0, 0, 0.1)
    pace.expected(100.05, 5000, 0.1)
    assert pace.expected(160.0, 5000, 0.1) == 0
    assert pace.expected(160.0, 5000, 0.1) == 0, "two looks at the same moment"


def test_a_slow_database_is_judged_over_a_longer_time() -> None:
    pace = Pace()
    pace.expected(100.0, 0, 1.0)
    pace.expected(100.4, 400, 1.0)
    assert pace.expected(100.8, 800, 1.0) == 1000


# --- how much more to claim -----------------------------------------------------------------------------


def test_as_many_are_claimed_as_may_begin_at_once() -> None:
    assert lane(limit=4).reserve() == 4


def test_no_claim_is_larger_than_one_may_be() -> None:
    assert lane(limit=5000).reserve() == CLAIM


def test_what_runs_and_what_another_claim_has_asked_for_is_not_asked_for_again() -> None:
    busy = lane(limit=4)
    busy.put(claimed(3))
    begun = [busy.take() for _ in range(3)]
    assert None not in begun
    assert busy.reserve() == 1
    assert busy.reserve() == 0, "the one slot that is free has its claim under way"
    busy.release(1, 0.01)
    assert busy.reserve() == 1, "that claim brought nothing"


def test_a_lane_whose_flows_are_slow_claims_nothing_ahead() -> None:
    busy = lane(limit=4)
    busy.put(claimed(4))
    while busy.take() is not None:
        pass
    assert [busy.reserve() for _ in range(3)] == [0, 0, 0]


def test_a_lane_whose_runs_end_quickly_claims_ahead_of_them() -> None:
    quick = lane(limit=4)
    quick.reserve()
    for _ in range(10):
        quick.put(claimed(50))
        while (run := quick.take()) is not None:
            quick.ended(run)
    assert quick.reserve() > 4


def test_as_long_as_enough_waits_nothing_is_claimed() -> None:
    full = lane(limit=4)
    full.put(claimed(4))
    assert full.reserve() == 0


# --- through the lane -----------------------------------------------------------------------------------


def test_runs_begin_in_the_order_in_which_they_came() -> None:
    short, runs = lane(), claimed(3)
    short.put(runs[:2])
    short.put(runs[2:])
    assert [short.take() for _ in range(4)] == [*runs, None]
    assert short.active == set(runs)
    assert all(run.has_begun for run in runs)
    short.ended(runs[0])
    assert short.active == set(runs[1:])


def test_who_waits_for_a_run_has_it_as_soon_as_there_is_one() -> None:
    short, runs = lane(), claimed(2)
    waiting = [Background(lambda: short.await_one(30)) for _ in range(2)]
    short.put(runs)
    assert {call.result(5) for call in waiting} == set(runs)
    assert short.active == set(runs)


def test_who_waits_in_vain_is_let_go_after_its_time_or_when_the_lane_is_closed() -> None:
    short = lane()
    begin = time.monotonic()
    assert short.await_one(0.05) is None
    assert time.monotonic() - begin >= 0.05
    waiting = Background(lambda: short.await_one(30))
    short.close()
    assert waiting.result(5) is None


def test_no_run_is_begun_twice_however_many_take_at_once() -> None:
    short, runs = lane(), claimed(2000)
    taken: list[Run] = []

    def take() -> None:
        while (run := short.await_one(0.2)) is not None:
            taken.append(run)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for begin in range(0, 2000, 100):
        short.put(runs[begin : begin + 100])
    for thread in threads:
        thread.join(30)
    assert len(taken) == len(set(taken)) == 2000


def test_who_waits_for_room_is_woken_when_the_last_waiting_run_has_been_taken_and_not_before() -> None:
    backlog = Backlog(2, 1)
    first, second, third = claimed(3)
    backlog.threads.put([first, second, third])
    backlog.threads.take()
    backlog.threads.take()
    assert backlog.threads.reserve() == 0
    waiting = Background(lambda: backlog.wait_for_room(30))
    backlog.threads.ended(first)
    assert not waiting.done, "the third waits still"
    backlog.threads.take()
    backlog.threads.ended(second)
    waiting.result(5)


def test_who_waits_for_room_is_woken_when_another_has_claimed_the_last() -> None:
    backlog = Backlog(1, 1)
    waiting = Background(lambda: backlog.wait_for_room(30))
    backlog.wake_claimers()
    waiting.result(5)


def test_the_lanes_have_limits_of_their_own() -> None:
    backlog = Backlog(2, 50)
    assert (backlog.threads.reserve(), backlog.loop.reserve()) == (2, 50)
    backlog.threads.put(claimed(2))
    assert (backlog.threads.reserve(), backlog.loop.waiting) == (0, 0)
