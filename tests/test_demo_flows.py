"""The flows that the demo shows and people copy, on their real input."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import aiosql
import psycopg
import pytest
from psycopg.types.json import Jsonb

from heartbeat import Heartbeat
from heartbeat.demo import flows as demo_flows
from heartbeat.flows import Registry
from heartbeat.postgres.queries import SHIPPED
from tests.support.rows import Conn

CLASSES = Registry((), ["heartbeat.demo.flows"]).classes

HEADER_SHORTER_THAN_ITS_ROWS = """\
Date,Decimal Date,Average,Interpolated,Trend,Number of Days
1958-03,1958.2027,315.71,314.44,-01,-9.99,-0.99
1958-04,1958.2877,317.45,315.16,-01,-9.99,-0.99
"""


@pytest.fixture
def hb(database_url: str) -> Iterator[Heartbeat]:
    """The service with the demo's flows, as they come."""
    with Heartbeat(flows=CLASSES, database_url=database_url) as heartbeat:
        yield heartbeat


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The CSV folder of a service that was started in `tmp_path`."""
    folder = tmp_path / ".heartbeat" / "csv"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def run(hb: Heartbeat) -> Callable[[str], Any]:
    """Run a flow and return its result."""
    return lambda name: hb.trigger_run(name).result


def imported(db: Conn, file: Path) -> list[tuple[int, dict[str, str]]]:
    return db.execute(
        "SELECT line, data FROM demo_csv_rows WHERE file = %s ORDER BY line", [str(file)]
    ).fetchall()


def let_rest(file: Path) -> None:
    """Make a file look as if nobody had written to it for a while."""
    os.utime(file, (time.time() - 60, time.time() - 60))


# --- the module as an example ---------------------------------------------------------------------------


def test_every_demo_flow_gets_a_row_with_a_description_and_a_short_interval(hb: Heartbeat) -> None:
    rows = hb.flows()

    assert {row.name for row in rows} == {cls.__name__ for cls in CLASSES}
    assert all(row.description and row.run_interval <= 10 for row in rows)


def test_one_heartbeat_runs_them_all_and_one_of_them_fails(hb: Heartbeat) -> None:
    report = hb.beat()

    assert (report.flows_triggered, report.flows_failed) == (len(CLASSES), 1)
    assert [run.flow_name for run in hb.runs() if run.status == "failed"] == ["CountOrders"]


def test_no_two_files_of_the_demos_statements_share_a_name() -> None:
    # aiosql would let one of them win silently, and the core's own names are the core's.
    names = [
        name
        for directory in (SHIPPED, SHIPPED / "demo")
        for file in directory.glob("*.sql")
        for name in aiosql.from_path(file, "psycopg").available_queries
    ]

    assert len(set(names)) == len(names)


# --- TableSizes, InstalledDistributions, EventLoopLag, CountOrders --------------------------------------


def test_table_sizes_are_those_that_postgres_tells(run: Callable[[str], Any], db: Conn) -> None:
    result = run("TableSizes")

    known = dict(db.execute("SELECT table_name, bytes FROM demo_table_sizes").fetchall())
    assert {"data_flows", "data_flow_runs", "demo_table_sizes"} <= set(known)
    (size,) = db.execute("SELECT pg_total_relation_size('data_flow_stuck_threads')").fetchone()
    assert known["data_flow_stuck_threads"] == size
    assert result == {"tables": len(known), "changed": len(known), "bytes": sum(known.values())}


def test_a_size_is_recorded_again_only_when_it_has_changed(run: Callable[[str], Any], db: Conn) -> None:
    db.execute("CREATE TABLE grows (n int)")
    run("TableSizes")
    db.execute("INSERT INTO grows SELECT generate_series(1, 10000)")
    run("TableSizes")

    sizes = db.execute(
        "SELECT bytes FROM demo_table_sizes WHERE table_name = 'grows' ORDER BY measured_at"
    ).fetchall()
    constant = db.execute(
        "SELECT count(*) FROM demo_table_sizes WHERE table_name = 'data_flow_stuck_threads'"
    )
    assert len(sizes) == 2
    assert sizes[0] < sizes[1]
    assert constant.fetchone() == (1,)


def test_the_inventory_is_what_is_installed(run: Callable[[str], Any], db: Conn) -> None:
    result = run("InstalledDistributions")

    known = dict(db.execute("SELECT name, version FROM demo_distributions").fetchall())
    assert known["psycopg"] == metadata.version("psycopg")
    assert result == {"installed": len(known), "changed": len(known), "removed": 0}
    assert run("InstalledDistributions") == {"installed": len(known), "changed": 0, "removed": 0}


def test_what_was_removed_or_upgraded_since_is_marked(
    run: Callable[[str], Any], db: Conn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def install(version: str) -> None:
        information = tmp_path / f"spanner-{version}.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: Spanner\nVersion: {version}\n")

    def remove(version: str) -> None:
        shutil.rmtree(tmp_path / f"spanner-{version}.dist-info")

    def known() -> Any:
        return db.execute(
            "SELECT version, removed_at IS NOT NULL FROM demo_distributions WHERE name = 'spanner'"
        ).fetchone()

    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    install("1.0")
    run("InstalledDistributions")
    assert known() == ("1.0", False)

    remove("1.0")
    assert run("InstalledDistributions")["removed"] == 1
    assert known() == ("1.0", True)

    install("2.0")
    assert run("InstalledDistributions")["changed"] == 1
    assert known() == ("2.0", False)


def test_the_event_loops_lag_is_measured(run: Callable[[str], Any]) -> None:
    assert run("EventLoopLag")["late_ms"] >= 0


def test_the_flow_that_fails_says_why_and_succeeds_once_it_is_repaired(hb: Heartbeat, db: Conn) -> None:
    with pytest.raises(psycopg.errors.UndefinedTable, match="demo_orders"):
        hb.trigger_run("CountOrders")

    db.execute((SHIPPED / "demo" / "repair.sql").read_text())
    db.execute("INSERT INTO demo_orders DEFAULT VALUES")

    assert hb.trigger_run("CountOrders").result == {"orders": 1}


def test_the_demo_can_be_taken_out_again(hb: Heartbeat, db: Conn) -> None:
    tables = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1"
    before = db.execute(tables).fetchall()
    hb.beat()
    db.execute((SHIPPED / "demo" / "repair.sql").read_text())
    assert db.execute(tables).fetchall() != before

    db.execute((SHIPPED / "demo" / "remove.sql").read_text())

    assert db.execute(tables).fetchall() == before
    assert hb.flows() == []


# --- ImportCsv: what is imported ------------------------------------------------------------------------


def test_rows_are_imported_as_objects_with_the_line_they_end_on(
    run: Callable[[str], Any], db: Conn, folder: Path
) -> None:
    file = folder / "orders.csv"
    file.write_bytes('\ufeffid,note\r\n1,"two\nlines"\r\n\r\n2,"a ""b"", ü"\r\n'.encode())

    assert run("ImportCsv") == {"files": 1, "rows": 2}
    assert imported(db, file) == [
        (3, {"id": "1", "note": "two\nlines"}),
        (5, {"id": "2", "note": 'a "b", ü'}),
    ]


def test_a_second_run_imports_nothing_twice_and_a_later_one_what_was_appended(
    run: Callable[[str], Any], db: Conn, folder: Path
) -> None:
    file = folder / "log.csv"
    file.write_text("a,b\n1,2\n")
    counts = [run("ImportCsv")["rows"], run("ImportCsv")["rows"]]
    for number in range(3):
        with file.open("a") as appended:
            appended.write(f"{number},x\n")
        counts.append(run("ImportCsv")["rows"])

    assert counts == [1, 0, 1, 1, 1]
    assert [line for line, _ in imported(db, file)] == [2, 3, 4, 5]


def test_a_folder_that_is_missing_is_made(run: Callable[[str], Any], tmp_path: Path) -> None:
    assert run("ImportCsv") == {"files": 0, "rows": 0}
    assert (tmp_path / ".heartbeat" / "csv").is_dir()


def test_the_folder_is_a_matter_of_configuration(hb: Heartbeat, db: Conn, tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "same.csv").write_text(f"a\n{name}\n")
        configuration = {"class_name": "ImportCsv", "folder": str(tmp_path / name)}
        hb.add_flow(name, run_interval=60, configuration=configuration)
        assert hb.trigger_run(name).result == {"files": 1, "rows": 1}

    assert imported(db, tmp_path / "one" / "same.csv") == [(2, {"a": "one"})]
    assert imported(db, tmp_path / "other" / "same.csv") == [(2, {"a": "other"})]


def test_a_line_that_is_still_being_written_waits_for_its_end(
    run: Callable[[str], Any], db: Conn, folder: Path
) -> None:
    file = folder / "growing.csv"
    file.write_text("a,b\n1,2\n3,")
    assert run("ImportCsv")["rows"] == 1

    with file.open("a") as appended:
        appended.write("4\n")

    assert run("ImportCsv")["rows"] == 1
    assert imported(db, file)[1] == (3, {"a": "3", "b": "4"})


def test_a_last_line_without_its_end_counts_once_the_file_rests(
    run: Callable[[str], Any], db: Conn, folder: Path
) -> None:
    file = folder / "finished.csv"
    file.write_text("a,b\n1,2\n3,4")
    let_rest(file)

    assert [run("ImportCsv")["rows"] for _ in range(2)] == [2, 0]
    with file.open("a") as appended:
        appended.write("\n5,6\n")
    assert run("ImportCsv")["rows"] == 1
    assert [data["a"] for _, data in imported(db, file)] == ["1", "3", "5"]


@pytest.mark.parametrize("content", [b"", b"a,b\n", b"\n\n", b"a,b"], ids=range(4))
def test_a_file_without_rows_imports_none(run: Callable[[str], Any], folder: Path, content: bytes) -> None:
    (folder / "empty.csv").write_bytes(content)

    assert run("ImportCsv") == {"files": 1, "rows": 0}


def test_what_is_no_csv_file_is_left_alone(run: Callable[[str], Any], folder: Path) -> None:
    (folder / "directory.csv").mkdir()
    os.mkfifo(folder / "pipe.csv")  # opening it would wait for ever
    (folder / "notes.txt").write_text("no table")
    (folder / "UPPER.CSV").write_text("a\n1\n")

    assert run("ImportCsv") == {"files": 1, "rows": 1}


# --- ImportCsv: what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (HEADER_SHORTER_THAN_ITS_ROWS, "line 2: 7 fields, where the header has 6"),
        ("a,b\n1,2\n3\n", "line 3: 1 fields, where the header has 2"),
        ("a,b\n1,2\n3,4,5\n6,7\n", "line 3: 3 fields, where the header has 2"),
        (b"a,b\n1,2\n3,\xff\n", "line 3: not UTF-8, invalid start byte"),
        ("a,b\n1,2\n".encode("utf-16"), "line 1: not UTF-8, invalid start byte"),
        ("a,b\n1,2\n3,\0\n", "line 3: a NUL character"),
        ("a,\0\n1,2\n", "line 1: a NUL character"),
        ('a,b\n1,2\n3,"4\n', "line 3: unexpected end of data"),
        ('a,b\n1,2\n3,"4"5\n', "line 3: ',' expected after '\"'"),
        ("a,a\n1,2\n", "line 1: two columns have one name"),
        (f"a,b\n1,2\n3,{'x' * 200_000}\n", "line 3: field larger than field limit (131072)"),
    ],
    ids=range(11),
)
def test_a_bad_file_is_refused_with_its_line_and_the_others_are_imported_whole(
    hb: Heartbeat, db: Conn, folder: Path, content: str | bytes, reason: str
) -> None:
    (folder / "b-bad.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    for name in ("a-good.csv", "c-good.csv"):
        (folder / name).write_text("a,b\n1,2\n3,4\n")

    with pytest.raises(ValueError, match="1 of 3 files refused") as refused:
        hb.trigger_run("ImportCsv")

    assert str(refused.value).endswith(f"refused: b-bad.csv, {reason}")
    assert imported(db, folder / "b-bad.csv") == []
    assert [len(imported(db, folder / name)) for name in ("a-good.csv", "c-good.csv")] == [2, 2]
    assert hb.runs("ImportCsv")[0].error == f"ValueError: {refused.value}"


def test_a_refused_file_that_was_repaired_is_imported_once(hb: Heartbeat, db: Conn, folder: Path) -> None:
    file = folder / "mlo.csv"
    file.write_text(HEADER_SHORTER_THAN_ITS_ROWS)
    for _ in range(2):
        with pytest.raises(ValueError, match="line 2"):
            hb.trigger_run("ImportCsv")

    file.write_text(HEADER_SHORTER_THAN_ITS_ROWS.replace("Days\n", "Days,Uncertainty\n"))

    assert [hb.trigger_run("ImportCsv").result["rows"] for _ in range(2)] == [2, 0]
    assert imported(db, file)[0][1]["Uncertainty"] == "-0.99"


def test_a_bad_row_that_is_appended_imports_nothing_of_what_came_with_it(
    hb: Heartbeat, db: Conn, folder: Path
) -> None:
    file = folder / "log.csv"
    file.write_text("a,b\n1,2\n")
    hb.trigger_run("ImportCsv")
    with file.open("a") as appended:
        appended.write("3,4\n5\n")

    with pytest.raises(ValueError, match=r"log\.csv, line 4"):
        hb.trigger_run("ImportCsv")

    assert [line for line, _ in imported(db, file)] == [2]


@pytest.mark.parametrize("content", ["a,b\n9,2\n3,4\n", "a,b\n", "b,a\n1,2\n"])
def test_a_file_whose_imported_lines_have_changed_is_refused(
    hb: Heartbeat, db: Conn, folder: Path, content: str
) -> None:
    file = folder / "orders.csv"
    file.write_text("a,b\n1,2\n")
    hb.trigger_run("ImportCsv")
    file.write_text(content)

    with pytest.raises(ValueError, match=r"orders\.csv, lines 1 to 2: changed since they were imported"):
        hb.trigger_run("ImportCsv")

    assert imported(db, file) == [(2, {"a": "1", "b": "2"})]


def test_a_file_whose_name_is_no_text_is_refused_and_the_others_are_imported(
    hb: Heartbeat, folder: Path, db: Conn
) -> None:
    (folder / "good.csv").write_text("a\n1\n")
    (folder / os.fsdecode(b"\xff.csv")).write_text("a\n1\n")

    with pytest.raises(ValueError, match="1 of 2 files refused"):
        hb.trigger_run("ImportCsv")

    assert len(imported(db, folder / "good.csv")) == 1


def test_the_configurations_folder_that_is_a_file_fails_the_run(
    hb: Heartbeat, db: Conn, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    db.execute(
        "UPDATE data_flows SET configuration = %s WHERE name = 'ImportCsv'",
        [Jsonb({"folder": str(tmp_path / "file")})],
    )

    with pytest.raises(FileExistsError):
        hb.trigger_run("ImportCsv")


def test_the_imports_of_one_file_are_one_after_the_other(
    hb: Heartbeat, db: Conn, database_url: str, folder: Path
) -> None:
    file = folder / "log.csv"
    file.write_text("a\n1\n")
    hb.trigger_run("ImportCsv")
    db.execute("SET lock_timeout = '100ms'")
    with psycopg.connect(database_url) as other:
        demo_flows.sql.lock_csv_file(other, file=str(file))

        with pytest.raises(psycopg.errors.LockNotAvailable):
            demo_flows.sql.lock_csv_file(db, file=str(file))
