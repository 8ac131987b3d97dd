"""`Heartbeat` without the web: adding flows, asking about them, running one, starting and stopping."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.types.json import Jsonb

from heartbeat import (
    AlreadyRunning,
    DatabaseUnavailable,
    DataFlow,
    DataFlowRecord,
    DataFlowRun,
    FlowNotFound,
    Heartbeat,
    HeartbeatError,
    Settings,
    SettingsError,
    ValidationError,
)
from tests.support import postgres
from tests.support.flow_classes import Gate, Noop, flow_class
from tests.support.rows import Conn, add_flow, flow_row, request_run, runs_of, statuses
from tests.support.waiting import Background, wait_until

# --- adding a flow --------------------------------------------------------------------------------------


def test_an_added_flow_comes_back_as_it_stands_in_the_table(db: Conn, database_url: str) -> None:
    with Heartbeat(database_url=database_url) as hb:
        record = hb.add_flow(
            "orders",
            run_interval=300,
            description="Copy new orders.",
            enabled=False,
            configuration={"class_name": "ImportOrders", "ü": [1, None, 1.5]},
            run_timeout=60,
        )
    assert isinstance(record, DataFlowRecord)
    assert dataclasses.asdict(record) == flow_row(db, "orders")._asdict()
    assert (record.name, record.run_interval, record.enabled, record.run_timeout) == (
        "orders",
        300,
        False,
        60,
    )
    assert record.next_run_at.tzinfo is not None
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.name = "other"  # type: ignore[misc]


def test_a_flow_needs_no_more_than_a_name_and_an_interval(database_url: str) -> None:
    with Heartbeat(database_url=database_url) as hb:
        record = hb.add_flow("orders", run_interval=1)
        assert (record.enabled, record.configuration, record.run_timeout) == (True, {}, None)
        assert [flow.name for flow in hb.due_to_run()] == ["orders"], "it never ran, so it is due"


class Sixty(IntEnum):
    VALUE = 60


class Unshowable:
    def __repr__(self) -> str:
        raise ValueError("no")


def deep(levels: int) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for _ in range(levels):
        made = {"a": made}
    return made


@pytest.fixture(scope="module")
def at_rest(server_url: str, template_database: str) -> Iterator[Heartbeat]:
    """A service for tests that are refused: they leave its one flow, `taken`, as it is."""
    url = postgres.create_database(server_url, f"heartbeat_rest_{uuid4().hex[:12]}", template_database)
    try:
        with Heartbeat(settings=Settings.load(environ={}, dotenv=None, database_url=url)) as hb:
            hb.add_flow("taken", run_interval=60)
            yield hb
    finally:
        postgres.drop_database(server_url, url.rpartition("/")[2].partition("?")[0])


GOOD: dict[str, Any] = {"name": "orders", "run_interval": 60}

BAD = [
    ("name", ""), ("name", "  \t\n"), ("name", "\u2003"), ("name", "\u200b"), ("name", "\v"), ("name", "taken"),
    ("name", "x" * 201), ("name", "x" * 10_000_000), ("name", "a\0b"), ("name", "a\ud800"), ("name", None),
    ("name", 5), ("name", b"orders"), ("name", Unshowable()),
    ("run_interval", 0), ("run_interval", -1), ("run_interval", 1.5), ("run_interval", 60.0),
    ("run_interval", "60"), ("run_interval", True), ("run_interval", None), ("run_interval", 10**13),
    ("run_interval", -(10**13)), ("run_interval", 10**5000), ("run_interval", 315_576_001),
    ("run_interval", timedelta(minutes=1)), ("run_interval", float("nan")), ("run_interval", Unshowable()),
    ("run_timeout", 0), ("run_timeout", -1), ("run_timeout", 1.5), ("run_timeout", "60"), ("run_timeout", False),
    ("run_timeout", 10**13), ("run_timeout", 315_576_001),
    ("configuration", []), ("configuration", "{}"), ("configuration", 5), ("configuration", {"a": float("nan")}),
    ("configuration", {"a": float("inf")}), ("configuration", {"a": {1, 2}}), ("configuration", {(1, 2): 3}),
    ("configuration", {"a": "\0"}), ("configuration", {"a\0": 1}), ("configuration", {"a": "\ud800"}),
    ("configuration", {"a": 10**5000}), ("configuration", deep(200_000)), ("configuration", {"a": Unshowable()}),
    ("enabled", None), ("enabled", 1), ("enabled", "yes"),
    ("description", 5), ("description", "a\0b"), ("description", "\ud800"),
]  # fmt: skip


def label(case: tuple[str, Any]) -> str:
    field, value = case
    shown = type(value).__name__ if isinstance(value, dict | Unshowable) else None
    shown = shown or ("huge" if isinstance(value, int) and abs(value) > 10**100 else ascii(value)[:16])
    return f"{field}={shown}"


@pytest.mark.parametrize(("field", "value"), BAD, ids=map(label, BAD))
def test_a_bad_value_is_refused_in_one_line_that_names_its_field(
    at_rest: Heartbeat, field: str, value: Any
) -> None:
    before = at_rest.flows()
    with pytest.raises(ValidationError) as refusal:
        at_rest.add_flow(**{**GOOD, field: value})
    assert refusal.value.field == field
    assert refusal.value.value is value
    assert field in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 300
    assert at_rest.flows() == before


def rows(db: Conn, query: str) -> list[Any]:
    return db.cursor(row_factory=psycopg.rows.namedtuple_row).execute(query).fetchall()


@pytest.mark.parametrize(
    "change",
    [{"name": "v"}, {"name": "x" * 200}, {"name": " a b "}, {"name": "ü\u2003ü"}, {"run_interval": 315_576_000},
     {"run_timeout": 315_576_000}, {"configuration": {"a": 10**4000}}, {"configuration": {"a": "\\u0000"}},
     {"configuration": {"": {}}}, {"description": "two\nlines"}, {"run_interval": Sixty.VALUE}],
    ids=lambda change: f"{next(iter(change))}={ascii(next(iter(change.values())))[:16]}",
)  # fmt: skip
def test_a_value_at_the_edge_is_accepted(database_url: str, change: dict[str, Any]) -> None:
    with Heartbeat(database_url=database_url) as hb:
        record = hb.add_flow(**{**GOOD, **change})
        assert {key: getattr(record, key) for key in change} == change


def test_a_refused_flow_costs_the_connection_nothing(database_url: str) -> None:
    with Heartbeat(database_url=database_url) as hb:
        for _ in range(20):
            with pytest.raises(ValidationError):
                hb.add_flow(" ", run_interval=60)
        hb.add_flow("orders", run_interval=60)


# --- what is due, what there is, what ran ---------------------------------------------------------------


def test_due_flows_come_oldest_first_and_others_not_at_all(db: Conn, database_url: str) -> None:
    for name, offset in [
        ("middle", "-2 min"),
        ("oldest", "-3 min"),
        ("newest", "-1 min"),
        ("later", "1 min"),
    ]:
        add_flow(db, name)
        db.execute("UPDATE data_flows SET next_run_at = now() + %s::interval WHERE name = %s", [offset, name])
    add_flow(db, "paused", enabled=False)
    add_flow(db, "asked for")
    request_run(db, "asked for")
    with Heartbeat(database_url=database_url) as hb:
        assert [flow.name for flow in hb.due_to_run()] == ["oldest", "middle", "newest"]
        assert all(isinstance(flow, DataFlowRecord) for flow in hb.due_to_run())


def test_a_running_flow_is_not_due(db: Conn, database_url: str) -> None:
    gate = Gate()
    add_flow(db, "Slow")
    with Heartbeat(flows=[gate.flow("Slow")], database_url=database_url) as hb:
        beat = Background(hb.beat)
        wait_until(lambda: gate.begun)
        db.execute("UPDATE data_flows SET next_run_at = now() - interval '1 hour'")
        assert hb.due_to_run() == []
        gate.open()
        beat.result()
        assert [flow.name for flow in hb.due_to_run()] == ["Slow"]


def test_flows_are_listed_by_name(db: Conn, database_url: str) -> None:
    for name in ("b", "a", "c"):
        add_flow(db, name, enabled=False)
    with Heartbeat(database_url=database_url) as hb:
        assert [flow.name for flow in hb.flows()] == ["a", "b", "c"]
        assert hb.flows()[0].configuration == {}


def test_a_run_tells_what_became_of_it(db: Conn, database_url: str) -> None:
    add_flow(db, "Answer")
    with Heartbeat(flows=[flow_class("Answer", lambda self: {"rows": 17})], database_url=database_url) as hb:
        before = datetime.now(UTC)
        report = hb.beat()
        [run] = hb.runs("Answer")
    assert isinstance(run, DataFlowRun)
    assert (run.flow_name, run.status, run.result, run.error, run.backtrace) == (
        "Answer", "success", {"rows": 17}, None, None,
    )  # fmt: skip
    assert run.heartbeat_id == report.heartbeat_id
    assert run.started_at is not None
    assert run.ended_at is not None
    assert run.duration == run.ended_at - run.started_at
    assert abs(run.started_at - before) < timedelta(minutes=1)
    assert run.runner_id is not None
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.status = "failed"  # type: ignore[misc]


def test_runs_come_newest_first_of_one_flow_or_of_all(db: Conn, database_url: str) -> None:
    add_flow(db, "A")
    add_flow(db, "B")
    flows = [flow_class(name, lambda self: None) for name in "AB"]
    with Heartbeat(flows=flows, database_url=database_url) as hb:
        ids = [hb.trigger_run(name).id for name in "ABABA"]
        assert [run.id for run in hb.runs()] == ids[::-1]
        assert [run.flow_name for run in hb.runs()] == list("ABABA")
        assert [run.id for run in hb.runs("A")] == ids[::-2]
        assert [run.id for run in hb.runs("A", limit=2)] == ids[::-2][:2]
        assert hb.runs(limit=0) == []
        assert len(hb.runs(limit=3)) == 3


def test_a_pending_run_is_listed_without_times(db: Conn, database_url: str) -> None:
    add_flow(db, "orders")
    request_run(db, "orders")
    with Heartbeat(database_url=database_url) as hb:
        [run] = hb.runs()
    assert (run.status, run.started_at, run.ended_at, run.duration, run.heartbeat_id) == (
        "pending", None, None, None, None,
    )  # fmt: skip


@pytest.mark.parametrize("limit", [-1, 1.5, "3", True, None, 10**13])
def test_a_bad_limit_is_refused_by_name(at_rest: Heartbeat, limit: Any) -> None:
    with pytest.raises(ValidationError) as refusal:
        at_rest.runs(limit=limit)
    assert refusal.value.field == "limit"


NOBODY = ["nobody", "", "x" * 100_000, "a\0b", "a\udcff", None, 5]


@pytest.mark.parametrize("name", NOBODY, ids=[ascii(name)[:12] for name in NOBODY])
def test_a_name_that_no_flow_has_is_not_found(at_rest: Heartbeat, name: Any) -> None:
    with pytest.raises(FlowNotFound, match="heartbeat flows"):
        at_rest.trigger_run(name)
    if name is not None:
        with pytest.raises(FlowNotFound):
            at_rest.runs(name)


# --- rows that nobody expected --------------------------------------------------------------------------

MALFORMED = {
    "1e5000": '{"n": 1e5000}',
    "5,000 digits": f'{{"n": {"9" * 5000}}}',
    "6,000 deep": '{"n": ' + "[" * 6000 + "]" * 6000 + "}",
}


@pytest.mark.parametrize("configuration", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_configuration_beyond_python_costs_no_other_flow_its_place(
    db: Conn, database_url: str, configuration: str
) -> None:
    add_flow(db, "odd", configuration=configuration)
    add_flow(db, "Noop")
    with Heartbeat(flows=[Noop], database_url=database_url) as hb:
        assert [flow.name for flow in hb.due_to_run()] == ["odd", "Noop"]
        assert [flow.name for flow in hb.flows()] == ["Noop", "odd"]
        assert [status["name"] for status in hb.flow_status()] == ["Noop", "odd"]
        report = hb.beat()
    assert (report.flows_due, report.flows_succeeded, report.flows_failed) == (2, 1, 1)
    assert statuses(db) == {"odd": ["failed"], "Noop": ["success"]}
    assert "\n" not in runs_of(db, "odd")[0].error


@pytest.mark.parametrize("result", ["1e5000", "[" * 6000 + "]" * 6000], ids=["1e5000", "6,000 deep"])
def test_a_result_beyond_python_hides_no_run(db: Conn, database_url: str, result: str) -> None:
    flow_id = add_flow(db, "orders")
    db.execute(
        "INSERT INTO data_flow_runs (data_flow_id, status, started_at, ended_at, result) "
        "VALUES (%s, 'success', now(), now(), %s::jsonb)",
        [flow_id, result],
    )
    with Heartbeat(database_url=database_url) as hb:
        assert len(hb.runs()) == len(hb.runs("orders")) == 1


def test_an_array_as_configuration_is_refused_by_the_table(db: Conn) -> None:
    with pytest.raises(psycopg.errors.CheckViolation):
        add_flow(db, "odd", configuration=Jsonb([1]))


# --- one run, now ---------------------------------------------------------------------------------------


def test_a_triggered_run_comes_back_once_it_is_on_record(db: Conn, database_url: str) -> None:
    add_flow(db, "Answer", enabled=False)
    with Heartbeat(flows=[flow_class("Answer", lambda self: 42)], database_url=database_url) as hb:
        run = hb.trigger_run("Answer")
    assert (run.status, run.result, run.heartbeat_id) == ("success", 42, None)
    [row] = runs_of(db, "Answer")
    assert (row.id, row.status, row.result) == (run.id, "success", 42)
    assert flow_row(db, "Answer").last_run_status == "success"


def test_a_triggered_run_does_not_bring_the_next_one_forward(db: Conn, database_url: str) -> None:
    add_flow(db, "Noop", run_interval=60)
    db.execute("UPDATE data_flows SET next_run_at = now() + interval '1 day'")
    held = flow_row(db, "Noop").next_run_at
    with Heartbeat(flows=[Noop], database_url=database_url) as hb:
        hb.trigger_run("Noop")
    assert flow_row(db, "Noop").next_run_at == held


class Special(Exception):
    pass


RAISED = [
    Special("no"),
    KeyboardInterrupt(),
    SystemExit(3),
    GeneratorExit(),
    StopIteration(1),
    MemoryError("much"),
]


@pytest.mark.parametrize("exc", RAISED, ids=lambda exc: type(exc).__name__)
def test_a_triggered_run_raises_what_the_flow_raised_after_recording_it(
    db: Conn, database_url: str, exc: BaseException
) -> None:
    def fail(self: DataFlow) -> None:
        raise exc

    add_flow(db, "Fail")
    with Heartbeat(flows=[flow_class("Fail", fail)], database_url=database_url) as hb:
        with pytest.raises(type(exc)) as raised:
            hb.trigger_run("Fail")
        assert raised.value is exc
        [row] = runs_of(db, "Fail")
        assert row.status == "failed"
        assert row.error.startswith(type(exc).__name__)
        assert flow_row(db, "Fail").last_run_status == "failed"


def test_a_flow_that_runs_is_not_triggered_again(db: Conn, database_url: str) -> None:
    gate = Gate()
    add_flow(db, "Slow")
    with Heartbeat(flows=[gate.flow("Slow")], database_url=database_url) as hb:
        first = Background(lambda: hb.trigger_run("Slow"))
        wait_until(lambda: gate.begun)
        with pytest.raises(AlreadyRunning, match="'Slow'") as refusal:
            hb.trigger_run("Slow")
        assert refusal.value.name == "Slow"
        gate.open()
        assert first.result().status == "success"
    assert statuses(db) == {"Slow": ["success"]}


def test_a_request_that_waits_is_taken_over_by_a_triggered_run(db: Conn, database_url: str) -> None:
    add_flow(db, "Noop")
    requested = request_run(db, "Noop")
    with Heartbeat(flows=[Noop], database_url=database_url) as hb:
        assert hb.trigger_run("Noop").id == requested
    assert statuses(db) == {"Noop": ["success"]}


def test_a_flow_of_no_class_is_triggered_in_vain(db: Conn, database_url: str) -> None:
    add_flow(db, "Nope")
    with Heartbeat(flows=[Noop], database_url=database_url) as hb, pytest.raises(LookupError, match="Nope"):
        hb.trigger_run("Nope")
    assert statuses(db) == {"Nope": ["failed"]}


def test_a_flow_can_trigger_another(db: Conn, database_url: str) -> None:
    add_flow(db, "First")
    add_flow(db, "Second")
    second = flow_class("Second", lambda self: 2)
    hb = Heartbeat(
        flows=[flow_class("First", lambda self: hb.trigger_run("Second").result), second],
        database_url=database_url,
    )
    with hb:
        assert hb.trigger_run("First").result == 2


# --- rows of classes ------------------------------------------------------------------------------------


class ImportOrders(DataFlow):
    """Copy new orders into the warehouse.

    And a second paragraph.
    """

    run_interval = 300

    def run(self) -> None:
        pass


def test_a_class_with_an_interval_gets_its_row_at_start(db: Conn, database_url: str) -> None:
    named = flow_class("Named", lambda self: None, run_interval=60, name="nightly")
    with Heartbeat(flows=[ImportOrders, named, Noop], database_url=database_url) as hb:
        assert hb.beat().flows_succeeded == 2
    assert [row.name for row in rows(db, "SELECT name FROM data_flows ORDER BY name")] == [
        "ImportOrders",
        "nightly",
    ]
    row = flow_row(db, "ImportOrders")
    assert (row.run_interval, row.description) == (300, "Copy new orders into the warehouse.")


def test_a_row_that_is_there_is_never_overwritten(db: Conn, database_url: str) -> None:
    add_flow(db, "ImportOrders", run_interval=7, enabled=False, description="mine", configuration={"a": 1})
    before = flow_row(db, "ImportOrders")
    with Heartbeat(flows=[ImportOrders], database_url=database_url):
        pass
    assert flow_row(db, "ImportOrders") == before


def test_several_that_start_at_once_make_one_row(db: Conn, database_url: str) -> None:
    started = [Heartbeat(flows=[ImportOrders], database_url=database_url) for _ in range(4)]
    for background in [Background(hb.start) for hb in started]:
        background.result()
    for hb in started:
        hb.close()
    assert db.execute("SELECT count(*) FROM data_flows").fetchone() == (1,)


def test_who_only_looks_adds_no_rows_and_runs_nothing(db: Conn, database_url: str) -> None:
    hb = Heartbeat(flows=[ImportOrders], database_url=database_url).start(run_flows=False)
    try:
        assert hb.flows() == []
        assert db.execute("SELECT count(*) FROM data_flow_runners").fetchone() == (0,)
        with pytest.raises(HeartbeatError):
            hb.beat()
    finally:
        hb.close()


# --- starting and stopping ------------------------------------------------------------------------------


def test_starting_and_closing_twice_is_once(db: Conn, database_url: str) -> None:
    hb = Heartbeat(flows=[Noop], database_url=database_url)
    assert hb.start() is hb
    assert hb.start() is hb
    assert db.execute("SELECT count(*) FROM data_flow_runners").fetchone() == (1,)
    hb.close()
    hb.close()
    assert db.execute("SELECT count(*) FROM data_flow_runners").fetchone() == (0,)


@pytest.mark.parametrize("when", ["before", "after"])
def test_outside_its_life_a_service_says_so(database_url: str, when: str) -> None:
    hb = Heartbeat(flows=[Noop], database_url=database_url)
    if when == "after":
        with hb:
            pass
    for call in (hb.beat, hb.flows, hb.due_to_run, hb.runs, hb.prune, lambda: hb.trigger_run("x")):
        with pytest.raises(HeartbeatError):
            call()
    health = hb.health()
    assert not health.ok
    assert health.reason


def test_a_service_leaves_no_thread_and_no_connection_behind(db: Conn, database_url: str) -> None:
    add_flow(db, "Noop")
    before = set(threading.enumerate())
    with Heartbeat(flows=[Noop], database_url=database_url) as hb:
        hb.beat()
    wait_until(lambda: set(threading.enumerate()) <= before, what="the threads to end")
    others = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
        "AND backend_type = 'client backend'"
    )
    wait_until(lambda: db.execute(others).fetchone() == (0,), what="the connections to end")


def test_a_start_that_fails_leaves_no_thread_and_no_connection_behind(db: Conn, database_url: str) -> None:
    db.execute("ALTER TABLE data_flows ADD CONSTRAINT nothing_new CHECK (id < 0)")
    before = set(threading.enumerate())
    hb = Heartbeat(flows=[ImportOrders], database_url=database_url)
    with pytest.raises(HeartbeatError):
        hb.start()
    wait_until(lambda: set(threading.enumerate()) <= before, seconds=5, what="the threads to end")


def test_two_services_in_one_process_do_not_know_each_other(
    db: Conn, database_url: str, new_database: Any, template_database: str
) -> None:
    other_url = new_database(template_database)
    add_flow(db, "Noop")
    with (
        Heartbeat(flows=[Noop], database_url=database_url) as one,
        Heartbeat(flows=[Noop], database_url=other_url) as two,
    ):
        assert one.beat().flows_succeeded == 1
        assert two.beat().flows_due == 0
        assert two.flows() == []


def test_health_is_fine_until_the_schema_is_not_the_codes(db: Conn, database_url: str) -> None:
    with Heartbeat(database_url=database_url) as hb:
        assert (hb.health().ok, hb.health().seconds_since_heartbeat) == (True, None)
        hb.beat()
        assert 0 <= (hb.health().seconds_since_heartbeat or -1) < 60
        db.execute(
            "INSERT INTO _yoyo_migration (migration_hash, migration_id, applied_at_utc) VALUES ('x', '9999.x', now())"
        )
        health = hb.health()
        assert not health.ok
        assert "9999.x" in (health.reason or "")


def test_a_database_that_is_not_there_stops_the_start_in_one_line() -> None:
    with pytest.raises(DatabaseUnavailable) as refusal:
        Heartbeat(flows=[Noop], database_url="postgresql://somebody@127.0.0.1:1/nothing").start()
    assert "\n" not in str(refusal.value)


def test_settings_are_keyword_arguments_and_a_mistyped_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="concurrancy"):
        Heartbeat(concurrancy=3)
    assert Heartbeat(concurrency=3).settings.concurrency == 3


# --- pruning --------------------------------------------------------------------------------------------


def age(db: Conn, days: int, count: int) -> None:
    """Add ended runs of flow 1 and finished heartbeats that are so many days old."""
    db.execute(
        "INSERT INTO data_flow_runs (data_flow_id, status, started_at, ended_at) "
        "SELECT 1, 'success', now() - %(days)s * interval '1 day', now() - %(days)s * interval '1 day' "
        "FROM generate_series(1, %(count)s)",
        {"days": days, "count": count},
    )
    db.execute(
        "INSERT INTO heartbeats (received_at, finished_at) "
        "SELECT now() - %(days)s * interval '1 day', now() - %(days)s * interval '1 day' "
        "FROM generate_series(1, %(count)s)",
        {"days": days, "count": count},
    )


def counts(db: Conn) -> tuple[int, int]:
    row = db.execute(
        "SELECT (SELECT count(*) FROM data_flow_runs), (SELECT count(*) FROM heartbeats)"
    ).fetchone()
    return int(row[0]), int(row[1])


def test_prune_removes_all_that_is_too_old_and_tells_how_it_goes(db: Conn, database_url: str) -> None:
    add_flow(db, "orders", enabled=False)
    age(db, 31, 12_000)
    age(db, 29, 5)
    request_run(db, "orders")
    progress: list[int] = []
    with Heartbeat(database_url=database_url) as hb:
        assert hb.prune(progress.append) == 24_000
        assert hb.prune() == 0
    assert sum(progress) == 24_000
    assert len(progress) >= 4, "in batches"
    assert counts(db) == (6, 5)


def test_prune_keeps_live_runs_and_open_heartbeats_however_old(db: Conn, database_url: str) -> None:
    add_flow(db, "orders", enabled=False)
    db.execute("INSERT INTO data_flow_runs (data_flow_id, created_at) VALUES (1, now() - interval '1 year')")
    db.execute("INSERT INTO heartbeats (received_at) VALUES (now() - interval '1 year')")
    age(db, 31, 3)
    with Heartbeat(database_url=database_url) as hb:
        assert hb.prune() == 6
    assert counts(db)[0] == 1
    assert counts(db)[1] == 1


def test_a_retention_of_nought_keeps_everything(db: Conn, database_url: str) -> None:
    add_flow(db, "orders", enabled=False)
    age(db, 3000, 3)
    with Heartbeat(database_url=database_url, retention_days=0) as hb:
        assert hb.prune() == 0
    assert counts(db) == (3, 3)
