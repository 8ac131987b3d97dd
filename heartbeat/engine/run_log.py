"""Says in the log how runs ended: each failure a line, once it is on record.

A `RunLog` belongs to the recorder's thread; the functions run on the thread that found what they tell.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from heartbeat.engine.run import Interrupted, Outcome, RunTimeout
from heartbeat.engine.tally import Tally

log = logging.getLogger("heartbeat")

MOST = 100
"""Most failures of one heartbeat that have a line each: ten thousand would hide what else there is to read."""

_EVENTS: dict[type, str] = {RunTimeout: "run_timed_out", Interrupted: "run_interrupted"}


class RunLog:
    """Tells of the runs of this process, and counts them."""

    def __init__(self) -> None:
        self.succeeded = 0
        self.failed = 0

    def tell(self, batch: Sequence[Outcome], written: set[int]) -> None:
        """Log the failures among the outcomes that were written. Where debug is off, successes are only counted."""
        failures = [
            outcome for outcome in batch if outcome.status == "failed" and outcome.run.run_id in written
        ]
        self.succeeded += len(written) - len(failures)
        self.failed += len(failures)
        for outcome in failures:
            if _has_room(outcome.run.tally):
                event = _EVENTS.get(outcome.kind or Exception, "run_failed")
                log.warning(*_message(event, outcome), extra=_fields(event, outcome))
        if log.isEnabledFor(logging.DEBUG):
            for outcome in batch:
                if outcome.status == "success" and outcome.run.run_id in written:
                    log.debug(*_message("run_succeeded", outcome), extra=_fields("run_succeeded", outcome))


def tell_rest(tally: Tally) -> None:
    """Say how many failures of a heartbeat had no line, now that it is over."""
    _tell_more(tally.failures - MOST, heartbeat_id=tally.heartbeat_id)


def tell_lost(rows: Sequence[Any], count: int) -> None:
    """Log runs that were failed because their process died, or their claim was cut off: `count`, and the first ones.

    There is no duration: nobody knows when they ended.
    """
    for row in rows:
        error = _first_line(row.error)
        fields = {"flow": row.flow_name, "run_id": row.id, "heartbeat_id": row.heartbeat_id, "error": error}
        log.warning(
            "run %d of %s lost: %s", row.id, row.flow_name, error, extra={"event": "run_lost", **fields}
        )
    _tell_more(count - len(rows))


def _has_room(tally: Tally | None) -> bool:
    if tally is None:  # a run by itself
        return True
    tally.failures += 1
    return tally.failures <= MOST


def _tell_more(count: int, **fields: Any) -> None:
    if count > 0:
        log.warning(
            "%d more runs failed", count, extra={"event": "more_runs_failed", "count": count, **fields}
        )


def _message(event: str, outcome: Outcome) -> tuple[Any, ...]:
    """Make the message. It says by itself what the fields say: a host's own format shows no fields."""
    how = event.removeprefix("run_").replace("_", " ")
    if outcome.error is None:
        return "run %d of %s %s", outcome.run.run_id, outcome.run.name, how
    return "run %d of %s %s: %s", outcome.run.run_id, outcome.run.name, how, _first_line(outcome.error)


def _fields(event: str, outcome: Outcome) -> dict[str, Any]:
    run = outcome.run
    fields = {
        "event": event,
        "flow": run.name,
        "run_id": run.run_id,
        "heartbeat_id": run.tally and run.tally.heartbeat_id,
        "duration_ms": outcome.duration_ms,
        "error": _first_line(outcome.error),
    }
    return {name: value for name, value in fields.items() if value is not None}


def _first_line(error: str | None) -> str | None:
    return None if error is None else error.partition("\n")[0]
