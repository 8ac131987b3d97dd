"""Migrations: by several at once, after one that was cut off, and against the wrong schema."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend

from heartbeat import DatabaseUnavailable, Heartbeat, SchemaError
from heartbeat.postgres import migrate, schema
from heartbeat.postgres.embedded import EmbeddedServer
from heartbeat.postgres.migrate import rollback, upgrade
from tests.support import schema_snapshot
from tests.support.commands import Command
from tests.support.rows import Conn
from tests.support.waiting import Background, wait_until


def applied(url: str) -> list[str]:
    with psycopg.connect(url) as conn:
        found = conn.execute("SELECT migration_id FROM _yoyo_migration ORDER BY applied_at_utc").fetchall()
    return [name for (name,) in found]


@pytest.fixture
def migrations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project's migrations, used in their place, that a test may add to."""
    copy = tmp_path / "migrations"
    shutil.copytree(schema.DIRECTORY, copy)
    monkeypatch.setattr(schema, "DIRECTORY", copy)
    return copy


def test_every_migration_is_applied_in_order_and_only_once(empty_database_url: str) -> None:
    ids = upgrade(empty_database_url)
    assert ids == sorted(ids)
    assert ids == applied(empty_database_url)
    assert upgrade(empty_database_url) == []


def test_every_migration_has_its_rollback_and_opens_with_why() -> None:
    files = sorted(schema.DIRECTORY.glob("*.sql"))
    forward = [file for file in files if not file.name.endswith(".rollback.sql")]
    assert len(files) == 2 * len(forward)
    for file in forward:
        assert file.with_suffix(".rollback.sql").exists(), file.name
        assert file.read_text("utf-8").startswith("-- "), file.name


def test_several_that_migrate_at_once_make_one_schema(empty_database_url: str) -> None:
    at_once = [Background(lambda: upgrade(empty_database_url)) for _ in range(4)]
    done = [background.result() for background in at_once]
    assert sorted(map(len, done)) == [0, 0, 0, len(applied(empty_database_url))]


def test_whoever_comes_second_waits_and_finds_nothing_left_to_do(
    empty_database_url: str, migrations: Path
) -> None:
    (migrations / "9998.wait.sql").write_text("SELECT pg_advisory_lock_shared(4711);")
    with psycopg.connect(empty_database_url, autocommit=True) as conn:
        conn.execute("SELECT pg_advisory_lock(4711)")
        first = Background(lambda: upgrade(empty_database_url))
        wait_until(lambda: waiting(conn) == 1, what="the first to be in the middle")
        second = Background(lambda: upgrade(empty_database_url))
        wait_until(lambda: waiting(conn) == 2, what="the second to wait")
        conn.execute("SELECT pg_advisory_unlock(4711)")
        assert "9998.wait" in first.result()
        assert second.result() == []


def waiting(conn: Conn) -> int:
    row = conn.execute(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted "
        "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    ).fetchone()
    return int(row[0])


def test_a_lock_row_left_by_a_process_that_died_is_no_obstacle(db: Conn, database_url: str) -> None:
    db.execute("INSERT INTO yoyo_lock (locked, ctime, pid) VALUES (1, now(), 4711)")
    assert upgrade(database_url) == []
    db.execute("INSERT INTO yoyo_lock (locked, ctime, pid) VALUES (1, now(), 4711)")
    assert len(rollback(database_url)) == 1


@pytest.mark.parametrize("number", [0, 1, -1], ids=["the-first", "the-second", "the-last"])
def test_one_that_died_between_a_migration_and_its_note_is_no_obstacle(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    names = sorted(file.stem for file in schema.DIRECTORY.glob("*.sql") if "rollback" not in file.name)
    note = PostgresqlPsycopgBackend.mark_one

    def die(self: PostgresqlPsycopgBackend, migration: object, log: bool = True) -> None:
        if migration.id == names[number]:
            raise KeyboardInterrupt
        note(self, migration, log)

    with monkeypatch.context() as deadly:
        deadly.setattr(PostgresqlPsycopgBackend, "mark_one", die)
        with pytest.raises(KeyboardInterrupt):
            upgrade(empty_database_url)
    upgrade(empty_database_url)
    assert applied(empty_database_url) == names


def test_a_migration_that_fails_is_rolled_back_whole_and_named(
    empty_database_url: str, migrations: Path
) -> None:
    broken = migrations / "9998.break-it.sql"
    broken.write_text("CREATE TABLE half (n integer);\nALTER TABLE nowhere ADD COLUMN n integer;")
    with pytest.raises(SchemaError, match=r"9998\.break-it.*nowhere"):
        upgrade(empty_database_url)
    assert "9998.break-it" not in applied(empty_database_url), "those before it stay"
    with psycopg.connect(empty_database_url) as conn:
        assert conn.execute("SELECT to_regclass('half'), to_regclass('data_flows')").fetchone() == (
            None,
            "data_flows",
        )
    broken.write_text("CREATE TABLE half (n integer);")
    assert upgrade(empty_database_url) == ["9998.break-it"]


def test_a_rollback_that_fails_names_its_migration(database_url: str) -> None:
    with psycopg.connect(database_url) as conn:
        conn.execute("ALTER VIEW data_flows_waiting RENAME TO mine")
    newest = applied(database_url)[-1]
    with pytest.raises(SchemaError, match=newest.split(".")[1]):
        rollback(database_url)
    assert applied(database_url)[-1] == newest


def test_a_rollback_undoes_the_newest_first_and_as_many_as_it_is_told(database_url: str) -> None:
    ids = applied(database_url)
    assert rollback(database_url) == [ids[-1]]
    assert rollback(database_url, 2) == [ids[-2], ids[-3]]
    assert rollback(database_url, 1000) == ids[-4::-1]
    assert rollback(database_url) == []


# --- the wrong schema -----------------------------------------------------------------------------------


def test_a_database_that_was_never_migrated_names_the_command(empty_database_url: str) -> None:
    with pytest.raises(SchemaError, match="`heartbeat migrate`"):
        Heartbeat(database_url=empty_database_url).start()


def test_an_older_schema_names_what_it_lacks_and_the_command(database_url: str) -> None:
    [undone] = rollback(database_url)
    with pytest.raises(SchemaError, match=f"older.*{undone}.*`heartbeat migrate`"):
        Heartbeat(database_url=database_url).start()


def test_a_newer_schema_names_what_it_has_and_what_helps(db: Conn, database_url: str) -> None:
    db.execute(
        "INSERT INTO _yoyo_migration (migration_hash, migration_id, applied_at_utc) VALUES ('x', '9999.future', now())"
    )
    with pytest.raises(SchemaError, match=r"newer.*9999\.future.*upgrade.*`heartbeat migrate --rollback 1`"):
        Heartbeat(database_url=database_url).start()
    assert upgrade(database_url) == [], "an older program leaves a newer schema alone"


def test_a_database_that_is_not_there_is_unavailable_in_one_line() -> None:
    with pytest.raises(DatabaseUnavailable) as refusal:
        upgrade("postgresql://somebody@127.0.0.1:1/nothing")
    assert "\n" not in str(refusal.value)


# --- a schema that an unreleased version made -----------------------------------------------------------

FROM_ANOTHER_TEXT = "UPDATE data_flow_schema SET fingerprint = 'another' WHERE migration_id LIKE '0004.%'"
UNRELEASED = {
    "one migration's text was another": FROM_ANOTHER_TEXT,
    "one migration was not noted": "DELETE FROM data_flow_schema WHERE migration_id LIKE '0004.%'",
    "no migration was noted": "DELETE FROM data_flow_schema",
    "nothing was noted yet": "DROP TABLE data_flow_schema",
    "a migration has another name now": (
        "UPDATE data_flow_schema SET migration_id = '0004.old' WHERE migration_id LIKE '0004.%';"
        "UPDATE _yoyo_migration SET migration_id = '0004.old', migration_hash = 'x' WHERE migration_id LIKE '0004.%'"
    ),
    # What the last version before the notes had: migrations that were folded away, and names that are gone.
    "it is last week's": (
        "DROP VIEW data_flows_waiting, data_flow_run_log;"
        "DROP TABLE data_flow_schema;"
        "DROP TABLE data_flow_stale_statuses;"
        "CREATE TABLE data_flow_unsettled (data_flow_id bigint PRIMARY KEY);"
        "DELETE FROM _yoyo_migration WHERE migration_id LIKE '0000.%' OR migration_id LIKE '0008.%';"
        "DELETE FROM _yoyo_migration WHERE migration_id LIKE '0006.%';"
        "INSERT INTO _yoyo_migration (migration_hash, migration_id, applied_at_utc)"
        " VALUES ('x', '0006.create-data-flow-unsettled', now()), ('y', '0010.leave-room-in-indexes', now())"
    ),
}


@pytest.fixture(params=UNRELEASED.values(), ids=UNRELEASED)
def unreleased(request: pytest.FixtureRequest, db: Conn, database_url: str) -> str:
    """URL of a database with flow `orders` that an earlier commit migrated."""
    db.execute("INSERT INTO data_flows (name, run_interval) VALUES ('orders', 60)")
    db.execute(request.param)
    return database_url


@pytest.fixture
def command(tmp_path: Path, database_url: str) -> Command:
    return Command(tmp_path, database_url=database_url)


def names(db: Conn) -> list[str]:
    return [name for (name,) in db.execute("SELECT name FROM data_flows")]


def test_a_schema_of_an_unreleased_version_stops_every_start_with_one_line_that_names_the_way_out(
    unreleased: str,
) -> None:
    with pytest.raises(SchemaError, match=r"unreleased version.*`heartbeat migrate --reset`") as refusal:
        Heartbeat(database_url=unreleased).start()
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("step", [upgrade, rollback])
def test_it_is_neither_upgraded_nor_rolled_back(db: Conn, unreleased: str, step: Callable[..., Any]) -> None:
    before = applied(unreleased)
    with pytest.raises(SchemaError, match="`heartbeat migrate --reset`"):
        step(unreleased)
    assert (applied(unreleased), names(db)) == (before, ["orders"])


def test_a_reset_drops_all_of_it_and_makes_the_schema_anew(
    db: Conn, unreleased: str, new_database: Callable[..., str]
) -> None:
    fresh = new_database()
    assert migrate.reset(unreleased) == upgrade(fresh) == applied(unreleased)
    assert schema_snapshot.snapshot(unreleased) == schema_snapshot.snapshot(fresh)
    assert names(db) == []
    with Heartbeat(database_url=unreleased) as hb:
        assert hb.beat().flows_due == 0


def test_what_a_reset_drops_is_all_that_the_migrations_make(db: Conn) -> None:
    with db.transaction():
        db.execute((schema.DIRECTORY / "reset" / "drop-everything.sql").read_text("utf-8"))
    assert (
        db.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relname !~ 'yoyo' "
            "UNION ALL SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace "
            "UNION ALL SELECT migration_id FROM _yoyo_migration"
        ).fetchall()
        == []
    )


def test_a_reset_refuses_what_can_be_kept(db: Conn, database_url: str, empty_database_url: str) -> None:
    with pytest.raises(SchemaError, match="nothing to reset"):
        migrate.reset(database_url)
    with pytest.raises(SchemaError, match="no schema of ours"):
        migrate.reset(empty_database_url)
    db.execute(FROM_ANOTHER_TEXT)
    db.execute("UPDATE data_flow_schema SET version = '1.0.0' WHERE migration_id LIKE '0007.%'")
    with pytest.raises(SchemaError, match="a released version"):
        migrate.reset(database_url)
    assert len(applied(database_url)) == len(upgrade(empty_database_url))


@pytest.mark.parametrize(
    ("theirs", "named"),
    [
        ("CREATE TABLE invoices (flow bigint CONSTRAINT of_flow REFERENCES data_flows)", "of_flow.*invoices"),
        ("CREATE VIEW invoices AS SELECT * FROM heartbeats", "invoices"),
        ("CREATE TABLE invoices () INHERITS (data_flow_runs)", "invoices"),
    ],
    ids=["a foreign key", "a view", "a segment of history"],
)
def test_a_reset_drops_nothing_while_something_of_somebody_else_depends_on_it(
    db: Conn, database_url: str, theirs: str, named: str
) -> None:
    db.execute(
        f"{theirs}; {FROM_ANOTHER_TEXT}; INSERT INTO data_flows (name, run_interval) VALUES ('orders', 60)"
    )
    with pytest.raises(SchemaError, match=named) as refusal:
        migrate.reset(database_url)
    assert "\n" not in str(refusal.value)
    assert names(db) == ["orders"]
    assert db.execute("SELECT to_regclass('invoices')").fetchone() == ("invoices",)


def test_a_reset_leaves_alone_what_is_not_ours(db: Conn, database_url: str) -> None:
    db.execute(f"CREATE TABLE data_flow_costs (n integer); {FROM_ANOTHER_TEXT}")
    db.execute(
        "INSERT INTO _yoyo_migration (migration_hash, migration_id, applied_at_utc) VALUES ('h', '0001.host', now())"
    )
    migrate.reset(database_url)
    assert "0001.host" in applied(database_url)
    assert db.execute("SELECT to_regclass('data_flow_costs')").fetchone() == ("data_flow_costs",)


def test_migrations_of_a_host_are_no_reason_to_refuse(empty_database_url: str) -> None:
    ids = upgrade(empty_database_url)
    rollback(empty_database_url, len(ids))
    with psycopg.connect(empty_database_url) as conn:
        conn.execute(
            "INSERT INTO _yoyo_migration (migration_hash, migration_id, applied_at_utc) "
            "VALUES ('h', '0001.host', now())"
        )
    with pytest.raises(SchemaError, match="no schema of ours"):
        migrate.reset(empty_database_url)
    assert upgrade(empty_database_url) == ids


def test_a_comment_or_a_blank_line_in_a_migration_makes_no_other_schema(
    empty_database_url: str, migrations: Path
) -> None:
    upgrade(empty_database_url)
    file = migrations / "0003.create-heartbeats.sql"
    text = file.read_text("utf-8")
    file.write_text("-- Another reason.\n\n" + text.replace("\n", "  \r\n"), "utf-8")
    Heartbeat(database_url=empty_database_url).start().close()
    file.write_text(text.replace("integer", "bigint"), "utf-8")
    with pytest.raises(SchemaError, match="--reset"):
        Heartbeat(database_url=empty_database_url).start()


def test_the_command_says_what_is_wrong_and_resets_when_it_is_told_to(db: Conn, command: Command) -> None:
    db.execute(f"{FROM_ANOTHER_TEXT}; INSERT INTO data_flows (name, run_interval) VALUES ('orders', 60)")
    assert "migrate --reset" in command("migrate").failed_with(1)
    assert "migrate --reset" in command("beat").failed_with(1)
    assert "migrate --reset" in command("check").out
    unasked = command("migrate", "--reset")
    assert (unasked.status, "--yes" in unasked.err, names(db)) == (2, True, ["orders"])
    done = command("migrate", "--reset", "--yes")
    assert (done.status, names(db)) == (0, [])
    assert done.lines == [f"applied {name}" for name in applied(command.settings["database_url"])]
    assert "nothing to reset" in command("migrate", "--reset", "--yes").failed_with(1)


@pytest.mark.parametrize(
    ("typed", "status", "left"), [("\n", 1, ["orders"]), ("n\n", 1, ["orders"]), ("y\n", 0, [])]
)
def test_at_a_terminal_it_asks_and_takes_no_answer_for_no(
    db: Conn, command: Command, typed: str, status: int, left: list[str]
) -> None:
    db.execute(f"{FROM_ANOTHER_TEXT}; INSERT INTO data_flows (name, run_interval) VALUES ('orders', 60)")
    done = command.on_a_terminal("migrate", "--reset", typed=typed)
    assert (done.status, names(db)) == (status, left)
    assert "Drop every flow" in done.out


def test_reset_and_rollback_together_are_wrong_usage(command: Command) -> None:
    assert command("migrate", "--reset", "--rollback", "1").status == 2


def test_the_embedded_server_of_an_unreleased_version_names_the_way_out_too(tmp_path: Path) -> None:
    command = Command(tmp_path)
    assert command("migrate").status == 0
    with closing_server(tmp_path) as url, psycopg.connect(url) as conn:
        conn.execute(FROM_ANOTHER_TEXT)
    assert "migrate --reset" in command("beat").failed_with(1)
    assert command("migrate", "--reset", "--yes").status == 0
    assert command("beat").status == 0


@contextmanager
def closing_server(directory: Path) -> Iterator[str]:
    server = EmbeddedServer(directory / ".heartbeat")
    try:
        yield server.start()
    finally:
        server.stop()


# --- every form that libpq takes ------------------------------------------------------------------------


def test_any_form_of_url_reaches_the_same_database(empty_database_url: str) -> None:
    parts = {key: str(value) for key, value in conninfo_to_dict(empty_database_url).items() if value}
    user, password, database = (quote(parts.get(key, ""), safe="") for key in ("user", "password", "dbname"))
    credentials = f"{user}:{password}@" if password else f"{user}@"
    host, port = parts.get("host", "127.0.0.1"), parts.get("port", "5432")
    forms = [
        f"postgresql://{credentials}/{database}?host={quote(host, safe='')}&port={port}",
        f"postgres://{credentials}{quote(host, safe='')}:{port}/{database}",
        f"postgresql:///?host={host}&port={port}&user={user}&password={password}&dbname={database}",
        f"postgresql://{credentials}127.0.0.1:1,{quote(host, safe='')}:{port}/{database}?connect_timeout=2",
    ]
    ids = upgrade(forms[0])
    for form in forms:
        assert rollback(form, 1) == ids[-1:], form
        assert upgrade(form) == ids[-1:], form


def test_a_password_of_odd_characters_is_passed_on_as_it_is(server_url: str, empty_database_url: str) -> None:
    password = "p@ss:w/o%rd?&=# '\\\"ü,{}$"
    database = conninfo_to_dict(empty_database_url)["dbname"]
    role = f"{database}_odd"
    with psycopg.connect(server_url, autocommit=True) as conn:
        conn.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(role), password))
        conn.execute(
            sql.SQL("ALTER DATABASE {} OWNER TO {}").format(sql.Identifier(database), sql.Identifier(role))
        )
    parts = conninfo_to_dict(empty_database_url, user=role, password=password)
    host = quote(str(parts.get("host", "")), safe="")
    url = f"postgresql://{role}:{quote(password, safe='')}@/{database}?host={host}&port={parts.get('port') or 5432}"
    try:
        with psycopg.connect(empty_database_url) as conn:
            conn.execute(sql.SQL("GRANT ALL ON SCHEMA public TO {}").format(sql.Identifier(role)))
        assert upgrade(url) == applied(empty_database_url)
        with Heartbeat(database_url=url) as hb:
            assert hb.beat().flows_due == 0
        assert migrate._yoyo_uri(url).args["password"] == password, "a server that trusts us does not look"
    finally:
        with psycopg.connect(empty_database_url, autocommit=True) as conn:
            conn.execute(sql.SQL("REASSIGN OWNED BY {} TO CURRENT_USER").format(sql.Identifier(role)))
            conn.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(role)))
        with psycopg.connect(server_url, autocommit=True) as conn:
            conn.execute(sql.SQL("ALTER DATABASE {} OWNER TO CURRENT_USER").format(sql.Identifier(database)))
            conn.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))
