"""The event loop that a process's async flows share, on a thread of its own; replaced when a flow blocks it."""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any

from heartbeat.postgres.deadlines import Deadlines

log = logging.getLogger("heartbeat")

_PATIENCE = 1.0
"""Seconds that the loop may take to answer before it counts as blocked."""


class EventLoop:
    """Runs async flows for threads that wait for them."""

    def __init__(self, deadlines: Deadlines) -> None:
        self._deadlines = deadlines
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._jobs: set[Job] = set()

    def submit(self, work: Awaitable[Any], on_done: Callable[[], None]) -> Job:
        """Start an async flow. `on_done` is called when it has really ended, cancelled or not."""
        job = Job(work, on_done)
        with self._lock:
            self._jobs.add(job)
            self._put_on_loop(job)
        return job

    def stop(self) -> None:
        """Stop the loop; what still runs on it is abandoned."""
        with self._lock:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._loop = None

    def _put_on_loop(self, job: Job) -> None:
        loop = self._loop
        if loop is None:
            self._loop = loop = asyncio.new_event_loop()
            threading.Thread(
                target=_run_loop, args=(loop,), name="heartbeat-async-flows", daemon=True
            ).start()
            self._ask_whether_it_lives(loop)
        job.loop = loop
        loop.call_soon_threadsafe(lambda: self._begin(job, loop))

    def _begin(self, job: Job, loop: asyncio.AbstractEventLoop) -> None:
        job.begin(loop, lambda: self._may_run(job, loop))

    def _may_run(self, job: Job, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether a job is still this loop's: while one was blocked, it may have been given to another."""
        with self._lock:
            if job.loop is not loop:
                return False
            self._jobs.discard(job)
            return True

    def _ask_whether_it_lives(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have the loop answer now and then; one that does not is blocked by a flow."""
        if self._loop is not loop:
            return
        key = self._deadlines.add(_PATIENCE, lambda: self._abandon(loop))

        def answer() -> None:
            if self._deadlines.remove(key):
                self._deadlines.add(_PATIENCE, lambda: self._ask_whether_it_lives(loop))

        with suppress(RuntimeError):  # it was stopped in this moment
            loop.call_soon_threadsafe(answer)

    def _abandon(self, loop: asyncio.AbstractEventLoop) -> None:
        """Leave a blocked loop to the flow that blocks it; those that it had not begun go to a new one."""
        with self._lock:
            if self._loop is not loop:
                return
            log.error("an async flow blocks the event loop; the others get a new one")
            self._loop = None
            for job in list(self._jobs):
                self._put_on_loop(job)


class _Moved(Exception):
    """The job runs on another loop by now."""


class Job:
    """An async flow on its way: `result()` waits for it, `cancel()` ends the wait, and the flow as soon as it can."""

    def __init__(self, work: Awaitable[Any], on_done: Callable[[], None]) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self._work = work
        self._on_done = on_done
        self._future: Future[Any] = Future()
        self._task: asyncio.Task[Any] | None = None
        self._is_cancelled = False

    def result(self) -> Any:
        """Wait for the end, and return or raise what the flow did."""
        return self._future.result()

    def cancel(self) -> None:
        self._is_cancelled = True
        if self.loop is not None:
            with suppress(RuntimeError):  # the loop is closed
                self.loop.call_soon_threadsafe(self._cancel_task)
        with suppress(InvalidStateError):
            self._future.set_exception(asyncio.CancelledError("the wait was given up"))

    def begin(self, loop: asyncio.AbstractEventLoop, may_run: Callable[[], bool]) -> None:
        """Make the task, on the loop's own thread. It asks `may_run` in its first step: until then all may change."""

        async def run() -> Any:
            if not may_run():
                raise _Moved
            if self._is_cancelled:
                if inspect.iscoroutine(self._work):
                    self._work.close()
                raise asyncio.CancelledError
            return await self._work

        task = loop.create_task(run())
        task.add_done_callback(self._finish)
        self._task = task

    def _cancel_task(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _finish(self, task: asyncio.Task[Any]) -> None:
        exc = asyncio.CancelledError("cancelled") if task.cancelled() else task.exception()
        if isinstance(exc, _Moved):
            return
        self._on_done()
        with suppress(InvalidStateError):  # nobody waits any more
            self._future.set_result(task.result()) if exc is None else self._future.set_exception(exc)


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    while not _runs_to_its_stop(loop):
        pass
    loop.close()


def _runs_to_its_stop(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        loop.run_forever()
    except BaseException:  # noqa: BLE001 - SystemExit in a task leaves run_forever; the task's future has it too
        return False
    return True
