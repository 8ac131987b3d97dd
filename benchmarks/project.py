"""The project as the benchmark knows it: its schema, its tables, and the statements that it claims and records with.

Everything that a renamed statement, parameter or module would break stands here and in serving.py.
"""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import aiosql
import psycopg

from benchmarks.measure import MeasurementFailed
from heartbeat.postgres.connections import bounded_conninfo
from heartbeat.postgres.queries import SHIPPED, Queries

CLAIM = ("data_flows.sql", "claim")
RECORD = ("data_flow_runs.sql", "record_outcomes")
SESSION_SCRIPTS = ("begin_bounded", "bound_recording")

TOLERANCE = 0.5
RUNNER_TTL = 3600.0

Connection = psycopg.Connection[Any]


def session_options() -> str:
    """What the service's own sessions have from their start: its SQL with less would not be its SQL."""
    return Queries().session_options(*SESSION_SCRIPTS)


def connect(url: str) -> Connection:
    """Connect as the service does."""
    return psycopg.connect(
        bounded_conninfo(url), autocommit=True, prepare_threshold=2, options=session_options()
    )


def claim_arguments(as_of: object, most: int, heartbeat: int, runner: uuid.UUID) -> dict[str, object]:
    """The claim's parameters by name: of everything that is due, with no dead entries to begin behind."""
    return {
        "as_of": as_of,
        "first_turn": "-infinity",
        "async_classes": "{}",
        "are_async": None,
        "run_tolerance": TOLERANCE,
        "max_runs": most,
        "heartbeat_id": heartbeat,
        "runner_id": runner,
        "runner_ttl": RUNNER_TTL,
    }


def record_arguments(runner: object) -> tuple[dict[str, object], str, dict[str, str | None]]:
    """The record's parameters: those of the batch, the name of the runs' ids, and what is said of every run."""
    said: dict[str, str | None] = {"statuses": "success", "results": None, "errors": None, "backtraces": None}
    return {"runner_id": runner}, "run_ids", said


class Loop:
    """Claims and records by the project's statements, without the service; for the simulation's check."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn
        self._queries = Queries()
        self._runner = uuid.uuid4()
        self._queries.register_runner(conn, runner_id=self._runner, host="benchmark", pid=0)

    def drain(self, as_of: datetime, batch: int = 1000) -> None:
        """Claim and record until nothing that is due at a moment is left."""
        claim = claim_arguments(as_of, batch, 1, self._runner)
        while rows := self._queries.claim(self._conn, **claim):
            fixed, ids, said = record_arguments(self._runner)
            each = {name: [value] * len(rows) for name, value in said.items()}
            runs = {ids: [row.run_id for row in rows]}
            self._queries.record_outcomes(self._conn, **fixed, **runs, **each)


@dataclass(frozen=True, slots=True)
class Statement:
    """A shipped statement with $1, $2 for its parameters, the types that it casts them to, and its columns."""

    sql: str
    parameters: dict[str, str]
    columns: dict[str, str]


def statement(conn: Connection, where: tuple[str, str]) -> Statement:
    """Read a statement of sql/, as (file, name)."""
    file, name = where
    loaded = getattr(aiosql.from_path(str(SHIPPED / file), "psycopg"), name)
    text = (SHIPPED / file).read_text().partition(f"-- name: {name}(")[2].partition("-- name: ")[0]
    types = dict(re.findall(r":(\w+)::([\w\[\]]+)", text))
    parameters = {name: types[name] for name in sorted(types)}
    order = {name: number for number, name in enumerate(parameters, 1)}
    sql = re.sub(r"%\((\w+)\)s", lambda match: f"${order[match[1]]}", loaded.sql).replace("%%", "%")
    sql = sql.rstrip().rstrip(";")
    return Statement(sql, parameters, _columns(conn, sql))


def _columns(conn: Connection, sql: str) -> dict[str, str]:
    conn.pgconn.prepare(b"", sql.encode())
    described = conn.pgconn.describe_prepared(b"")
    found = {}
    for column in range(described.nfields):
        row = conn.execute("SELECT format_type(%s, NULL)", [described.ftype(column)]).fetchone()
        assert row is not None
        found[(described.fname(column) or b"").decode()] = str(row[0])
    return found


def open_heartbeat(conn: Connection) -> tuple[uuid.UUID, int, str]:
    """Enter a runner and a heartbeat of its: runner, heartbeat, and the moment that claims go by."""
    runner = uuid.uuid4()
    Queries().register_runner(conn, runner_id=runner, host="benchmark", pid=0)
    row = conn.execute(
        "INSERT INTO heartbeats (runner_id) VALUES (%s) RETURNING id, received_at::text", [runner]
    ).fetchone()
    assert row is not None
    return runner, row[0], row[1]


def add_flows(
    url: str, count: int, *, class_name: str = "NoOp", ms: int = 0, prefix: str = "flow", due: bool = True
) -> None:
    """Insert flows that are due now, or spread over the coming day."""
    configuration = json.dumps({"class_name": class_name, "ms": ms})
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(
            """
            INSERT INTO data_flows (name, run_interval, configuration, next_run_at)
            SELECT
                %(prefix)s || '-' || number,
                86400,
                %(configuration)s,
                now() + CASE
                    WHEN %(due)s THEN interval '-1 second'
                    ELSE interval '1 hour' + random() * interval '1 day'
                END
            FROM generate_series(1, %(count)s) AS number
            """,
            {"prefix": prefix, "configuration": configuration, "due": due, "count": count},
        )


def add_history(url: str, count: int) -> None:
    """Insert ended runs, spread over the flows and the last twenty days; without foreign key checks, to be quick."""
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("SET session_replication_role = replica")
        conn.execute(
            """
            INSERT INTO data_flow_runs
                (data_flow_id, heartbeat_id, runner_id, status, scheduled_for, started_at, ended_at, created_at)
            SELECT
                1 + number %% (SELECT greatest(max(id), 1) FROM data_flows),
                number / 1000,
                '00000000-0000-0000-0000-000000000001',
                CASE WHEN number %% 50 = 0 THEN 'failed' ELSE 'success' END,
                moment, moment, moment + interval '10 ms', moment
            FROM generate_series(1, %(count)s) AS number,
                LATERAL (SELECT now() - interval '20 days' * (1 - number::float8 / %(count)s) AS moment)
            """,
            {"count": count},
        )


def make_due(url: str, count: int, prefix: str = "flow") -> None:
    """Make some flows due again, as a DBA would."""
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(
            """
            UPDATE data_flows SET next_run_at = now()
            WHERE id IN (SELECT id FROM data_flows WHERE name LIKE %s || '-%%' ORDER BY id LIMIT %s)
            """,
            [prefix, count],
        )


def make_one_due(conn: Connection) -> None:
    """Make the first flow due, over a connection that is there already."""
    conn.execute("UPDATE data_flows SET next_run_at = now() WHERE name = 'flow-1'")


def check_runs(url: str, expected: int) -> None:
    """Raise MeasurementFailed unless so many runs succeeded and none is in another state."""
    with psycopg.connect(url) as conn:
        rows = conn.execute("SELECT status, count(*) FROM data_flow_runs GROUP BY status").fetchall()
    if dict(rows) != {"success": expected}:
        raise MeasurementFailed(f"expected {expected} successful runs, found {rows}")
