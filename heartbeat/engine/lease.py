"""The right to run flows: a row in `data_flow_runners` that must be renewed, and the clock that says if it was.

Renewed by the lease's thread, asked by those that claim and begin runs: one attribute, written and read in one step.
"""

from __future__ import annotations

import time
from uuid import UUID, uuid4

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def now() -> float:
    """Return seconds on a clock that also runs while the machine sleeps, as the database's does."""
    return time.clock_gettime(_CLOCK)


class Lease:
    """One runner id, and until when this process may trust it.

    The database decides whether a runner is dead. This copy errs on the safe side: it counts from the moment
    before the renewal was sent, so it ends before the database's.
    """

    __slots__ = ("_renewed_at", "_ttl", "id")

    def __init__(self, ttl: float, *, at: float | None = None) -> None:
        self.id: UUID = uuid4()
        self._ttl = ttl
        self._renewed_at = now() if at is None else at

    def renewed(self, at: float) -> None:
        """Note a renewal that was sent at a time of `now()`."""
        self._renewed_at = at

    def is_valid(self, at: float | None = None) -> bool:
        """Whether runs may be claimed and started under it."""
        return (now() if at is None else at) - self._renewed_at < self._ttl
