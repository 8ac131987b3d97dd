"""Flow classes made on the spot: of a function, of nothing, and of a gate that the test opens."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from heartbeat import DataFlow


def flow_class(name: str, run: Callable[[Any], Any], /, **attributes: Any) -> type[DataFlow]:
    """Make a flow class of a function: `flow_class("Orders", lambda self: 17)`."""
    return type(name, (DataFlow,), {"run": run, **attributes})


class Noop(DataFlow):
    """Does nothing, and succeeds."""

    def run(self) -> None:
        pass


class Gate:
    """Holds flows until the test lets them go, and says which began and how many ran at once.

    `gate.flow("Slow")` is a class of such a flow.
    """

    def __init__(self) -> None:
        self._open = threading.Event()
        self._lock = threading.Lock()
        self.begun: list[str] = []
        self.now = 0
        self.most = 0

    def hold(self, flow: DataFlow) -> None:
        with self._lock:
            self.begun.append(flow.name)
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            assert self._open.wait(30), "the gate was never opened"
        finally:
            with self._lock:
                self.now -= 1

    def open(self) -> None:
        self._open.set()

    def is_open(self) -> bool:
        return self._open.is_set()

    def flow(self, name: str, **attributes: Any) -> type[DataFlow]:
        return flow_class(name, lambda flow: self.hold(flow), **attributes)
