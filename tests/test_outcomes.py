"""Whatever a flow does, its own run shows it, and nothing else does."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest

from heartbeat import DataFlow, Heartbeat
from tests.support.flow_classes import Noop, flow_class
from tests.support.rows import Conn, add_flow, flow_row, make_due, request_run, runs_of, statuses


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


def test_an_outcome_that_the_database_refuses_costs_no_other_its_record(db: Conn, database_url: str) -> None:
    db.execute("ALTER TABLE data_flow_runs ADD CONSTRAINT no_sevens CHECK (result <> '7')")
    for number in range(10):
        add_flow(db, f"flow {number}", configuration={"class_name": "Answer", "n": number})
    answer = flow_class("Answer", lambda self: self.configuration["n"])
    with Heartbeat(flows=[answer], database_url=database_url) as hb:
        report = hb.beat()
        assert (report.flows_succeeded, report.flows_failed) == (9, 1)
    assert statuses(db).pop("flow 7") == ["failed"]
    assert "could not be recorded" in runs_of(db, "flow 7")[0].error


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
