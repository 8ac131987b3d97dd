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
    first, later = live_runs.claiming(), live_runs.claiming()
    first.__enter__()
    asked = Background(lambda: live_runs.unknown({run.run_id, 2}))
    wait_until(lambda: live_runs._claim_ended._waiters, what="it to wait")
    later.__enter__()
    assert not asked.done
    live_runs.add([run])
    first.__exit__(None, None, None)
    assert asked.result() == {2}
    later.__exit__(None, None, None)
