"""A run on its way through this process, and the heartbeat that it belongs to."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from psycopg import Connection

from heartbeat.engine.lease import Lease


class LiveRuns:
    """The runs that this process has claimed and not yet put on record."""

    def __init__(self) -> None:
        self._runs: dict[int, ClaimedRun] = {}
        self._claims: set[object] = set()  # those under way
        self._claim_ended = threading.Condition()

    def __len__(self) -> int:
        return len(self._runs)

    def add(self, runs: Iterable[ClaimedRun]) -> None:
        self._runs.update((run.run_id, run) for run in runs)

    def remove(self, run: ClaimedRun) -> None:
        self._runs.pop(run.run_id, None)

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


class Beat:
    """The counts of one heartbeat, kept as its runs are claimed and recorded."""

    def __init__(self, heartbeat_id: int, as_of: datetime) -> None:
        self.heartbeat_id = heartbeat_id
        self.as_of = as_of
        self.flows_due = 0
        self.triggered = 0
        self.succeeded = 0
        self.failed = 0
        self.is_exhausted = False
        """Nothing is left to claim, or nobody claims for it any more."""
        self._on_finished: Callable[[Beat], None] | None = None
        self._changed = threading.Condition()

    @property
    def running(self) -> int:
        """Runs claimed and not recorded."""
        return self.triggered - self.succeeded - self.failed

    def claimed(self, count: int, *, is_all: bool) -> None:
        """Count claimed runs; `is_all` says that there were no more."""
        with self._changed:
            self.triggered += count
            self.is_exhausted |= is_all

    def recorded(self, succeeded: int, failed: int) -> None:
        """Count runs whose end is on record; the last one wakes whoever waits."""
        with self._changed:
            self.succeeded += succeeded
            self.failed += failed
            if self.running:
                return
            self._changed.notify_all()
            finished = self._on_finished
        if finished is not None:
            finished(self)

    def wait(self, deadline: Callable[[], float]) -> None:
        """Wait until every run is recorded, or until a time of `time.monotonic()` that may move."""
        with self._changed:
            while self.running and (left := deadline() - time.monotonic()) > 0:
                self._changed.wait(min(left, 0.5))

    def answer(self, on_finished: Callable[[Beat], None]) -> bool:
        """Say that the heartbeat is being answered: True if it has finished, else `on_finished` will be called."""
        with self._changed:
            if self.running:
                self._on_finished = on_finished
            return not self.running


@dataclass(slots=True, eq=False)
class ClaimedRun:
    """A run that this process has claimed and must bring to an end."""

    run_id: int
    data_flow_id: int
    name: str
    configuration: str
    timeout: float
    lease: Lease
    beat: Beat | None = None
    done: Future[Outcome] | None = None
    """For whoever waits for this one run; set when its end is on record."""
    cancel: Callable[[], None] | None = None
    """Ends the wait of the thread that runs it: set for async flows."""
    connections: list[Connection[Any]] = field(default_factory=list)
    """Connections lent to it right now, so that a query which overstays can be cancelled."""
    started_at: float = float("inf")
    """When a thread took it up, by `time.monotonic()`."""
    timed_out: bool = False
    thread_lost: bool = False
    """It timed out and keeps its thread, which another one has replaced."""
    execution_ended: bool = False
    """Nothing of it goes on any more, although its outcome was decided before."""
    _is_asked_to_stop: bool = False
    _stopping: threading.Event | None = None

    def stopping(self) -> threading.Event:
        """Return what the flow sees as its `stopping`. Made when it is asked for: most flows never do."""
        with _making:
            if self._stopping is None:
                self._stopping = threading.Event()
            if self._is_asked_to_stop:
                self._stopping.set()
            return self._stopping

    def ask_to_stop(self) -> None:
        """Tell the flow that its run should end soon."""
        with _making:
            self._is_asked_to_stop = True
            if self._stopping is not None:
                self._stopping.set()


_making = threading.Lock()


@dataclass(slots=True, eq=False)
class Outcome:
    """How a run ended, fit for the database."""

    run: ClaimedRun
    status: Literal["success", "failed"]
    result: str | None = None
    error: str | None = None
    backtrace: str | None = None
    exception: BaseException | None = None
    thread_lives: bool = False
    """The run timed out and its thread goes on: the flow must not start again."""
    is_in_doubt: bool = False
    """The connection broke while it was recorded: it may be on record."""
