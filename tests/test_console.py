"""What the commands print, without the commands."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone

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


def test_a_heartbeats_line_says_when_the_next_flow_is_due() -> None:
    answer = {"heartbeat_id": 1, "timestamp": "2026-11-23T19:04:00Z", "flows_due": 0}

    assert console.heartbeat_line(answer).endswith("; nothing due later")
    line = console.heartbeat_line(answer | {"next_due_at": "2026-11-23T19:05:00Z"})
    assert line.startswith("2026-11-23T19:04:00Z heartbeat 1: 0 due, ")
    assert line.endswith("; next due 2026-11-23T19:05:00Z")
