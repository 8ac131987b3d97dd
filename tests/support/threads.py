"""The threads of this process, by name, and a system that has no more to give."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


def threads_of(name: str) -> list[threading.Thread]:
    """Return the threads that go by a name."""
    return [thread for thread in threading.enumerate() if thread.name == name]


@contextmanager
def no_more_threads(*names: str) -> Iterator[None]:
    """Have the system refuse new threads of these names, or all, for the length of a block."""
    start = threading.Thread.start

    def start_others(thread: threading.Thread) -> None:
        if not names or thread.name in names:
            raise RuntimeError("can't start new thread")
        start(thread)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", start_others)
        yield
