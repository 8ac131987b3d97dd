"""Migrations by many at once, by one that is killed, and a service that meets the wrong schema."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.support.environment import environment
from tests.support.waiting import wait_until

Conn = psycopg.Connection[Any]


def heartbeat(url: str, directory: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "heartbeat", *arguments],
        cwd=directory,
        env=environment(database_url=url, token="t"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(process: subprocess.Popen[str], seconds: float = 40) -> tuple[int, str]:
    try:
        output, _ = process.communicate(timeout=seconds)
    finally:
        process.kill()
    return process.returncode, output


def schema(conn: Conn) -> list[Any]:
    """Everything that a migration makes, in an order of its own."""
    return conn.execute(
        "SELECT table_name, column_name, data_type FROM information_schema.columns"
        " WHERE table_schema = 'public' AND table_name NOT LIKE '%yoyo%'"
        " UNION ALL SELECT conrelid::regclass::text, conname, contype::text FROM pg_constraint"
        " WHERE connamespace = 'public'::regnamespace AND conrelid::regclass::text NOT LIKE '%yoyo%'"
        " UNION ALL SELECT tablename, indexname, '' FROM pg_indexes"
        " WHERE schemaname = 'public' AND tablename NOT LIKE '%yoyo%' ORDER BY 1, 2, 3"
    ).fetchall()


def test_processes_that_migrate_at_once_make_one_schema(
    empty_database_url: str, db: Conn, tmp_path: Path
) -> None:
    migrating = [heartbeat(empty_database_url, tmp_path, "migrate") for _ in range(5)]
    results = [ended(process) for process in migrating]
    assert [status for status, _ in results] == [0] * 5, results
    with psycopg.connect(empty_database_url, autocommit=True) as conn:
        assert schema(conn) == schema(db)
        twice = "SELECT migration_id FROM _yoyo_migration GROUP BY migration_id HAVING count(*) > 1"
        assert conn.execute(twice).fetchall() == []


@pytest.mark.parametrize("table", ["data_flows", "data_flow_runs"], ids=["at-the-first", "in-the-middle"])
def test_a_migration_that_was_killed_is_finished_by_the_next(
    empty_database_url: str, db: Conn, tmp_path: Path, table: str
) -> None:
    with (
        psycopg.connect(empty_database_url) as blocker,
        psycopg.connect(empty_database_url, autocommit=True) as conn,
    ):
        blocker.execute(f"CREATE TABLE {table} (n integer)")  # its name is taken until this transaction ends
        killed = heartbeat(empty_database_url, tmp_path, "migrate")
        stuck = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND wait_event_type = 'Lock' AND pid <> pg_backend_pid()"
        )
        wait_until(lambda: conn.execute(stuck).fetchone() != (0,), what="the migration to be in the middle")
        killed.kill()
        ended(killed)
        blocker.rollback()
        begin = time.monotonic()
        status, output = ended(heartbeat(empty_database_url, tmp_path, "migrate"))
        assert status == 0, output
        assert time.monotonic() - begin < 10
        assert schema(conn) == schema(db)


def test_a_lock_row_that_nobody_holds_is_no_obstacle(database_url: str, db: Conn, tmp_path: Path) -> None:
    columns = db.execute("SELECT to_regclass('yoyo_lock')").fetchone()
    assert columns != (None,)
    db.execute("INSERT INTO yoyo_lock (locked, ctime, pid) VALUES (1, now(), 1)")
    status, output = ended(heartbeat(database_url, tmp_path, "migrate"), seconds=8)
    assert status == 0, output
    with_port = heartbeat(database_url, tmp_path, "check")
    assert ended(with_port)[0] == 0


def test_a_wrong_schema_or_no_database_stops_the_service_with_one_line(
    database_url: str, empty_database_url: str, db: Conn, tmp_path: Path
) -> None:
    def refusal(url: str, command: str = "serve") -> str:
        extra = ["--port", "0"] if command == "serve" else []
        status, output = ended(heartbeat(url, tmp_path, command, *extra), seconds=15)
        assert status == 1, output
        lines = [line for line in output.splitlines() if line.strip()]
        assert "Traceback" not in output
        assert len(lines) == 1, output
        return lines[0]

    assert "heartbeat migrate" in refusal(empty_database_url)
    status, output = ended(heartbeat(database_url, tmp_path, "migrate", "--rollback", "1"))
    assert status == 0, output
    assert "heartbeat migrate" in refusal(database_url)
    assert "heartbeat migrate" in refusal(database_url, "beat")
    assert ended(heartbeat(database_url, tmp_path, "migrate"))[0] == 0
    db.execute(
        "INSERT INTO _yoyo_migration (migration_hash, migration_id, applied_at_utc)"
        " VALUES ('future', '9999.from-the-future', now())"
    )
    assert "9999.from-the-future" in refusal(database_url)
    assert refusal("postgresql://nobody@127.0.0.1:1/nothing")
