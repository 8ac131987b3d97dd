"""The one checker of the rules: what the flows wrote outside Postgres, against what Postgres says.

`check` returns a `Report` of violations, each one line, and figures. The rules:

- a run begins at most once, and so does a slot (a flow and the time it was scheduled for);
- no two runs of a flow overlap, neither in the trace nor in the table;
- no live run of a dead runner past the TTL and a heartbeat;
- a run that is `success` returned, and none that raised is;
- a run that has ended is never changed (`Snapshots`), nor begun;
- once everything has settled: no live run, and each flow's `last_run_status` is that of its last run.

The trace says what happened; the table says what was recorded. Both clocks of the trace are this machine's:
the monotonic one is the same in every process, the wall clock is the database's, whose server runs here too.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import dict_row

Event = dict[str, Any]
FOREVER = float("inf")


@dataclass
class Report:
    """What the checker found."""

    violations: list[str] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"  {name:<28} {value:>10.6g}" for name, value in self.figures.items()]
        lines += [f"  VIOLATION: {violation}" for violation in self.violations[:50]]
        hidden = len(self.violations) - 50
        return "\n".join(lines + ([f"  … and {hidden} more"] if hidden > 0 else []))


class Trace:
    """The file that flows write to, and in which the tests mark what they did to whom."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def mark(self, event: str, **fields: Any) -> None:
        """Note a deed: `died` (pid), `paused`, `resumed` (pid), `away`, `back` (the database)."""
        line = {"event": event, **fields, "mono": time.monotonic(), "wall": time.time()}
        with self.path.open("ab", buffering=0) as file:
            file.write(json.dumps(line).encode() + b"\n")

    def let_go(self, *flows: str) -> None:
        """End the wait of flows of the classes that are held, or of all of them, now and later."""
        for name in [f"go-{flow}" for flow in flows] or ["go"]:
            self.path.with_name(name).touch()

    def events(self) -> list[Event]:
        with self.path.open("rb") as file:
            return [json.loads(line) for line in file if line.endswith(b"\n")]

    def of(self, event: str, flow: str | None = None) -> list[Event]:
        """The events of one kind, of one flow or of all."""
        return [e for e in self.events() if e["event"] == event and flow in (None, e.get("flow"))]


class Snapshots:
    """Remember every ended run that was ever seen, and complain when one looks different later."""

    def __init__(self) -> None:
        self._seen: dict[int, str] = {}
        self.changes: list[str] = []

    def take(self, conn: psycopg.Connection[Any]) -> None:
        query = "SELECT id, run::text FROM data_flow_runs AS run WHERE ended_at IS NOT NULL"
        now = {row[0]: row[1] for row in conn.execute(query).fetchall()}
        for run, text in self._seen.items():
            later = now.get(run)
            if later is not None and later != text:
                self.changes.append(f"run {run} had ended and was changed: {text[:300]} became {later[:300]}")
            elif later is None and self._is_live(conn, run):
                self.changes.append(f"run {run} had ended and lives again")
        self._seen.update(now)

    def __len__(self) -> int:
        return len(self._seen)

    @staticmethod
    def _is_live(conn: psycopg.Connection[Any], run: int) -> bool:
        return conn.execute("SELECT 1 FROM data_flow_runs WHERE id = %s", (run,)).fetchone() is not None


@dataclass
class Span:
    """One execution of a run, as the trace has it: from its begin to whatever ended it."""

    run: int
    flow: str
    pid: int
    begin: float
    begin_wall: float
    end: float = FOREVER
    how: str = "still running"


class Facts:
    """The trace and the tables, read once and put in order."""

    def __init__(self, trace: Trace, conn: psycopg.Connection[Any]) -> None:
        with conn.cursor(row_factory=dict_row) as cursor:
            self.runs: dict[int, dict[str, Any]] = {
                row["id"]: row
                for row in cursor.execute(
                    "SELECT run.*, flow.name FROM data_flow_runs AS run"
                    " JOIN data_flows AS flow ON flow.id = run.data_flow_id"
                )
            }
            self.flows = cursor.execute("SELECT id, name, last_run_status FROM data_flows").fetchall()
            self.runners = {
                row["id"]: row
                for row in cursor.execute(
                    "SELECT id, pid, extract(epoch FROM statement_timestamp()"
                    " - greatest(last_seen_at, pg_postmaster_start_time()))::float8 AS silent"
                    " FROM data_flow_runners"
                )
            }
        # Read after the tables: a run that is `success` there must have its end here.
        events = trace.events()
        self.deaths = {e["pid"]: e for e in events if e["event"] == "died"}
        self.pauses = list(_periods((e for e in events if e["event"] in ("paused", "resumed")), "paused"))
        self.aways = list(_periods((e for e in events if e["event"] in ("away", "back")), "away"))
        self.spans = self._spans(events)

    def _spans(self, events: list[Event]) -> list[Span]:
        spans: list[Span] = []
        open_ones: dict[tuple[int, int], Span] = {}
        for e in events:
            key = (e.get("run", -1), e.get("pid", -1))
            if e["event"] == "begin":
                span = Span(e["run"], e["flow"], e["pid"], e["mono"], e["wall"])
                spans.append(span)
                open_ones[key] = span
            elif e["event"] in ("end", "raised", "leaving") and key in open_ones:
                open_ones[key].end, open_ones[key].how = e["mono"], e["event"]
        for span in spans:
            death = self.deaths.get(span.pid)
            if span.end == FOREVER and death is not None and death["mono"] > span.begin:
                span.end, span.how = death["mono"], "died"
        return spans

    def was_cut_off(self, pid: int, begin: float, until: float) -> bool:
        """Whether a process was stopped, or alone without the database, at some time between two moments."""
        return any(who == pid and since < until and to > begin for who, since, to in self.pauses)


def _periods(events: Iterable[Event], opening: str) -> Iterator[tuple[int | None, float, float]]:
    """Pair openings with closings, each by pid, as (pid, from, to); pid None stands for everybody."""
    since: dict[int | None, float] = {}
    for e in events:
        if e["event"] == opening:
            since.setdefault(e.get("pid"), e["mono"])
        elif e.get("pid") in since:
            yield e.get("pid"), since.pop(e.get("pid")), e["mono"]
    for pid, start in since.items():
        yield pid, start, FOREVER


@dataclass(frozen=True)
class Limits:
    """What the checker measures against, in seconds.

    `beat` is the time between two heartbeats; `slack` is what a loaded machine may add to any of them. A
    process that was stopped between a look at its lease and `run` begins late: `threads` runs a pause.
    """

    ttl: float
    beat: float = 1.0
    slack: float = 1.5
    threads: int = 8


def check(
    trace: Trace,
    conn: psycopg.Connection[Any],
    limits: Limits,
    snapshots: Snapshots | None = None,
    *,
    settled: bool = True,
) -> Report:
    """Check all rules. `settled` says that nothing is meant to be running any more."""
    if snapshots is not None:
        snapshots.take(conn)
    facts = Facts(trace, conn)
    report = Report(figures={"runs": len(facts.runs), "begun": len(facts.spans)})
    for rule in (_begun_once, _no_overlap, _rows_do_not_overlap, _success_returned):
        report.violations += rule(facts)
    report.violations += _not_begun_after_its_end(facts, limits)
    report.violations += _dead_are_buried(facts, limits, report.figures)
    if snapshots is not None:
        report.violations += snapshots.changes
        report.figures["ended_rows_compared"] = len(snapshots)
    if settled:
        report.violations += _settled(facts)
    report.figures |= _figures(facts)
    return report


def _begun_once(facts: Facts) -> Iterator[str]:
    runs: dict[int, Span] = {}
    slots: dict[tuple[int, datetime], Span] = {}
    for span in facts.spans:
        if span.run in runs:
            yield f"run {span.run} of {span.flow} began twice, in {runs[span.run].pid} and in {span.pid}"
            continue
        runs[span.run] = span
        row = facts.runs.get(span.run)
        if row is None:
            continue
        first = slots.setdefault((row["data_flow_id"], row["scheduled_for"]), span)
        if first is not span:
            yield (
                f"slot {row['scheduled_for']} of {span.flow} began twice, as run {first.run} in {first.pid}"
                f" and as run {span.run} in {span.pid}"
            )


def _no_overlap(facts: Facts) -> Iterator[str]:
    """Excused is what nobody can prevent: a process that was cut off and given up, and goes on unknowing."""
    by_flow: dict[str, list[Span]] = defaultdict(list)
    for span in facts.spans:
        by_flow[span.flow].append(span)
    for spans in by_flow.values():
        spans.sort(key=lambda span: span.begin)
        for index, later in enumerate(spans):
            for earlier in spans[:index]:
                if earlier.end > later.begin and not facts.was_cut_off(
                    earlier.pid, earlier.begin, later.begin
                ):
                    yield (
                        f"{later.flow}: run {later.run} began in {later.pid} while run {earlier.run}"
                        f" ({earlier.how}) was running in {earlier.pid}"
                    )


def _rows_do_not_overlap(facts: Facts) -> Iterator[str]:
    by_flow: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in facts.runs.values():
        if row["started_at"] is not None:
            by_flow[row["data_flow_id"]].append(row)
    for rows in by_flow.values():
        rows.sort(key=lambda row: (row["started_at"], row["id"]))
        for earlier, later in pairwise(rows):
            if earlier["ended_at"] is None or earlier["ended_at"] > later["started_at"]:
                yield f"{later['name']}: rows of runs {earlier['id']} and {later['id']} overlap"


def _success_returned(facts: Facts) -> Iterator[str]:
    returned = {span.run for span in facts.spans if span.how == "end"}
    raised = {span.run for span in facts.spans if span.how == "raised"}
    for row in facts.runs.values():
        if row["status"] != "success":
            continue
        if row["id"] in raised:
            yield f"run {row['id']} of {row['name']} is success, but raised"
        elif row["id"] not in returned:
            yield f"run {row['id']} of {row['name']} is success, but never returned"


def _not_begun_after_its_end(facts: Facts, limits: Limits) -> Iterator[str]:
    excused: dict[int, int] = defaultdict(int)
    for span in facts.spans:
        row = facts.runs.get(span.run)
        if row is None or row["ended_at"] is None:
            continue
        late = span.begin_wall - row["ended_at"].timestamp()
        if late <= 0.05:
            continue
        excused[span.pid] += 1
        pauses = sum(1 for who, since, _ in facts.pauses if who == span.pid and since < span.begin)
        if excused[span.pid] > pauses * limits.threads:
            yield f"run {span.run} of {span.flow} began in {span.pid} {late:.2f} s after its end was recorded"


def _dead_are_buried(facts: Facts, limits: Limits, figures: dict[str, float]) -> Iterator[str]:
    allowed = limits.ttl + limits.beat + limits.slack
    slowest = 0.0
    now = time.monotonic()
    to_wall = time.time() - now
    for span in facts.spans:
        row = facts.runs.get(span.run)
        if row is None or span.pid not in facts.deaths or span.how not in ("died", "leaving"):
            continue
        died = facts.deaths[span.pid]["mono"]
        # While the database was away nobody could bury anybody, and its return counts in favour of survivors.
        since = max([died, *(to for _, start, to in facts.aways if start < died + allowed and to != FOREVER)])
        closed = row["ended_at"].timestamp() - to_wall if row["ended_at"] else now
        if closed - since > allowed:
            word = "was closed" if row["ended_at"] else "lives"
            yield f"run {span.run} of {span.flow} {word} {closed - died:.1f} s after {span.pid} died"
        if row["ended_at"]:
            slowest = max(slowest, closed - since)
    for row in facts.runs.values():
        runner = facts.runners.get(row["runner_id"])
        if row["status"] != "in_progress" or (runner is not None and runner["silent"] <= allowed):
            continue
        silence = f"silent for {runner['silent']:.1f} s" if runner else "not registered"
        yield f"run {row['id']} of {row['name']} lives, but its runner is {silence}"
    figures["slowest_burial_s"] = slowest


def _settled(facts: Facts) -> Iterator[str]:
    last: dict[int, dict[str, Any]] = {}
    for row in facts.runs.values():
        if row["status"] in ("pending", "in_progress"):
            yield f"run {row['id']} of {row['name']} is still {row['status']}"
        before = last.get(row["data_flow_id"])
        if row["started_at"] and (before is None or row["started_at"] > before["started_at"]):
            last[row["data_flow_id"]] = row
    for flow in facts.flows:
        run = last.get(flow["id"])
        if run is not None and flow["last_run_status"] != run["status"]:
            yield f"{flow['name']} says its last run was {flow['last_run_status']}; it was {run['status']}"


def _figures(facts: Facts) -> dict[str, float]:
    statuses = [row["status"] for row in facts.runs.values()]
    returned = {span.run for span in facts.spans if span.how == "end"}
    lost = sum(1 for run in returned if run in facts.runs and facts.runs[run]["status"] == "failed")
    return {
        "success": statuses.count("success"),
        "failed": statuses.count("failed"),
        "live": statuses.count("in_progress") + statuses.count("pending"),
        "returned_but_failed": lost,
        "deaths": len(facts.deaths),
        "pauses": len(facts.pauses),
    }
