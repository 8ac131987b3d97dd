"""A claimed run and what its flow sees of it."""

from __future__ import annotations

from heartbeat.engine.lease import Lease
from heartbeat.engine.run import ClaimedRun, LiveRuns
from tests.support.waiting import Background, wait_until


def claimed() -> ClaimedRun:
    return ClaimedRun(1, 1, "orders", "{}", 60.0, Lease(30.0))


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
