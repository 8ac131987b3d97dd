"""The ceiling: the project's own claim and record statements under pgbench, with no Python and no flow in the way.

pgbench cannot hand rows from one statement to the next, so the two stand in SQL functions, word for word, and only the
ids of the runs travel. Its sessions have the settings of the service's.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Mapping

import psycopg

from benchmarks import project
from benchmarks.measure import Measurement, MeasurementFailed, Unavailable
from benchmarks.server import settle, tool
from benchmarks.serving import migrate

TITLE = "the same SQL under pgbench"
RECORDS = "what the service records, without the service: a claim and a record in turn, a thousand runs each"

SCRIPT = """\
SELECT coalesce(array_agg(run_id), '{{}}')::text AS ids FROM bench_claim({claim}) \\gset
SELECT count(*) FROM bench_record({record});
"""


def run(url: str, items: int, *, batch: int = 1000, clients: int = 1) -> Measurement:
    """Run pgbench over `items` due flows, in transactions of `batch`."""
    program = tool("pgbench")
    if program is None:
        raise Unavailable("there is no pgbench in the wheel or on the path")
    migrate(url)
    project.add_flows(url, items)
    settle(url)
    transactions = items // batch // clients
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as script:
        script.write(_prepare(url, batch))
        script.flush()
        tps = _pgbench(program, url, script.name, clients, transactions)
    worked = transactions * batch * clients
    project.check_runs(url, worked)
    return Measurement(worked / (tps * batch), worked, f"batch {batch}, {clients} client(s)")


def _pgbench(program: str, url: str, script: str, clients: int, transactions: int) -> float:
    done = subprocess.run(
        [program, "-n", "-M", "simple", "-c", str(clients), "-t", str(transactions), "-f", script, url],
        env={**os.environ, "PGOPTIONS": project.session_options()},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    tps = re.search(r"^tps = ([\d.]+)", done.stdout, re.MULTILINE)
    if done.returncode != 0 or tps is None:
        raise MeasurementFailed(f"pgbench: {done.stdout}{done.stderr}")
    return float(tps[1])


def _prepare(url: str, batch: int) -> str:
    """Make the two functions, enter a runner and a heartbeat, and return the script that calls them."""
    with psycopg.connect(url, autocommit=True) as conn:
        claim, record = (project.statement(conn, where) for where in (project.CLAIM, project.RECORD))
        conn.execute(_function("bench_claim", claim))
        conn.execute(_function("bench_record", record))
        runner, heartbeat, as_of = project.open_heartbeat(conn)
    given = project.claim_arguments(as_of, batch, heartbeat, runner)
    claimed = {name: _literal(value) for name, value in given.items()}
    fixed, ids, said = project.record_arguments(runner)
    count = "cardinality(':ids'::bigint[])"
    recorded = {name: _literal(value) for name, value in fixed.items()} | {ids: "':ids'"}
    for name, value in said.items():
        recorded[name] = f"array_fill({_literal(value)}::text, ARRAY[{count}])"
    return SCRIPT.format(claim=_call(claim, claimed), record=_call(record, recorded))


def _call(statement: project.Statement, values: Mapping[str, str]) -> str:
    return ", ".join(f"{values[name]}::{kind}" for name, kind in statement.parameters.items())


def _literal(value: object) -> str:
    return "NULL" if value is None else f"'{value}'"


def _function(name: str, statement: project.Statement) -> str:
    """Wrap a statement in an SQL function with its parameters and its columns."""
    kinds = ", ".join(statement.parameters.values())
    columns = ", ".join(f"{column} {kind}" for column, kind in statement.columns.items())
    return f"CREATE FUNCTION {name}({kinds}) RETURNS TABLE ({columns}) LANGUAGE sql AS $bench$ {statement.sql} $bench$"
