"""Procrastinate: a worker fetches one job at a time and runs async tasks, `concurrency` of them at once."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import procrastinate
import psycopg

from benchmarks.measure import Measurement, MeasurementFailed
from benchmarks.server import settle

TITLE = "Procrastinate"
DISTRIBUTION = "procrastinate"
RECORDS = "keeps history: the job's row stays with its status, and one event row each for deferred, started and ended"
INSERT_BATCH = 5_000

CANDIDATES: dict[str, dict[str, Any]] = {
    f"concurrency {count}": {"concurrency": count} for count in (1, 4, 8, 16, 32)
}
QUICK = ("concurrency 1", "concurrency 8")


def run(url: str, items: int, *, concurrency: int = 8) -> Measurement:
    """Time a worker that stops by itself when no job is left (`wait=False`)."""
    return asyncio.run(_run(url, items, concurrency))


async def _run(url: str, items: int, concurrency: int) -> Measurement:
    # A connection for each job that runs, one to fetch, one to spare: nobody waits for the pool.
    connector = procrastinate.PsycopgConnector(
        conninfo=url, min_size=concurrency + 2, max_size=concurrency + 2
    )
    app = procrastinate.App(connector=connector)
    done = 0

    @app.task(name="noop")
    async def noop() -> None:
        nonlocal done
        done += 1

    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        for offset in range(0, items, INSERT_BATCH):
            await noop.batch_defer_async(*({} for _ in range(min(INSERT_BATCH, items - offset))))
        await asyncio.to_thread(settle, url)
        started = time.perf_counter()
        await app.run_worker_async(
            concurrency=concurrency, wait=False, listen_notify=False, install_signal_handlers=False
        )
        seconds = time.perf_counter() - started
    _check(url, items, done)
    return Measurement(seconds, items, f"concurrency {concurrency}, psycopg pool, no LISTEN")


def _check(url: str, items: int, done: int) -> None:
    with psycopg.connect(url) as conn:
        row = conn.execute("SELECT count(*) FROM procrastinate_jobs WHERE status = 'succeeded'").fetchone()
    if done != items or row != (items,):
        raise MeasurementFailed(f"Procrastinate ran {done} of {items}, recorded {row}")
