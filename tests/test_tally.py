"""A heartbeat's counts, and who answers it: the recorder with the last outcomes, or the heartbeat's own thread."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import psycopg
import pytest

from heartbeat import DatabaseUnavailable, Heartbeat
from heartbeat.engine.beat import Beats
from heartbeat.engine.tally import Tally
from tests.support.flow_classes import Gate, Noop
from tests.support.rows import Conn, add_flow, heartbeat_row, statuses_of
from tests.support.waiting import Background, wait_until

SOON = 0.05


def claimed(runs: int, *, exhausted: bool = True) -> Tally:
    tally = Tally(1, datetime.now(UTC), None)
    tally.claimed(runs)
    tally.is_exhausted = exhausted
    return tally


def wait(tally: Tally, seconds: float = 30) -> bool:
    deadline = time.monotonic() + seconds
    return tally.wait(lambda: deadline)


# --- who answers ----------------------------------------------------------------------------------------


def test_the_recorder_answers_with_the_last_outcomes_of_a_heartbeat_and_with_no_others() -> None:
    tally = claimed(3)
    assert not tally.ends_with(2)
    tally.recorded(2, 0)
    assert tally.ends_with(1)


def test_while_there_may_be_more_to_claim_no_outcome_is_the_last() -> None:
    assert not claimed(1, exhausted=False).ends_with(1)
    tally = claimed(1)
    with tally.claiming():
        assert not tally.ends_with(1)
    assert tally.ends_with(1)


def test_who_waits_has_the_recorders_answer() -> None:
    tally = claimed(1)
    waiting = Background(lambda: wait(tally))
    assert tally.ends_with(1)
    tally.recorded(1, 0)
    assert not waiting.done, "all has ended, but the recorder is about to answer"
    tally.answer(7, None)
    assert waiting.result(5) is True
    assert tally.remaining == 7


def test_where_the_recorder_could_not_answer_whoever_waits_must() -> None:
    tally = claimed(1)
    waiting = Background(lambda: wait(tally))
    assert tally.ends_with(1)
    tally.recorded(1, 0)
    tally.refuse()
    assert waiting.result(5) is False


def test_a_heartbeat_whose_time_is_over_waits_for_the_recorder_that_has_begun_to_answer() -> None:
    tally = claimed(1)
    assert tally.ends_with(1)
    waiting = Background(lambda: wait(tally, seconds=0))
    assert not waiting.done
    tally.answer(0, None)
    assert waiting.result(5) is True


def test_what_ends_after_a_heartbeats_time_is_not_the_recorders_to_answer() -> None:
    tally = claimed(1)
    assert wait(tally, seconds=SOON) is False
    assert not tally.ends_with(1)


def test_a_heartbeat_whose_runs_have_all_ended_does_not_wait() -> None:
    tally = claimed(2)
    waiting = Background(lambda: wait(tally))
    tally.recorded(1, 1)
    assert waiting.result(5) is False
    assert (tally.running, tally.succeeded, tally.failed) == (0, 1, 1)


# --- in a heartbeat -------------------------------------------------------------------------------------


def test_a_heartbeats_last_outcomes_and_its_answer_are_one_message(
    db: Conn, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(Beats, "_answer")  # what the heartbeat's own thread would do
    add_flow(db, "Noop")
    with Heartbeat(flows=[Noop], database_url=database_url) as hb:
        report = hb.beat()
        assert (report.flows_succeeded, report.flows_remaining) == (1, 0)
        assert report.next_due_at is not None
        row = heartbeat_row(db, report.heartbeat_id)
        assert (row.flows_triggered, row.flows_succeeded) == (1, 1)
        assert row.finished_at is not None


def test_a_heartbeat_whose_row_is_locked_is_finished_once_the_lock_is_gone(
    db: Conn, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    add_flow(db, "Slow")
    with Heartbeat(flows=[gate.flow("Slow")], database_url=database_url) as hb:
        beat = Background(hb.beat)
        wait_until(lambda: gate.begun)
        with psycopg.connect(database_url) as dba:
            dba.execute("LOCK TABLE heartbeats")
            gate.open()
            wait_until(
                lambda: statuses_of(db, "Slow") == ["success"], what="the run to be recorded all the same"
            )
            begin = time.monotonic()
            with pytest.raises(DatabaseUnavailable):
                beat.result()
            assert time.monotonic() - begin < 5
            wait_until(lambda: "could not be finished" in caplog.text, what="the first attempt to fail")
        row = wait_until(lambda: finished(db), what="the heartbeat to be finished")
        assert row == (1, 1, 0)


def finished(db: Conn) -> tuple[int, ...] | None:
    return db.execute(
        "SELECT flows_triggered, flows_succeeded, flows_failed FROM heartbeats WHERE finished_at IS NOT NULL"
    ).fetchone()
