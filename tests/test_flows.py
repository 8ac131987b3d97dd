"""What a developer writes: the classes that are taken or refused, and what an instance has."""

from __future__ import annotations

import functools
import gc
import logging
import sys
import threading
import weakref
from contextlib import suppress
from contextvars import ContextVar
from decimal import Decimal, getcontext
from pathlib import Path
from typing import Any

import pytest

from heartbeat import DataFlow, Heartbeat, HeartbeatError, SettingsError
from heartbeat.flows import Registry
from tests.support.flow_classes import Noop, flow_class
from tests.support.rows import Conn, add_flow, make_due, runs_of
from tests.support.waiting import wait_until


def write_module(directory: Path, monkeypatch: pytest.MonkeyPatch, name: str, source: str) -> str:
    """Put a module on the import path for the length of a test."""
    file = directory.joinpath(*name.split(".")).with_suffix(".py")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"from heartbeat import DataFlow\n{source}")
    monkeypatch.syspath_prepend(str(directory))
    for loaded in [loaded for loaded in sys.modules if loaded.split(".")[0] == name.split(".")[0]]:
        monkeypatch.delitem(sys.modules, loaded)
    return name


# --- which class a row means ----------------------------------------------------------------------------


class ByName(DataFlow):
    """Found by the name of its row."""

    name = "by-name"

    def run(self) -> str:
        return "by name"


@pytest.mark.parametrize(
    ("name", "configuration"),
    [
        ("Noop", {}),
        ("tests.support.flow_classes.Noop", {}),
        ("anything", {"class_name": "Noop"}),
        ("anything", {"class_name": "tests.support.flow_classes.Noop"}),
        ("Noop", {"class_name": None}),
    ],
)
def test_a_row_means_the_class_it_names_or_is_named_after(name: str, configuration: dict[str, Any]) -> None:
    assert Registry([Noop]).find(name, configuration) is Noop


def test_a_class_is_also_found_by_its_own_name_for_rows() -> None:
    registry = Registry([ByName])
    assert {registry.find(name, {}) for name in ("by-name", "ByName", "tests.test_flows.ByName")} == {ByName}


def test_the_configuration_wins_over_the_rows_name() -> None:
    assert Registry([Noop, ByName]).find("by-name", {"class_name": "Noop"}) is Noop


@pytest.mark.parametrize("wanted", ["Nope", "os.path.join", "heartbeat.flows.DataFlow", "DataFlow", ""])
def test_a_row_never_names_what_is_not_registered(wanted: str) -> None:
    with pytest.raises(LookupError, match="ByName, Noop"):
        Registry([Noop, ByName]).find("Noop", {"class_name": wanted})


@pytest.mark.parametrize("wanted", [5, ["Noop"], {"a": 1}, True])
def test_a_class_name_that_is_no_text_is_shown(wanted: Any) -> None:
    with pytest.raises(LookupError, match="class_name"):
        Registry([Noop]).find("Noop", {"class_name": wanted})


def test_a_row_imports_nothing(
    db: Conn, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = write_module(tmp_path, monkeypatch, "never_imported", "raise SystemExit('imported')")
    add_flow(db, "sneaky", configuration={"class_name": f"{module}.Flow"})
    with Heartbeat(flows=[Noop], database_url=database_url) as hb:
        assert hb.beat().flows_failed == 1
    assert module not in sys.modules
    assert f"no class '{module}.Flow' is registered (registered: Noop)" in runs_of(db, "sneaky")[0].error


# --- what is registered, and what is refused ------------------------------------------------------------


def test_modules_and_classes_are_registered_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = write_module(
        tmp_path,
        monkeypatch,
        "shop.flows",
        "from tests.support.flow_classes import Noop\n"
        "class Base(DataFlow):\n    pass\n"
        "class Orders(Base):\n    def run(self): pass\n"
        "Alias = Orders\n",
    )
    registry = Registry([Noop], [module])
    assert [cls.__name__ for cls in registry.classes] == ["Noop", "Orders"], (
        "neither what a module imports, nor a base without a run"
    )
    assert registry.find("shop.flows.Orders", {}).__name__ == "Orders"


def test_a_class_given_twice_is_registered_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = write_module(
        tmp_path, monkeypatch, "twice", "class Orders(DataFlow):\n    def run(self): pass\n"
    )
    orders = Registry([], [module]).classes[0]
    assert Registry([orders, orders], [module, module]).classes == [orders]


def test_two_classes_of_one_name_are_an_error_that_names_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = write_module(tmp_path, monkeypatch, "again", "class Noop(DataFlow):\n    def run(self): pass\n")
    with pytest.raises(SettingsError, match=r"'Noop'.*tests\.support\.flow_classes\.Noop.*again\.Noop"):
        Registry([Noop], [module])


def test_a_name_that_is_anothers_class_name_is_an_error() -> None:
    with pytest.raises(SettingsError, match="'Noop'"):
        Registry([Noop, flow_class("Other", lambda self: None, name="Noop")])


def generator(self: Any) -> Any:
    yield 1


async def async_generator(self: Any) -> Any:
    yield 1


@pytest.mark.parametrize("run", [generator, async_generator])
def test_a_run_that_is_a_generator_is_refused(run: Any) -> None:
    with pytest.raises(SettingsError, match=r"Lazy\.run is a generator.*yield"):
        Registry([flow_class("Lazy", run)])


@pytest.mark.parametrize(
    ("module", "says"),
    [
        ("no.such.module", "No module named 'no'"),
        ("heartbeat.nothing_here", "heartbeat.nothing_here"),
    ],
)
def test_a_module_that_is_not_there_is_named(module: str, says: str) -> None:
    with pytest.raises(SettingsError) as refusal:
        Registry([], [module])
    assert repr(module) in str(refusal.value)
    assert says in str(refusal.value)


@pytest.mark.parametrize(
    "source",
    [
        "def broken(:\n",
        "1 / 0",
        "raise SystemExit(3)",
        "raise ValueError('two\\nlines')",
        "import does_not_exist",
    ],
)
def test_a_module_that_does_not_import_is_named_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    module = write_module(tmp_path, monkeypatch, "broken_flows", source)
    with pytest.raises(SettingsError) as refusal:
        Registry([], [module])
    assert "'broken_flows'" in str(refusal.value)
    assert "\n" not in str(refusal.value)


REFUSED = [
    ("an object", object, "is not a flow"),
    ("an instance", Noop({}), "is not a flow"),
    ("text", "Noop", "is not a flow"),
    ("the base", DataFlow, r"does not define run\(\)"),
    ("no run", type("Idle", (DataFlow,), {}), r"Idle does not define run\(\)"),
    *[
        (
            f"interval {interval!r}",
            flow_class("Odd", lambda self: None, run_interval=interval),
            r"Odd.*run_interval",
        )
        for interval in (0, -1, 1.5, "60", True, 315_576_001, 10**13)
    ],
    *[
        (f"name {name[:3]!a}", flow_class("Odd", lambda self: None, name=name, run_interval=60), r"Odd.*name")
        for name in ("  ", "\t\n", "\u2003", "\u200b", "x" * 201, "a\0b", "a\ud800")
    ],
    *[
        (f"name {name!a}", flow_class("Odd", lambda self: None, name=name), r"Odd.*name")
        for name in ("  ", 5, None)
    ],
]


@pytest.mark.parametrize(("cls", "says"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_what_is_no_flow_stops_the_start_and_is_named(database_url: str, cls: Any, says: str) -> None:
    with pytest.raises(HeartbeatError, match=says), Heartbeat(flows=[cls], database_url=database_url):
        pass


def test_without_any_flow_a_service_starts(database_url: str) -> None:
    with Heartbeat(database_url=database_url) as hb:
        assert hb.beat().flows_due == 0


# --- what an instance has -------------------------------------------------------------------------------


class Telling(DataFlow):
    """Says what it has."""

    def run(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "configuration": self.configuration,
            "run_id": self.run_id,
            "stopping": self.stopping.is_set(),
            "thread": threading.current_thread().name,
        }


def test_an_instance_knows_its_name_its_configuration_and_its_run(db: Conn, database_url: str) -> None:
    add_flow(db, "orders", configuration={"class_name": "Telling", "n": 1})
    with Heartbeat(flows=[Telling], database_url=database_url) as hb:
        run = hb.trigger_run("orders")
    assert run.result["name"] == "orders"
    assert run.result["configuration"] == {"class_name": "Telling", "n": 1}
    assert run.result["run_id"] == run.id
    assert run.result["stopping"] is False


class OwnInit(DataFlow):
    def __init__(self, configuration: dict[str, Any]) -> None:
        self.doubled = configuration["n"] * 2

    def run(self) -> list[Any]:
        with self.connection() as conn:
            row = conn.execute("SELECT 1").fetchone()
        return [self.doubled, self.configuration, self.name, self.stopping.is_set(), row[0]]


def test_an_init_of_its_own_need_not_call_super(db: Conn, database_url: str) -> None:
    add_flow(db, "OwnInit", configuration={"n": 21})
    with Heartbeat(flows=[OwnInit], database_url=database_url) as hb:
        assert hb.trigger_run("OwnInit").result == [42, {"n": 21}, "OwnInit", False, 1]


def test_each_run_has_a_copy_of_the_configuration_of_its_own(db: Conn, database_url: str) -> None:
    def spoil(self: DataFlow) -> int:
        self.configuration["seen"] = True
        self.configuration["items"].append(1)
        return len(self.configuration["items"])

    add_flow(db, "Spoil", configuration={"items": []})
    with Heartbeat(flows=[flow_class("Spoil", spoil)], database_url=database_url) as hb:
        assert [hb.trigger_run("Spoil").result for _ in range(3)] == [1, 1, 1]
        assert hb.flows()[0].configuration == {"items": []}


def test_every_run_has_an_instance_of_its_own(db: Conn, database_url: str) -> None:
    def once(self: Any) -> int:
        self.count = getattr(self, "count", 0) + 1
        return int(self.count)

    add_flow(db, "Once")
    with Heartbeat(flows=[flow_class("Once", once)], database_url=database_url) as hb:
        assert [hb.trigger_run("Once").result for _ in range(3)] == [1, 1, 1]


def test_a_flows_log_lines_name_the_flow_and_the_run(
    db: Conn, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "heartbeat.flow")
    add_flow(db, "orders", configuration={"class_name": "Chatty"})
    chatty = flow_class("Chatty", lambda self: self.logger.info("copied %d rows", 17))
    with Heartbeat(flows=[chatty], database_url=database_url) as hb:
        run = hb.trigger_run("orders")
    [line] = [record for record in caplog.records if record.name == "heartbeat.flow"]
    assert (line.getMessage(), line.flow, line.run_id) == ("copied 17 rows", "orders", run.id)


def test_what_a_flow_sets_in_its_context_is_no_other_runs(db: Conn, database_url: str) -> None:
    tenant = ContextVar("tenant", default="nobody")

    def work() -> dict[str, str]:
        seen = {"tenant": tenant.get(), "third": str(Decimal(1) / 3)}
        tenant.set("acme")
        getcontext().prec = 3
        return seen

    async def work_async(self: DataFlow) -> dict[str, str]:
        return work()

    untouched = {"tenant": "nobody", "third": "0.3333333333333333333333333333"}
    flows = [flow_class("Sync", lambda self: work()), flow_class("Async", work_async)]
    for flow in flows:
        add_flow(db, flow.__name__)
    with Heartbeat(flows=flows, database_url=database_url, concurrency=1) as hb:
        for _ in range(3):
            make_due(db)
            hb.beat()
    for flow in flows:
        assert [run.result for run in runs_of(db, flow.__name__)] == [untouched] * 3


@pytest.mark.parametrize("is_async", [False, True])
def test_what_a_failed_run_held_is_freed_without_the_garbage_collector(
    db: Conn, database_url: str, is_async: bool
) -> None:
    class Held:
        """Stands for 20 MB of rows."""

    left: list[weakref.ref[Held]] = []

    def fail(self: DataFlow) -> None:
        held = Held()
        left.append(weakref.ref(held))
        raise ValueError("no")

    async def fail_async(self: DataFlow) -> None:
        fail(self)

    add_flow(db, "Fails")
    flow = flow_class("Fails", fail_async if is_async else fail)
    with Heartbeat(flows=[flow], database_url=database_url) as hb:
        gc.disable()
        try:
            hb.beat()
            with suppress(ValueError):  # pytest.raises would keep it
                hb.trigger_run("Fails")
            assert len(left) == 2
            wait_until(lambda: [ref() for ref in left] == [None, None], what="what it held to be freed")
        finally:
            gc.enable()


def test_attributes_of_a_flow_do_not_get_in_the_way_of_ours(db: Conn, database_url: str) -> None:
    class Shadowing(DataFlow):
        stopping = None  # type: ignore[assignment]
        logger = "mine"  # type: ignore[assignment]
        _connect = 5
        _bound = 6
        run_id = 7

        def run(self) -> str:
            return "ran"

    add_flow(db, "Shadowing")
    with Heartbeat(flows=[Shadowing], database_url=database_url) as hb:
        assert hb.trigger_run("Shadowing").result == "ran"


def test_a_frozen_dataclass_can_be_a_flow(db: Conn, database_url: str) -> None:
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Frozen(DataFlow):
        configuration: dict[str, Any]

        def run(self) -> Any:
            return [self.name, self.configuration]

    add_flow(db, "Frozen", configuration={"a": 1})
    with Heartbeat(flows=[Frozen], database_url=database_url) as hb:
        assert hb.trigger_run("Frozen").result == ["Frozen", {"a": 1}]


def test_an_instance_made_by_hand_can_be_tested_but_has_no_connection() -> None:
    flow = Telling({"a": 1})
    assert flow.configuration == {"a": 1}
    assert not flow.stopping.is_set()
    flow.logger.info("works")
    with pytest.raises(HeartbeatError, match="not started by a heartbeat"):
        flow.connection()


def test_a_decorated_run_runs(db: Conn, database_url: str) -> None:
    def twice(run: Any) -> Any:
        @functools.wraps(run)
        def wrapper(self: DataFlow) -> Any:
            return [run(self), run(self)]

        return wrapper

    add_flow(db, "Twice")
    with Heartbeat(flows=[flow_class("Twice", twice(lambda self: 1))], database_url=database_url) as hb:
        assert hb.trigger_run("Twice").result == [1, 1]
