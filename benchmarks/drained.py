"""A contestant's queue, filled and drained; once for the comparison, many times for the open snapshot."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from benchmarks.measure import Measurement
from benchmarks.server import settle


class Queue(Protocol):
    """Work in a database, and a running process that does it."""

    note: str

    def fill(self, items: int) -> None:
        """Make so many items due; what this takes is not counted."""

    def drain(self) -> float:
        """Do everything that is due, and say how many seconds it took."""

    def check(self, items: int) -> None:
        """Raise MeasurementFailed unless so many items were done since the start, and none is left."""


def once(opened: AbstractContextManager[Queue], url: str, items: int) -> Measurement:
    """Drain `items`, from a database at rest."""
    with opened as queue:
        queue.fill(items)
        settle(url)
        seconds = queue.drain()
        queue.check(items)
        return Measurement(seconds, items, queue.note)
