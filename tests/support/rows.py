"""Rows put in and read back as a DBA does, in psql."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import namedtuple_row
from psycopg.types.json import Jsonb

Conn = psycopg.Connection[Any]


def add_flow(db: Conn, name: str, configuration: Any = "{}", **columns: Any) -> int:
    """Insert a flow and return its id; it is due at once, and hourly unless `run_interval` says otherwise."""
    if isinstance(configuration, dict):
        configuration = Jsonb(configuration)
    columns = {"name": name, "run_interval": 3600, "configuration": configuration, **columns}
    statement = sql.SQL("INSERT INTO data_flows ({}) VALUES ({}) RETURNING id").format(
        sql.SQL(", ").join(map(sql.Identifier, columns)), sql.SQL(", ").join(map(sql.Placeholder, columns))
    )
    return int(db.execute(statement, columns).fetchone()[0])


def of_class(name: str, **options: Any) -> dict[str, Any]:
    """Return the configuration of a flow of this class."""
    return {"class_name": name, **options}


def add_flows(db: Conn, prefix: str, number: int, configuration: dict[str, Any]) -> None:
    """Insert many alike, as `add_flow` does: `prefix-1`, `prefix-2`, …"""
    db.execute(
        "INSERT INTO data_flows (name, run_interval, configuration) "
        "SELECT %s || '-' || n, 3600, %s FROM generate_series(1, %s) AS n",
        [prefix, Jsonb(configuration), number],
    )


def request_run(db: Conn, name: str) -> int:
    """Ask for a run as the contract tells a DBA to, and return its id."""
    row = db.execute(
        "INSERT INTO data_flow_runs (data_flow_id) SELECT id FROM data_flows WHERE name = %s RETURNING id",
        [name],
    ).fetchone()
    return int(row[0])


def make_due(db: Conn, *names: str) -> None:
    """Have flows, or all of them, run at the next heartbeat."""
    db.execute(
        "UPDATE data_flows SET next_run_at = now() WHERE name = ANY (%s) OR %s", [list(names), not names]
    )


def flow_row(db: Conn, name: str) -> Any:
    """Return a flow's row as the table holds it."""
    return _cursor(db).execute("SELECT * FROM data_flows WHERE name = %s", [name]).fetchone()


def runs_of(db: Conn, like: str) -> list[Any]:
    """Return the runs of one flow, or of all whose names are like `orders-%`, oldest first, each with its `name`."""
    return (
        _cursor(db)
        .execute(
            "SELECT run.*, flow.name FROM data_flow_runs AS run "
            "JOIN data_flows AS flow ON flow.id = run.data_flow_id WHERE flow.name LIKE %s ORDER BY run.id",
            [like],
        )
        .fetchall()
    )


def statuses(db: Conn) -> dict[str, list[str]]:
    """Return the status of every run, oldest first, by its flow's name."""
    found: dict[str, list[str]] = {}
    for run in runs_of(db, "%"):
        found.setdefault(run.name, []).append(run.status)
    return found


def statuses_of(db: Conn, like: str) -> list[str]:
    """Return the status of every run of one flow, or of all whose names are like `orders-%`, oldest first."""
    return [run.status for run in runs_of(db, like)]


def live_runs(db: Conn) -> list[Any]:
    """Return the runs that have not ended."""
    return _cursor(db).execute("SELECT * FROM data_flow_runs WHERE ended_at IS NULL").fetchall()


def heartbeat_row(db: Conn, heartbeat_id: int) -> Any:
    """Return a heartbeat's row as the table holds it."""
    return _cursor(db).execute("SELECT * FROM heartbeats WHERE id = %s", [heartbeat_id]).fetchone()


def _cursor(db: Conn) -> psycopg.Cursor[Any]:
    return db.cursor(row_factory=namedtuple_row)
