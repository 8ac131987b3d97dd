"""Daemon threads: one that repeats a call, a bounded pool of them, and one call shared by all who ask.

Daemons all: the standard library's pools join their threads at exit, and one call that hangs would hold the process.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Generic, TypeVar

T = TypeVar("T")

log = logging.getLogger("heartbeat")

_IDLE_SECONDS = 30.0

_AFTER_AN_ERROR = 1.0
"""Seconds that a repeated call pauses after it raised."""


class Repeater:
    """A thread that makes one call again and again, whatever the last one came to.

    The call returns how many seconds to pause before the next, None for "until woken". One that raises is logged and
    made again.
    """

    def __init__(self, name: str, call: Callable[[], float | None]) -> None:
        self._call = call
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._repeat, name=f"heartbeat-{name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Have the next call made now. Cheap where that has been asked for already."""
        if not self._wake.is_set():
            self._wake.set()

    def stop(self, timeout: float = 1.0) -> None:
        """Make no further call, and wait for the one under way, at most `timeout` seconds."""
        self._stop.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(timeout)

    @property
    def is_stopped(self) -> bool:
        """Whether a long call should come to its end."""
        return self._stop.is_set()

    def pause(self, seconds: float) -> None:
        """Wait within the call, unless it should come to its end."""
        self._stop.wait(seconds)

    def _repeat(self) -> None:
        while not self._stop.is_set():
            self._wake.wait(self._once())
            self._wake.clear()

    def _once(self) -> float | None:
        try:
            return self._call()
        except BaseException as exc:  # noqa: BLE001 -- SystemExit, too: somebody's log handler may raise it
            say_failed(self._thread.name, exc)
            return _AFTER_AN_ERROR


def say_failed(what: str, exc: BaseException) -> None:
    """Log that a loop failed. It never raises, as a handler of the host may: that would end the loop."""
    with suppress(BaseException):
        log.error("%s failed; it is tried again", what, exc_info=exc, extra={"event": "thread_failed"})


class Busy(Exception):
    """Every thread of the pool is taken."""


class ThreadPool:
    """Run calls in at most `size` threads, and refuse rather than queue what is beyond.

    Threads start when they are needed and end when they are not.
    """

    def __init__(self, name: str, size: int) -> None:
        self._name = name
        self._size = size
        self._jobs: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._taken = 0  # calls that wait or run
        self._alive = 0  # threads

    def submit(self, call: Callable[[], T]) -> Future[T]:
        """Have the call made in a thread, or raise Busy."""
        future: Future[T] = Future()
        with self._lock:
            if self._taken >= self._size:
                raise Busy(f"all {self._size} threads of {self._name} are busy")
            self._taken += 1
            short = self._taken > self._alive
            self._alive += short
        if short:
            self._begin_thread()
        self._jobs.put((future, call))
        return future

    async def run(self, call: Callable[[], T]) -> T:
        """Have the call made in a thread and wait for it, or raise Busy."""
        return await result_of(self.submit(call))

    def _begin_thread(self) -> None:
        try:
            threading.Thread(target=self._work, name=self._name, daemon=True).start()
        except RuntimeError as exc:  # the system has no more to give
            with self._lock:
                self._taken -= 1
                self._alive -= 1
            raise Busy(f"no thread for {self._name}: {exc}") from exc

    def _work(self) -> None:
        while True:
            try:
                future, call = self._jobs.get(timeout=_IDLE_SECONDS)
            except queue.Empty:
                if self._may_end():
                    return
                continue
            self._make(future, call)
            del future, call  # an idle thread keeps nothing alive

    def _make(self, future: Future[Any], call: Callable[[], Any]) -> None:
        result, error = None, None
        try:
            result = call()
        except BaseException as exc:  # noqa: BLE001 -- SystemExit too belongs to the caller
            error = exc
        with self._lock:
            self._taken -= 1  # before the answer: with it the caller may ask for the next call at once
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def _may_end(self) -> bool:
        with self._lock:
            if self._taken == self._alive:
                return False  # a call is on its way to this thread
            self._alive -= 1
            return True


class SharedCall(Generic[T]):
    """One call, made for everybody who asks while it runs; who asks later has it made anew."""

    def __init__(self, name: str, call: Callable[[], T]) -> None:
        self._call = call
        self._threads = ThreadPool(name, 1)
        self._lock = threading.Lock()
        self._future: Future[T] | None = None

    def ask(self) -> Future[T]:
        """Join the call that runs, or have it made."""
        with self._lock:
            if self._future is None or self._future.done():
                self._future = self._threads.submit(self._call)
            return self._future


async def result_of(future: Future[T]) -> T:
    """Wait for a thread's outcome. To give up waiting does not stop the call.

    One round of the event loop; `asyncio.wrap_future` behind a shield takes three.
    """
    loop = asyncio.get_running_loop()
    ended = loop.create_future()

    def wake() -> None:
        if not ended.done():  # nobody has given up
            ended.set_result(None)

    def tell(_: Future[T]) -> None:
        with suppress(RuntimeError):  # the loop has gone, and what waited with it
            loop.call_soon_threadsafe(wake)

    future.add_done_callback(tell)
    await ended
    return future.result()
