"""Part 7: a day of 1,000,000 flows on mixed intervals, heartbeat by heartbeat, under the project's claim rule.

`python -m benchmarks.simulate [--flows N] [--rate R] [--processes P] [--sql N]`

The rule of sql/data_flows.sql, restated in numpy: due is `next_run_at <= as_of + min(0.5 s, a tenth of the
interval)`; oldest first; a claim sets `next_run_at = as_of + interval`, as_of being the heartbeat's beginning. A
heartbeat runs `rate` flows a second for at most its time budget; what is left waits for the next. While one runs,
the next POST of the same process claims what is left too.
`--sql N` runs the same day for N flows through the project's own statements on a real server, with the clock handed
in, and compares what both say.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from datetime import UTC
from typing import Any

import numpy as np

DAY = 86_400.0
TOLERANCE = 0.5
TOLERANCE_SHARE = 0.1

# Share of the flows: interval in seconds. A fleet with a few chatty flows and a long tail of daily ones.
MIX = {60: 0.01, 300: 0.04, 900: 0.10, 3600: 0.25, 21_600: 0.20, 86_400: 0.40}


@dataclass(frozen=True)
class Plan:
    """What is simulated; times in seconds."""

    flows: int = 1_000_000
    rate: float = 15_000.0
    time_budget: float = 25.0
    ping_every: float = 60.0
    jitter: float = 0.1
    seed: int = 20_26


def run(plan: Plan) -> dict[str, Any]:
    """Simulate the day after one of settling in; return lateness and load."""
    random = np.random.default_rng(plan.seed)
    intervals = random.choice(list(MIX), size=plan.flows, p=list(MIX.values())).astype(np.float64)
    next_run = -DAY + random.random(plan.flows) * intervals
    tolerance = np.minimum(TOLERANCE, intervals * TOLERANCE_SHARE)
    late_by_interval: dict[int, list[np.ndarray]] = {interval: [] for interval in MIX}
    beats, free_at = [], -np.inf
    for as_of in _pings(plan, random):
        due = np.flatnonzero(next_run <= as_of + tolerance)
        # Another heartbeat still runs in the process: this one shares its threads and takes over what it leaves.
        starts = max(as_of, free_at)
        room = max(0, int((as_of + plan.time_budget - starts) * plan.rate))
        due = due[np.argsort(next_run[due], kind="stable")]
        claimed, left = due[:room], max(0, len(due) - room)
        began = starts + np.arange(len(claimed)) / plan.rate
        if as_of >= 0:
            lateness = np.maximum(0, began - next_run[claimed])
            for interval, bucket in late_by_interval.items():
                bucket.append(lateness[intervals[claimed] == interval])
            beats.append({"as_of": as_of, "due": len(due), "left": left, "seconds": len(claimed) / plan.rate})
        next_run[claimed] = as_of + intervals[claimed]
        free_at = starts + len(claimed) / plan.rate
    return _report(plan, intervals, late_by_interval, beats)


def _pings(plan: Plan, random: np.random.Generator) -> np.ndarray:
    moments = np.arange(-DAY, DAY, plan.ping_every)
    return np.sort(moments + random.normal(0, plan.jitter, len(moments)))


def _report(
    plan: Plan, intervals: np.ndarray, late: dict[int, list[np.ndarray]], beats: list[dict[str, Any]]
) -> dict[str, Any]:
    seconds = np.array([beat["seconds"] for beat in beats])
    due = np.array([beat["due"] for beat in beats])
    by_interval = {}
    for interval, parts in late.items():
        values, expected = np.concatenate(parts), int((intervals == interval).sum()) * DAY / interval
        by_interval[str(interval)] = {
            "flows": int((intervals == interval).sum()),
            "runs": len(values),
            "share_of_ideal": len(values) / expected if expected else None,
            "lateness_p50": float(np.percentile(values, 50)) if len(values) else None,
            "lateness_p99": float(np.percentile(values, 99)) if len(values) else None,
            "lateness_max": float(values.max()) if len(values) else None,
        }
    return {
        "plan": asdict(plan),
        "heartbeats": len(beats),
        "runs": sum(row["runs"] for row in by_interval.values()),
        "runs_a_second": sum(row["runs"] for row in by_interval.values()) / DAY,
        "due_p50": float(np.percentile(due, 50)),
        "due_max": int(due.max()),
        "busy_share": float(seconds.sum() / DAY),
        "heartbeat_seconds_p50": float(np.percentile(seconds, 50)),
        "heartbeat_seconds_max": float(seconds.max()),
        "heartbeats_that_left_some": int(sum(beat["left"] > 0 for beat in beats)),
        "by_interval": by_interval,
        "load": [[round(beat["as_of"]), beat["due"]] for beat in beats],
    }


def run_sql(url: str, flows: int, plan: Plan) -> dict[str, Any]:
    """The same day for fewer flows through the project's own claim and record statements: runs by interval."""
    import uuid
    from datetime import datetime, timedelta

    import psycopg

    from benchmarks import project
    from heartbeat.postgres.queries import Queries

    random = np.random.default_rng(plan.seed)
    intervals = random.choice(list(MIX), size=flows, p=list(MIX.values()))
    offsets = random.random(flows) * intervals
    project.migrate(url)
    midnight = datetime(2026, 1, 1, tzinfo=UTC)
    queries, runner = Queries(), uuid.uuid4()
    with psycopg.connect(
        url, autocommit=True, prepare_threshold=2, options=project.session_options()
    ) as conn:
        queries.register_runner(conn, runner_id=runner, host="simulation", pid=0)
        with conn.cursor().copy("COPY data_flows (name, run_interval, next_run_at) FROM STDIN") as copy:
            for number, (interval, offset) in enumerate(zip(intervals, offsets, strict=True)):
                copy.write_row(
                    (f"flow-{number}", int(interval), midnight + timedelta(seconds=float(offset) - DAY))
                )
        conn.execute("VACUUM ANALYZE data_flows")
        for as_of in _pings(plan, random):
            moment = midnight + timedelta(seconds=float(as_of))
            _beat(conn, queries, runner, moment)
        rows = conn.execute(
            """
            SELECT flow.run_interval, count(*)
            FROM data_flow_runs AS run JOIN data_flows AS flow ON flow.id = run.data_flow_id
            WHERE run.scheduled_for >= %s
            GROUP BY 1
            """,
            [midnight],
        ).fetchall()
    return {"flows": flows, "runs_by_interval": {str(interval): count for interval, count in rows}}


def _beat(conn: Any, queries: Any, runner: Any, moment: Any) -> None:
    while rows := queries.claim(
        conn,
        as_of=moment,
        run_tolerance=TOLERANCE,
        max_runs=1000,
        heartbeat_id=1,
        runner_id=runner,
        runner_ttl=1e6,
    ):
        count = len(rows)
        queries.record_outcomes(
            conn,
            runner_id=runner,
            run_ids=[row.run_id for row in rows],
            statuses=["success"] * count,
            results=[None] * count,
            errors=[None] * count,
            backtraces=[None] * count,
        )


def main() -> None:
    """Print the report as JSON."""
    parser = argparse.ArgumentParser(description="Simulate a day of many flows.")
    parser.add_argument("--flows", type=int, default=Plan.flows)
    parser.add_argument("--rate", type=float, default=Plan.rate, help="flows a second, as measured")
    parser.add_argument("--ping-every", type=float, default=Plan.ping_every)
    parser.add_argument(
        "--sql", type=int, default=0, metavar="N", help="also through the real statements, N flows"
    )
    given = parser.parse_args()
    plan = Plan(flows=given.flows, rate=given.rate, ping_every=given.ping_every)
    report = run(plan)
    report.pop("load")
    if given.sql:
        from benchmarks.server import Server

        with Server() as server, server.database() as url:
            report["sql"] = run_sql(url, given.sql, plan)
            small = run(Plan(flows=given.sql, rate=1e9, ping_every=given.ping_every))
            report["sql"]["simulated"] = {key: row["runs"] for key, row in small["by_interval"].items()}
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
