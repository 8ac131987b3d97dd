"""The event loop that a process's async flows share, on a thread of its own; replaced when a flow blocks it.

Runs are taken from the lane and performed on the loop's thread. Claiming threads ask it to look (`wake`), flow threads
hand it what a sync `run()` returned (`adopt`), and the watch asks whether it still answers. A lock guards which loop is
the current one; the tasks of a loop belong to its thread.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
import time
from collections.abc import Awaitable
from contextlib import suppress
from contextvars import Context
from typing import Any

from heartbeat.engine.backlog import Lane
from heartbeat.engine.body import Bodies, success
from heartbeat.engine.recorder import Recorder
from heartbeat.engine.run import Outcome, Run, failure
from heartbeat.engine.stuck import Stuck

log = logging.getLogger("heartbeat")

_PATIENCE = 1.0
"""Seconds that the loop may take to answer before it counts as blocked."""


class EventLoop:
    """Performs the runs of the async lane."""

    def __init__(self, lane: Lane, bodies: Bodies, recorder: Recorder, stuck: Stuck) -> None:
        self._lane = lane
        self._bodies = bodies
        self._recorder = recorder
        self._stuck = stuck
        self._lock = threading.Lock()
        self._current: _Loop | None = None
        self._is_stopped = False

    def is_ready(self) -> bool:
        """Whether there is a loop, and one is started where there is none: without, nothing async may be claimed."""
        try:
            with self._lock:
                self._running_loop()
        except RuntimeError:  # the system has no thread to give, or no file
            return False
        return True

    def wake(self) -> None:
        """Have the loop begin what waits. Where there can be none now, the watch asks again."""
        with suppress(RuntimeError), self._lock:
            loop = self._running_loop()
            loop.call(lambda: self._begin_waiting(loop))

    def adopt(self, run: Run, work: Awaitable[Any]) -> None:
        """Go on with a run whose `run()`, called on a thread, returned something to be awaited.

        Raises RuntimeError where there is no loop and the system has no thread for one.
        """
        with self._lock:  # a loop that is abandoned has what was handed to it before
            loop = self._running_loop()
            self._lane.active.add(run)
            loop.call(lambda: self._begin(loop, run, work))

    def look(self) -> None:
        """Replace a loop that a flow blocks; the runs that it has begun stay on it."""
        with self._lock:
            loop = self._current
            if loop is not None and loop.is_blocked():
                _tell_blocked(loop.current_run)
                self._current = None
                loop.abandon()
        if self._lane.waiting:
            self.wake()

    def stop(self) -> None:
        """Stop the loop; what still runs on it is cancelled."""
        with self._lock:
            loop, self._current = self._current, None
            self._is_stopped = True
        if loop is not None:
            loop.stop()

    def _running_loop(self) -> _Loop:
        """Return the current loop, started where there is none. Under the lock only. Raises RuntimeError."""
        if self._is_stopped:
            raise RuntimeError("the event loop has been stopped")
        if self._current is None:
            self._current = _Loop()
        return self._current

    # ── on the loop's thread ─────────────────────────────────────────────────────────────────────────────────

    def _begin_waiting(self, loop: _Loop) -> None:
        while loop is self._current and len(self._lane.active) < self._lane.limit:
            run = self._lane.take()
            if run is None:
                return
            self._begin(loop, run)

    def _begin(self, loop: _Loop, run: Run, work: Awaitable[Any] | None = None) -> None:
        task = loop.begin(run, self._perform(loop, run, work))
        run.cancel = lambda: loop.call(task.cancel)  # no sooner than its first step: both wait in one queue
        if run.is_decided:  # it was given up while there was nothing to cancel
            run.cancel()

    async def _perform(self, loop: _Loop, run: Run, work: Awaitable[Any] | None) -> None:
        """Bring a run to its end, whatever the flow does. Nothing may be raised here: the loop would end."""
        try:
            result = self._bodies.make(run).run() if work is None else work
            outcome = success(run, await result if inspect.isawaitable(result) else result)
        except BaseException as exc:  # noqa: BLE001 - a flow may raise anything; it is its own run's failure
            outcome = failure(run, exc)
        self._end(run, outcome)
        loop.ended()
        if self._lane.waiting:
            self._begin_waiting(loop)

    def _end(self, run: Run, outcome: Outcome) -> None:
        is_first = run.end(outcome, self._bodies.connections)
        self._lane.ended(run)
        if is_first:
            self._recorder.put(outcome)
        else:
            self._stuck.has_ended(run)


def _tell_blocked(run: Run | None) -> None:
    who = "an async flow" if run is None else f"run {run.run_id} of {run.name}"
    fields = {} if run is None else {"flow": run.name, "run_id": run.run_id}
    log.error(
        "%s blocks the event loop; the other async flows get a new one", who,
        extra={"event": "loop_blocked", **fields},
    )  # fmt: skip


class _Loop:
    """One asyncio loop with its thread, which ends when it is told to, or was abandoned and has no work left."""

    def __init__(self) -> None:
        try:
            self._loop = asyncio.new_event_loop()
        except OSError as exc:  # no more files
            raise RuntimeError(f"no event loop can be made: {exc}") from exc
        self._tasks: dict[asyncio.Task[Any], Run] = {}
        self._must_end = False
        self._is_abandoned = False
        self._asked_at: float | None = None  # when it was asked whether it lives, and has not answered
        try:
            threading.Thread(target=self._run, name="heartbeat-async-flows", daemon=True).start()
        except RuntimeError:
            self._loop.close()
            raise

    def call(self, callback: Any) -> None:
        """Have the loop's thread call back soon."""
        with suppress(RuntimeError):  # it is closed
            self._loop.call_soon_threadsafe(callback)

    def begin(self, run: Run, work: Any) -> asyncio.Task[None]:
        """Start a run's task. On the loop's thread only."""
        task = self._loop.create_task(work, context=Context())  # what a flow sets there is no other's
        self._tasks[task] = run
        return task

    def ended(self) -> None:
        """Note the end of the task that runs. On the loop's thread only."""
        task = asyncio.current_task()
        if task is not None:
            self._tasks.pop(task, None)
        if self._is_abandoned:
            self._end_when_idle()

    def is_blocked(self) -> bool:
        """Ask whether it lives, now and then; True where it has not answered for a while."""
        now = time.monotonic()
        if self._asked_at is not None:
            return now - self._asked_at > _PATIENCE
        if self._tasks:
            self._asked_at = now
            self.call(self._answer)
        return False

    @property
    def current_run(self) -> Run | None:
        """The run whose code the loop is in; None where it is a task that a flow has made."""
        task = asyncio.current_task(self._loop)
        return None if task is None else self._tasks.get(task)

    def abandon(self) -> None:
        """Leave it to the flow that blocks it: it ends with its last run."""
        self._is_abandoned = True
        self._end_when_idle()

    def stop(self) -> None:
        self.call(self._end)

    def _end_when_idle(self) -> None:
        """End it if it has no task, once what was handed to it before has had its turn."""
        self.call(lambda: None if self._tasks else self._end())

    def _answer(self) -> None:
        self._asked_at = None

    def _end(self) -> None:
        self._must_end = True
        self._loop.stop()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        while not self._must_end:  # a flow may stop the loop, too
            with suppress(BaseException):  # SystemExit in a task of a flow's own leaves run_forever
                self._loop.run_forever()
        self._cancel_the_rest()
        self._loop.close()

    def _cancel_the_rest(self) -> None:
        """Cancel what was abandoned, and give it a moment to clean up: it would end as garbage, and complain."""
        left = asyncio.all_tasks(self._loop)
        for task in left:
            task.cancel()
        if left:
            with suppress(BaseException):
                self._loop.run_until_complete(asyncio.wait(left, timeout=_PATIENCE))
