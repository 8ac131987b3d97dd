"""The runs that this process has claimed and not yet put on record.

Claiming threads add to them, the recorder takes away and sets aside; the lease's thread, the maintenance, the drain and
the end of the process ask. Adding, removing and copying are single steps of a dictionary or a set; a condition guards
the claims under way.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from heartbeat.engine.run import Run


class LiveRuns:
    """Claimed runs by their number, and the claims that may add some."""

    def __init__(self) -> None:
        self._runs: dict[int, Run] = {}
        self._unrecordable: set[int] = set()
        self._claims: set[object] = set()  # those under way
        self._claim_ended = threading.Condition()

    def __len__(self) -> int:
        return len(self._runs)

    def __iter__(self) -> Iterator[Run]:
        return iter(self._runs.copy().values())

    def add(self, runs: Iterable[Run]) -> None:
        self._runs.update((run.run_id, run) for run in runs)

    def remove(self, run: Run) -> None:
        self._runs.pop(run.run_id, None)

    def set_aside(self, run: Run) -> None:
        """Note that the database refuses to record how a run ended, and hold it no longer."""
        self._unrecordable.add(
            run.run_id
        )  # first: in between it would be taken for one whose claim was cut off
        self.remove(run)

    @property
    def undecided(self) -> bool:
        """Whether a run has no outcome yet: one that waits, is about to begin, or goes on."""
        return any(not run.is_decided for run in self)

    @property
    def waiting_since(self) -> float | None:
        """Since when the oldest outcome has waited to be recorded, by `time.monotonic()`; None where none waits."""
        return min((at for run in self if (at := run.decided_at) is not None), default=None)

    @contextmanager
    def claiming(self) -> Iterator[None]:
        """Say that a claim is under way; what it claims is added in the block."""
        claim = object()
        with self._claim_ended:
            self._claims.add(claim)
        try:
            yield
        finally:
            with self._claim_ended:
                self._claims.remove(claim)
                self._claim_ended.notify_all()

    def await_claims(self) -> None:
        """Wait for the claims that are under way now: whatever this process has claimed by now is in here then."""
        with self._claim_ended:
            under_way = self._claims.copy()
            self._claim_ended.wait_for(lambda: not under_way & self._claims)

    def unknown(self, run_ids: set[int]) -> set[int]:
        """Return which runs of the database's, as it was a moment ago, are none of ours."""
        self.await_claims()
        return run_ids - self._runs.keys()

    def lost(self, run_ids: set[int]) -> set[int]:
        """Return which runs of the database's, still live there, this process never came to know of."""
        return self.unknown(run_ids) - self._unrecordable
