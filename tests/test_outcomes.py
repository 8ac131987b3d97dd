"""Whatever a flow does, its own run shows it, and nothing else does."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import secrets
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from heartbeat import DataFlow, Heartbeat, HeartbeatError
from heartbeat.engine.recorder import Recorder
from heartbeat.engine.run import Outcome
from tests.support.flow_classes import Gate, Noop, flow_class
from tests.support.rows import (
    Conn,
    add_flow,
    flow_row,
    live_runs,
    make_due,
    request_run,
    runs_of,
    statuses,
    statuses_of,
)
from tests.support.waiting import Background, wait_until


def raising(make: Callable[[], BaseException]) -> Callable[[DataFlow], None]:
    def run(self: DataFlow) -> None:
        raise make()

    return run


def raising_async(make: Callable[[], BaseException]) -> Callable[[DataFlow], Any]:
    async def run(self: DataFlow) -> None:
        await asyncio.sleep(0)
        raise make()

    return run


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise SystemExit("not even this")

    __repr__ = __str__


class SlyText(str):
    def __format__(self, spec: str) -> str:
        raise RuntimeError("no")


class Sly(Exception):
    def __str__(self) -> str:
        return SlyText("sly")


class Root(BaseException):
    pass


def tangled() -> BaseException:
    first, second = ValueError("first"), ValueError("second")
    first.__context__, second.__context__ = second, first
    return first


RAISED: dict[str, Callable[[], BaseException]] = {
    "ValueError": lambda: ValueError("no such file"),
    "SystemExit": lambda: SystemExit(3),
    "KeyboardInterrupt": KeyboardInterrupt,
    "GeneratorExit": GeneratorExit,
    "StopIteration": lambda: StopIteration(1),
    "CancelledError": asyncio.CancelledError,
    "MemoryError": MemoryError,
    "RecursionError": RecursionError,
    "BaseException": lambda: Root("root"),
    "a group": lambda: BaseExceptionGroup("several", [ValueError("a"), SystemExit(2)]),
    "NUL": lambda: ValueError("a\0b"),
    "a surrogate": lambda: ValueError("a\ud800b"),
    "megabytes": lambda: ValueError("head" + "x" * 3_000_000 + "tail"),
    "no text": Unspeakable,
    "sly text": Sly,
    "in a circle": tangled,
    "line feeds": lambda: ValueError("one\ntwo\r\nthree\u2028four"),
}


@pytest.mark.parametrize("make", RAISED.values(), ids=RAISED.keys())
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_whatever_a_flow_raises_fails_its_own_run_only(
    db: Conn, database_url: str, kind: str, make: Callable[[], BaseException]
) -> None:
    run = raising(make) if kind == "sync" else raising_async(make)
    add_flow(db, "Bad")
    with Heartbeat(
        flows=[flow_class("Bad", run), Noop], database_url=database_url, concurrency=1, time_budget=5
    ) as hb:
        report = hb.beat()
        assert (report.flows_failed, report.flows_running) == (1, 0)
        add_flow(db, "Noop")
        assert hb.beat().flows_succeeded == 1, "the thread, or the loop, lives on"
        make_due(db)
        assert hb.beat().flows_triggered == 2
    [row, _] = runs_of(db, "Bad")
    assert row.status == "failed"
    assert 0 < len(row.error) < 11_000
    assert 0 < len(row.backtrace) < 51_000
    assert flow_row(db, "Bad").last_run_status == "failed"


def test_an_error_shows_its_type_its_message_and_where(db: Conn, database_url: str) -> None:
    def deep_down() -> None:
        raise ValueError("no such file: orders.csv")

    add_flow(db, "Bad")
    with Heartbeat(flows=[flow_class("Bad", lambda self: deep_down())], database_url=database_url) as hb:
        hb.beat()
    [row] = runs_of(db, "Bad")
    assert row.error == "ValueError: no such file: orders.csv"
    assert row.backtrace.startswith("Traceback (most recent call last):")
    assert "deep_down" in row.backtrace
    assert row.backtrace.rstrip().endswith("ValueError: no such file: orders.csv")


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_backtrace_begins_with_the_flows_own_code(db: Conn, database_url: str, kind: str) -> None:
    make = raising if kind == "sync" else raising_async
    add_flow(db, "Bad")
    with Heartbeat(
        flows=[flow_class("Bad", make(lambda: ValueError("no")))], database_url=database_url
    ) as hb:
        hb.beat()
    [row] = runs_of(db, "Bad")
    frames = [line for line in row.backtrace.splitlines() if line.startswith("  File ")]
    assert "test_outcomes.py" in frames[0], row.backtrace


def test_the_cause_of_an_error_is_kept(db: Conn, database_url: str) -> None:
    def run(self: DataFlow) -> None:
        try:
            {}["missing"]  # type: ignore[index]
        except KeyError as exc:
            raise RuntimeError("could not read") from exc

    add_flow(db, "Bad")
    with Heartbeat(flows=[flow_class("Bad", run)], database_url=database_url) as hb:
        hb.beat()
    assert "KeyError: 'missing'" in runs_of(db, "Bad")[0].backtrace


# --- making the flow ------------------------------------------------------------------------------------


def init_raises(self: Any, configuration: Any) -> None:
    raise SystemExit("not in the mood")


def init_without_arguments(self: Any) -> None:
    pass


@pytest.mark.parametrize("init", [init_raises, init_without_arguments])
def test_a_flow_that_cannot_be_made_fails_its_own_run(db: Conn, database_url: str, init: Any) -> None:
    add_flow(db, "Bad")
    add_flow(db, "Noop")
    bad = flow_class("Bad", lambda self: None, __init__=init)
    with Heartbeat(flows=[bad, Noop], database_url=database_url) as hb:
        report = hb.beat()
    assert (report.flows_succeeded, report.flows_failed) == (1, 1)
    assert statuses(db) == {"Bad": ["failed"], "Noop": ["success"]}


def test_a_class_that_is_not_registered_is_named_and_so_are_those_that_are(
    db: Conn, database_url: str
) -> None:
    add_flow(db, "orders", configuration={"class_name": "ImportOrdrs"})
    with Heartbeat(flows=[Noop], database_url=database_url) as hb:
        assert hb.beat().flows_failed == 1
    error = runs_of(db, "orders")[0].error
    assert "'ImportOrdrs'" in error
    assert "Noop" in error
    assert "HEARTBEAT_FLOWS" in error


def yields(self: DataFlow) -> Any:
    def generator() -> Any:
        yield 1

    return generator()


def yields_async(self: DataFlow) -> Any:
    async def generator() -> Any:
        yield 1

    return generator()


async def yields_awaited(self: DataFlow) -> Any:
    return yields(self)


@pytest.mark.parametrize("run", [yields, yields_async, yields_awaited])
def test_a_run_that_returns_a_generator_has_done_nothing_and_says_so(
    db: Conn, database_url: str, run: Any
) -> None:
    add_flow(db, "Lazy")
    with Heartbeat(flows=[flow_class("Lazy", run)], database_url=database_url) as hb:
        assert hb.beat().flows_failed == 1
    assert "generator" in runs_of(db, "Lazy")[0].error


# --- async ----------------------------------------------------------------------------------------------


def test_an_async_flow_runs_and_its_result_is_kept(db: Conn, database_url: str) -> None:
    async def run(self: DataFlow) -> Any:
        await asyncio.sleep(0.01)
        with self.connection() as conn:
            return [self.name, conn.execute("SELECT 1").fetchone()[0]]

    add_flow(db, "Async")
    with Heartbeat(flows=[flow_class("Async", run)], database_url=database_url) as hb:
        assert hb.beat().flows_succeeded == 1
    assert runs_of(db, "Async")[0].result == ["Async", 1]


def test_async_flows_wait_together_on_one_loop(db: Conn, database_url: str) -> None:
    arrived: list[int] = []

    async def run(self: DataFlow) -> int:
        arrived.append(1)
        while len(arrived) < 5:
            await asyncio.sleep(0.005)
        return threading.get_ident()

    for number in range(5):
        add_flow(db, f"async {number}", configuration={"class_name": "Async"})
    with Heartbeat(flows=[flow_class("Async", run)], database_url=database_url, concurrency=5) as hb:
        assert hb.beat().flows_succeeded == 5
    assert len({run.result for number in range(5) for run in runs_of(db, f"async {number}")}) == 1


def test_an_async_flow_can_use_tasks_and_a_timeout_of_its_own(db: Conn, database_url: str) -> None:
    async def run(self: DataFlow) -> Any:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(asyncio.sleep(0.01, n)) for n in range(3)]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await asyncio.sleep(10)
        return [task.result() for task in tasks]

    add_flow(db, "Async")
    with Heartbeat(flows=[flow_class("Async", run)], database_url=database_url) as hb:
        assert hb.trigger_run("Async").result == [0, 1, 2]


def test_an_exit_in_one_async_flow_disturbs_no_other_on_the_loop(db: Conn, database_url: str) -> None:
    exited = threading.Event()

    async def leave(self: DataFlow) -> None:
        await asyncio.sleep(0.05)
        exited.set()
        raise SystemExit(3)

    async def stay(self: DataFlow) -> str:
        while not exited.is_set():
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.05)
        return "stayed"

    add_flow(db, "Leave")
    add_flow(db, "Stay")
    flows = [flow_class("Leave", leave), flow_class("Stay", stay)]
    with Heartbeat(flows=flows, database_url=database_url) as hb:
        hb.beat()
    assert statuses(db) == {"Leave": ["failed"], "Stay": ["success"]}
    assert runs_of(db, "Leave")[0].error == "SystemExit: 3"


# --- results --------------------------------------------------------------------------------------------

KEPT = [None, 0, False, "", [], {}, "text", 1.5, {"rows": 17, "ü": [1, None]}, "a\\u0000b", 10**30, True]


@pytest.mark.parametrize("result", KEPT, ids=ascii)
def test_a_result_is_kept_as_json(db: Conn, database_url: str, result: Any) -> None:
    add_flow(db, "Answer")
    with Heartbeat(flows=[flow_class("Answer", lambda self: result)], database_url=database_url) as hb:
        assert hb.trigger_run("Answer").result == result
    stored = db.execute("SELECT result::text FROM data_flow_runs").fetchone()[0]
    assert (json.loads(stored) if stored is not None else None) == result


ODD: dict[str, tuple[Callable[[], Any], str]] = {
    "an object": (object, "<object object"),
    "nan": (lambda: {"a": float("nan")}, "nan"),
    "infinity": (lambda: float("inf"), "inf"),
    "NUL": (lambda: "a\0b", "a\\x00b"),
    "a surrogate": (lambda: ["\ud800"], "\\ud800"),
    "a huge number": (lambda: 10**5000, "int"),
    "bytes": (lambda: b"abc", "abc"),
    "a set": (lambda: {1}, "{1}"),
    "megabytes": (lambda: "x" * 5_000_000, "characters cut"),
    "odd keys": (lambda: {(1, 2): 3}, "(1, 2)"),
}


@pytest.mark.parametrize(("make", "says"), ODD.values(), ids=ODD.keys())
def test_a_result_that_is_no_json_is_a_success_kept_as_text_with_a_warning(
    db: Conn, database_url: str, caplog: pytest.LogCaptureFixture, make: Callable[[], Any], says: str
) -> None:
    caplog.set_level(logging.WARNING, "heartbeat")
    add_flow(db, "Odd")
    with Heartbeat(flows=[flow_class("Odd", lambda self: make())], database_url=database_url) as hb:
        run = hb.trigger_run("Odd")
    assert run.status == "success"
    assert isinstance(run.result, str)
    assert says in run.result
    assert len(run.result) < 11_000
    [warning] = [record for record in caplog.records if "Odd" in record.getMessage()]
    assert (warning.levelname, warning.run_id) == ("WARNING", run.id)


def test_large_outcomes_of_many_flows_are_all_recorded(db: Conn, database_url: str) -> None:
    for number in range(30):
        add_flow(db, f"large {number}", configuration={"class_name": "Large"})
    with Heartbeat(flows=[flow_class("Large", lambda self: "x" * 900_000)], database_url=database_url) as hb:
        assert hb.beat().flows_succeeded == 30
    assert db.execute(
        "SELECT count(*) FROM data_flow_runs WHERE length(result::text) = 900002"
    ).fetchone() == (30,)


def test_any_text_is_recorded_whatever_encoding_a_database_asks_of_its_sessions(
    db: Conn, database_url: str
) -> None:
    db.execute(f"ALTER DATABASE {db.info.dbname} SET client_encoding = 'LATIN1'")
    flows = [
        flow_class("Fails", raising(lambda: ValueError("日本語"))),
        flow_class("Works", lambda self: "日本語"),
    ]
    for flow in flows:
        add_flow(db, flow.__name__)
    with Heartbeat(flows=flows, database_url=database_url) as hb:
        report = hb.beat()
    assert (report.flows_succeeded, report.flows_failed) == (1, 1)
    assert runs_of(db, "Fails")[0].error == "ValueError: 日本語"
    assert runs_of(db, "Works")[0].result == "日本語"


# --- what the database refuses ---------------------------------------------------------------------------


def refuse(db: Conn, when: str, what: str = "RAISE 'not this one'", of: str = "data_flow_runs") -> None:
    """Have a DBA's trigger do something, such as to raise, at each update that meets a condition."""
    db.execute(
        f"CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN {what}; RETURN new; END$$;"
        f"CREATE TRIGGER refuse BEFORE UPDATE ON {of} FOR EACH ROW WHEN ({when}) EXECUTE FUNCTION refuse()"
    )


def add_answers(db: Conn, count: int) -> type[DataFlow]:
    """Insert `flow 0`, `flow 1`, … that return their number, and make their class."""
    for number in range(count):
        add_flow(db, f"flow {number}", configuration={"class_name": "Answer", "n": number})
    return flow_class("Answer", lambda self: self.configuration["n"])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("ADD CONSTRAINT no_sevens CHECK (result <> '7')", 'violates check constraint "no_sevens"'),
        ("ADD inverse int GENERATED ALWAYS AS (1 / (result::int - 7)) STORED", "division by zero"),
        ("ADD small smallint GENERATED ALWAYS AS (result::int * 5461) STORED", "smallint out of range"),
    ],
)
def test_an_outcome_that_the_database_refuses_costs_no_other_its_record(
    db: Conn, database_url: str, damage: str, reason: str
) -> None:
    answer = add_answers(db, 8)
    db.execute(f"ALTER TABLE data_flow_runs {damage}")
    with Heartbeat(flows=[answer], database_url=database_url) as hb:
        report = hb.beat()
        assert (report.flows_succeeded, report.flows_failed) == (7, 1)
        make_due(db)
        assert hb.beat().flows_succeeded == 7, "heartbeats go on"
    assert {name for name, ends in statuses(db).items() if "failed" in ends} == {"flow 7"}
    assert all(
        re.match(f"the outcome could not be recorded: .*{reason}", run.error) for run in runs_of(db, "flow 7")
    )


def test_a_result_that_is_json_and_no_jsonb_ends_its_own_run_only(db: Conn, database_url: str) -> None:
    digits = sys.get_int_max_str_digits()
    flows = [flow_class("Huge", lambda self: 10**140_000), add_answers(db, 5)]
    add_flow(db, "Huge")
    with Heartbeat(flows=flows, database_url=database_url) as hb:
        sys.set_int_max_str_digits(0)  # as a flow may
        try:
            report = hb.beat()
        finally:
            sys.set_int_max_str_digits(digits)
    assert (report.flows_succeeded, report.flows_failed) == (5, 1)
    assert "could not be recorded: value overflows numeric format" in runs_of(db, "Huge")[0].error


def test_an_error_that_is_too_large_for_an_index_of_a_dba_ends_its_own_run_only(
    db: Conn, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    db.execute("CREATE INDEX ON data_flow_runs (error)")
    flows = [flow_class("Bad", raising(lambda: ValueError(secrets.token_hex(4500)))), add_answers(db, 5)]
    add_flow(db, "Bad")
    with Heartbeat(flows=flows, database_url=database_url) as hb:
        report = hb.beat()
        assert (report.flows_succeeded, report.flows_failed) == (5, 1)
        with pytest.raises(ValueError, match=r"[0-9a-f]{9000}"):  # the flow's own, though it is not on record
            hb.trigger_run("Bad")
        make_due(db)
        assert hb.beat().flows_succeeded == 5
    runs = runs_of(db, "Bad")
    assert [run.status for run in runs] == ["failed"] * 3
    assert all("could not be recorded" in run.error and "index row" in run.error for run in runs)
    told = [(line.levelname, line.flow) for line in caplog.records if hasattr(line, "run_id")]
    assert told == [("WARNING", "Bad")] * 3


def test_one_refused_outcome_among_hundreds_costs_few_statements(
    db: Conn, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    for number in range(300):
        add_flow(db, f"flow {number}", configuration={"class_name": "Held", "n": number})
    refuse(db, "new.result = '123'")

    async def run(self: DataFlow) -> int:
        while not gate.is_open():
            await asyncio.sleep(0.01)
        return int(self.configuration["n"])

    sizes: list[int] = []
    write = Recorder._write

    def counted(recorder: Recorder, batch: list[Outcome]) -> None:
        sizes.append(len(batch))
        write(recorder, batch)

    monkeypatch.setattr(Recorder, "_write", counted)
    monkeypatch.setattr(
        "heartbeat.engine.recorder._MANY", 0
    )  # outcomes gather, and for long enough to be one batch
    monkeypatch.setattr("heartbeat.engine.recorder._GATHER", 0.5)
    with Heartbeat(flows=[flow_class("Held", run)], database_url=database_url, async_concurrency=300) as hb:
        beat = Background(hb.beat)
        wait_until(lambda: len(live_runs(db)) == 300, what="all to run")
        gate.open()
        report = beat.result()
    assert (report.flows_succeeded, report.flows_failed) == (299, 1)
    assert statuses_of(db, "flow 123") == ["failed"]
    assert max(sizes) > 150, "most ended together"
    assert len(sizes) < 30


def test_a_flow_that_succeeded_and_cannot_be_recorded_is_told_to_its_caller(
    db: Conn, database_url: str
) -> None:
    add_flow(db, "Noop")
    refuse(
        db, "new.status = 'success'", "RAISE E'not this one\\nnor its second line' USING ERRCODE = '54000'"
    )
    with (
        Heartbeat(flows=[Noop], database_url=database_url) as hb,
        pytest.raises(HeartbeatError, match=r"could not be recorded: .*not this one$"),
    ):
        hb.trigger_run("Noop")
    [run] = runs_of(db, "Noop")
    assert (run.status, run.error.splitlines()) == ("failed", [run.error])


def test_a_run_that_cannot_even_be_failed_is_in_nobodys_way(
    db: Conn, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    answer = add_answers(db, 5)
    flow_id = add_flow(db, "Noop")
    refuse(db, f"new.data_flow_id = {flow_id}")
    with Heartbeat(flows=[answer, Noop], database_url=database_url, runner_ttl=1) as hb:
        report = hb.beat()
        assert (report.flows_succeeded, report.flows_failed, report.flows_running) == (5, 1, 0)
        make_due(db)
        assert hb.beat().flows_succeeded == 5
        seen = db.execute("SELECT max(last_seen_at) FROM data_flow_runners").fetchone()
        renewed = "SELECT count(*) FROM data_flow_runners WHERE last_seen_at > %s"
        wait_until(lambda: db.execute(renewed, seen).fetchone() == (1,), what="a renewal")
        began = time.monotonic()
    assert time.monotonic() - began < 2, "it does not keep the process from ending"
    assert statuses_of(db, "Noop") == ["in_progress"]
    [line] = [line for line in caplog.records if line.name == "heartbeat"]
    assert (line.levelname, line.flow, line.run_id) == ("WARNING", "Noop", runs_of(db, "Noop")[0].id)
    assert "not this one" in line.getMessage()


def test_the_caller_of_a_run_that_cannot_even_be_failed_gets_the_flows_own_exception(
    db: Conn, database_url: str
) -> None:
    add_flow(db, "Bad")
    refuse(db, "new.ended_at IS NOT NULL")
    bad = flow_class("Bad", raising(lambda: ValueError("no such file")))
    with (
        Heartbeat(flows=[bad], database_url=database_url) as hb,
        pytest.raises(ValueError, match="no such file"),
    ):
        hb.trigger_run("Bad")


def test_an_outcome_that_times_out_again_is_refused_and_the_others_are_recorded(
    db: Conn, database_url: str
) -> None:
    answer = add_answers(db, 2)
    refuse(db, "new.result = '1'", "PERFORM pg_sleep(60)")
    with Heartbeat(flows=[answer], database_url=database_url, time_budget=60) as hb:
        report = hb.beat()
    assert (report.flows_succeeded, report.flows_failed) == (1, 1)
    assert "statement timeout" in runs_of(db, "flow 1")[0].error


def test_a_statement_that_times_out_once_costs_no_run_its_success(db: Conn, database_url: str) -> None:
    answer = add_answers(db, 1)
    db.execute("CREATE SEQUENCE attempts")
    slow = "IF nextval('attempts') <= 2 THEN PERFORM pg_sleep(60); END IF"  # with the heartbeat's row, and without
    refuse(db, "new.result = '0'", slow)
    with Heartbeat(flows=[answer], database_url=database_url, time_budget=60) as hb:
        assert hb.beat().flows_succeeded == 1


def test_a_heartbeats_row_that_is_refused_costs_no_run_its_record(db: Conn, database_url: str) -> None:
    gate = Gate()
    for number in range(5):
        add_flow(db, f"flow {number}", configuration={"class_name": "Held"})
    refuse(db, "new.finished_at IS NOT NULL", of="heartbeats")
    with Heartbeat(flows=[gate.flow("Held")], database_url=database_url, concurrency=10) as hb:
        beat = Background(hb.beat)
        wait_until(
            lambda: len(gate.begun) == 5, what="all to run"
        )  # nothing is left to claim: the last one answers
        gate.open()
        with pytest.raises(HeartbeatError, match="not this one"):
            beat.result()
    assert set(map(tuple, statuses(db).values())) == {("success",)}


# --- what flows do to the process -----------------------------------------------------------------------


def test_a_flow_may_start_threads_and_change_directory_and_signals(db: Conn, database_url: str) -> None:
    def run(self: DataFlow) -> None:
        threading.Thread(target=lambda: 1 / 1, daemon=True).start()
        logging.getLogger("heartbeat").info("mine")

    add_flow(db, "Noisy")
    with Heartbeat(flows=[flow_class("Noisy", run)], database_url=database_url) as hb:
        assert hb.beat().flows_succeeded == 1


def test_fifty_flows_that_fail_do_not_slow_those_that_work(db: Conn, database_url: str) -> None:
    for number in range(50):
        add_flow(db, f"bad {number}", configuration={"class_name": "Bad"})
        add_flow(db, f"good {number}", configuration={"class_name": "Noop"})
    request_run(db, "good 0")
    bad = flow_class("Bad", raising(lambda: KeyboardInterrupt()))
    with Heartbeat(flows=[bad, Noop], database_url=database_url, concurrency=2) as hb:
        report = hb.beat()
    assert (report.flows_triggered, report.flows_succeeded, report.flows_failed) == (100, 50, 50)
