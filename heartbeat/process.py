"""The process of a command: the signals that ask it to end, and its end.

It stands below the rooms because two of them need it: `http/server` drains at a signal, and so do the commands.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_SAME_WISH = 1.0  # seconds


@contextlib.contextmanager
def on_signals(handle: Callable[[int], object]) -> Iterator[None]:
    """Have the signals that end a process handled, while the block runs.

    One that follows another within a second is the same wish: `timeout`, for one, sends its signal twice.
    """
    heard = float("-inf")

    def handler(number: int, frame: FrameType | None) -> None:
        nonlocal heard
        since, heard = time.monotonic() - heard, time.monotonic()
        if since > _SAME_WISH:
            handle(number)

    with _handled_by(handler):
        yield


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Hold the signals that end a process back until the block has ended."""
    held: list[int] = []
    with _handled_by(lambda number, frame: held.append(number)):
        yield
    for late in held:
        signal.raise_signal(late)


@contextlib.contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Put a handler in for a while. What is ignored, as under nohup, stays so; only the main thread may do it."""
    ours = _ENDING if threading.current_thread() is threading.main_thread() else ()
    before = {n: signal.signal(n, handler) for n in ours if signal.getsignal(n) is not signal.SIG_IGN}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def leave(status: int) -> NoReturn:
    """End the process, also where a flow has left a thread behind that never ends and would hold the interpreter."""
    if any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
        logging.shutdown()
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
