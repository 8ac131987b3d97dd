"""The statements of `sql/`: each explained, each checked at start, none that reads a large table through."""

from __future__ import annotations

import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiosql
import psycopg
import pytest

import heartbeat
from heartbeat import Heartbeat, QueryError
from heartbeat.postgres.queries import SHIPPED, Queries
from heartbeat.postgres.schema import DIRECTORY
from tests.support import postgres
from tests.support.flow_classes import Noop
from tests.support.rows import Conn, add_flow

FILES = sorted(SHIPPED.glob("*.sql"))
NAME = re.compile(r"^-- name: (\w+)\(([^)]*)\)(\^|\$|!|<!|\*!|#)?$", re.MULTILINE)

# --- as they are read -----------------------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_statement_has_its_parameters_in_brackets_and_its_sentence(file: Path) -> None:
    text = file.read_text("utf-8")
    names = [line for line in text.splitlines() if line.startswith("-- name:")]
    assert names
    for line in names:
        assert NAME.fullmatch(line), line
        following = text.partition(line + "\n")[2]
        sentence = re.match(r"(?:-- .*\n)+", following)
        assert sentence, f"{line} has no sentence"
        assert sentence[0].rstrip().endswith("."), line
        assert sentence[0][3].isupper(), line


def test_one_file_explains_the_format_and_the_others_say_where() -> None:
    for file in FILES:
        opening = file.read_text("utf-8").partition("-- name:")[0]
        assert "aiosql" in opening or "data_flows.sql explains the format" in opening, file.name


def test_no_line_of_sql_is_too_long_to_be_read() -> None:
    files = [*SHIPPED.rglob("*.sql"), *DIRECTORY.rglob("*.sql")]
    assert len(files) > 30
    long = [
        f"{file.name}:{number}"
        for file in files
        for number, line in enumerate(file.read_text("utf-8").splitlines(), 1)
        if len(line) > 120 and not line.startswith("-- name:")  # which is read only in one line
    ]
    assert long == []


COMMENT = re.compile(r"^\s*--(?! name:).*$", re.MULTILINE)
SNAKE = re.compile(r"(?<![\w./])[a-z]+(?:_[a-z0-9]+)+(?![\w/])")


def identifiers() -> set[str]:
    """Return every name that stands in code: of statements, parameters, columns, tables, constraints, settings."""
    files = [*FILES, *DIRECTORY.glob("*.sql")]
    return set(SNAKE.findall("".join(COMMENT.sub("", file.read_text("utf-8")) for file in files)))


@pytest.mark.parametrize("file", [*FILES, *sorted(DIRECTORY.glob("*.sql"))], ids=lambda file: file.name)
def test_what_a_comment_names_is_there(file: Path) -> None:
    named = set(SNAKE.findall("".join(COMMENT.findall(file.read_text("utf-8")))))
    stems = {other.stem for other in FILES}
    assert named - identifiers() - stems == set()


def test_what_the_design_names_is_there() -> None:
    text = (Path(__file__).parents[1] / "docs" / "design.md").read_text("utf-8")
    named = {name for quoted in re.findall(r"`([^`\n]+)`", text) for name in SNAKE.findall(quoted)}
    python = "".join(file.read_text("utf-8") for file in Path(heartbeat.__file__).parent.rglob("*.py"))
    assert named - identifiers() - set(SNAKE.findall(python)) - OTHER_PEOPLES == set()


OTHER_PEOPLES = {"yoyo_lock"}


def test_the_first_page_names_every_statement_of_a_heartbeat() -> None:
    opening = (SHIPPED / "data_flows.sql").read_text("utf-8").partition("-- name:")[0]
    in_turn = re.findall(r"^--   (\w+) \(", opening, re.MULTILINE)
    assert in_turn == [
        "open_heartbeat",
        "count_due",
        "claim",
        "record_outcomes",
        "answer_heartbeat",
        "finish_heartbeat",
    ]
    assert set(in_turn) <= statements().keys()
    for rule, users in USERS.items():
        assert {name for name, sql in statements().items() if f"{rule}(" in sql} == users


# Who goes by the rules that are defined in migrations/; the first page says the same.
USERS = {
    "data_flow_is_due": {"due_to_run", "claim", "count_due", "answer_heartbeat"},
    "data_flow_runner_is_dead": {
        "open_heartbeat",
        "claim",
        "fail_runs_of_dead_runners",
        "finish_heartbeats_of_dead_runners",
        "remove_dead_runners",
    },
}


# --- a DBA's own copy -----------------------------------------------------------------------------------


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A DBA's copy of the SQL directory."""
    return Path(shutil.copytree(SHIPPED, tmp_path / "sql"))


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text("utf-8")
    assert text.count(old) >= 1, f"{old!r} is not in {file.name}"
    file.write_text(text.replace(old, new, 1), "utf-8")


def refusal(database_url: str, copy: Path) -> QueryError:
    """Start the service on the copy, and return why it did not start."""
    with pytest.raises(QueryError) as refused, Heartbeat(database_url=database_url, sql_dir=copy):
        pass
    return refused.value


def test_a_copy_left_as_it_is_works(database_url: str, copy: Path) -> None:
    with Heartbeat(database_url=database_url, sql_dir=copy) as hb:
        assert hb.beat().flows_due == 0


def test_an_edit_of_the_copy_is_what_runs(db: Conn, database_url: str, copy: Path) -> None:
    add_flow(db, "Noop")
    add_flow(db, "tmp_Noop", configuration={"class_name": "Noop"})
    for statement in ("due_to_run", "claim"):
        text = (copy / "data_flows.sql").read_text("utf-8")
        before, name, after = text.partition(f"-- name: {statement}(")
        after = after.replace("data_flow_is_due(", "left(flow.name, 4) <> 'tmp_' AND data_flow_is_due(", 1)
        (copy / "data_flows.sql").write_text(before + name + after, "utf-8")
    with Heartbeat(flows=[Noop], database_url=database_url, sql_dir=copy) as hb:
        assert [flow.name for flow in hb.due_to_run()] == ["Noop"]
        assert hb.beat().flows_triggered == 1


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_file_that_is_missing_is_named_with_a_statement_that_stood_in_it(
    database_url: str, copy: Path, file: Path
) -> None:
    (copy / file.name).unlink()
    error = refusal(database_url, copy)
    assert error.file == str(copy / file.name)
    assert error.query in NAME.sub(lambda found: found[1], file.read_text("utf-8"))


def test_a_directory_without_any_sql_is_named(database_url: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in str(refusal(database_url, tmp_path / "empty"))


def test_a_statement_that_is_missing_is_named(database_url: str, copy: Path) -> None:
    edit(copy / "data_flows.sql", "-- name: list_flows()", "-- name: list_all_flows()")
    error = refusal(database_url, copy)
    assert (error.query, error.file) == ("list_flows", str(copy / "data_flows.sql"))
    assert "missing" in str(error)


def test_a_parameter_more_is_named_with_those_expected(database_url: str, copy: Path) -> None:
    edit(copy / "data_flows.sql", "find_flow(name)^", "find_flow(name, enabled)^")
    edit(copy / "data_flows.sql", "FROM data_flows AS flow\nWHERE flow.name = :name::text;",
         "FROM data_flows AS flow\nWHERE flow.name = :name::text AND flow.enabled = :enabled;")  # fmt: skip
    error = refusal(database_url, copy)
    assert error.query == "find_flow"
    assert "(enabled, name), expected (name)" in str(error)


def test_a_parameter_less_is_named(database_url: str, copy: Path) -> None:
    edit(copy / "data_flow_runs.sql", "list_runs(max_rows)", "list_runs()")
    edit(copy / "data_flow_runs.sql", "LIMIT :max_rows::bigint", "LIMIT 20")
    assert refusal(database_url, copy).query == "list_runs"


def test_a_statement_that_would_return_something_else_is_named(database_url: str, copy: Path) -> None:
    edit(copy / "data_flows.sql", "-- name: find_flow(name)^", "-- name: find_flow(name)")
    assert refusal(database_url, copy).query == "find_flow"


BROKEN = [
    ("a syntax error", "ORDER BY name;", "ORDER BYE name;", "list_flows", 'syntax error at or near "BYE"'),
    ("an unknown column", "ORDER BY name;", "ORDER BY nmae;", "list_flows", 'column "nmae" does not exist'),
    ("an unknown table", "FROM data_flows\nORDER BY", "FROM data_flow\nORDER BY", "list_flows", "data_flow"),
    ("a wrong type", "ORDER BY name;", "ORDER BY name LIMIT 'x';", "list_flows", '"x"'),
    ("a wrong operator", "ORDER BY name;", "ORDER BY name + 1;", "list_flows", "operator does not exist"),
    ("a second statement", "ORDER BY name;", "ORDER BY name; SELECT 1;", "list_flows", "multiple commands"),
]


@pytest.mark.parametrize(
    ("old", "new", "query", "message"), [b[1:] for b in BROKEN], ids=[b[0] for b in BROKEN]
)
def test_what_postgres_refuses_stops_the_start_with_its_message(
    database_url: str, copy: Path, old: str, new: str, query: str, message: str
) -> None:
    edit(copy / "data_flows.sql", old, new)
    error = refusal(database_url, copy)
    assert (error.query, error.file) == (query, str(copy / "data_flows.sql"))
    assert message in str(error)
    assert str(copy / "data_flows.sql") in str(error)
    assert query in str(error)
    assert "\n" not in str(error)


@pytest.mark.parametrize(
    "condition", ["flow.name NOT LIKE 'tmp%'", "flow.run_interval % 2 = 0", "flow.name <> '%s'"]
)
def test_a_percent_sign_that_is_not_doubled_stops_the_start_not_a_heartbeat_later(
    database_url: str, copy: Path, condition: str
) -> None:
    edit(copy / "data_flows.sql", "WHERE data_flow_is_due(", f"WHERE {condition} AND data_flow_is_due(")
    error = refusal(database_url, copy)
    assert error.query == "due_to_run"
    assert "%" in str(error)


def test_a_doubled_percent_sign_is_a_percent_sign(db: Conn, database_url: str, copy: Path) -> None:
    edit(
        copy / "data_flows.sql", "WHERE data_flow_is_due(", "WHERE flow.name LIKE 'N%%' AND data_flow_is_due("
    )
    add_flow(db, "Noop")
    add_flow(db, "other")
    with Heartbeat(database_url=database_url, sql_dir=copy) as hb:
        assert [flow.name for flow in hb.due_to_run()] == ["Noop"]


def test_a_name_that_two_files_share_is_named_with_both(database_url: str, copy: Path) -> None:
    with (copy / "heartbeats.sql").open("a") as file:
        file.write("\n-- name: list_flows()\n-- Again.\nSELECT 1;\n")
    error = refusal(database_url, copy)
    assert error.query == "list_flows"
    assert "data_flows.sql" in str(error)
    assert "heartbeats.sql" in str(error)


def test_a_name_that_stands_twice_in_a_file_is_named(database_url: str, copy: Path) -> None:
    with (copy / "data_flows.sql").open("a") as file:
        file.write("\n-- name: list_flows()\n-- Again.\nSELECT 1;\n")
    assert "list_flows" in str(refusal(database_url, copy))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("    status.next_run_at,\n", ""),
        ("    status.next_run_at,\n", "    status.next_run_at AS due_at,\n"),
        ("    status.next_run_at,\n", "    status.next_run_at,\n    status.next_run_at AS due_at,\n"),
        ("    status.id,\n    status.name,\n", "    status.name,\n    status.id,\n"),
    ],
    ids=["one less", "another name", "one more", "another order"],
)
def test_other_columns_than_the_shipped_ones_are_refused(
    database_url: str, copy: Path, old: str, new: str
) -> None:
    edit(copy / "data_flows.sql", old, new)
    error = refusal(database_url, copy)
    assert error.query == "list_flow_status"
    assert "columns" in str(error)


def test_a_column_of_another_type_is_refused_too(database_url: str, copy: Path) -> None:
    edit(copy / "data_flows.sql", "flow.configuration", "flow.configuration::text AS configuration")
    error = refusal(database_url, copy)
    assert error.query == "claim"
    assert "configuration" in str(error)


@pytest.mark.parametrize(
    "content", [b"-- name: broken name\nSELECT 1;", b"-- name: a()\n\xff", b"", b"SELECT 1;"],
    ids=["a bad name", "not UTF-8", "an empty file", "no name"],
)  # fmt: skip
def test_a_file_that_cannot_be_read_is_named(database_url: str, copy: Path, content: bytes) -> None:
    (copy / "data_flows.sql").write_bytes(content)
    assert refusal(database_url, copy).file == str(copy / "data_flows.sql")


def test_a_statement_of_the_dbas_own_is_no_reason_to_refuse(database_url: str, copy: Path) -> None:
    (copy / "ours.sql").write_text("-- name: check()\n-- Ours.\nSELECT 1 AS one;\n")
    with Heartbeat(database_url=database_url, sql_dir=copy) as hb:
        assert hb.beat().flows_due == 0


# --- the session's settings -----------------------------------------------------------------------------


def test_a_session_has_from_its_start_what_a_transaction_would_set(database_url: str) -> None:
    queries = Queries()
    show = (
        "SELECT name, setting FROM pg_settings WHERE source IN ('client', 'session') "
        "AND name <> 'transaction_isolation' UNION ALL SELECT name, value FROM (VALUES "
        "('schedule', current_setting('heartbeat.keeps_schedule', true)), "
        "('status', current_setting('heartbeat.keeps_status', true))) AS ours (name, value)"
    )
    options = queries.session_options("begin_bounded", "bound_recording")
    with psycopg.connect(database_url, options=options) as conn:
        at_start = dict(conn.execute(show).fetchall())
    with psycopg.connect(database_url, autocommit=True) as conn:
        queries.begin_bounded(conn)
        queries.bound_recording(conn)
        set_locally = dict(conn.execute(show).fetchall())
    assert at_start.items() >= {"lock_timeout": "200", "statement_timeout": "4000", "status": "on"}.items()
    assert at_start == set_locally


VALUES = [
    ("SET LOCAL work_mem = '64MB';", "work_mem", "64MB"),
    ("set local work_mem to '64 MB'; -- more; for the DBA's = sake", "work_mem", "64MB"),
    ("SET LOCAL work_mem=65536;", "work_mem", "64MB"),
    ("SET LOCAL\n    random_page_cost = 1.1 ;", "random_page_cost", "1.1"),
    ("SET LOCAL enable_hashjoin TO OFF;", "enable_hashjoin", "off"),
    (
        "/* a; 'b */ SET LOCAL application_name = 'it''s a; \\ \"name\"';",
        "application_name",
        'it\'s a; \\ "name"',
    ),
    ("SET LOCAL application_name = '';", "application_name", ""),
    (
        "SET LOCAL search_path = Sched, \"My Schema\", '$user';",
        "search_path",
        '"sched", "My Schema", "$user"',
    ),
    ("SET LOCAL search_path = 'Sched, other';", "search_path", '"Sched, other"'),
    ("SET LOCAL DateStyle = ISO, DMY;", "datestyle", "ISO, DMY"),
]


@pytest.mark.parametrize(("line", "name", "value"), VALUES, ids=[line for line, _, _ in VALUES])
def test_a_setting_of_a_dbas_own_reaches_the_sessions_in_whatever_form_it_is_written(
    database_url: str, copy: Path, line: str, name: str, value: str
) -> None:
    edit(copy / "service.sql", "SET LOCAL jit = off;\n", f"{line}\n")
    with psycopg.connect(database_url, options=Queries(copy).session_options("begin_bounded")) as conn:
        assert conn.execute("SELECT current_setting(%s)", [name]).fetchone() == (value,)
    with psycopg.connect(database_url, autocommit=True) as conn:
        Queries(copy).begin_bounded(conn)
        in_a_transaction = conn.execute("SELECT current_setting(%s)", [name]).fetchone()
    assert in_a_transaction is not None
    assert in_a_transaction[0].replace('"', "") == value.replace('"', "") or '"' in line


@pytest.mark.parametrize(
    "line",
    [
        "SET LOCAL jit off;",
        "SET jit = off;",
        "SET LOCAL jit = DEFAULT;",
        "SET LOCAL TIME ZONE 'UTC';",
        "SET LOCAL ROLE postgres;",
        "SET LOCAL application_name = E'a\\'b';",
        "SET LOCAL application_name = $$a$$;",
        "SELECT set_config('jit', 'off', true);",
        "SET LOCAL application_name = 'a' 'b';",
    ],
)
def test_a_line_that_a_session_could_not_have_from_its_start_is_named(
    database_url: str, copy: Path, line: str
) -> None:
    edit(copy / "service.sql", "SET LOCAL jit = off;\n", f"{line}\n")
    error = refusal(database_url, copy)
    assert (error.query, error.file) == ("begin_bounded", str(copy / "service.sql"))
    assert line.rstrip(";") in str(error)
    assert "\n" not in str(error)


# --- at 100,000 rows ------------------------------------------------------------------------------------

BIG = {"data_flows", "data_flow_runs", "heartbeats"}
RUNNER = uuid.UUID(int=1)
FIRST_TURN = datetime(2000, 1, 1, tzinfo=UTC)

FILL = """
INSERT INTO data_flow_runners (id, host, pid) VALUES (%(runner)s, 'a', 1);
INSERT INTO data_flows (name, run_interval, last_run_at, last_run_status, next_run_at)
SELECT 'flow ' || n, 3600, now(), 'success', now() + n * interval '1 s' FROM generate_series(1, 100000) AS n;
INSERT INTO heartbeats (received_at, finished_at) SELECT now(), now() FROM generate_series(1, 100000);
INSERT INTO data_flow_runs (data_flow_id, heartbeat_id, runner_id, status, started_at, ended_at)
SELECT n, n, %(runner)s, 'success', now(), now() FROM generate_series(1, 100000) AS n;
UPDATE data_flows SET next_run_at = now() - interval '1 min' WHERE id <= 20;
INSERT INTO data_flow_runs (data_flow_id) VALUES (30), (31);
INSERT INTO data_flow_runs (data_flow_id, heartbeat_id, runner_id, status, started_at)
SELECT n, 100001, %(runner)s, 'in_progress', now() FROM generate_series(40, 47) AS n;
UPDATE data_flows SET last_run_status = 'in_progress' WHERE id BETWEEN 40 AND 47;
INSERT INTO heartbeats (runner_id) VALUES (%(runner)s);
"""


@pytest.fixture(scope="module", params=["with statistics", "without statistics"])
def big(request: pytest.FixtureRequest, server_url: str, template_database: str) -> Iterator[Conn]:
    """A database with 100,000 flows, runs and heartbeats; a few flows are due, running or asked for."""
    name = f"heartbeat_big_{uuid.uuid4().hex[:12]}"
    url = postgres.create_database(server_url, name, template_database)
    try:
        with psycopg.connect(url, autocommit=True) as conn, psycopg.ClientCursor(conn) as cursor:
            for table in sorted(BIG):
                cursor.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = false)")
            cursor.execute(FILL, {"runner": RUNNER})
            if request.param == "with statistics":
                conn.execute("VACUUM ANALYZE")
            yield conn
    finally:
        postgres.drop_database(server_url, name)


def statements() -> dict[str, str]:
    found: dict[str, str] = {}
    for file in FILES:
        loaded = aiosql.from_path(file, "psycopg")
        found |= {
            name: getattr(loaded, name).sql
            for name in loaded.available_queries
            if not name.endswith("_cursor")
        }
    return found


def hot_statements() -> list[tuple[str, dict[str, Any]]]:
    """Return what heartbeats, renewals and the usual questions execute, with what it may read."""
    outcome = {
        "runner_id": RUNNER, "run_ids": "{100003,100004}", "statuses": [None, "failed"],
        "results": [], "errors": [None, "x"], "backtraces": [],
    }  # fmt: skip
    now = "now"
    due = {"as_of": now, "run_tolerance": 0.5}
    in_turn = {**due, "first_turn": FIRST_TURN}
    claim = {
        **in_turn,
        "max_runs": 8,
        "heartbeat_id": 100001,
        "runner_id": RUNNER,
        "runner_ttl": 1e6,
        "async_classes": ["flow 5", "flow 6"],
    }
    counts = {"heartbeat_id": 100001, "triggered": 8, "succeeded": 8, "failed": 0}
    return [
        ("open_heartbeat", {"client_ip": None, "runner_id": RUNNER, "run_tolerance": 0.5, "runner_ttl": 30.0}),
        ("count_due", {**in_turn, "heartbeat_id": 100001}),
        ("due_to_run", due),
        ("claim", {**claim, "are_async": None}),
        ("claim", {**claim, "are_async": True}),
        ("claim", {**claim, "are_async": False}),
        ("answer_heartbeat", {**counts, **in_turn, "is_finished": True}),
        ("answer_heartbeat", {**counts, **in_turn, "is_finished": False}),
        ("finish_heartbeat", counts),
        ("take_permit", {"permit": 1}),
        ("claim_flow", {"name": "flow 77", "runner_id": RUNNER}),
        ("record_outcomes", outcome),
        ("record_outcomes_only", outcome),
        ("outcomes_on_record", {name: outcome[name] for name in ("runner_id", "run_ids", "statuses", "errors")}),
        ("refresh_stale_statuses", {}),
        ("fail_runs_of_dead_runners", {"runner_ttl": 1e6}),
        ("finish_heartbeats_of_dead_runners", {"runner_ttl": 1e6}),
        ("remove_dead_runners", {"runner_ttl": 1e6}),
        ("live_run_ids", {"runner_id": RUNNER}),
        ("find_flow", {"name": "flow 77"}),
        ("get_run", {"run_id": 77}),
        ("list_runs", {"max_rows": 20}),
        ("list_runs_of_flow", {"data_flow_id": 77, "max_rows": 20}),
        ("add_flow_if_absent", {"name": "flow 77", "description": None, "configuration": "{}", "run_interval": 60}),
        ("prune_runs", {"retention_days": 30, "max_rows": 100}),
        ("prune_heartbeats", {"retention_days": 30, "max_rows": 100}),
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "parameters"), hot_statements(), ids=[name for name, _ in hot_statements()])
def test_a_hot_statement_reads_what_it_needs_of_large_tables_and_no_more(
    big: Conn, explain: Callable[..., Any], name: str, parameters: dict[str, Any]
) -> None:
    plan = explain(big, statements()[name], parameters)
    scans = [node for node in nodes(plan) if node.get("Relation Name") in BIG]
    assert [node["Relation Name"] for node in scans if node["Node Type"] == "Seq Scan"] == []
    read = {described(node): rows_read(node) for node in scans}
    assert sum(read.values()) <= 500, read
    assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] <= 1000, read


@pytest.mark.parametrize("name", ["claim", "count_due", "answer_heartbeat", "due_to_run", "open_heartbeat"])
def test_a_rule_of_the_schema_costs_no_call(big: Conn, explain: Callable[..., Any], name: str) -> None:
    plan = explain(big, statements()[name], dict(hot_statements())[name])
    assert [rule for rule in USERS if f"{rule}(" in str(plan)] == [], (
        "it is called, where its body should stand"
    )
    reads = [node for node in nodes(plan) if node.get("Index Name") == "data_flows_due"]
    assert ["next_run_at" in str(node["Index Cond"]) for node in reads] == [True] * len(reads)
    assert reads


def test_the_claim_locks_flows_and_pending_runs_and_nothing_else(
    big: Conn, explain: Callable[..., Any]
) -> None:
    plan = explain(big, statements()["claim"], dict(hot_statements())["claim"])
    requested, due = (
        {node["Relation Name"] for node in nodes(lock) if node.get("Parent Relationship") == "Outer"
         and "Relation Name" in node}
        for lock in nodes(plan) if lock["Node Type"] == "LockRows"
    )  # fmt: skip
    assert (requested, due) == ({"data_flow_runs"}, {"data_flows"})


def test_what_the_claim_locks_is_only_the_flow(db: Conn, database_url: str) -> None:
    add_flow(db, "orders")
    db.execute(
        "INSERT INTO data_flow_runs (data_flow_id, status, ended_at) SELECT id, 'failed', now() FROM data_flows"
    )
    with psycopg.connect(database_url) as claim:
        assert len(claim.execute("SELECT FROM data_flows_waiting FOR UPDATE SKIP LOCKED").fetchall()) == 1
        assert db.execute("SELECT FROM data_flows FOR UPDATE SKIP LOCKED").fetchall() == []
        assert len(db.execute("SELECT FROM data_flow_runs FOR UPDATE SKIP LOCKED").fetchall()) == 1


@pytest.fixture
def explain(database_url: str) -> Iterator[Callable[..., Any]]:
    """Execute a statement as the service's own transactions do, undo it, and return its plan."""
    with Heartbeat(database_url=database_url) as hb:
        begin = hb._queries.begin_bounded

        def run(conn: Conn, statement: str, parameters: dict[str, Any]) -> Any:
            begin(conn)
            try:
                numbers = {key: f"${number}" for number, key in enumerate(sorted(parameters), 1)}
                text = re.sub(r"%\((\w+)\)s", lambda found: numbers[found[1]], statement).replace("%%", "%")
                conn.execute(f"PREPARE hot AS {text.rstrip().rstrip(';')}")
                values = ", ".join(psycopg.sql.quote(parameters[key], conn) for key in sorted(parameters))
                call = f"EXECUTE hot({values})" if parameters else "EXECUTE hot"
                [[[explained]]] = [
                    conn.execute(f"EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) {call}").fetchall()
                ]
            finally:
                conn.rollback()
                conn.execute("DEALLOCATE ALL")
            return explained[0]["Plan"]

        yield run


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for below in plan.get("Plans", ()):
        yield from nodes(below)


def described(node: dict[str, Any]) -> str:
    return f"{node['Node Type']} on {node['Relation Name']} {node['Alias']} {node.get('Index Name', '')}"


def rows_read(node: dict[str, Any]) -> int:
    removed = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
    return int((node.get("Actual Rows", 0) + removed) * node.get("Actual Loops", 1))
