"""The threads that run flows: at most so many at once, and none of them lost to a flow that never returns."""

from __future__ import annotations

import inspect
import logging
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import psycopg

from heartbeat.cleaning import backtrace_text, error_text, load_json, result_json
from heartbeat.engine.eventloop import EventLoop
from heartbeat.engine.pace import Pace
from heartbeat.engine.run import ClaimedRun, Outcome
from heartbeat.flows import DataFlow, Registry
from heartbeat.postgres.database import Database
from heartbeat.postgres.deadlines import Deadlines

log = logging.getLogger("heartbeat")

CLAIM = 1000
"""Most runs in one claim, however fast they end."""

_CLAIM_AHEAD_SECONDS = 0.1
"""How much work is claimed ahead: a slow flow holds up no more than that."""


class RunTimeout(Exception):
    """A run took longer than it may. Only ever seen as a run's error."""


class Interrupted(Exception):
    """The process stopped before the run had ended. Only ever seen as a run's error."""


class Workers:
    """Runs claimed work and hands each outcome to `on_outcome`, exactly once.

    Whoever takes a run out of `_active` owns its outcome: the thread that ran it, the timeout, or the shutdown.
    """

    def __init__(
        self,
        concurrency: int,
        registry: Registry,
        database: Database,
        deadlines: Deadlines,
        on_outcome: Callable[[Outcome], None],
        on_thread_ended: Callable[[ClaimedRun], None],
    ) -> None:
        self._concurrency = concurrency
        self._registry = registry
        self._database = database
        self._deadlines = deadlines
        self._on_outcome = on_outcome
        self._on_thread_ended = on_thread_ended
        self._pace = Pace()
        self._loop = EventLoop(deadlines)
        self._queue: deque[ClaimedRun] = deque()
        self._queued = 0  # all that ever were
        self._on_the_way = 0  # asked for by claims that are under way
        self._active: dict[int, ClaimedRun] = {}
        self._stuck: dict[int, ClaimedRun] = {}
        self._giving_up = threading.Lock()
        self._has_work = threading.Condition()
        self._low_water = 0
        self._hungry = threading.Event()
        self._stopped = False
        self._claim_seconds = 0.0  # how long the last claim took

    def start(self) -> None:
        for _ in range(self._concurrency):
            self._start_thread()
        self._time_out_overdue()

    @property
    def stuck_threads(self) -> int:
        """Runs that timed out and whose thread has not ended."""
        return len(self._stuck)

    @property
    def is_idle(self) -> bool:
        return not self._queue and not self._active

    @contextmanager
    def room(self) -> Iterator[int]:
        """Say how many runs to claim now, 0 while enough work waits already; the claim is made in the block.

        Enough is about 100 ms of it, or twice what a claim takes if that is longer: as many runs as end in that time
        lately, and never fewer than there are free threads. Three claims' worth at most: one is run while two are
        on their way.
        """
        size = self._reserve()
        began = time.monotonic()
        try:
            yield size
        finally:
            with self._has_work:
                self._on_the_way -= size
        if size:
            self._claim_seconds = time.monotonic() - began

    def _reserve(self) -> int:
        with self._has_work:
            waiting, active = len(self._queue), len(self._active)
            seconds = max(_CLAIM_AHEAD_SECONDS, 2 * self._claim_seconds)
            expected = self._pace.expected(time.monotonic(), self._queued - waiting - active, seconds)
            ahead = min(3 * CLAIM, max(self._concurrency - active, expected))
            worthwhile = min(CLAIM, (ahead + 1) // 2)
            self._low_water = ahead - worthwhile - self._on_the_way
            if ahead == 0 or waiting > self._low_water:
                return 0
            size = min(CLAIM, ahead - waiting - self._on_the_way)
            self._on_the_way += size
            return size

    def wait_for_room(self, timeout: float) -> None:
        """Wait until some work has been taken up, or somebody else has claimed the last."""
        self._hungry.wait(timeout)
        self._hungry.clear()

    def wake_claimers(self) -> None:
        """Have whoever waits for room look whether there is still anything to claim."""
        self._hungry.set()

    def put(self, runs: Sequence[ClaimedRun]) -> None:
        """Queue runs for the threads."""
        with self._has_work:
            self._queued += len(runs)
            self._queue.extend(runs)
            self._has_work.notify(self._concurrency)

    def ask_to_stop(self) -> None:
        """Tell the flows that run to come to an end."""
        for run in list(self._active.values()):
            run.ask_to_stop()

    def interrupt(self) -> None:
        """Fail whatever has not ended: the process goes now."""
        with suppress(IndexError):
            while True:
                self._fail(self._queue.popleft(), Interrupted("the process stopped before the run began"))
        for run in list(self._active.values()):
            if self._active.pop(run.run_id, None) is not None:
                self._fail(run, Interrupted("the process stopped while this ran"))

    def stop(self) -> None:
        """Let the threads that wait for work go; one whose flow never returns is abandoned with the process."""
        self._stopped = True
        with self._has_work:
            self._has_work.notify_all()
        self._loop.stop()

    def _start_thread(self) -> None:
        threading.Thread(target=self._work, name="heartbeat-flow", daemon=True).start()

    def _work(self) -> None:
        while (run := self._next()) is not None:
            self._perform(run)
            if run.thread_lost:
                return  # another thread has taken this one's place
            if len(self._queue) <= self._low_water and not self._hungry.is_set():
                self._hungry.set()

    def _next(self) -> ClaimedRun | None:
        with suppress(IndexError):
            return self._queue.popleft()
        with self._has_work:
            while not self._stopped:
                with suppress(IndexError):  # whoever comes straight from its last run does not take the lock
                    return self._queue.popleft()
                self._has_work.wait()
        return None

    def _perform(self, run: ClaimedRun) -> None:
        """Bring a run to its end, whatever the flow does."""
        run.started_at = time.monotonic()
        self._active[run.run_id] = run
        try:
            outcome = self._outcome(run)
        except BaseException as exc:  # noqa: BLE001 - a flow may raise anything; it is its own run's failure
            outcome = failure(run, exc)
        if run.connections:
            self._take_back_all(run)
        if self._active.pop(run.run_id, None) is not None:
            self._on_outcome(outcome)
            return
        with self._giving_up:  # whoever took the run away has decided about this thread by now
            thread_lost = run.thread_lost
        if thread_lost:
            self._execution_ended(run)

    def _outcome(self, run: ClaimedRun) -> Outcome:
        if not run.lease.is_valid():
            raise Interrupted("this process could not renew its lease in time and did not begin the run")
        flow = self._make_flow(run)
        self._require_active(run)
        result = flow.run()
        if result is None:
            return Outcome(run, "success")
        if inspect.isawaitable(result):
            result = self._await(run, result)
        if inspect.isgenerator(result) or inspect.isasyncgen(result):
            raise TypeError("run() returned a generator, which would never run: take the yield out of it")
        text, problem = result_json(result)
        if problem is not None:
            log.warning(
                "the result of run %d of %s is kept as text: %s", run.run_id, run.name, problem,
                extra={"event": "odd_result", "flow": run.name, "run_id": run.run_id},
            )  # fmt: skip
        return Outcome(run, "success", result=text)

    def _make_flow(self, run: ClaimedRun) -> DataFlow:
        try:
            configuration: dict[str, Any] = load_json(run.configuration)
        except ValueError as exc:
            raise ValueError(f"configuration cannot be read: {exc}") from exc
        flow = self._registry.find(run.name, configuration)(configuration)
        DataFlow._bind(
            flow, run.name, run.run_id, configuration, lambda: self._lend_connection(run), run.stopping
        )
        return flow

    def _await(self, run: ClaimedRun, work: Awaitable[Any]) -> Any:
        """Wait for an async flow on the event loop; a timeout ends the wait, and the flow as soon as it can."""
        with self._giving_up:
            self._require_active(run)
            job = self._loop.submit(work, lambda: self._execution_ended(run))
            run.cancel = job.cancel
        return job.result()

    def _require_active(self, run: ClaimedRun) -> None:
        if run.run_id not in self._active:
            raise Interrupted("the run was given up before run() was called")

    @contextmanager
    def _lend_connection(self, run: ClaimedRun) -> Iterator[psycopg.Connection[Any]]:
        conn = self._database.lend_to_flow()
        run.connections.append(conn)
        try:
            with conn:
                yield conn
        finally:
            self._take_back(run, conn)

    def _take_back(self, run: ClaimedRun, conn: psycopg.Connection[Any]) -> None:
        with self._giving_up:
            if conn not in run.connections:
                return
            run.connections.remove(conn)
            if run.timed_out:
                conn.close()  # its query is being cancelled, which must not hit the next borrower's
        self._database.take_back(conn)

    def _take_back_all(self, run: ClaimedRun) -> None:
        """Close what a flow has kept beyond its end, or there would be none left for the others."""
        for conn in list(run.connections):
            log.warning("run %d of %s did not give its connection back", run.run_id, run.name)
            conn.close()
            self._take_back(run, conn)

    def _time_out_overdue(self) -> None:
        """Look at every active run's time, again and again: to set a deadline for each would cost a no-op flow 5 %."""
        now = time.monotonic()
        for run in list(self._active.values()):
            if run.timeout and now - run.started_at >= run.timeout:
                self._time_out(run)
        if not self._stopped:
            self._deadlines.add(0, self._time_out_overdue)

    def _time_out(self, run: ClaimedRun) -> None:
        """Fail a run whose time is up, ask it to end, and give its slot to another thread."""
        with self._giving_up:
            if self._active.pop(run.run_id, None) is None:
                return
            self._stuck[run.run_id] = run
            run.timed_out = True
            run.thread_lost = run.cancel is None
        self._fail(run, RunTimeout(f"the run took longer than {run.timeout:g} s"), thread_lives=True)
        run.ask_to_stop()
        if run.cancel is not None:
            run.cancel()
        else:
            self._start_thread()
        self._database.allow_flow_connections(self._concurrency + len(self._stuck))
        for conn in list(run.connections):
            # Cancelling opens a connection of its own, which may take a while.
            threading.Thread(target=_cancel_query, args=(conn,), daemon=True).start()
        if run.execution_ended:  # in the same moment
            self._execution_ended(run)

    def _execution_ended(self, run: ClaimedRun) -> None:
        """Note that nothing of a run goes on any more; for one that had timed out, its flow may start again."""
        run.execution_ended = True
        self._take_back_all(run)
        if self._stuck.pop(run.run_id, None) is not None:
            log.warning(
                "run %d of %s has ended after all, after it had timed out", run.run_id, run.name,
                extra={"event": "stuck_thread_ended", "flow": run.name, "run_id": run.run_id},
            )  # fmt: skip
            self._database.allow_flow_connections(self._concurrency + len(self._stuck))
            self._on_thread_ended(run)

    def _fail(self, run: ClaimedRun, exc: Exception, *, thread_lives: bool = False) -> None:
        outcome = failure(run, exc)
        outcome.backtrace = None  # it would show this module, not the flow
        outcome.thread_lives = thread_lives
        self._on_outcome(outcome)


def failure(run: ClaimedRun, exc: BaseException) -> Outcome:
    """Make the outcome of a run that raised."""
    return Outcome(run, "failed", error=error_text(exc), backtrace=backtrace_text(exc), exception=exc)


def _cancel_query(conn: psycopg.Connection[Any]) -> None:
    try:
        conn.cancel_safe(timeout=5.0)
    except psycopg.Error as exc:
        log.warning("a timed-out flow's query could not be cancelled: %s", exc)
