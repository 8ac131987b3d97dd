"""Migrations by many at once, by one that is killed, and a service that meets the wrong schema."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.support.commands import Command, ended
from tests.support.rows import Conn
from tests.support.waiting import wait_until


@pytest.fixture
def command(tmp_path: Path) -> Command:
    return Command(tmp_path, token="t")


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
    empty_database_url: str, db: Conn, command: Command
) -> None:
    migrating = [command.start("migrate", database_url=empty_database_url) for _ in range(5)]
    results = [ended(process) for process in migrating]
    assert [done.status for done in results] == [0] * 5, results
    with psycopg.connect(empty_database_url, autocommit=True) as conn:
        assert schema(conn) == schema(db)
        twice = "SELECT migration_id FROM _yoyo_migration GROUP BY migration_id HAVING count(*) > 1"
        assert conn.execute(twice).fetchall() == []


@pytest.mark.parametrize("table", ["data_flows", "data_flow_runs"], ids=["at-the-first", "in-the-middle"])
def test_a_migration_that_was_killed_is_finished_by_the_next(
    empty_database_url: str, db: Conn, command: Command, table: str
) -> None:
    with (
        psycopg.connect(empty_database_url) as blocker,
        psycopg.connect(empty_database_url, autocommit=True) as conn,
    ):
        blocker.execute(f"CREATE TABLE {table} (n integer)")  # its name is taken until this transaction ends
        killed = command.start("migrate", database_url=empty_database_url)
        stuck = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND wait_event_type = 'Lock' AND pid <> pg_backend_pid()"
        )
        wait_until(lambda: conn.execute(stuck).fetchone() != (0,), what="the migration to be in the middle")
        killed.kill()
        ended(killed)
        blocker.rollback()
        done = command("migrate", database_url=empty_database_url)
        assert done.status == 0, done
        assert schema(conn) == schema(db)


def test_a_lock_row_that_nobody_holds_is_no_obstacle(database_url: str, db: Conn, command: Command) -> None:
    columns = db.execute("SELECT to_regclass('yoyo_lock')").fetchone()
    assert columns != (None,)
    db.execute("INSERT INTO yoyo_lock (locked, ctime, pid) VALUES (1, now(), 1)")
    for name in ("migrate", "check"):
        done = command(name, database_url=database_url)
        assert done.status == 0, done


def test_a_wrong_schema_or_no_database_stops_the_service_with_one_line(
    database_url: str, empty_database_url: str, db: Conn, command: Command
) -> None:
    def refusal(url: str, *arguments: str) -> str:
        return command(*arguments or ("serve", "--port", "0"), database_url=url).failed_with(1)

    assert "heartbeat migrate" in refusal(empty_database_url)
    done = command("migrate", "--rollback", "1", database_url=database_url)
    assert done.status == 0, done
    assert "heartbeat migrate" in refusal(database_url)
    assert "heartbeat migrate" in refusal(database_url, "beat")
    assert command("migrate", database_url=database_url).status == 0
    db.execute(
        "INSERT INTO _yoyo_migration (migration_hash, migration_id, applied_at_utc)"
        " VALUES ('future', '9999.from-the-future', now())"
    )
    assert "9999.from-the-future" in refusal(database_url)
    assert refusal("postgresql://nobody@127.0.0.1:1/nothing")
