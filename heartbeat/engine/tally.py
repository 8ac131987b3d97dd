"""The counts of one heartbeat, kept as its runs are claimed and recorded, and who answers it.

Written by the threads that claim and by the recorder, waited for by the heartbeat's own thread. A condition guards the
counts of runs and who answers; `is_exhausted` counts only when no claim is under way.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Literal

_LOOK = 0.5
"""Most seconds between looks at the time until which to wait, which may move."""


class Tally:
    """What a heartbeat has found, started and seen end.

    Its row is written once more when all is over: by the recorder together with its last outcome, where nothing was
    left to claim by then; else by the heartbeat's own thread.
    """

    def __init__(self, heartbeat_id: int, as_of: datetime, first_turn: datetime | None) -> None:
        self.heartbeat_id = heartbeat_id
        self.as_of = as_of
        self.first_turn = first_turn
        """The oldest turn that may be due: where to begin to read."""
        self.due = 0
        self.triggered = 0
        self.succeeded = 0
        self.failed = 0
        self.failures = 0
        """Failed runs that came to the log's turn; only a share of them has a line."""
        self.remaining = 0
        self.next_due_at: datetime | None = None
        self.is_exhausted = False
        """Nothing is left to claim, or nobody claims for it any more."""
        self._claims = 0  # under way
        self._answerer: Literal["recorder", "heartbeat"] | None = (
            None  # who has taken it upon himself to answer
        )
        self._is_answered = False  # by the recorder
        self._changed = threading.Condition()

    @property
    def running(self) -> int:
        """Runs claimed and not recorded."""
        return self.triggered - self.succeeded - self.failed

    @contextmanager
    def claiming(self) -> Iterator[None]:
        """Say that a claim is under way: until it has ended, nobody can tell which run is the last."""
        with self._changed:
            self._claims += 1
        try:
            yield
        finally:
            with self._changed:
                self._claims -= 1
                self._changed.notify_all()

    def claimed(self, count: int) -> None:
        """Count claimed runs, before any of them begins."""
        with self._changed:
            self.triggered += count

    def recorded(self, succeeded: int, failed: int) -> None:
        """Count runs whose end is on record; the last one wakes the thread that waits."""
        with self._changed:
            self.succeeded += succeeded
            self.failed += failed
            if not self.running:
                self._changed.notify_all()

    # ── who answers ──────────────────────────────────────────────────────────────────────────────────────────

    def ends_with(self, count: int) -> bool:
        """Whether the recorder shall answer with these outcomes, the last ones of a heartbeat with nothing to claim."""
        with self._changed:
            if self._answerer or self._claims or not self.is_exhausted or self.running != count:
                return False
            self._answerer = "recorder"
            return True

    def answer(self, remaining: int, next_due_at: datetime | None) -> None:
        """Take the recorder's answer, and give it to the thread that waits."""
        with self._changed:
            self.remaining, self.next_due_at = remaining, next_due_at
            self._is_answered = True
            self._changed.notify_all()

    def refuse(self) -> None:
        """Take back what `ends_with` promised: it came to nothing."""
        with self._changed:
            self._answerer = None
            self._changed.notify_all()

    def wait(self, deadline: Callable[[], float]) -> bool:
        """Wait for the end of all runs, or until a time of `time.monotonic()` that may move.

        True: the recorder has answered. False: the waiting thread must, and nobody else will.
        """
        with self._changed:
            while not self._is_answered:
                left = deadline() - time.monotonic()
                if self._answerer is None and (left <= 0 or not self.running):
                    self._answerer = "heartbeat"
                    return False
                self._changed.wait(min(max(left, 0.01), _LOOK))
            return True
