"""Looks, some twenty times a second, for runs past their time, missing threads and a blocked loop.

Runs on the deadlines' thread and so never waits; keeps no state. What one look could not do the next one does.
"""

from __future__ import annotations

import time

from heartbeat.engine.backlog import Backlog
from heartbeat.engine.eventloop import EventLoop
from heartbeat.engine.recorder import Recorder
from heartbeat.engine.run import Run, RunTimeout
from heartbeat.engine.stuck import Stuck
from heartbeat.engine.workers import Workers


class Watch:
    """Gives up the runs whose time is over."""

    def __init__(
        self, backlog: Backlog, workers: Workers, loop: EventLoop, recorder: Recorder, stuck: Stuck
    ) -> None:
        self._backlog = backlog
        self._workers = workers
        self._loop = loop
        self._recorder = recorder
        self._stuck = stuck

    def look(self) -> None:
        """Look at every active run: to set a deadline for each would cost a no-op flow 5 %."""
        now = time.monotonic()
        for lane in self._backlog.lanes:
            for run in lane.active.copy():
                if run.is_overdue(now):
                    self.give_up(run, RunTimeout(f"the run took longer than {run.timeout:g} s"))
        self._workers.grow()
        self._loop.look()

    def give_up(self, run: Run, reason: Exception) -> None:
        """Fail a run, ask it to end, and give its place to another. Any thread may call; it does not wait."""
        outcome = self._stuck.give_up(run, reason)
        if outcome is None:
            return
        had_thread = self._backlog.threads.ended(run)
        if not had_thread:
            self._backlog.loop.ended(run)
        self._recorder.put(outcome)
        run.cancel_body()
        if had_thread:
            self._workers.replace()
