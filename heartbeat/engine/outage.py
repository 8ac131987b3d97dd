"""The database's absence, told once when it begins and once when it ends, whatever number of threads meet it.

The lease's thread, the maintenance and the recorder say what befell them; a lock guards who still waits.
"""

from __future__ import annotations

import logging
import threading
import time

from heartbeat.errors import DatabaseUnavailable, LockTimeout

log = logging.getLogger("heartbeat")

_POOLS = logging.getLogger("psycopg.pool")


_SETTLING = 5.0
"""Seconds after an outage in which what was attempted during it may still fail: that is no second one."""


class Outage(logging.Filter):
    """Whether this process is without its database. As a filter of a log it lets nothing through meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._began_at = 0.0
        self._ended_at = float("-inf")
        self._waiting: set[str] = set()

    def met(self, who: str, exc: Exception) -> bool:
        """Take note that the database was away for a thread, and say so unless that is known.

        False: this is no outage, but something that the caller has to say by itself.
        """
        if not isinstance(exc, DatabaseUnavailable) or isinstance(exc, LockTimeout):
            return False
        now = time.monotonic()
        with self._lock:
            is_first = not self._waiting
            if is_first and now - self._ended_at < _SETTLING:
                return True
            self._waiting.add(who)
            if is_first:
                self._began_at = now
        if is_first:
            log.warning("the database is away: %s", exc, extra={"event": "outage_began", "reason": str(exc)})
        return True

    def over(self, who: str) -> None:
        """Take note that the database answers a thread; say so once it answers all that met the outage."""
        if who not in self._waiting:
            return
        with self._lock:
            self._waiting.discard(who)
            is_last = not self._waiting
            if is_last:
                self._ended_at = time.monotonic()
        if is_last:
            seconds = self._ended_at - self._began_at
            log.warning(
                "the database is back after %.1f s", seconds,
                extra={"event": "outage_ended", "duration_ms": round(seconds * 1000, 2)},
            )  # fmt: skip

    def filter(self, record: logging.LogRecord) -> bool:
        return not self._waiting

    def quiet_pools(self) -> None:
        """Keep the pools, which try again every few seconds, from saying the same each time."""
        _POOLS.addFilter(self)

    def close(self) -> None:
        _POOLS.removeFilter(self)
