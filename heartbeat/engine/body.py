"""A run's body, the user's part: its flow is made and told who it is, and what `run()` returned is made an outcome.

Called on the flow's thread or the event loop's; keeps no state.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import Any

from heartbeat.cleaning import load_json, result_json
from heartbeat.engine.run import Interrupted, Outcome, Run
from heartbeat.flows import DataFlow, Registry
from heartbeat.postgres.flow_connections import FlowConnections

log = logging.getLogger("heartbeat")


class Bodies:
    """Makes the flows of runs."""

    def __init__(self, registry: Registry, connections: FlowConnections) -> None:
        self._registry = registry
        self.connections = connections

    def make(self, run: Run) -> DataFlow:
        """Make a run's flow, ready for `run()`. Whatever this raises is the run's failure."""
        _require_wanted(run)
        if not run.lease.is_valid():
            raise Interrupted("this process could not renew its lease in time and did not begin the run")
        try:
            configuration: dict[str, Any] = load_json(run.configuration)
        except ValueError as exc:
            raise ValueError(f"configuration cannot be read: {exc}") from exc
        flow = self._registry.find(run.name, configuration)(configuration)
        connect: Callable[[], Any] = lambda: run.borrow(self.connections)  # noqa: E731 -- bound to this run
        DataFlow._bind(flow, run.name, run.run_id, configuration, connect, run.stopping)
        _require_wanted(run)  # its own __init__ may have taken long
        return flow


def _require_wanted(run: Run) -> None:
    if run.is_decided:
        raise Interrupted("the run was given up before run() was called")


def success(run: Run, result: Any) -> Outcome:
    """Make the outcome of a run that returned. Raises TypeError for a generator."""
    if result is None:
        return Outcome(run, "success")
    if inspect.isgenerator(result) or inspect.isasyncgen(result):
        raise TypeError("run() returned a generator, which would never run: take the yield out of it")
    text, problem = result_json(result)
    if problem is not None:
        log.warning(
            "the result of run %d of %s is kept as text: %s", run.run_id, run.name, problem,
            extra={"event": "odd_result", "flow": run.name, "run_id": run.run_id},
        )  # fmt: skip
    return Outcome(run, "success", result=text)
