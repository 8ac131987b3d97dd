"""PgQueuer: a queue manager drains queued jobs into async entrypoints.

Set up as its own benchmark tool does for speed: asyncpg, uvloop, drain mode, the schema as installed (durable).
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import asyncpg
import uvloop
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver, AsyncpgPoolDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries
from pgqueuer.types import QueueExecutionMode

from benchmarks.measure import Measurement, MeasurementFailed
from benchmarks.server import settle

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
QUICK = ("batch 500", "batch 1000", "batch 1000, pool")


def run(url: str, items: int, *, batch_size: int = 1000, pool: bool = False) -> Measurement:
    """Time one queue manager from its start to an empty queue with everything logged."""
    return uvloop.run(_run(url, items, batch_size, pool))


async def _run(url: str, items: int, batch_size: int, pool: bool) -> Measurement:
    await _fill(url, items)
    await asyncio.to_thread(settle, url)
    done = 0
    if pool:
        connections = await asyncpg.create_pool(url, min_size=4, max_size=4)
        driver: Any = AsyncpgPoolDriver(connections)
    else:
        connections = None
        driver = AsyncpgDriver(await asyncpg.connect(url))
    queue = PgQueuer(driver)

    @queue.entrypoint(ENTRYPOINT)
    async def noop(job: Job) -> None:
        nonlocal done
        done += 1

    started = time.perf_counter()
    await queue.qm.run(batch_size=batch_size, mode=QueueExecutionMode.drain)
    seconds = time.perf_counter() - started
    if connections is not None:
        await connections.close()
    await _check(url, items, done)
    return Measurement(seconds, items, f"batch {batch_size}, asyncpg{' pool of 4' if pool else ''}, uvloop")


async def _fill(url: str, items: int) -> None:
    connection = await asyncpg.connect(url)
    queries = Queries(AsyncpgDriver(connection))
    await queries.install()
    for offset in range(0, items, INSERT_BATCH):
        count = min(INSERT_BATCH, items - offset)
        await queries.enqueue([ENTRYPOINT] * count, [None] * count, [0] * count)
    await connection.close()


async def _check(url: str, items: int, done: int) -> None:
    connection = await asyncpg.connect(url)
    left = await connection.fetchval("SELECT count(*) FROM pgqueuer")
    logged = await connection.fetchval("SELECT count(*) FROM pgqueuer_log WHERE status = 'successful'")
    await connection.close()
    if (done, left, logged) != (items, 0, items):
        raise MeasurementFailed(f"PgQueuer ran {done} of {items}, left {left}, logged {logged}")
