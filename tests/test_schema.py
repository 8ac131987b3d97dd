"""The schema from psql's side: what it refuses, what it keeps by itself, what it tells."""

from __future__ import annotations

import sys
import unicodedata
from typing import Any

import psycopg
import pytest
from psycopg import errors
from psycopg.rows import namedtuple_row

from heartbeat.postgres.migrate import rollback, upgrade
from tests.support import schema_snapshot
from tests.support.rows import Conn, add_flow, flow_row, request_run

RUNNER = "11111111-1111-1111-1111-111111111111"

# --- what is refused, and by which rule -----------------------------------------------------------------

# Flow 1, `orders`, stands there, with a run of each kind but a live one; so does runner RUNNER.
REFUSED = [
    (
        "data_flows_pkey",
        "INSERT INTO data_flows (id, name, run_interval) OVERRIDING SYSTEM VALUE VALUES (1, 'b', 1)",
    ),
    ("data_flows_name_unique", "INSERT INTO data_flows (name, run_interval) VALUES ('orders', 60)"),
    ("data_flows_name_not_blank", "INSERT INTO data_flows (name, run_interval) VALUES ('', 60)"),
    ("data_flows_name_at_most_200_characters", "UPDATE data_flows SET name = repeat('x', 201)"),
    ("data_flows_name_at_most_200_characters", "UPDATE data_flows SET name = repeat('x', 10000000)"),
    ("data_flows_configuration_is_object", "UPDATE data_flows SET configuration = '[]'"),
    ("data_flows_configuration_is_object", "UPDATE data_flows SET configuration = '1e5000'"),
    ("data_flows_configuration_is_object", "UPDATE data_flows SET configuration = 'null'"),
    ("data_flows_run_interval_positive", "UPDATE data_flows SET run_interval = 0"),
    ("data_flows_run_interval_positive", "UPDATE data_flows SET run_interval = -1"),
    ("data_flows_run_interval_at_most_ten_years", "UPDATE data_flows SET run_interval = 315576001"),
    ("data_flows_run_timeout_positive", "UPDATE data_flows SET run_timeout = 0"),
    ("data_flows_run_timeout_at_most_ten_years", "UPDATE data_flows SET run_timeout = 315576001"),
    ("data_flows_last_run_status_known", "UPDATE data_flows SET last_run_status = 'done'"),
    ("data_flows_timestamps_finite", "UPDATE data_flows SET next_run_at = 'infinity'"),
    ("data_flow_runners_timestamps_finite", "UPDATE data_flow_runners SET last_seen_at = 'infinity'"),
    ("heartbeats_timestamps_finite", "INSERT INTO heartbeats (finished_at) VALUES ('infinity')"),
    (
        "data_flow_runs_timestamps_finite",
        "INSERT INTO data_flow_runs (data_flow_id, scheduled_for) VALUES (1, 'infinity')",
    ),
    (
        "data_flow_stuck_threads_timestamps_finite",
        "INSERT INTO data_flow_stuck_threads (run_id, data_flow_id, runner_id, since) "
        f"VALUES (1, 1, '{RUNNER}', 'infinity')",
    ),
    (
        "data_flow_stale_statuses_timestamps_finite",
        "INSERT INTO data_flow_stale_statuses (data_flow_id, noted_at) VALUES (1, '-infinity')",
    ),
    (
        "data_flow_schema_pkey",
        "INSERT INTO data_flow_schema (migration_id, fingerprint, version) VALUES ('a', 'x', '1'), ('a', 'y', '1')",
    ),
    ("data_flow_stale_statuses_pkey", "INSERT INTO data_flow_stale_statuses (data_flow_id) VALUES (1), (1)"),
    ("data_flow_runners_pkey", f"INSERT INTO data_flow_runners (id, host, pid) VALUES ('{RUNNER}', 'a', 1)"),
    ("heartbeats_pkey", "INSERT INTO heartbeats (id) OVERRIDING SYSTEM VALUE VALUES (1), (1)"),
    (
        "heartbeats_finished_at_not_before_received_at",
        "INSERT INTO heartbeats (finished_at) VALUES (now() - interval '1 s')",
    ),
    ("heartbeats_counts_not_negative", "INSERT INTO heartbeats (flows_due) VALUES (-1)"),
    ("heartbeats_counts_not_negative", "INSERT INTO heartbeats (flows_triggered) VALUES (-1)"),
    ("heartbeats_counts_not_negative", "INSERT INTO heartbeats (flows_succeeded) VALUES (-1)"),
    ("heartbeats_counts_not_negative", "INSERT INTO heartbeats (flows_failed) VALUES (-1)"),
    (
        "data_flow_runs_pkey",
        "INSERT INTO data_flow_runs (id, data_flow_id) OVERRIDING SYSTEM VALUE SELECT min(id), 1 FROM data_flow_runs",
    ),
    ("data_flow_runs_data_flow_exists", "INSERT INTO data_flow_runs (data_flow_id) VALUES (999)"),
    ("data_flow_runs_status_known", "INSERT INTO data_flow_runs (data_flow_id, status) VALUES (1, 'done')"),
    (
        "data_flow_runs_ended_at_exactly_when_finished",
        "INSERT INTO data_flow_runs (data_flow_id, status) VALUES (1, 'failed')",
    ),
    (
        "data_flow_runs_ended_at_exactly_when_finished",
        "INSERT INTO data_flow_runs (data_flow_id, ended_at) VALUES (1, now())",
    ),
    (
        "data_flow_runs_ended_at_not_before_started_at",
        "INSERT INTO data_flow_runs (data_flow_id, status, started_at, ended_at) "
        "VALUES (1, 'success', now(), now() - interval '1 s')",
    ),
    (
        "data_flow_runs_pending_not_started",
        "INSERT INTO data_flow_runs (data_flow_id, started_at) VALUES (1, now())",
    ),
    (
        "data_flow_runs_in_progress_has_runner",
        "INSERT INTO data_flow_runs (data_flow_id, status, started_at) VALUES (1, 'in_progress', now())",
    ),
    (
        "data_flow_runs_in_progress_has_runner",
        f"INSERT INTO data_flow_runs (data_flow_id, status, runner_id) VALUES (1, 'in_progress', '{RUNNER}')",
    ),
    (
        "data_flow_runs_success_was_started",
        "INSERT INTO data_flow_runs (data_flow_id, status, ended_at) VALUES (1, 'success', now())",
    ),
    ("data_flow_runs_one_live_run_per_flow", "INSERT INTO data_flow_runs (data_flow_id) VALUES (1), (1)"),
    (
        "data_flow_runs_one_live_run_per_flow",
        "INSERT INTO data_flow_runs (data_flow_id, status, started_at, runner_id) "
        f"VALUES (1, 'pending', NULL, NULL), (1, 'in_progress', now(), '{RUNNER}')",
    ),
    ("data_flow_runs_ended_is_final", "UPDATE data_flow_runs SET error = 'another' WHERE status = 'failed'"),
    ("data_flow_runs_ended_is_final", "UPDATE data_flow_runs SET result = '1' WHERE status = 'success'"),
    (
        "data_flow_runs_ended_is_final",
        "UPDATE data_flow_runs SET status = 'pending', started_at = NULL, ended_at = NULL WHERE status = 'failed'",
    ),
    (
        "data_flow_stuck_threads_pkey",
        "INSERT INTO data_flow_stuck_threads (run_id, data_flow_id, runner_id) "
        f"VALUES (1, 1, '{RUNNER}'), (1, 1, '{RUNNER}')",
    ),
    (
        "data_flow_stuck_threads_runner_exists",
        "INSERT INTO data_flow_stuck_threads (run_id, data_flow_id, runner_id) VALUES (1, 1, gen_random_uuid())",
    ),
]


def seed(db: Conn) -> None:
    assert add_flow(db, "orders") == 1
    add_runner(db)
    add_run(db, 1, "success")
    add_run(db, 1, "failed")


def add_runner(db: Conn, runner_id: str = RUNNER) -> None:
    db.execute("INSERT INTO data_flow_runners (id, host, pid) VALUES (%s, 'host-a', 4711)", [runner_id])


def add_run(db: Conn, flow_id: int, status: str, **columns: Any) -> int:
    """Insert a run that began a minute ago and ended just now, or goes on in RUNNER."""
    row = db.execute(
        "INSERT INTO data_flow_runs (data_flow_id, status, started_at, ended_at, runner_id, error) "
        "VALUES (%(flow)s, %(status)s, now() - interval '1 min', "
        "CASE WHEN %(status)s <> 'in_progress' THEN now() END, %(runner)s, %(error)s) RETURNING id",
        {"flow": flow_id, "status": status, "runner": RUNNER, "error": None, **columns},
    ).fetchone()
    return int(row[0])


@pytest.mark.parametrize(("rule", "statement"), REFUSED, ids=[rule for rule, _ in REFUSED])
def test_the_database_refuses_a_wrong_value_and_names_the_rule(db: Conn, rule: str, statement: str) -> None:
    seed(db)
    with pytest.raises(errors.IntegrityError) as refusal:
        db.execute(statement)
    assert refusal.value.diag.constraint_name == rule


def test_every_rule_of_the_schema_is_among_those_tried_here(db: Conn) -> None:
    rules = db.execute(
        "SELECT conname FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND contype <> 'n' "
        "AND conrelid::regclass::text !~ 'yoyo' "
        "UNION SELECT indexrelid::regclass::text FROM pg_index "
        "WHERE indisunique AND indrelid::regclass::text ~ '^(data_flow|heartbeats)'"
    ).fetchall()
    assert {name for (name,) in rules} - {rule for rule, _ in REFUSED} == set()


@pytest.mark.parametrize("beyond", ["infinity", "-infinity", "10000-01-01", "0044-03-15 BC"])
def test_no_column_takes_a_time_that_programs_cannot_read(db: Conn, beyond: str) -> None:
    seed(db)
    db.execute("INSERT INTO heartbeats (finished_at) VALUES (now())")
    db.execute("INSERT INTO data_flow_stale_statuses (data_flow_id) VALUES (1)")
    live = add_run(db, 1, "in_progress")
    db.execute(
        "INSERT INTO data_flow_stuck_threads (run_id, data_flow_id, runner_id) VALUES (%s, 1, %s)",
        [live, RUNNER],
    )
    columns = db.execute(
        "SELECT table_name, column_name FROM information_schema.columns JOIN information_schema.tables "
        "USING (table_schema, table_name) WHERE table_schema = 'public' AND table_type = 'BASE TABLE' "
        "AND data_type LIKE 'timestamp%' AND table_name !~ 'yoyo'"
    ).fetchall()
    assert len(columns) >= 12
    accepted = []
    for table, column in columns:
        change = {"ended_at": "ended_at = %s, status = 'failed'"}.get(column, f"{column} = %s")
        where = "WHERE status = 'in_progress'" if table == "data_flow_runs" else ""
        try:
            db.execute(f"UPDATE {table} SET {change} {where}", [beyond])
        except (errors.CheckViolation, errors.DatetimeFieldOverflow):
            continue
        accepted.append(f"{table}.{column}")
    assert accepted == []


SPACES = [
    c
    for c in map(chr, range(sys.maxunicode + 1))
    if c.isspace() or unicodedata.category(c) in ("Zs", "Zl", "Zp")
]


def test_white_space_of_any_kind_is_no_name(db: Conn) -> None:
    accepted = []
    for space in ["", *SPACES, "\u200b", "\ufeff", "".join(SPACES), "  \t\n "]:
        try:
            add_flow(db, space)
        except errors.CheckViolation:
            continue
        accepted.append(ascii(space))
    assert accepted == []


def test_a_name_of_any_one_letter_is_a_name(db: Conn) -> None:
    for letter in "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789\\'u":
        db.execute("DELETE FROM data_flows")
        add_flow(db, letter)
        add_flow(db, f" {letter}\t{letter} ")


def test_what_a_dba_types_at_its_plainest_is_accepted(db: Conn) -> None:
    db.execute("INSERT INTO data_flows (name, run_interval) VALUES ('orders', 1.5)")
    row = flow_row(db, "orders")
    assert (row.run_interval, row.enabled, row.configuration, row.run_timeout) == (2, True, {}, None), (
        "Postgres rounds"
    )
    db.execute(
        "UPDATE data_flows SET run_interval = 315576000, run_timeout = 315576000, name = repeat('ä', 200)"
    )
    run_id = db.execute("INSERT INTO data_flow_runs (data_flow_id) VALUES (%s) RETURNING status", [row.id])
    assert run_id.fetchone() == ("pending",)


def test_an_ended_run_can_be_deleted_and_a_flow_takes_its_runs_along(db: Conn) -> None:
    seed(db)
    request_run(db, "orders")
    assert db.execute("DELETE FROM data_flow_runs WHERE status = 'failed'").rowcount == 1
    db.execute("DELETE FROM data_flows")
    assert db.execute("SELECT count(*) FROM data_flow_runs").fetchone() == (0,)


def test_the_database_keeps_how_long_a_run_took(db: Conn) -> None:
    seed(db)
    assert db.execute("SELECT bool_and(duration = ended_at - started_at) FROM data_flow_runs").fetchone() == (
        True,
    )
    with pytest.raises(errors.GeneratedAlways):
        db.execute("INSERT INTO data_flow_runs (data_flow_id, duration) VALUES (1, '1 s')")


# --- next_run_at, which the database keeps --------------------------------------------------------------

LONG_AGO = "2020-01-01 00:00:00+00"


def next_run(db: Conn) -> str:
    """Return the one flow's next_run_at, as `now` or in UTC."""
    row = db.execute(
        "SELECT CASE WHEN abs(extract(epoch FROM next_run_at - clock_timestamp())) < 5 THEN 'now' "
        "ELSE to_char(next_run_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS') END FROM data_flows"
    ).fetchone()
    return str(row[0])


def test_a_flow_that_never_ran_is_due_at_once(db: Conn) -> None:
    db.execute("INSERT INTO data_flows (name, run_interval) VALUES ('orders', 86400)")
    assert next_run(db) == "now"


def test_a_flow_inserted_with_its_last_run_is_due_an_interval_after_it(db: Conn) -> None:
    add_flow(db, "orders", run_interval=60, last_run_at=LONG_AGO)
    assert next_run(db) == "2020-01-01 00:01:00"


def test_a_flow_inserted_with_its_next_run_keeps_it(db: Conn) -> None:
    add_flow(db, "orders", run_interval=60, last_run_at=LONG_AGO, next_run_at="2030-01-01 00:00:00+00")
    assert next_run(db) == "2030-01-01 00:00:00"


KEPT = [
    ("run_interval = 120", "2020-01-01 00:02:00"),
    ("last_run_at = '2021-01-01 00:00:00+00'", "2021-01-01 00:01:00"),
    ("last_run_at = '2021-01-01 00:00:00+00', run_interval = 120", "2021-01-01 00:02:00"),
    ("last_run_at = NULL", "now"),
    ("next_run_at = now()", "now"),
    ("next_run_at = '2030-01-01 00:00:00+00'", "2030-01-01 00:00:00"),
    ("next_run_at = NULL", "2020-01-01 00:01:00"),
    ("next_run_at = '2030-01-01 00:00:00+00', run_interval = 120", "2030-01-01 00:00:00"),
    ("next_run_at = '2030-01-01 00:00:00+00', last_run_at = now()", "2030-01-01 00:00:00"),
    ("enabled = false, description = 'x', configuration = '{\"a\": 1}', name = 'b'", "2025-01-01 00:00:00"),
    ("last_run_status = 'success', run_timeout = 5", "2025-01-01 00:00:00"),
    ("run_interval = run_interval, last_run_at = last_run_at", "2025-01-01 00:00:00"),
]


@pytest.mark.parametrize(("change", "expected"), KEPT, ids=[change for change, _ in KEPT])
def test_next_run_at_follows_the_interval_and_the_last_run_unless_it_is_set_itself(
    db: Conn, change: str, expected: str
) -> None:
    add_flow(db, "orders", run_interval=60, last_run_at=LONG_AGO, next_run_at="2025-01-01 00:00:00+00")
    db.execute(f"UPDATE data_flows SET {change}")
    assert next_run(db) == expected


def test_a_next_run_beyond_the_calendar_is_refused_by_name(db: Conn) -> None:
    add_flow(db, "orders", run_interval=315576000)
    with pytest.raises(errors.CheckViolation) as refusal:
        db.execute("UPDATE data_flows SET last_run_at = '9999-12-01'")
    assert refusal.value.diag.constraint_name == "data_flows_timestamps_finite"


def test_updated_at_moves_with_what_people_edit_and_not_with_runs(db: Conn) -> None:
    add_flow(db, "orders", updated_at=LONG_AGO)
    before = flow_row(db, "orders").updated_at
    db.execute("UPDATE data_flows SET last_run_at = now(), last_run_status = 'success', next_run_at = now()")
    assert flow_row(db, "orders").updated_at == before
    db.execute("UPDATE data_flows SET enabled = false")
    assert flow_row(db, "orders").updated_at > before


# --- notes of flows whose status is stale -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "noted"),
    [
        ("UPDATE data_flow_runs SET status = 'failed', ended_at = now() WHERE ended_at IS NULL", 1),
        ("DELETE FROM data_flow_runs WHERE ended_at IS NULL", 1),
        ("DELETE FROM data_flow_runs WHERE ended_at IS NOT NULL", 0),
        ("UPDATE data_flow_runs SET error = 'a note' WHERE ended_at IS NULL", 0),
    ],
)
def test_a_run_that_somebody_ends_or_deletes_is_noted(db: Conn, statement: str, noted: int) -> None:
    seed(db)
    add_run(db, 1, "in_progress")
    db.execute(statement)
    assert db.execute("SELECT count(*) FROM data_flow_stale_statuses").fetchone() == (noted,)


# --- the log of runs ------------------------------------------------------------------------------------


def test_the_log_of_runs_has_each_run_with_its_flow_its_lateness_its_host_and_one_line_of_its_error(
    db: Conn,
) -> None:
    add_runner(db)
    add_flow(db, "orders")
    add_run(db, 1, "failed", error="ValueError: no such file\nand more")
    add_run(db, 1, "success", runner="22222222-2222-2222-2222-222222222222")
    request_run(db, "orders")
    cursor = db.cursor(row_factory=namedtuple_row)
    failed, succeeded, pending = cursor.execute("SELECT * FROM data_flow_run_log ORDER BY id").fetchall()
    assert (failed.flow_name, failed.host, failed.error_first_line) == (
        "orders",
        "host-a",
        "ValueError: no such file",
    )
    assert failed.error == "ValueError: no such file\nand more"
    assert failed.lateness == failed.started_at - failed.scheduled_for
    assert (succeeded.host, succeeded.error_first_line) == (None, None), "that process is gone"
    assert (pending.status, pending.lateness, pending.started_at) == ("pending", None, None)


# --- the two other views -------------------------------------------------------------------------------------


def status_of(db: Conn, name: str) -> Any:
    cursor = db.cursor(row_factory=namedtuple_row)
    return cursor.execute("SELECT * FROM data_flow_status WHERE name = %s", [name]).fetchone()


def test_a_flow_that_waits_for_a_heartbeat_is_overdue_and_says_by_how_much(db: Conn) -> None:
    add_flow(db, "orders")
    db.execute("UPDATE data_flows SET next_run_at = now() - interval '5 min'")
    status = status_of(db, "orders")
    assert status.overdue
    assert 300 <= status.overdue_by.total_seconds() < 310
    assert (status.running, status.running_for, status.running_on, status.requested) == (
        False,
        None,
        None,
        False,
    )


@pytest.mark.parametrize("why", ["paused", "not due yet", "running", "asked for"])
def test_a_flow_that_no_heartbeat_has_missed_is_not_overdue(db: Conn, why: str) -> None:
    flow_id = add_flow(db, "orders")
    match why:
        case "paused":
            db.execute("UPDATE data_flows SET enabled = false")
        case "not due yet":
            db.execute("UPDATE data_flows SET next_run_at = now() + interval '1 min'")
        case "running":
            add_run(db, flow_id, "in_progress")
        case "asked for":
            request_run(db, "orders")
    status = status_of(db, "orders")
    assert (status.overdue, status.overdue_by) == (False, None)
    assert status.requested == (why == "asked for")
    assert status.running == (why == "running")


def test_a_running_flow_says_for_how_long_and_where(db: Conn) -> None:
    add_runner(db)
    add_run(db, add_flow(db, "orders"), "in_progress")
    status = status_of(db, "orders")
    assert status.running
    assert 60 <= status.running_for.total_seconds() < 70
    assert status.running_on == "host-a pid 4711"


def test_a_run_whose_runner_is_gone_names_it_all_the_same(db: Conn) -> None:
    add_run(db, add_flow(db, "orders"), "in_progress")
    assert status_of(db, "orders").running_on == f"unknown runner {RUNNER}"


def test_the_first_line_of_the_last_error_is_shown_until_a_run_succeeds(db: Conn) -> None:
    flow_id = add_flow(db, "orders")
    assert status_of(db, "orders").last_error is None
    add_run(db, flow_id, "failed", error="ValueError: no such file\nand more")
    assert status_of(db, "orders").last_error == "ValueError: no such file"
    live = add_run(db, flow_id, "in_progress")
    assert status_of(db, "orders").last_error == "ValueError: no such file", "the last one that ended"
    db.execute("UPDATE data_flow_runs SET status = 'success', ended_at = now() WHERE id = %s", [live])
    assert status_of(db, "orders").last_error is None


def test_a_thread_that_lives_on_is_counted_at_its_flow(db: Conn) -> None:
    seed(db)
    add_flow(db, "other")
    db.execute(
        "INSERT INTO data_flow_stuck_threads (run_id, data_flow_id, runner_id) VALUES (1, 1, %s)", [RUNNER]
    )
    assert status_of(db, "orders").stuck_threads == 1
    assert status_of(db, "other").stuck_threads == 0


def test_every_flow_has_one_row_of_status_however_much_it_ran(db: Conn) -> None:
    seed(db)
    add_flow(db, "other")
    assert db.execute("SELECT name FROM data_flow_status ORDER BY name").fetchall() == [
        ("orders",),
        ("other",),
    ]


def test_the_heartbeat_log_is_newest_first_with_counts_and_duration(db: Conn) -> None:
    db.execute(
        "INSERT INTO heartbeats (received_at, finished_at, client_ip, flows_due, flows_triggered, flows_succeeded, "
        "flows_failed) VALUES ('2026-01-01 00:00', '2026-01-01 00:00:07', '192.0.2.1', 5, 5, 3, 2), "
        "('2026-01-01 00:01', NULL, NULL, 4, 3, 1, 1)"
    )
    newest, oldest = db.cursor(row_factory=namedtuple_row).execute("SELECT * FROM heartbeat_log").fetchall()
    assert (newest.id, newest.flows_running, newest.duration) == (2, 1, None)
    assert (oldest.id, oldest.flows_running, oldest.duration.total_seconds()) == (1, 0, 7)
    assert (oldest.flows_due, oldest.flows_triggered, oldest.flows_succeeded, oldest.flows_failed) == (
        5,
        5,
        3,
        2,
    )
    assert str(oldest.client_ip) == "192.0.2.1"


# --- what a DBA reads, and what a migration changes -----------------------------------------------------


def test_every_table_view_column_and_rule_has_its_comment(db: Conn) -> None:
    without = db.execute(
        "SELECT proname::text FROM pg_proc WHERE pronamespace = 'public'::regnamespace "
        "AND prorettype <> 'trigger'::regtype AND obj_description(oid, 'pg_proc') IS NULL UNION ALL "
        "SELECT c.relname || coalesce('.' || a.attname, '') FROM pg_class AS c "
        "LEFT JOIN LATERAL (SELECT NULL AS attname, 0 AS attnum UNION ALL SELECT attname, attnum FROM pg_attribute "
        "WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped) AS a ON true "
        "WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm') "
        "AND c.relname !~ 'yoyo' AND coalesce(CASE WHEN a.attnum = 0 THEN obj_description(c.oid, 'pg_class') "
        "ELSE col_description(c.oid, a.attnum) END, '') = ''"
    ).fetchall()
    assert without == []


def test_the_schema_is_the_reviewed_one(database_url: str) -> None:
    found = schema_snapshot.snapshot(database_url)
    assert found == schema_snapshot.FILE.read_text("utf-8"), (
        "reviewed? python -m tests.support.schema_snapshot > tests/support/schema.snapshot.txt"
    )


def test_rolled_back_nothing_is_left_and_migrated_again_all_is_there(empty_database_url: str) -> None:
    ids = upgrade(empty_database_url)
    before = schema_snapshot.snapshot(empty_database_url)
    assert rollback(empty_database_url, len(ids)) == ids[::-1]
    with psycopg.connect(empty_database_url) as conn:
        left = conn.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relname !~ 'yoyo' "
            "UNION ALL SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace "
            "UNION ALL SELECT typname FROM pg_type WHERE typnamespace = 'public'::regnamespace AND typname !~ 'yoyo'"
        ).fetchall()
    assert left == []
    assert upgrade(empty_database_url) == ids
    assert schema_snapshot.snapshot(empty_database_url) == before


def test_each_migration_can_be_undone_alone_and_done_again(empty_database_url: str) -> None:
    ids = upgrade(empty_database_url)
    for count in range(1, len(ids)):
        assert rollback(empty_database_url, count) == ids[: -count - 1 : -1]
        assert upgrade(empty_database_url) == ids[-count:]
