"""A run on its way through this process: its state, its one outcome, what it has borrowed, and its end.

The thread that runs its body (a flow's, or the event loop's) begins and ends it; the watch gives it up when its time is
over, the end of the process when the drain is. Its lock guards its outcome, the first of which stands, its connections
and `stopping`; when it began and how to cancel it are set once, by the thread that begins it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import psycopg

from heartbeat.cleaning import backtrace_text, error_text
from heartbeat.engine.lease import Lease
from heartbeat.engine.tally import Tally
from heartbeat.errors import HeartbeatError
from heartbeat.postgres.flow_connections import FlowConnections

log = logging.getLogger("heartbeat")


class RunTimeout(Exception):
    """A run took longer than it may. Only ever seen as a run's error."""


class GivenUp(Exception):
    """Somebody ended or deleted the run by hand while it went on. Only ever seen in the log."""


class Interrupted(Exception):
    """The process stopped before the run had ended. Only ever seen as a run's error."""


@dataclass(slots=True, eq=False)
class Outcome:
    """How a run ended, fit for the database."""

    run: Run
    status: Literal["success", "failed"]
    result: str | None = None
    error: str | None = None
    backtrace: str | None = None
    kind: type[BaseException] | None = None
    """What kind of exception failed it."""
    exception: BaseException | None = None
    """The exception itself, only where a caller waits for this run: it keeps all that the flow held alive."""
    body_lives: bool = False
    """The run timed out and its body goes on: the flow must not start again."""
    is_refused: bool = False
    """The database refused to record how the run ended; this says so in its place."""
    is_in_doubt: bool = False
    """The connection broke while it was recorded: it may be on record."""
    ended_at: float = field(default_factory=time.monotonic)

    @property
    def duration_ms(self) -> float | None:
        """For how long the run went on; None where it never began."""
        return self.run.ms_until(self.ended_at)


def failure(run: Run, exc: BaseException) -> Outcome:
    """Make the outcome of a run that raised."""
    return Outcome(
        run,
        "failed",
        error=error_text(exc),
        backtrace=backtrace_text(exc),
        kind=type(exc),
        exception=exc if run.done is not None else None,
    )


class Run:
    """A run that this process has claimed and must bring to one outcome.

    `timeout` is seconds, 0 for none. `tally` is its heartbeat's; `done` is for a caller that waits for this run alone,
    and set when its end is on record.
    """

    # Thousands are made a second.
    __slots__ = (
        "_began_at",
        "_body_ended",
        "_connections",
        "_lock",
        "_must_stop",
        "_outcome",
        "_stopping",
        "cancel",
        "class_name",
        "configuration",
        "done",
        "lease",
        "name",
        "run_id",
        "tally",
        "timeout",
    )

    def __init__(
        self,
        row: Any,
        timeout: float,
        lease: Lease,
        tally: Tally | None = None,
        done: Future[Outcome] | None = None,
    ) -> None:
        self.run_id: int = row.run_id
        self.name: str = row.name
        self.class_name: str = row.class_name
        self.configuration: str = row.configuration
        self.timeout = timeout
        self.lease = lease
        self.tally = tally
        self.done = done
        self.cancel: Callable[[], None] | None = None
        """Cancels the task of an async flow, once it has one."""
        self._began_at = float("inf")
        self._outcome: Outcome | None = None
        self._connections: list[psycopg.Connection[Any]] | None = None  # most runs borrow none
        self._body_ended = False
        self._stopping: threading.Event | None = None
        self._must_stop = False
        self._lock = threading.Lock()

    # ── its outcome ──────────────────────────────────────────────────────────────────────────────────────────

    def begin(self) -> None:
        """Start its clock."""
        self._began_at = time.monotonic()

    def is_overdue(self, now: float) -> bool:
        """Whether its time is over, at a time of `time.monotonic()`, and it has no outcome."""
        return bool(self.timeout) and now - self._began_at >= self.timeout and not self.is_decided

    @property
    def has_begun(self) -> bool:
        """Whether a thread or the loop has taken it up."""
        return self._began_at < float("inf")

    def ms_until(self, moment: float) -> float | None:
        """Return how long it had gone on at a time of `time.monotonic()`; None where it has not begun."""
        return round((moment - self._began_at) * 1000, 2) if self.has_begun else None

    @property
    def is_decided(self) -> bool:
        """Whether it has its outcome."""
        return self._outcome is not None

    @property
    def decided_at(self) -> float | None:
        """When it had its outcome, by `time.monotonic()`; None where it has none yet."""
        outcome = self._outcome
        return None if outcome is None else outcome.ended_at

    def end(self, outcome: Outcome, connections: FlowConnections) -> bool:
        """End its body, and make this its outcome; False where it was given up before, and so has another."""
        with self._lock:
            self._body_ended = True
            kept, self._connections = self._connections or (), None
            is_first = self._outcome is None
            if is_first:
                self._outcome = outcome
        for conn in kept:  # or there would be none left for the others
            log.warning("run %d of %s did not give its connection back", self.run_id, self.name)
            conn.close()
            connections.take_back(conn)
        return is_first

    def give_up(self, reason: Exception, *, body_lives: bool = False) -> Outcome | None:
        """Fail it from outside, ask its body to end, and return the outcome; None where it had one already."""
        outcome = failure(self, reason)
        outcome.backtrace = None  # it would show this module, not the flow
        outcome.body_lives = body_lives
        with self._lock:
            if self._outcome is not None:
                return None
            self._outcome = outcome
        self.ask_to_stop()
        return outcome

    # ── its body ─────────────────────────────────────────────────────────────────────────────────────────────

    def stopping(self) -> threading.Event:
        """Return what the flow sees as its `stopping`. Made when it is asked for: most flows never do."""
        with self._lock:
            if self._stopping is None:
                self._stopping = threading.Event()
                if self._must_stop:
                    self._stopping.set()
            return self._stopping

    def ask_to_stop(self) -> None:
        """Tell the flow that its run should end soon."""
        with self._lock:
            self._must_stop = True
            if self._stopping is not None:
                self._stopping.set()

    # ── what it borrows ──────────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def borrow(self, connections: FlowConnections) -> Iterator[psycopg.Connection[Any]]:
        """Lend the flow a connection, which commits when the block ends and rolls back when it raises."""
        conn = connections.lend()
        with self._lock:
            lent = not self._body_ended
            if lent:
                self._connections = [*(self._connections or ()), conn]
        if not lent:  # by a thread that the flow left behind; nobody would take it back
            connections.take_back(conn)
            raise HeartbeatError(
                f"run {self.run_id} of {self.name} has ended: it can borrow no connection any more"
            )
        try:
            with conn:
                yield conn
        finally:
            self._give_back(conn, connections)

    def _give_back(self, conn: psycopg.Connection[Any], connections: FlowConnections) -> None:
        with self._lock:
            if self._connections is None or conn not in self._connections:
                return  # it was taken back at the body's end
            self._connections.remove(conn)
            is_given_up = self._outcome is not None and self._outcome.body_lives
        if is_given_up:
            conn.close()  # its query is being cancelled, which must not hit the next borrower's
        connections.take_back(conn)

    def cancel_body(self) -> None:
        """Cancel the task of an async flow, and what its connections wait for."""
        if self.cancel is not None:
            self.cancel()
        with self._lock:
            borrowed = list(self._connections or ())
        for conn in borrowed:  # each from a thread of its own: it may take a while
            try:
                threading.Thread(target=_cancel_query, args=(conn,), daemon=True).start()
            except RuntimeError as exc:
                log.warning("a timed-out flow's query could not be cancelled: %s", exc)


def _cancel_query(conn: psycopg.Connection[Any]) -> None:
    try:
        conn.cancel_safe(timeout=5.0)
    except psycopg.Error as exc:
        log.warning("a timed-out flow's query could not be cancelled: %s", exc)
