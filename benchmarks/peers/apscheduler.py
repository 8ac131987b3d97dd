"""APScheduler 3 with its SQLAlchemyJobStore on Postgres: interval jobs that are due, run and re-stamped once each."""

from __future__ import annotations

import pickle
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from apscheduler.events import EVENT_JOB_ERROR, EVENT_JOB_EXECUTED, EVENT_JOB_SUBMITTED
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.job import Job
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.interval import IntervalTrigger

from benchmarks.measure import Measurement, MeasurementFailed
from benchmarks.server import settle

TITLE = "APScheduler 3"
DISTRIBUTION = "apscheduler"
RECORDS = (
    "keeps no history: a job's row is overwritten with its next time before anybody knows how the run ended; "
    "every process that opens the store runs every job"
)
INTERVAL = timedelta(days=1)

# AUTOCOMMIT spares BEGIN and COMMIT around each single statement; every statement is still durable.
CANDIDATES: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "autocommit engine": {"autocommit": True},
}
QUICK = ("autocommit engine",)


def noop() -> None:
    """Do nothing; named, so that the store can write down where it is."""


def run(url: str, items: int, *, autocommit: bool = False) -> Measurement:
    """Time the scheduler from resuming it until all jobs have run and all rows have their next time."""
    options = {"isolation_level": "AUTOCOMMIT"} if autocommit else {}
    store = SQLAlchemyJobStore(
        url=url.replace("postgresql://", "postgresql+psycopg://"), engine_options=options
    )
    scheduler = BackgroundScheduler(
        jobstores={"default": store}, executors={"default": ThreadPoolExecutor(10)}, timezone=UTC
    )
    scheduler.start(paused=True)
    _fill(scheduler, store, items)
    settle(url)
    finished = _Countdown(items)
    scheduler.add_listener(finished, EVENT_JOB_SUBMITTED | EVENT_JOB_EXECUTED | EVENT_JOB_ERROR)
    started = time.perf_counter()
    scheduler.resume()
    finished.wait()
    seconds = time.perf_counter() - started
    scheduler.shutdown()
    _check(url, items, finished.failed)
    return Measurement(
        seconds, items, f"thread pool of 10, psycopg{', autocommit engine' if autocommit else ''}"
    )


class _Countdown:
    """Counts submitted (sent once the whole round's rows are written) and executed jobs."""

    def __init__(self, items: int) -> None:
        self._left = 2 * items
        self._lock = threading.Lock()
        self._done = threading.Event()
        self.failed = 0

    def __call__(self, event: Any) -> None:
        with self._lock:
            self._left -= 1
            self.failed += event.code == EVENT_JOB_ERROR
            if self._left == 0:
                self._done.set()

    def wait(self) -> None:
        if not self._done.wait(timeout=600):
            raise MeasurementFailed(f"APScheduler: {self._left} events did not come")


def _fill(scheduler: BackgroundScheduler, store: SQLAlchemyJobStore, items: int) -> None:
    """Write the rows that `add_job` would have written, many at once."""
    due = datetime.now(UTC) - timedelta(seconds=1)
    rows = []
    for number in range(items):
        job = Job(
            scheduler,
            id=f"job-{number}",
            func=noop,
            args=(),
            kwargs={},
            trigger=IntervalTrigger(seconds=int(INTERVAL.total_seconds()), timezone=UTC),
            executor="default",
            name="noop",
            misfire_grace_time=None,
            coalesce=True,
            max_instances=1,
            next_run_time=due,
        )
        rows.append(
            {
                "id": job.id,
                "next_run_time": due.timestamp(),
                "job_state": pickle.dumps(job.__getstate__(), store.pickle_protocol),
            }
        )
    with store.engine.begin() as connection:
        connection.execute(store.jobs_t.insert(), rows)


def _check(url: str, items: int, failed: int) -> None:
    with psycopg.connect(url) as conn:
        row = conn.execute(
            "SELECT count(*) FROM apscheduler_jobs WHERE next_run_time > extract(epoch FROM now())"
        ).fetchone()
    if failed or row != (items,):
        raise MeasurementFailed(f"APScheduler: {failed} failed, {row} of {items} have a next time")
