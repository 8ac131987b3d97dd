"""A claimed run and what its flow sees of it."""

from __future__ import annotations

from heartbeat.lease import Lease
from heartbeat.runs import ClaimedRun


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
