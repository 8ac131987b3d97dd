"""The event loop that a process's async flows share, on a thread of its own; replaced when a flow blocks it."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any

from heartbeat.deadlines import Deadlines

log = logging.getLogger("heartbeat")

_PATIENCE = 1.0
"""Seconds that a loop may take to answer a call before it counts as blocked."""


class EventLoop:
    """Runs coroutines for threads that wait for them."""

    def __init__(self, deadlines: Deadlines) -> None:
        self._deadlines = deadlines
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    def submit(
        self, work: Awaitable[Any], on_done: Callable[[], None]
    ) -> tuple[Future[Any], Callable[[], None]]:
        """Start an async flow; returns the future to wait for, and what ends the wait and cancels the flow.

        `on_done` is called on the loop's thread when the flow has really ended, cancelled or not.
        """
        loop = self._running_loop()
        future: Future[Any] = Future()
        task: asyncio.Task[Any] | None = None

        async def run() -> Any:
            return await work

        def start() -> None:
            nonlocal task
            task = loop.create_task(run())
            task.add_done_callback(finish)

        def finish(ended: asyncio.Task[Any]) -> None:
            exc = asyncio.CancelledError("cancelled") if ended.cancelled() else ended.exception()
            on_done()
            with suppress(InvalidStateError):  # nobody waits any more
                future.set_result(ended.result()) if exc is None else future.set_exception(exc)

        def cancel() -> None:
            self._ask(loop, lambda: task and task.cancel())
            with suppress(InvalidStateError):
                future.set_exception(asyncio.CancelledError("the wait was given up"))

        loop.call_soon_threadsafe(start)
        return future, cancel

    def stop(self) -> None:
        """Stop the loop; what still runs on it is abandoned."""
        with self._lock:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._loop = None

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(
                    target=_run_loop, args=(self._loop,), name="heartbeat-async-flows", daemon=True
                ).start()
            return self._loop

    def _ask(self, loop: asyncio.AbstractEventLoop, question: Callable[[], object]) -> None:
        """Have the loop do something. One that does not get round to it is blocked: others get a new loop."""
        key = self._deadlines.add(_PATIENCE, lambda: self._abandon(loop))

        def answer() -> None:
            self._deadlines.remove(key)
            question()

        loop.call_soon_threadsafe(answer)

    def _abandon(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._lock:
            if self._loop is loop:
                log.error("an async flow blocks the event loop; later flows get a new one")
                self._loop = None


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
