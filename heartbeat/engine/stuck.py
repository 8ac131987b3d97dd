"""Stuck runs: given up, for their time or by another hand, while their body goes on. Their flows must not start again.

The watch adds one, the thread that has its body takes it away: single steps of a set. In the database the recorder
notes it, just before the run's outcome, and the maintenance takes the note away.
"""

from __future__ import annotations

import logging

from heartbeat.engine.maintenance import Maintenance
from heartbeat.engine.run import Outcome, Run
from heartbeat.postgres.flow_connections import FlowConnections

log = logging.getLogger("heartbeat")


class Stuck:
    """The stuck runs of this process, each of which may keep a connection."""

    def __init__(self, connections: FlowConnections, maintenance: Maintenance) -> None:
        self._connections = connections
        self._maintenance = maintenance
        self._runs: set[Run] = set()

    def __len__(self) -> int:
        return len(self._runs)

    def give_up(self, run: Run, reason: Exception) -> Outcome | None:
        """Fail a run, and return the outcome; None where it has just ended."""
        self._runs.add(run)  # before anybody can see that it was given up
        outcome = run.give_up(reason, body_lives=True)
        if outcome is None:
            self._runs.discard(run)
        else:
            self._connections.allow_more(len(self._runs))
        return outcome

    def has_ended(self, run: Run) -> bool:
        """Say that a run's body has ended after all; False for one that was not given up here."""
        try:
            self._runs.remove(run)
        except KeyError:
            return False
        log.warning(
            "run %d of %s has ended after all, after it was given up", run.run_id, run.name,
            extra={"event": "stuck_thread_ended", "flow": run.name, "run_id": run.run_id},
        )  # fmt: skip
        self._connections.allow_more(len(self._runs))
        self._maintenance.thread_ended(run)
        return True
