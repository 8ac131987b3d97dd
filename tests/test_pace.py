"""How much is claimed ahead: about as much as ends in a tenth of a second, at the rate that was seen."""

from __future__ import annotations

from heartbeat.engine.pace import Pace


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
