"""The claims under way: due flows become this process's runs, the next while the last are run.

A heartbeat claims on its own thread, and where much is due one helper claims beside it. A claim of a heartbeat needs
one of the process's two permits, which wait in a queue; a large one also needs that permit among all processes. The
lanes know how much to ask for, and the tally counts. A `_Hunt` is shared by its heartbeat's thread and the helper.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Collection, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from heartbeat.engine.backlog import CLAIM, Backlog, Lane
from heartbeat.engine.drain import Drain
from heartbeat.engine.eventloop import EventLoop
from heartbeat.engine.lease import Lease
from heartbeat.engine.lease_keeper import LeaseKeeper
from heartbeat.engine.live_runs import LiveRuns
from heartbeat.engine.run import Outcome, Run
from heartbeat.engine.tally import Tally
from heartbeat.engine.workers import Workers
from heartbeat.errors import AlreadyRunning, FlowNotFound, LockTimeout
from heartbeat.postgres.database import Database
from heartbeat.postgres.queries import Queries
from heartbeat.settings import Settings
from heartbeat.threads import Busy, ThreadPool

_PERMITS = (1, 2)
"""The permits: claims that are under way at once. While one waits for its commit the other has the server's core.

Measured: 11 % more no-op flows a second than with one. A third gains nothing; the processors are full. And a claim
reads past the rows that others have locked: with eight at once (four processes) half the throughput was gone. So large
claims share these permits among processes, too.
"""

_LARGE = 100
"""Runs from which on a claim is worth the wait for its permit among processes."""

_LOOK = 0.5
"""Most seconds between looks at whether to go on."""


class Claims:
    """Claims for a process, a few at once, until it stops."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        queries: Queries,
        *,
        drain: Drain,
        live_runs: LiveRuns,
        keeper: LeaseKeeper,
        backlog: Backlog,
        workers: Workers,
        loop: EventLoop,
        async_classes: Collection[str],
    ) -> None:
        self._settings = settings
        self._database = database
        self._queries = queries
        self._drain = drain
        self._live_runs = live_runs
        self._keeper = keeper
        self._backlog = backlog
        self._workers = workers
        self._loop = loop
        self._async_classes = frozenset(async_classes)
        self._lanes = backlog.lanes if async_classes else (backlog.threads,)
        self._permits: queue.SimpleQueue[int] = queue.SimpleQueue()
        for permit in _PERMITS:
            self._permits.put(permit)
        self._helpers = ThreadPool("heartbeat-claim", len(_PERMITS) - 1)

    def claim_all(self, tally: Tally, deadline: float) -> None:
        """Count what is due, claim it until nothing is left, or a time of `time.monotonic()`, and have it run."""
        hunt = _Hunt(tally, deadline, set(self._lanes))
        helper: Future[None] | None = None
        try:
            while not (hunt.is_counted and self._must_end(hunt)):
                size = self._claim_once(hunt)
                if not hunt.is_counted:  # there was no room for a claim to go with it
                    self._count(hunt)
                elif size == CLAIM and helper is None:
                    with suppress(Busy):  # it helps another heartbeat
                        helper = self._helpers.submit(lambda: self._help(hunt))
        finally:
            if helper is not None:
                hunt.is_over = True  # whatever has ended this ends the help, too
                self._backlog.wake_claimers()
                wait([helper])
        if helper is not None:
            helper.result()

    def claim_one(self, name: str, done: Future[Outcome]) -> None:
        """Claim one flow, whatever its schedule says, and set `done` once its end is on record. Needs no permit.

        Raises FlowNotFound, AlreadyRunning, Stopping, DatabaseUnavailable.
        """
        with self._live_runs.claiming():
            self._drain.refuse()
            lease = self._keeper.lease
            row = self._database.run(self._queries.claim_flow, name=name, runner_id=lease.id)
            if row is None:
                flow = self._database.run(self._queries.find_flow, name=name)
                if flow is None:
                    raise FlowNotFound(name)
                raise AlreadyRunning(name, _STUCK.format(name) if flow.has_stuck_thread else None)
            self._begin([self._run(row, lease, done=done)])

    def _help(self, hunt: _Hunt) -> None:
        while not self._must_end(hunt):
            self._claim_once(hunt)

    def _must_end(self, hunt: _Hunt) -> bool:
        return hunt.is_over or self._drain.has_begun or time.monotonic() >= hunt.deadline

    def _count(self, hunt: _Hunt) -> None:
        row = self._database.run(self._queries.count_due, **self._of_heartbeat(hunt.tally))[0]
        hunt.tally.due = row.flows_due
        hunt.is_counted = True

    def _claim_once(self, hunt: _Hunt) -> int:
        """Claim once there is a permit and room; returns how many runs there was room for."""
        try:
            permit = self._permits.get(timeout=_patience(hunt.deadline))
        except queue.Empty:
            return 0
        try:
            with self._live_runs.claiming(), hunt.tally.claiming(), self._room(hunt) as (lanes, size):
                if size:
                    self._claim(hunt, lanes, size, permit)
        finally:
            self._permits.put(permit)
        if not size and hunt.is_counted:
            self._backlog.wait_for_room(_patience(hunt.deadline))
        return size

    @contextmanager
    def _room(self, hunt: _Hunt) -> Iterator[tuple[list[Lane], int]]:
        """Choose the lanes to claim for, and how many runs; none where enough waits already, or nothing may be claimed.

        All of them in a heartbeat's first claim, which most often is its only one; then the one with most room, so that
        slow flows of one kind keep nobody waiting of the other.
        """
        may_claim = not self._drain.has_begun and self._keeper.lease.is_valid()
        sizes = {lane: lane.reserve() for lane in hunt.lanes if may_claim and self._is_ready(lane)}
        lanes = [lane for lane, size in sizes.items() if size]
        if lanes and (hunt.is_counted or len(lanes) < len(hunt.lanes)):
            lanes = [max(lanes, key=lambda lane: sizes[lane])]
        for lane in sizes.keys() - lanes:
            lane.release(sizes[lane])
        began = time.monotonic()
        try:
            yield lanes, min((sizes[lane] for lane in lanes), default=0)
        finally:
            for lane in lanes:
                lane.release(sizes[lane], time.monotonic() - began)

    def _is_ready(self, lane: Lane) -> bool:
        return self._workers.are_ready() if lane is self._backlog.threads else self._loop.is_ready()

    def _claim(self, hunt: _Hunt, lanes: list[Lane], size: int, permit: int) -> None:
        tally, lease = hunt.tally, self._keeper.lease
        are_async = None if len(lanes) == len(self._lanes) else lanes[0] is self._backlog.loop
        try:
            rows = self._claimed(hunt, lease, size, are_async, permit if size >= _LARGE else None)
        except LockTimeout:
            if size < _LARGE:
                raise
            # Most likely it was the permit that another process holds, and that is not worth a failed heartbeat.
            rows = self._claimed(hunt, lease, size, are_async, None)
        tally.claimed(len(rows))
        if len(rows) < size:
            hunt.lanes = hunt.lanes - set(lanes)  # a new set: another claim may be looking through this one
            if not hunt.lanes:
                hunt.is_over = tally.is_exhausted = True
                self._backlog.wake_claimers()
        self._begin([self._run(row, lease, tally) for row in sorted(rows)])

    def _claimed(
        self, hunt: _Hunt, lease: Lease, size: int, are_async: bool | None, permit: int | None
    ) -> list[Any]:
        """Claim, in one message with what has to come first: the count of what is due, the permit among processes."""
        tally = hunt.tally
        parameters = {
            **self._of_heartbeat(tally),
            "max_runs": size,
            "runner_id": lease.id,
            "runner_ttl": self._settings.runner_ttl,
            "async_classes": list(self._async_classes),
            "are_async": are_async,
        }
        if hunt.is_counted and permit is None:
            return self._database.run(self._queries.claim, **parameters)
        with self._database.transaction() as conn:
            if must_count := not hunt.is_counted:
                counted = self._queries.send(conn, "count_due", **self._of_heartbeat(tally))
            if permit is not None:
                self._queries.send(conn, "take_permit", permit=permit)
            claimed = self._queries.send(conn, "claim", **parameters)
        if must_count:
            tally.due = counted.fetchall()[0].flows_due
            hunt.is_counted = True
        return claimed.fetchall()

    def _of_heartbeat(self, tally: Tally) -> dict[str, Any]:
        return {
            "heartbeat_id": tally.heartbeat_id,
            "as_of": tally.as_of,
            "first_turn": tally.first_turn,
            "run_tolerance": self._settings.run_tolerance,
        }

    def _run(
        self, row: Any, lease: Lease, tally: Tally | None = None, done: Future[Outcome] | None = None
    ) -> Run:
        timeout = self._settings.run_timeout if row.run_timeout is None else row.run_timeout
        return Run(row, timeout, lease, tally, done)

    def _begin(self, runs: list[Run]) -> None:
        self._live_runs.add(runs)
        on_loop = [run for run in runs if run.class_name in self._async_classes]
        if on_loop:
            runs = [run for run in runs if run.class_name not in self._async_classes]
            self._backlog.loop.put(on_loop)
            self._loop.wake()
        if runs:
            self._backlog.threads.put(runs)
            self._workers.grow()


@dataclass(slots=True, eq=False)
class _Hunt:
    """The claims of one heartbeat."""

    tally: Tally
    deadline: float
    """No claim begins after this time of `time.monotonic()`."""
    lanes: set[Lane]
    """Those for which something may be left to claim."""
    is_counted: bool = False
    is_over: bool = False


def _patience(deadline: float) -> float:
    return min(max(deadline - time.monotonic(), 0), _LOOK)


_STUCK = (
    "a run of data flow {!r} was given up and its thread has not ended; "
    "restart the process that data_flow_stuck_threads names"
)
