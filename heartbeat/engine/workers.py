"""The threads that run sync flows: as many as the lane's limit, and none of them lost to a flow that never returns.

Each takes a run from the lane, runs its body, and hands the outcome to the recorder. They start when runs wait, started
by claiming threads and the watch, and end after a while without one. A lock guards how many there are; what they work
on is guarded by the lane and the run.
"""

from __future__ import annotations

import inspect
import threading
from contextvars import Context

from heartbeat.engine.backlog import Lane
from heartbeat.engine.body import Bodies, success
from heartbeat.engine.eventloop import EventLoop
from heartbeat.engine.recorder import Recorder
from heartbeat.engine.run import Outcome, Run, failure
from heartbeat.engine.stuck import Stuck

_IDLE_SECONDS = 90.0
"""How long a thread waits for a run: longer than a pinger's usual minute."""


class Workers:
    """Performs the runs of the sync lane."""

    def __init__(self, lane: Lane, bodies: Bodies, loop: EventLoop, recorder: Recorder, stuck: Stuck) -> None:
        self._lane = lane
        self._bodies = bodies
        self._loop = loop
        self._recorder = recorder
        self._stuck = stuck
        self._alive = 0  # threads that take runs: not those that are stuck
        self._lock = threading.Lock()

    def are_ready(self) -> bool:
        """Whether there is a thread at all, and one is started where there is none: without, nothing may be claimed."""
        with self._lock:
            return self._alive > 0 or self._start_thread()

    def grow(self) -> None:
        """Start the threads that waiting runs want, as many as the limit and the system allow."""
        with self._lock:
            wanted = min(self._lane.limit, self._lane.waiting + len(self._lane.active))
            while self._alive < wanted and self._start_thread():
                pass

    def replace(self) -> None:
        """Count a thread for lost: its run was given up, and it ends once the flow returns."""
        with self._lock:
            self._alive -= 1
        self.grow()

    def _start_thread(self) -> bool:
        try:
            threading.Thread(target=self._work, name="heartbeat-flow", daemon=True).start()
        except RuntimeError:  # the system has no more to give; the watch asks again
            return False
        self._alive += 1
        return True

    def _work(self) -> None:
        while (run := self._lane.await_one(_IDLE_SECONDS)) is not None or not self._may_end():
            if run is not None and not self._perform(run):
                return  # another thread has taken this one's place

    def _may_end(self) -> bool:
        with self._lock:
            if self._lane.waiting:
                return False
            self._alive -= 1
            return True

    def _perform(self, run: Run) -> bool:
        """Bring a run to its end, whatever the flow does; False where it had been given up meanwhile."""
        try:
            # A context of its own: what a flow sets there, decimal's precision too, is no other's.
            result = Context().run(lambda: self._bodies.make(run).run())
            if result is not None and inspect.isawaitable(result):
                self._loop.adopt(run, result)
                return self._lane.ended(run)
            outcome = success(run, result)
        except BaseException as exc:  # noqa: BLE001 - a flow may raise anything; it is its own run's failure
            outcome = failure(run, exc)
        return self._end(run, outcome)

    def _end(self, run: Run, outcome: Outcome) -> bool:
        if run.end(outcome, self._bodies.connections):
            self._lane.ended(run)
            self._recorder.put(outcome)
            return True
        return not self._stuck.has_ended(run)
