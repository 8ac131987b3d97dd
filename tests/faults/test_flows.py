"""Flows that misbehave: their own runs show it, the others run, and the service stays."""

from __future__ import annotations

import json
from typing import Any

import psycopg

from tests.faults.conftest import Rules
from tests.faults.flows import RAISABLE, RETURNABLE
from tests.faults.harness import (
    Fleet,
    Process,
    add_flow,
    add_flows,
    beats_until_fresh_flow_ran,
    runs_of,
    statuses,
)
from tests.support.waiting import wait_until

Conn = psycopg.Connection[Any]

SESSION_CHANGES = {
    "role": "SET ROLE pg_monitor",
    "path": "SET search_path = nowhere",
    "timeout": "SET statement_timeout = '1ms'",
    "read-only": "SET default_transaction_read_only = on",
    "shadow": "CREATE TEMP TABLE data_flows (name text)",
    "shadow-runs": "CREATE TEMP TABLE data_flow_runs (id bigint)",
    "listen": "LISTEN everything",
    "lock": "SELECT pg_advisory_lock(1)",
    "prepared": "PREPARE _pg3_0 AS SELECT 1",
}


def drain(service: Process) -> None:
    """Beat until nothing is due."""
    answer = service.ask()
    assert answer.status == 200, (answer, service.log()[-3000:])
    while answer.counts["flows_remaining"] or answer.counts["flows_running"]:
        answer = service.ask()
        assert answer.status == 200, (answer, service.log()[-3000:])


def test_whatever_a_flow_raises_fails_its_own_run_only(fleet: Fleet, db: Conn, rules: Rules) -> None:
    service = fleet(concurrency=2)
    for what in RAISABLE:
        add_flow(db, f"raises-{what}", "Raises", what=what)
        add_flow(db, f"async-raises-{what}", "AsyncRaises", what=what)
    add_flow(db, "raises-deeply", "Recurses")
    add_flow(db, "raises-at-once", "FailsToStart")
    add_flow(db, "raises-unknown", "os.system")
    add_flows(db, "good", 10, "Quick")
    add_flows(db, "async-good", 10, "AsyncQuick")
    drain(service)
    assert statuses(db, "%good-%") == ["success"] * 20
    bad = runs_of(db, "%raises-%")
    assert len(bad) == 2 * len(RAISABLE) + 3
    for name, status, error in bad:
        assert status == "failed", name
        assert error, name
        assert len(error) < 100_000, name
    errors = {name: error or "" for name, _, error in bad}
    assert "3" in errors["raises-SystemExit"]
    assert "before" in errors["raises-nul"]
    assert "after" in errors["raises-nul"]
    assert "Mute" in errors["raises-Mute"]
    assert beats_until_fresh_flow_ran(db, service, limit=1) == 1
    assert service.ask_health().status == 200
    rules(db)


def test_whatever_a_flow_returns_is_kept_or_said_and_is_a_success(
    fleet: Fleet, db: Conn, rules: Rules
) -> None:
    service = fleet(concurrency=2)
    for what in RETURNABLE:
        add_flow(db, f"returns-{what}", "Returns", what=what)
    add_flows(db, "good", 10, "Quick")
    drain(service)
    found = db.execute(
        "SELECT flow.name, run.status, run.error, octet_length(run.result::text), jsonb_typeof(run.result)"
        " FROM data_flow_runs AS run JOIN data_flows AS flow ON flow.id = run.data_flow_id"
        " WHERE flow.name LIKE 'returns-%'"
    ).fetchall()
    assert len(found) == len(RETURNABLE)
    for name, status, error, size, _ in found:
        assert (name, status, error) == (name, "success", None)
        assert size, name
    kinds = {name: kind for name, _, _, _, kind in found}
    for what in ("object", "nan", "infinity", "bytes", "circular"):
        assert kinds[f"returns-{what}"] == "string", what
    assert statuses(db, "good-%") == ["success"] * 10
    assert beats_until_fresh_flow_ran(db, service, limit=1) == 1
    rules(db)


def test_whatever_a_flow_does_to_its_connection_hurts_nobody_else(
    fleet: Fleet, db: Conn, rules: Rules
) -> None:
    service = fleet(concurrency=2)
    assert service.ask().status == 200
    for name, statement in SESSION_CHANGES.items():
        add_flow(db, f"changes-{name}", "ChangesSession", statement=statement)
    for flow in ("ClosesConnection", "KillsBackend", "PoisonsConnection", "KeepsAutocommit"):
        add_flows(db, f"does-{flow}", 3, flow)
    add_flows(db, "leaks", 3, "LeaksTransaction")
    drain(service)
    for _ in range(3):
        add_flows(db, f"uses-{_}", 20, "UsesConnection")
        drain(service)
    users = runs_of(db, "uses-%")
    assert [user for user in users if user[1] != "success"] == []
    assert len(users) == 60
    assert "in_progress" not in statuses(db, "%")
    assert beats_until_fresh_flow_ran(db, service, limit=1) == 1
    # No lock and no transaction outlives its flow.
    left = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in %'"
    )
    wait_until(
        lambda: db.execute(left).fetchone() == (0,), seconds=5, what="leaked transactions to be closed"
    )

    def put_right() -> bool:
        service.ask()
        found = db.execute("SELECT count(*) FROM data_flows WHERE last_run_status = 'in_progress'").fetchone()
        return found == (0,)

    wait_until(put_right, seconds=5, what="last_run_status of the flows that locked their own rows")
    rules(db)


def test_rows_that_no_flow_can_be_made_of_fail_their_own_runs(fleet: Fleet, db: Conn, rules: Rules) -> None:
    odd = {
        "number": '{"class_name": 7}',
        "null": '{"class_name": null}',
        "array": '{"class_name": ["Quick"]}',
        "empty": '{"class_name": ""}',
        "unregistered": '{"class_name": "os.system"}',
        "long": json.dumps({"class_name": "x" * 100_000}),
        "newline": json.dumps({"class_name": "Quick\n2026-11-23 forged"}),
        "huge-number": '{"class_name": "Quick", "x": 1e5000}',
        "many-digits": '{"class_name": "Quick", "x": ' + "9" * 5000 + "}",
        "deep": '{"class_name": "Quick", "x": ' + "[" * 6000 + "]" * 6000 + "}",
    }
    service = fleet(concurrency=2)
    for name, configuration in odd.items():
        db.execute(
            "INSERT INTO data_flows (name, run_interval, configuration) VALUES (%s, 60, %s)",
            (f"odd-{name}", configuration),
        )
    add_flows(db, "good", 10, "Quick")
    drain(service)
    assert statuses(db, "good-%") == ["success"] * 10
    found = {name: status for name, status, _ in runs_of(db, "odd-%")}
    assert found == dict.fromkeys((f"odd-{name}" for name in odd), "failed")
    assert beats_until_fresh_flow_ran(db, service, limit=1) == 1
    rules(db)
