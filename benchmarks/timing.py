"""Milliseconds of small things, in turn."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.record import Rounds

WARM_UP = 20

Action = Callable[[], float]  # does it once, and returns the seconds


def timed(call: Callable[[], Any]) -> Action:
    """Make an action of a call."""

    def action() -> float:
        started = time.perf_counter()
        call()
        return time.perf_counter() - started

    return action


def in_turn(found: Rounds, actions: Mapping[str, Action], rounds: int, turns: int) -> None:
    """Do one of each in turn, and enter the medians of every so many turns, in milliseconds."""
    for _ in range(WARM_UP):
        for action in actions.values():
            action()
    gc.disable()
    try:
        for number in range(rounds):
            taken = [{name: action() for name, action in actions.items()} for _ in range(turns)]
            for name in actions:
                found.add(name, number, statistics.median(turn[name] for turn in taken) * 1000)
    finally:
        gc.enable()
