"""Daemon threads for calls that block: a bounded pool, and one call shared by all who ask."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_IDLE_SECONDS = 30.0


class Busy(Exception):
    """Every thread of the pool is taken."""


class Threads:
    """Run calls in at most `size` threads, and refuse rather than queue what is beyond.

    The standard library's pool queues without bound, and joins its threads at exit: one call that hangs
    would hold the process. These threads are daemons, start when they are needed and end when they are not.
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
        return await waited(self.submit(call))

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
        except BaseException as exc:  # noqa: BLE001 -- SystemExit too belongs to whoever asked
            error = exc
        with self._lock:
            self._taken -= 1  # before the answer: whoever has it may ask for the next call at once
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


class Shared(Generic[T]):
    """One call, made for everybody who asks while it runs; who asks later has it made anew."""

    def __init__(self, name: str, call: Callable[[], T]) -> None:
        self._call = call
        self._threads = Threads(name, 1)
        self._lock = threading.Lock()
        self._future: Future[T] | None = None

    def ask(self) -> Future[T]:
        """Join the call that runs, or have it made."""
        with self._lock:
            if self._future is None or self._future.done():
                self._future = self._threads.submit(self._call)
            return self._future


async def waited(future: Future[T]) -> T:
    """Wait for a thread's outcome. Whoever gives up waiting does not stop the call.

    One turn of the event loop; `asyncio.wrap_future` behind a shield takes three.
    """
    loop = asyncio.get_running_loop()
    ended = loop.create_future()

    def wake() -> None:
        if not ended.done():  # nobody has given up
            ended.set_result(None)

    def tell(_: Future[T]) -> None:
        with suppress(RuntimeError):  # the loop has gone, and whoever waited with it
            loop.call_soon_threadsafe(wake)

    future.add_done_callback(tell)
    await ended
    return future.result()
