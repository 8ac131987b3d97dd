"""The connection that a flow borrows: what it commits, and that nobody gets it back dirty."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row

from heartbeat import DatabaseUnavailable, DataFlow, Heartbeat, HeartbeatError
from tests.support.flow_classes import Gate, flow_class
from tests.support.rows import Conn, add_flow, runs_of, statuses_of
from tests.support.waiting import Background, wait_until


def test_the_block_commits_when_it_ends(db: Conn, database_url: str) -> None:
    db.execute("CREATE TABLE copied (n integer)")

    def run(self: DataFlow) -> None:
        with self.connection() as conn:
            conn.execute("INSERT INTO copied VALUES (1)")
        assert db.execute("SELECT count(*) FROM copied").fetchone() == (1,)

    add_flow(db, "Copy")
    with Heartbeat(flows=[flow_class("Copy", run)], database_url=database_url) as hb:
        hb.trigger_run("Copy")


@pytest.mark.parametrize("exc", [ValueError("no"), SystemExit(3), KeyboardInterrupt()], ids=repr)
def test_the_block_rolls_back_when_it_raises(db: Conn, database_url: str, exc: BaseException) -> None:
    db.execute("CREATE TABLE copied (n integer)")

    def run(self: DataFlow) -> None:
        with self.connection() as conn:
            conn.execute("INSERT INTO copied VALUES (1)")
            raise exc

    add_flow(db, "Copy")
    with (
        Heartbeat(flows=[flow_class("Copy", run)], database_url=database_url) as hb,
        pytest.raises(type(exc)),
    ):
        hb.trigger_run("Copy")
    assert db.execute("SELECT count(*) FROM copied").fetchone() == (0,)


def test_a_failed_statement_fails_the_run_with_postgress_own_error(db: Conn, database_url: str) -> None:
    def run(self: DataFlow) -> None:
        with self.connection() as conn:
            conn.execute("SELECT * FROM nowhere")

    add_flow(db, "Copy")
    with Heartbeat(flows=[flow_class("Copy", run)], database_url=database_url) as hb:
        with pytest.raises(psycopg.errors.UndefinedTable):
            hb.trigger_run("Copy")
        assert runs_of(db, "Copy")[0].error.startswith('UndefinedTable: relation "nowhere" does not exist')


def test_a_flow_may_take_two_connections_and_use_transactions(db: Conn, database_url: str) -> None:
    db.execute("CREATE TABLE copied (n integer)")

    def run(self: DataFlow) -> list[Any]:
        with self.connection() as outer, self.connection() as inner:
            inner.execute("INSERT INTO copied VALUES (1)")
            with outer.transaction():
                outer.execute("INSERT INTO copied VALUES (2)")
            return [outer.execute("SELECT count(*) FROM copied").fetchone()[0], outer is inner]

    add_flow(db, "Copy")
    with Heartbeat(flows=[flow_class("Copy", run)], database_url=database_url) as hb:
        assert hb.trigger_run("Copy").result == [1, False]
    assert db.execute("SELECT count(*) FROM copied").fetchone() == (2,)


# --- what one flow leaves behind ------------------------------------------------------------------------


def set_session(conn: Conn) -> None:
    conn.execute("SET search_path = pg_catalog; SET statement_timeout = 1; SET timezone = 'Asia/Tokyo'")
    conn.commit()


def set_role(conn: Conn) -> None:
    conn.execute("SET SESSION AUTHORIZATION pg_read_all_data")
    conn.execute("SET ROLE pg_read_all_data")
    conn.commit()


def make_objects(conn: Conn) -> None:
    conn.execute("CREATE TEMP TABLE mine (n integer)")
    conn.execute("PREPARE mine AS SELECT 1")
    conn.execute("DECLARE mine CURSOR WITH HOLD FOR SELECT 1")
    conn.execute("LISTEN mine")
    conn.execute("SELECT pg_advisory_lock(4711)")
    conn.commit()


def change_python(conn: Conn) -> None:
    conn.row_factory = dict_row
    conn.prepare_threshold = 0
    conn.prepared_max = 0
    conn.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
    conn.read_only = True
    conn.deferrable = True


def change_factories(conn: Conn) -> None:
    conn.cursor_factory = psycopg.RawCursor
    conn.server_cursor_factory = psycopg.RawServerCursor


def change_adapters(conn: Conn) -> None:
    conn.adapters.register_loader("int4", psycopg.types.string.TextLoader)
    conn.adapters.register_dumper(str, psycopg.types.string.StrBinaryDumper)


def autocommit(conn: Conn) -> None:
    conn.autocommit = True
    conn.execute("BEGIN")
    conn.execute("SET LOCAL search_path = pg_catalog")


def leak_transaction(conn: Conn) -> None:
    conn.transaction().__enter__()
    conn.execute("SELECT 1")


def leak_pipeline(conn: Conn) -> None:
    conn.pipeline().__enter__()
    conn.execute("SELECT 1")


def break_transaction(conn: Conn) -> None:
    with pytest.raises(psycopg.Error):
        conn.execute("SELECT 1/0")


def leave_results(conn: Conn) -> None:
    cursor = conn.cursor(name="mine")
    cursor.execute("SELECT generate_series(1, 1000)")
    cursor.fetchone()


def leave_copy(conn: Conn) -> None:
    conn.cursor().copy("COPY (SELECT generate_series(1, 100000)) TO STDOUT").__enter__()


def close(conn: Conn) -> None:
    conn.close()


def terminate(conn: Conn) -> None:
    with pytest.raises(psycopg.Error):
        conn.execute("SELECT pg_terminate_backend(pg_backend_pid())")


DIRT = [
    set_session, set_role, make_objects, change_python, change_factories, change_adapters, autocommit,
    leak_transaction, leak_pipeline, break_transaction, leave_results, leave_copy, close, terminate,
]  # fmt: skip


def looks_clean(self: DataFlow) -> dict[str, Any]:
    with self.connection() as conn:
        cursor = conn.execute(
            "SELECT 1::int4, current_setting('search_path'), current_user = session_user, "
            "current_setting('statement_timeout'), "
            "current_setting('timezone') = (SELECT reset_val FROM pg_settings WHERE name = 'TimeZone'), "
            "to_regclass('pg_temp.mine'), (SELECT count(*) FROM pg_prepared_statements WHERE name = 'mine'), "
            "(SELECT count(*) FROM pg_cursors WHERE name = 'mine'), "
            "(SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()), "
            "(SELECT count(*) FROM pg_listening_channels()), %s::text",
            ["text"],
        )
        return {
            "row": list(cursor.fetchone()),
            "autocommit": conn.autocommit,
            "cursors": [conn.cursor_factory.__name__, conn.server_cursor_factory.__name__],
            "python": [str(conn.isolation_level), conn.read_only, conn.deferrable, conn.prepared_max],
            "user": conn.execute("SELECT current_user").fetchone()[0],
        }


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # what psycopg thinks of it all
@pytest.mark.parametrize("dirty", DIRT, ids=lambda dirty: dirty.__name__)
def test_a_connection_never_comes_back_dirty(db: Conn, database_url: str, dirty: Any) -> None:
    def spoil(self: DataFlow) -> None:
        with self.connection() as conn:
            dirty(conn)

    add_flow(db, "Spoil")
    add_flow(db, "Next")
    flows = [flow_class("Spoil", spoil), flow_class("Next", looks_clean)]
    with Heartbeat(flows=flows, database_url=database_url, concurrency=1) as hb:
        before = hb.trigger_run("Next").result
        hb.beat()
        for _ in range(3):
            assert hb.trigger_run("Next").result == before


def test_what_a_dirty_flow_did_not_commit_is_not_there(db: Conn, database_url: str) -> None:
    db.execute("CREATE TABLE copied (n integer)")

    def spoil(self: DataFlow) -> None:
        with self.connection() as conn:
            conn.autocommit = True
            conn.execute("BEGIN")
            conn.execute("INSERT INTO copied VALUES (1)")
            raise ValueError("no")

    add_flow(db, "Spoil")
    with Heartbeat(flows=[flow_class("Spoil", spoil)], database_url=database_url) as hb:
        hb.beat()
    assert db.execute("SELECT count(*) FROM copied").fetchone() == (0,)


def test_a_notice_of_one_flows_run_does_not_reach_anothers_handler(db: Conn, database_url: str) -> None:
    heard: list[str] = []

    def listen(self: DataFlow) -> None:
        with self.connection() as conn:
            conn.add_notice_handler(lambda diagnostic: heard.append(diagnostic.message_primary))

    def talk(self: DataFlow) -> None:
        with self.connection() as conn:
            conn.execute("DO $$ BEGIN RAISE NOTICE 'private'; END $$")

    add_flow(db, "Listen")
    add_flow(db, "Talk")
    flows = [flow_class("Listen", listen), flow_class("Talk", talk)]
    with Heartbeat(flows=flows, database_url=database_url, concurrency=1) as hb:
        hb.trigger_run("Listen")
        hb.trigger_run("Talk")
    assert heard == []


@pytest.mark.parametrize("first", [0, 1, 5, 6, 7], ids=lambda count: f"after {count} statements")
def test_a_flow_may_repeat_a_statement_as_often_as_it_likes_run_after_run(
    db: Conn, database_url: str, caplog: pytest.LogCaptureFixture, first: int
) -> None:
    caplog.set_level(logging.WARNING, "psycopg.pool")

    def repeat(self: DataFlow) -> None:
        with self.connection() as conn:
            for _ in range(self.configuration["times"]):
                conn.execute("SELECT count(*) FROM pg_class")

    add_flow(db, "first", configuration={"class_name": "Repeat", "times": first})
    add_flow(db, "many", configuration={"class_name": "Repeat", "times": 20})
    with Heartbeat(flows=[flow_class("Repeat", repeat)], database_url=database_url, concurrency=1) as hb:
        for _ in range(8):
            hb.trigger_run("first")
            hb.trigger_run("many")
    assert [record.getMessage() for record in caplog.records] == []


def test_a_connection_outlives_its_block_in_no_flows_hands(db: Conn, database_url: str) -> None:
    kept: list[Conn] = []

    def keep(self: DataFlow) -> None:
        with self.connection() as conn:
            kept.append(conn)
            pid = conn.info.backend_pid
        with self.connection() as conn:
            assert conn.info.backend_pid == pid, "the same one, used again"

    add_flow(db, "Keep")
    with Heartbeat(flows=[flow_class("Keep", keep)], database_url=database_url, concurrency=1) as hb:
        assert hb.beat().flows_succeeded == 1


def test_a_thread_that_a_flow_left_behind_borrows_nothing_after_the_runs_end(
    db: Conn, database_url: str
) -> None:
    ended = threading.Event()
    refusals: list[str] = []

    def borrow_late(self: DataFlow) -> None:
        assert ended.wait(10)
        with pytest.raises(HeartbeatError, match="has ended") as refused, self.connection():
            pass
        refusals.append(str(refused.value))

    def leave(self: DataFlow) -> None:
        threading.Thread(target=borrow_late, args=[self], daemon=True).start()

    def borrow_two(self: DataFlow) -> None:
        with self.connection() as one, self.connection() as two:
            assert one is not two

    add_flow(db, "Leave")
    add_flow(db, "Two")
    flows, limits = [flow_class("Leave", leave), flow_class("Two", borrow_two)], {"concurrency": 1}
    with Heartbeat(flows=flows, database_url=database_url, **limits, async_concurrency=1) as hb:
        for _ in range(3):
            hb.trigger_run("Leave")
        ended.set()
        wait_until(lambda: len(refusals) == 3, what="all to be refused")
        assert all("Leave" in refusal for refusal in refusals)
        hb.trigger_run("Two")  # all that the pool has: what was refused is back


# --- when there are none --------------------------------------------------------------------------------


def test_flows_that_take_every_connection_keep_no_heartbeat_from_its_own(db: Conn, database_url: str) -> None:
    gate = Gate()

    def hoard(self: DataFlow) -> None:
        with self.connection() as one:
            one.execute("SELECT 1")
            gate.hold(self)

    for number in range(4):
        add_flow(db, f"hoard {number}", configuration={"class_name": "Hoard"})
    hoarder = flow_class("Hoard", hoard)
    with Heartbeat(flows=[hoarder], database_url=database_url, concurrency=4) as hb:
        beat = Background(hb.beat)
        wait_until(lambda: gate.now == 4)
        assert hb.health().ok
        assert hb.beat().flows_due == 0
        gate.open()
        assert beat.result().flows_succeeded == 4


def test_a_flow_that_can_have_no_connection_fails_in_bounded_time_and_says_so(
    db: Conn, database_url: str
) -> None:
    def greedy(self: DataFlow) -> None:
        with self.connection(), self.connection(), self.connection():
            pass

    add_flow(db, "Greedy")
    flows, limits = [flow_class("Greedy", greedy)], {"concurrency": 1, "async_concurrency": 1}
    with Heartbeat(flows=flows, database_url=database_url, **limits) as hb:
        begin = time.monotonic()
        with pytest.raises(DatabaseUnavailable, match="connection"):
            hb.trigger_run("Greedy")
        assert time.monotonic() - begin < 5


def test_sessions_that_were_ended_are_replaced_before_a_flow_gets_them(db: Conn, database_url: str) -> None:
    def ask(self: DataFlow) -> int:
        with self.connection() as conn:
            return int(conn.execute("SELECT 1").fetchone()[0])

    add_flow(db, "Ask")
    with Heartbeat(flows=[flow_class("Ask", ask)], database_url=database_url) as hb:
        assert hb.trigger_run("Ask").result == 1
        db.execute(
            sql.SQL(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )
        assert hb.trigger_run("Ask").result == 1


def test_a_session_that_was_ended_right_after_its_last_use_costs_no_heartbeat(
    db: Conn, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "heartbeat.postgres.database._TRUSTED", 60
    )  # as if each use followed the last at once
    with Heartbeat(database_url=database_url) as hb:
        for _ in range(3):
            hb.beat()
            db.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            assert hb.beat().flows_due == 0


# --- why there is none ----------------------------------------------------------------------------------


@pytest.fixture
def login(db: Conn) -> Iterator[str]:
    """A login of the test's own, which `shut_out` takes away."""
    role = f"{db.info.dbname}_shut_out"
    db.execute(sql.SQL("CREATE ROLE {} LOGIN SUPERUSER PASSWORD 'x'").format(sql.Identifier(role)))
    yield role
    db.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


def url_of(login: str, database_url: str) -> str:
    return f"postgresql:///?{urlencode(conninfo_to_dict(database_url, user=login, password='x'))}"


def shut_out(db: Conn, login: str) -> None:
    db.execute(sql.SQL("ALTER ROLE {} NOLOGIN").format(sql.Identifier(login)))
    db.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", [login])


def test_a_heartbeat_that_gets_no_connection_says_why(db: Conn, database_url: str, login: str) -> None:
    with Heartbeat(database_url=url_of(login, database_url)) as hb:
        hb.beat()
        shut_out(db, login)
        with pytest.raises(DatabaseUnavailable, match="not permitted to log in"):
            hb.beat()
        assert "not permitted to log in" in (hb.health().reason or "")


def test_a_flow_that_gets_no_connection_says_why(db: Conn, database_url: str, login: str) -> None:
    errors: list[str] = []

    def run(self: DataFlow) -> None:
        shut_out(db, login)
        with pytest.raises(DatabaseUnavailable) as caught, self.connection():
            pass
        errors.append(str(caught.value))
        db.execute(sql.SQL("ALTER ROLE {} LOGIN").format(sql.Identifier(login)))

    add_flow(db, "Copy")
    with Heartbeat(flows=[flow_class("Copy", run)], database_url=url_of(login, database_url)) as hb:
        hb.beat()
        wait_until(lambda: statuses_of(db, "Copy") == ["success"], what="the record")
    assert "not permitted to log in" in errors[0]


def test_a_flow_that_borrows_more_than_there_are_is_told_so(db: Conn, database_url: str) -> None:
    def run(self: DataFlow) -> None:
        with self.connection(), self.connection(), self.connection():
            pass

    add_flow(db, "Copy")
    with (
        Heartbeat(
            flows=[flow_class("Copy", run)], database_url=database_url, concurrency=1, async_concurrency=1
        ) as hb,
        pytest.raises(DatabaseUnavailable, match="at most 2 are lent at once"),
    ):
        hb.trigger_run("Copy")
