"""A day of 1,000,000 flows on mixed intervals, heartbeat by heartbeat, under the project's claim rule.

The rule of sql/data_flows.sql, restated in numpy: due is `next_run_at <= as_of + min(0.5 s, a tenth of the
interval)`; oldest first; a claim sets `next_run_at = as_of + interval`, as_of being the heartbeat's beginning. A
heartbeat runs `rate` flows a second for at most its time budget; what is left waits for the next. While one runs,
the next POST of the same process claims what is left too.
`python -m benchmarks.parts.simulation FLOWS` runs the same day for fewer flows through the project's own statements on
a real server, with the clock handed in, and compares what both say.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from benchmarks import project
from benchmarks.measure import MeasurementFailed, say
from benchmarks.record import Figure
from benchmarks.server import Server
from benchmarks.serving import migrate

TITLE = "A simulated day"
ABOUT = (
    "Flows of mixed intervals, one process that is pinged every minute, at the rate that was measured. Late is from "
    "next_run_at to the start."
)
SIZES = {"full": 1_000_000, "quick": 100_000}

DAY = 86_400.0
TOLERANCE = 0.5
TOLERANCE_SHARE = 0.1

# Share of the flows: interval in seconds. A fleet with a few chatty flows and a long tail of daily ones.
MIX = {60: 0.01, 300: 0.04, 900: 0.10, 3600: 0.25, 21_600: 0.20, 86_400: 0.40}


@dataclass(frozen=True)
class Plan:
    """What is simulated; times in seconds."""

    flows: int
    rate: float
    time_budget: float = 25.0
    ping_every: float = 60.0
    jitter: float = 0.1
    seed: int = 20_26


def measure(server: Server, size: str, rate: float | None) -> list[Figure]:
    """Return the day's load and lateness, at the flows a second that the record has of the service."""
    if rate is None:
        raise MeasurementFailed("the simulation goes by the service's measured rate: measure drain first")
    figures = simulate(Plan(SIZES[size], rate))
    for figure in figures:
        say(f"   {figure.name}: {figure.median} {figure.unit}, at most {figure.highest} ({figure.note})")
    return figures


def simulate(plan: Plan) -> list[Figure]:
    """Simulate the day after one of settling in."""
    random = np.random.default_rng(plan.seed)
    intervals = random.choice(list(MIX), size=plan.flows, p=list(MIX.values())).astype(np.float64)
    next_run = -DAY + random.random(plan.flows) * intervals
    tolerance = np.minimum(TOLERANCE, intervals * TOLERANCE_SHARE)
    late: dict[int, list[np.ndarray]] = {interval: [] for interval in MIX}
    beats: list[tuple[int, int, float]] = []  # due, left for the next one, seconds
    free_at = -np.inf
    for as_of in _pings(plan, random):
        due = np.flatnonzero(next_run <= as_of + tolerance)
        # Another heartbeat still runs in the process: this one shares its threads and takes over what it leaves.
        starts = max(as_of, free_at)
        room = max(0, int((as_of + plan.time_budget - starts) * plan.rate))
        due = due[np.argsort(next_run[due], kind="stable")]
        claimed = due[:room]
        if as_of >= 0:
            lateness = np.maximum(0, starts + np.arange(len(claimed)) / plan.rate - next_run[claimed])
            for interval, bucket in late.items():
                bucket.append(lateness[intervals[claimed] == interval])
            beats.append((len(due), len(due) - len(claimed), len(claimed) / plan.rate))
        next_run[claimed] = as_of + intervals[claimed]
        free_at = starts + len(claimed) / plan.rate
    return [*_load(plan, beats), *_lateness(intervals, late)]


def _load(plan: Plan, beats: list[tuple[int, int, float]]) -> list[Figure]:
    due, left, seconds = zip(*beats, strict=True)
    note = f"{plan.flows:,} flows, {plan.rate:,.0f} flows a second, a ping every {plan.ping_every:g} s"
    return [
        Figure.of("due at a heartbeat", "flows", due, note=note),
        Figure.of("left for the next heartbeat", "flows", left),
        Figure.of("a heartbeat", "s", seconds),
        Figure.of("the process is busy", "% of the day", [100 * sum(seconds) / DAY]),
    ]


def _lateness(intervals: np.ndarray, late: dict[int, list[np.ndarray]]) -> list[Figure]:
    figures = []
    for interval, parts in late.items():
        values, flows = np.concatenate(parts), int((intervals == interval).sum())
        ideal = flows * DAY / interval
        note = f"{flows:,} flows; {len(values) / ideal:.3f} of the ideal number of runs; " if flows else ""
        note += f"99 % by {np.percentile(values, 99):.1f} s" if len(values) else "no run"
        figures.append(Figure.of(f"late, of an interval of {interval:,} s", "s", values.tolist(), note=note))
    return figures


def _pings(plan: Plan, random: np.random.Generator) -> np.ndarray:
    moments = np.arange(-DAY, DAY, plan.ping_every)
    return np.sort(moments + random.normal(0, plan.jitter, len(moments)))


def runs_by_sql(url: str, plan: Plan) -> dict[int, int]:
    """The same day through the project's own claim and record statements: runs by interval."""
    random = np.random.default_rng(plan.seed)
    intervals = random.choice(list(MIX), size=plan.flows, p=list(MIX.values()))
    offsets = random.random(plan.flows) * intervals
    migrate(url)
    midnight = datetime(2026, 1, 1, tzinfo=UTC)
    with project.connect(url) as conn:
        loop = project.Loop(conn)
        with conn.cursor().copy("COPY data_flows (name, run_interval, next_run_at) FROM STDIN") as copy:
            for number, (interval, offset) in enumerate(zip(intervals, offsets, strict=True)):
                moment = midnight + timedelta(seconds=float(offset) - DAY)
                copy.write_row((f"flow-{number}", int(interval), moment))
        conn.execute("VACUUM ANALYZE data_flows")
        for as_of in _pings(plan, random):
            loop.drain(midnight + timedelta(seconds=float(as_of)))
        rows: list[Any] = conn.execute(
            """
            SELECT flow.run_interval, count(*)
            FROM data_flow_runs AS run JOIN data_flows AS flow ON flow.id = run.data_flow_id
            WHERE run.scheduled_for >= %s
            GROUP BY 1
            ORDER BY 1
            """,
            [midnight],
        ).fetchall()
    return dict(rows)


def main() -> None:
    """Print the runs of each interval, as the statements and as the simulation have them."""
    plan = Plan(flows=int(sys.argv[1]), rate=1e9)
    simulated = {figure.name: figure.count for figure in simulate(plan)}
    with Server() as server, server.database() as url:
        for interval, count in runs_by_sql(url, plan).items():
            name = f"late, of an interval of {interval:,} s"
            print(f"every {interval:,} s: {count:,} runs by the statements, {simulated[name]:,} simulated")


if __name__ == "__main__":
    main()
