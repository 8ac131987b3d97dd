"""Flows that misbehave: their own runs show it, the others run, and the service stays."""

from __future__ import annotations

import json

from tests.faults.conftest import Rules
from tests.faults.flows import RAISABLE, RETURNABLE
from tests.faults.harness import Fleet, Process, beats_until_fresh_flow_ran
from tests.support.rows import Conn, add_flow, add_flows, of_class, runs_of, statuses_of
from tests.support.waiting import wait_until

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
        add_flow(db, f"raises-{what}", of_class("Raises", what=what))
        add_flow(db, f"async-raises-{what}", of_class("AsyncRaises", what=what))
    add_flow(db, "raises-deeply", of_class("Recurses"))
    add_flow(db, "raises-at-once", of_class("FailsToStart"))
    add_flow(db, "raises-unknown", of_class("os.system"))
    add_flows(db, "good", 10, of_class("Quick"))
    add_flows(db, "async-good", 10, of_class("AsyncQuick"))
    drain(service)
    assert statuses_of(db, "%good-%") == ["success"] * 20
    bad = runs_of(db, "%raises-%")
    assert len(bad) == 2 * len(RAISABLE) + 3
    for run in bad:
        assert run.status == "failed", run.name
        assert run.error, run.name
        assert len(run.error) < 100_000, run.name
    errors = {run.name: run.error for run in bad}
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
        add_flow(db, f"returns-{what}", of_class("Returns", what=what))
    add_flows(db, "good", 10, of_class("Quick"))
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
    assert statuses_of(db, "good-%") == ["success"] * 10
    assert beats_until_fresh_flow_ran(db, service, limit=1) == 1
    rules(db)


def test_whatever_a_flow_does_to_its_connection_hurts_nobody_else(
    fleet: Fleet, db: Conn, rules: Rules
) -> None:
    service = fleet(concurrency=2)
    assert service.ask().status == 200
    for name, statement in SESSION_CHANGES.items():
        add_flow(db, f"changes-{name}", of_class("ChangesSession", statement=statement))
    for flow in ("ClosesConnection", "KillsBackend", "PoisonsConnection", "KeepsAutocommit"):
        add_flows(db, f"does-{flow}", 3, of_class(flow))
    add_flows(db, "leaks", 3, of_class("LeaksTransaction"))
    drain(service)
    for _ in range(3):
        add_flows(db, f"uses-{_}", 20, of_class("UsesConnection"))
        drain(service)
    assert statuses_of(db, "uses-%") == ["success"] * 60, runs_of(db, "uses-%")
    assert "in_progress" not in statuses_of(db, "%")
    assert beats_until_fresh_flow_ran(db, service, limit=1) == 1
    # No lock and no transaction outlives its flow.
    left = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in %'"
    )
    wait_until(lambda: db.execute(left).fetchone() == (0,), what="leaked transactions to be closed")

    def put_right() -> bool:
        service.ask()
        found = db.execute("SELECT count(*) FROM data_flows WHERE last_run_status = 'in_progress'").fetchone()
        return found == (0,)

    wait_until(put_right, what="last_run_status of the flows that locked their own rows")
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
        add_flow(db, f"odd-{name}", configuration)
    add_flows(db, "good", 10, of_class("Quick"))
    drain(service)
    assert statuses_of(db, "good-%") == ["success"] * 10
    found = {run.name: run.status for run in runs_of(db, "odd-%")}
    assert found == dict.fromkeys((f"odd-{name}" for name in odd), "failed")
    assert beats_until_fresh_flow_ran(db, service, limit=1) == 1
    rules(db)
