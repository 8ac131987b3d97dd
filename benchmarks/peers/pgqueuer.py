"""PgQueuer: a queue manager drains queued jobs into async entrypoints.

Set up as its own benchmark tool does for speed: asyncpg, uvloop, drain mode, the schema as installed (durable).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import asyncpg
import uvloop
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver, AsyncpgPoolDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries
from pgqueuer.types import QueueExecutionMode

from benchmarks import drained
from benchmarks.measure import Measurement, MeasurementFailed

TITLE = "PgQueuer"
DISTRIBUTION = "pgqueuer"
RECORDS = (
    "keeps history: one log row for queued, one for the end (no start time, no result, no flow row to re-stamp); "
    "the job's row is deleted"
)
ENTRYPOINT = "noop"
INSERT_BATCH = 10_000

# Which of these is best is found out in the run itself.
CANDIDATES: dict[str, dict[str, Any]] = {
    **{f"batch {size}": {"batch_size": size} for size in (100, 500, 1000, 2000, 5000)},
    **{f"batch {size}, pool": {"batch_size": size, "pool": True} for size in (500, 1000, 2000)},
}
QUICK = ("batch 1000", "batch 1000, pool")
GOOD = "batch 1000, pool"  # for the open snapshot, where no settings are looked for


def run(url: str, items: int, **options: Any) -> Measurement:
    """Time one queue manager from its start to an empty queue with everything logged."""
    return drained.once(opened(url, **options), url, items)


@contextmanager
def opened(url: str, *, batch_size: int = 1000, pool: bool = False) -> Iterator[drained.Queue]:
    """An installed schema and open connections."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        queue = _Jobs(runner, batch_size)
        runner.run(queue.open(url, pool))
        yield queue
        runner.run(queue.close())


class _Jobs:
    def __init__(self, runner: asyncio.Runner, batch_size: int) -> None:
        self._runner = runner
        self._batch_size = batch_size
        self._done = 0
        self.note = f"batch {batch_size}"

    async def open(self, url: str, pool: bool) -> None:
        self._connection = await asyncpg.connect(url)
        self._pool = await asyncpg.create_pool(url, min_size=4, max_size=4) if pool else None
        self._driver: Any = AsyncpgPoolDriver(self._pool) if pool else AsyncpgDriver(self._connection)
        self._queries = Queries(AsyncpgDriver(self._connection))
        await self._queries.install()

    async def close(self) -> None:
        if self._pool is not None:
            await self._pool.close()
        await self._connection.close()

    def fill(self, items: int) -> None:
        for offset in range(0, items, INSERT_BATCH):
            count = min(INSERT_BATCH, items - offset)
            self._runner.run(self._queries.enqueue([ENTRYPOINT] * count, [None] * count, [0] * count))

    def drain(self) -> float:
        return self._runner.run(self._drain())

    async def _drain(self) -> float:
        queue = PgQueuer(self._driver)

        @queue.entrypoint(ENTRYPOINT)
        async def noop(job: Job) -> None:
            self._done += 1

        started = time.perf_counter()
        await queue.qm.run(batch_size=self._batch_size, mode=QueueExecutionMode.drain)
        return time.perf_counter() - started

    def check(self, items: int) -> None:
        fetch = self._connection.fetchval
        left = self._runner.run(fetch("SELECT count(*) FROM pgqueuer"))
        logged = self._runner.run(fetch("SELECT count(*) FROM pgqueuer_log WHERE status = 'successful'"))
        if (self._done, left, logged) != (items, 0, items):
            raise MeasurementFailed(f"PgQueuer ran {self._done} of {items}, left {left}, logged {logged}")
