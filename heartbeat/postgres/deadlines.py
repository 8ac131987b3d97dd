"""One thread that calls back when a time has passed: the bound on waits that nothing else bounds."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger("heartbeat")

_TICK = 0.05
"""Seconds between looks. A deadline is missed by at most this; setting one costs two dictionary operations."""


class Deadlines:
    """Callbacks by the time at which they are due. They run on one thread, so they must not block."""

    def __init__(self) -> None:
        self._due: dict[int, tuple[float, Callable[[], None]]] = {}
        self._keys = itertools.count()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to look at the clock."""
        self._thread = threading.Thread(target=self._watch, name="heartbeat-deadlines", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop looking; what was due later is never called."""
        self._stop.set()

    def add(self, seconds: float, callback: Callable[[], None]) -> int:
        """Call back once, after so many seconds, unless the returned key is removed before."""
        key = next(self._keys)
        self._due[key] = (time.monotonic() + seconds, callback)
        return key

    def remove(self, key: int) -> bool:
        """Forget a deadline; False if its callback has been called or is about to be."""
        return self._due.pop(key, None) is not None

    @contextmanager
    def limit(self, seconds: float, callback: Callable[[], None]) -> Iterator[None]:
        """Call back if the block takes longer."""
        key = self.add(seconds, callback)
        try:
            yield
        finally:
            self.remove(key)

    def _watch(self) -> None:
        while not self._stop.wait(_TICK):
            now = time.monotonic()
            # list() of the items is one step for the interpreter: other threads may add and remove meanwhile.
            for key, (when, callback) in list(self._due.items()):
                if when <= now and self.remove(key):
                    try:
                        callback()
                    except Exception:
                        log.exception("a deadline's callback failed")
