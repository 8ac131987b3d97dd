"""The optional migration that sets history aside in segments: the service and the rules do not notice."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import errors, sql

from heartbeat import Heartbeat
from heartbeat.postgres import migrate
from tests.support.flow_classes import Gate, Noop
from tests.support.rows import Conn, add_flow, flow_row, make_due, request_run, runs_of, statuses
from tests.support.waiting import wait_until

OPTIONAL = migrate.DIRECTORY / "optional"
FORWARD = OPTIONAL / "partition-data-flow-runs.sql"
BACK = OPTIONAL / "partition-data-flow-runs.rollback.sql"


def apply(db: Conn, file: Path) -> None:
    """Do what `psql -1 -f` does: a text of several statements is one transaction."""
    db.execute(file.read_text("utf-8"))


def segments(db: Conn) -> list[str]:
    """Return the segments, oldest first."""
    return [
        name
        for (name,) in db.execute(
            "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'data_flow_runs'::regclass ORDER BY 1"
        )
    ]


def validate(db: Conn) -> None:
    for name in segments(db):
        constraint = sql.SQL("ALTER TABLE {} VALIDATE CONSTRAINT data_flow_runs_segment_has_ended")
        db.execute(constraint.format(sql.Identifier(name)))


def shape(db: Conn) -> list[Any]:
    """Return all that hangs on data_flow_runs, as Postgres spells it."""
    found: list[Any] = []
    for query in (
        "SELECT attname, format_type(atttypid, atttypmod), attnotnull, attidentity, attgenerated, "
        "col_description(attrelid, attnum) FROM pg_attribute "
        "WHERE attrelid = 'data_flow_runs'::regclass AND attnum > 0",
        "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = 'data_flow_runs'::regclass",
        "SELECT pg_get_indexdef(indexrelid), obj_description(indexrelid, 'pg_class') FROM pg_index "
        "WHERE indrelid = 'data_flow_runs'::regclass",
        "SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE tgrelid = 'data_flow_runs'::regclass AND NOT tgisinternal",
        "SELECT reloptions, relowner::regrole::text, obj_description(oid, 'pg_class') FROM pg_class "
        "WHERE oid = 'data_flow_runs'::regclass",
        "SELECT grantee, privilege_type, is_grantable FROM information_schema.role_table_grants "
        "WHERE table_name = 'data_flow_runs'",
        "SELECT pg_get_viewdef('data_flow_status'::regclass), obj_description('data_flow_status'::regclass)",
    ):
        found.append(sorted(map(repr, db.execute(query))))
    return found


@pytest.fixture
def partitioned(db: Conn, database_url: str) -> Conn:
    """A database in which flow `old` ran twice, before its history was set aside."""
    add_flow(db, "old", configuration={"class_name": "Noop"})
    with Heartbeat(database_url=database_url, flows=[Noop]) as hb:
        hb.beat()
        hb.trigger_run("old")
    apply(db, FORWARD)
    validate(db)
    return db


def test_it_is_applied_by_hand_only(empty_database_url: str) -> None:
    assert FORWARD.exists()
    assert not [name for name in migrate.upgrade(empty_database_url) if "partition" in name]
    with psycopg.connect(empty_database_url) as conn:
        assert conn.execute("SELECT to_regproc('data_flow_runs_close_segment')").fetchone() == (None,)


def test_the_table_is_what_it_was_twice_over_and_after_the_way_back(db: Conn) -> None:
    db.execute(
        "GRANT SELECT ON data_flow_runs TO pg_monitor WITH GRANT OPTION; GRANT INSERT ON data_flow_runs TO PUBLIC"
    )
    before = shape(db)
    apply(db, FORWARD)
    assert shape(db) == before
    wait_until(lambda: db.execute("SELECT to_char(now(), 'SS')").fetchone() != (segments(db)[0][-2:],))
    db.execute("SELECT data_flow_runs_close_segment()")
    assert len(segments(db)) == 2
    assert shape(db) == before
    apply(db, BACK)
    assert (segments(db), shape(db)) == ([], before)


def test_history_is_one_table_to_whoever_asks(partitioned: Conn, database_url: str) -> None:
    make_due(partitioned, "old")
    with Heartbeat(database_url=database_url, flows=[Noop]) as hb:
        assert hb.beat().flows_succeeded == 1
        assert [run.id for run in hb.runs("old", limit=2)] == [3, 2]
        assert [run.id for run in hb.runs(limit=3)] == [3, 2, 1]
    assert partitioned.execute("SELECT id FROM ONLY data_flow_runs").fetchall() == [(3,)]
    apply(partitioned, BACK)
    assert [run.id for run in runs_of(partitioned, "old")] == [1, 2, 3]


def test_a_service_and_its_runs_live_through_it(db: Conn, database_url: str) -> None:
    gate = Gate()
    add_flow(db, "slow", configuration={"class_name": "Slow"})
    add_flow(db, "asked", configuration={"class_name": "Noop"}, next_run_at="2030-01-01")
    with Heartbeat(database_url=database_url, flows=[gate.flow("Slow"), Noop], time_budget=0.2) as hb:
        assert hb.beat().flows_running == 1
        request_run(db, "asked")
        apply(db, FORWARD)
        assert db.execute("SELECT count(*) FROM ONLY data_flow_runs").fetchone() == (2,), (
            "live runs moved along"
        )
        assert hb.beat().flows_succeeded == 1, "what was asked for before it"
        gate.open()
        wait_until(lambda: statuses(db)["slow"] == ["success"], what="the run that was live to be recorded")
        make_due(db, "slow")
        assert hb.beat().flows_succeeded == 1
    assert flow_row(db, "slow").last_run_status == "success"
    assert db.execute("SELECT count(*) FROM data_flow_unsettled").fetchone() == (0,)


def test_a_flow_still_has_one_live_run_at_most(partitioned: Conn) -> None:
    request_run(partitioned, "old")
    with pytest.raises(errors.UniqueViolation) as refused:
        request_run(partitioned, "old")
    assert refused.value.diag.constraint_name == "data_flow_runs_one_live_run_per_flow"


def test_ended_runs_are_final_in_a_segment_too(partitioned: Conn) -> None:
    with pytest.raises(errors.RestrictViolation):
        partitioned.execute("UPDATE data_flow_runs SET error = 'x'")
    (name,) = segments(partitioned)
    with pytest.raises(errors.CheckViolation):
        partitioned.execute(
            sql.SQL("INSERT INTO {} (id, data_flow_id) VALUES (99, 1)").format(sql.Identifier(name))
        )


def test_the_runs_of_the_dead_are_failed_and_ends_by_hand_are_told(
    partitioned: Conn, database_url: str
) -> None:
    partitioned.execute(
        "INSERT INTO data_flow_runs (data_flow_id, runner_id, status, started_at) "
        "SELECT id, %s, 'in_progress', now() FROM data_flows",
        [uuid4()],
    )
    with Heartbeat(database_url=database_url, flows=[Noop]) as hb:
        hb.beat()
        assert [run.status for run in runs_of(partitioned, "old")] == ["success", "success", "failed"]
        assert flow_row(partitioned, "old").last_run_status == "failed"
        request_run(partitioned, "old")
        partitioned.execute("DELETE FROM data_flow_runs WHERE status = 'pending'")
        assert partitioned.execute("SELECT count(*) FROM data_flow_unsettled").fetchone() == (1,)


def test_runs_go_with_their_flow_and_with_their_segment(partitioned: Conn, database_url: str) -> None:
    add_flow(partitioned, "other", configuration={"class_name": "Noop"})
    with Heartbeat(database_url=database_url, flows=[Noop]) as hb:
        hb.trigger_run("other")
    (name,) = segments(partitioned)
    partitioned.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier(name)))
    assert statuses(partitioned) == {"other": ["success"]}
    partitioned.execute("DELETE FROM data_flows")
    assert statuses(partitioned) == {}


def test_pruning_reaches_into_segments(partitioned: Conn, database_url: str) -> None:
    with Heartbeat(database_url=database_url, retention_days=0.000001) as hb:
        assert hb.prune() >= 2
    assert statuses(partitioned) == {}


def test_deleting_a_flow_deletes_its_runs_in_segments(partitioned: Conn) -> None:
    partitioned.execute("DELETE FROM data_flows WHERE name = 'old'")
    assert partitioned.execute("SELECT count(*) FROM data_flow_runs").fetchone() == (0,)


def test_a_heartbeat_does_not_look_into_segments(partitioned: Conn) -> None:
    plan = partitioned.execute(
        "EXPLAIN SELECT FROM data_flow_runs AS live "
        "WHERE live.data_flow_id = 1 AND live.status IN ('pending', 'in_progress')"
    ).fetchall()
    ended = partitioned.execute(
        "EXPLAIN SELECT FROM data_flow_runs WHERE id = 1 AND ended_at IS NULL"
    ).fetchall()
    assert "until" not in str(plan) + str(ended)


def test_it_gives_way_to_whoever_holds_a_lock(partitioned: Conn, database_url: str) -> None:
    with psycopg.connect(database_url) as dba:
        dba.execute("SELECT FROM data_flow_runs")  # and the transaction stays open
        with pytest.raises(errors.LockNotAvailable):
            partitioned.execute("SELECT data_flow_runs_close_segment()")
        assert len(segments(partitioned)) == 1
    wait_until(lambda: partitioned.execute("SELECT data_flow_runs_close_segment()").fetchone())
    assert len(segments(partitioned)) == 2
