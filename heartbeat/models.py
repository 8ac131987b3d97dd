"""What the database hands out, as frozen dataclasses named as the columns."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any, Literal
from uuid import UUID

from heartbeat.utc import utc_text

Status = Literal["pending", "in_progress", "success", "failed"]


@dataclass(frozen=True, slots=True)
class DataFlowRecord:
    """A row of `data_flows`.

    `run_interval` and `run_timeout` are seconds; the times are aware. `configuration` is None where the
    stored JSON is beyond what Python reads (thousands of digits or levels): such a flow's runs fail and say so.
    """

    id: int
    name: str
    description: str | None
    enabled: bool
    configuration: dict[str, Any] | None
    class_name: str
    run_interval: int
    run_timeout: int | None
    last_run_at: datetime | None
    last_run_status: Status | None
    next_run_at: datetime
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class DataFlowRun:
    """A row of `data_flow_runs`, with the name of its flow.

    `duration` is `ended_at - started_at`, None until the run has ended (and where it never started).
    `result` is None too where the stored JSON is beyond what Python reads.
    """

    id: int
    data_flow_id: int
    flow_name: str
    heartbeat_id: int | None
    runner_id: UUID | None
    status: Status
    scheduled_for: datetime
    started_at: datetime | None
    ended_at: datetime | None
    duration: timedelta | None
    result: Any
    error: str | None
    backtrace: str | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class BeatReport:
    """The counts of one heartbeat: the fields of the HTTP answer, in its order."""

    flows_due: int
    flows_triggered: int
    flows_succeeded: int
    flows_failed: int
    flows_running: int
    flows_remaining: int
    next_due_at: datetime | None
    heartbeat_id: int
    timestamp: datetime

    def answer(self) -> dict[str, Any]:
        """Return the object that answers a heartbeat. Times are UTC in whole seconds, `next_due_at` rounded up."""
        answer = {field.name: getattr(self, field.name) for field in fields(self)}
        answer["timestamp"] = utc_text(self.timestamp, "seconds")
        if self.next_due_at is not None:
            answer["next_due_at"] = utc_text(_rounded_up(self.next_due_at), "seconds")
        return answer


def _rounded_up(moment: datetime) -> datetime:
    if moment.microsecond == 0 or moment.year == datetime.max.year:  # there it would leave Python's calendar
        return moment
    return moment.replace(microsecond=0) + timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Health:
    """Whether the process can take a heartbeat; `reason` is for the log, never for the answer."""

    ok: bool
    stuck_threads: int = 0
    reason: str | None = None
    seconds_since_heartbeat: float | None = None
    """Since the newest one, of whichever process; None where there was none, or nobody knows."""
