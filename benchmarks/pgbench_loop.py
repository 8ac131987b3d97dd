"""Part 1b, the server's own limit: the same two statements as a pgbench script, with no Python in the way.

pgbench cannot hand rows from one statement to the next, so the two stand in SQL functions and only the ids of the
runs travel.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import uuid
from pathlib import Path
from typing import Any

import aiosql
import psycopg

from benchmarks import project
from benchmarks.measure import Measurement, MeasurementFailed, Unavailable
from benchmarks.server import settle, tool
from heartbeat.postgres.queries import SHIPPED

TITLE = "the same SQL under pgbench"
RECORDS = "what the service records; the server's own limit: one statement in flight per client, no Python"

SCRIPT = """\
SELECT coalesce(array_agg(run_id), '{{}}')::text AS ids
FROM bench_claim('{as_of}', 0.5, {batch}, {heartbeat}, '{runner}', 3600) \\gset
SELECT count(*) FROM bench_record(':ids', '{runner}');
"""

# The same array for every run but the ids: made in the server, as pgbench has no arrays.
RECORD_WRAPPER = """
CREATE FUNCTION bench_record(ids text, runner uuid) RETURNS SETOF bigint LANGUAGE sql AS $$
    SELECT bench_record_outcomes(
        runner,
        ids::bigint[],
        array_fill('success'::text, ARRAY[cardinality(ids::bigint[])]),
        array_fill(NULL::text, ARRAY[cardinality(ids::bigint[])]),
        array_fill(NULL::text, ARRAY[cardinality(ids::bigint[])]),
        array_fill(NULL::text, ARRAY[cardinality(ids::bigint[])])
    )
$$
"""


def run(url: str, items: int, *, batch: int = 1000, clients: int = 1) -> Measurement:
    """Run pgbench over `items` due flows, in transactions of `batch`."""
    program = tool("pgbench")
    if program is None:
        raise Unavailable("there is no pgbench in the wheel or on the path")
    project.migrate(url)
    project.add_flows(url, items)
    settle(url)
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as script:
        script.write(_prepare(url, batch))
        script.flush()
        transactions = items // batch // clients
        done = subprocess.run(
            [
                program,
                "-n",
                "-M",
                "simple",
                "-c",
                str(clients),
                "-t",
                str(transactions),
                "-f",
                script.name,
                url,
            ],
            env={**os.environ, "PGOPTIONS": project.session_options()},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
    tps = re.search(r"^tps = ([\d.]+)", done.stdout, re.MULTILINE)
    if done.returncode != 0 or tps is None:
        raise MeasurementFailed(f"pgbench: {done.stdout}{done.stderr}")
    project.check_runs(url, transactions * batch * clients)
    worked = transactions * batch * clients
    return Measurement(
        worked / (float(tps[1]) * batch), worked, f"batch {batch}, pgbench with {clients} client(s)"
    )


def _prepare(url: str, batch: int) -> str:
    runner = uuid.uuid4()
    statements = aiosql.from_path(str(SHIPPED / "data_flows.sql"), "psycopg")
    outcomes = aiosql.from_path(str(SHIPPED / "data_flow_runs.sql"), "psycopg")
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(_function("bench_claim", statements.claim, SHIPPED / "data_flows.sql", "claim"))
        conn.execute(
            _function(
                "bench_record_outcomes",
                outcomes.record_outcomes,
                SHIPPED / "data_flow_runs.sql",
                "record_outcomes",
            )
        )
        conn.execute(RECORD_WRAPPER)
        conn.execute(
            "INSERT INTO data_flow_runners (id, host, pid) VALUES (%s, 'pgbench', 0)",
            [runner],
        )
        row = conn.execute(
            "INSERT INTO heartbeats (runner_id) VALUES (%s) RETURNING id, received_at::text", [runner]
        ).fetchone()
    assert row is not None
    return SCRIPT.format(as_of=row[1], batch=batch, heartbeat=row[0], runner=runner)


def _function(name: str, statement: Any, file: Path, query: str) -> str:
    """Wrap a named statement in an SQL function that returns its first column as run_id."""
    order = _parameters(file, query)
    body = re.sub(r"%\((\w+)\)s", lambda match: f"${list(order).index(match[1]) + 1}", statement.sql)
    body = body.replace("%%", "%").rstrip().rstrip(";")
    columns = (
        "TABLE (run_id bigint, data_flow_id bigint, name text, configuration text, run_timeout integer)"
        if query == "claim"
        else "SETOF bigint"
    )
    types = ", ".join(order.values())
    return f"CREATE FUNCTION {name}({types}) RETURNS {columns} LANGUAGE sql AS $bench$ {body} $bench$"


def _parameters(file: Path, query: str) -> dict[str, str]:
    """The parameters of a named statement, in the order of its header, with the types that it casts them to."""
    text = file.read_text()
    header = re.search(rf"^-- name: {query}\(([^)]*)\)(.*?)(?=^-- name:|\Z)", text, re.MULTILINE | re.DOTALL)
    if header is None:
        raise MeasurementFailed(f"{file} has no statement {query}")
    names = [name.strip() for name in header[1].split(",")]
    types = dict(re.findall(r":(\w+)::([\w\[\]]+)", header[2]))
    return {name: types[name] for name in names}
