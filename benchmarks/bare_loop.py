"""Part 1a, the bare loop: the project's own claim and record statements, called one after the other."""

from __future__ import annotations

import os
import socket
import time
import uuid

import psycopg

from benchmarks import project
from benchmarks.measure import Measurement
from benchmarks.server import settle
from heartbeat.postgres.queries import Queries

TITLE = "bare loop of the project's SQL"
RECORDS = "what the service records, without the service: one Python process, two statements in turn, no flow is run"

TOLERANCE = 0.5
RUNNER_TTL = 3600.0


def run(url: str, items: int, *, batch: int = 1000) -> Measurement:
    """Time claim and record until nothing is left to claim."""
    project.migrate(url)
    project.add_flows(url, items)
    settle(url)
    queries, runner = Queries(), uuid.uuid4()
    with psycopg.connect(
        url, autocommit=True, prepare_threshold=2, options=project.session_options()
    ) as conn:
        queries.register_runner(conn, runner_id=runner, host=socket.gethostname(), pid=os.getpid())
        started = time.perf_counter()
        done = _drain(conn, queries, runner, batch)
        seconds = time.perf_counter() - started
    assert done == items, f"{done} of {items} were claimed"
    project.check_runs(url, items)
    return Measurement(seconds, items, f"batch {batch}, psycopg, one connection")


def _drain(
    conn: psycopg.Connection[tuple[object, ...]], queries: Queries, runner: uuid.UUID, batch: int
) -> int:
    beat = queries.open_heartbeat(
        conn, client_ip=None, runner_id=runner, run_tolerance=TOLERANCE, runner_ttl=RUNNER_TTL
    )
    claim = {
        "as_of": beat.as_of,
        "run_tolerance": TOLERANCE,
        "max_runs": batch,
        "heartbeat_id": beat.heartbeat_id,
        "runner_id": runner,
        "runner_ttl": RUNNER_TTL,
    }
    successes, nothing = ["success"] * batch, [None] * batch
    done = 0
    while rows := queries.claim(conn, **claim):
        count = len(rows)
        recorded = queries.record_outcomes(
            conn,
            runner_id=runner,
            run_ids=[row.run_id for row in rows],
            statuses=successes[:count],
            results=nothing[:count],
            errors=nothing[:count],
            backtraces=nothing[:count],
        )
        done += len(recorded)
    return done
