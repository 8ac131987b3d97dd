"""What the commands print, without the commands."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone

import pytest

from heartbeat.cli import console


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (0.0123, "12 ms"),
        (1, "1 s"),
        (3.456, "3.46 s"),
        (59, "59 s"),
        (60, "1 min"),
        (90, "1 min 30 s"),
        (3600, "1 h"),
        (5000, "1 h 23 min"),
        (7 * 86_400, "7 d"),
        (315_576_000, "3652 d 12 h"),
    ],
)
def test_a_duration_has_two_units_at_most(seconds: float, text: str) -> None:
    assert console.duration(timedelta(seconds=seconds)) == text


def test_json_has_times_in_utc_and_intervals_in_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    moment = datetime(2026, 11, 23, 20, 4, 0, 250_000, tzinfo=timezone(timedelta(hours=1)))

    console.print_json({"at": moment, "took": timedelta(minutes=1, milliseconds=5)})

    assert json.loads(capsys.readouterr().out) == {"at": "2026-11-23T19:04:00.250000Z", "took": 60.005}


def test_a_heartbeats_line_leaves_out_what_is_nought_and_unusual() -> None:
    answer = dict.fromkeys(("flows_due", "flows_triggered", "flows_running", "flows_remaining"), 0)
    answer |= {"flows_succeeded": 2, "flows_failed": 1}

    assert console.heartbeat_counts(answer) == "0 due, 0 triggered, 2 succeeded, 1 failed"
    assert console.heartbeat_counts(answer | {"flows_remaining": 3}).endswith(", 3 remaining")


def test_the_line_of_an_odd_answer_is_still_a_line() -> None:
    line = console.heartbeat_line({"heartbeat_id": "\x1b[2J\n", "flows_due": [1], "next_due_at": "\n"})

    assert line.isprintable()


def test_the_text_of_a_heartbeat_is_the_same_from_the_report_and_from_the_answer() -> None:
    moment = datetime(2026, 11, 23, 19, 4, 0, tzinfo=UTC)
    report = {"heartbeat_id": 1, "timestamp": moment, "next_due_at": moment}
    answer = {"heartbeat_id": 1, "timestamp": "2026-11-23T19:04:00Z", "next_due_at": "2026-11-23T19:04:00Z"}

    assert console.heartbeat_line(report) == console.heartbeat_line(answer)
