"""One thread that looks at the clock: it calls back when a time has passed, and makes some calls at every look.

It bounds the waits that nothing else bounds. Any thread adds entries and takes them away, in single steps of a
dictionary.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from heartbeat.threads import say_failed

_TICK = 0.05
"""Seconds between looks. A deadline is missed by at most this; setting one costs two dictionary operations."""


class Deadlines:
    """Callbacks by the time at which they are due. They run on one thread, so they must not block."""

    def __init__(self) -> None:
        self._due: dict[int, tuple[float, Callable[[], None]]] = {}
        self._looks: list[Callable[[], None]] = []
        self._keys = itertools.count()
        self._stop = threading.Event()

    def start(self) -> None:
        """Begin to look at the clock."""
        threading.Thread(target=self._watch, name="heartbeat-deadlines", daemon=True).start()

    def stop(self) -> None:
        """Stop looking; what was due later is never called."""
        self._stop.set()

    def at_every_look(self, callback: Callable[[], None]) -> None:
        """Call back some twenty times a second, whatever the last time came to."""
        self._looks.append(callback)

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
            for callback in (self._call_overdue, *self._looks):
                try:
                    callback()
                except BaseException as exc:  # noqa: BLE001 -- without this thread no wait is bounded any more
                    say_failed("a look at the clock", exc)

    def _call_overdue(self) -> None:
        now = time.monotonic()
        # A copy, made in one step for the interpreter: other threads add and remove meanwhile.
        for key, (when, callback) in self._due.copy().items():
            if when <= now and self.remove(key):
                callback()
