"""Waiting with a limit: for a condition, and for a call in the background."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def wait_until(condition: Callable[[], T], *, seconds: float = 10, what: str = "the condition") -> T:
    """Ask `condition` again and again until its answer is true, and return that; give up after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds} s in vain for {what}")
        time.sleep(0.02)
    return answer


class Background:
    """A call in a thread of its own."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self._outcome: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._outcome = self._call()
        except BaseException as exc:
            self._error = exc

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    def result(self, seconds: float = 30) -> Any:
        """Wait for the call and return what it returned, or raise what it raised."""
        self._thread.join(seconds)
        assert self.done, f"a call in the background still runs after {seconds} s"
        if self._error is not None:
            raise self._error
        return self._outcome
