"""The flows that the benchmark runs, for HEARTBEAT_FLOWS=benchmarks.flows."""

from __future__ import annotations

import asyncio
import time

from heartbeat import DataFlow


class NoOp(DataFlow):
    """Does nothing: what is left is the service's own cost."""

    def run(self) -> None:
        return None


class AsyncNoOp(DataFlow):
    """Does nothing, on the event loop."""

    async def run(self) -> None:
        return None


class Sleep(DataFlow):
    """Waits for the milliseconds that its configuration names, as a flow waits for a database or an API."""

    def run(self) -> None:
        time.sleep(self.configuration["ms"] / 1000)


class AsyncSleep(DataFlow):
    """The same on the event loop."""

    async def run(self) -> None:
        await asyncio.sleep(self.configuration["ms"] / 1000)
