"""What user code touches: the class to derive from, and the registry of the classes that may run."""

from __future__ import annotations

import importlib
import inspect
import logging
import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar

from heartbeat.cleaning import error_text, safe_repr
from heartbeat.errors import HeartbeatError, SettingsError

if TYPE_CHECKING:
    import psycopg

    Connect = Callable[[], AbstractContextManager[psycopg.Connection[Any]]]

_NAME_LIMIT = 200
_INTERVAL_LIMIT = 315_576_000
"""What the constraints of data_flows allow: a class is refused at start by its path, not by an INSERT."""

_log = logging.getLogger("heartbeat.flow")


class DataFlow:
    """A piece of work that a heartbeat runs. Derive from it and define `run`.

    `run` may be `async def`. What it returns is kept as the run's result, as JSON; an exception fails the run.
    A sync flow runs on a thread, an async one on an event loop that all async flows of the process share.
    """

    run_interval: ClassVar[int | None] = None
    """Seconds between runs. Start-up inserts a row for a class that has one, unless a row has its name."""

    name: str = ""
    """On the class: the name of that row, the class's own name by default. On an instance: the row's name."""

    configuration: dict[str, Any]
    """The row's configuration: this run's own copy."""

    run_id: int | None = None
    """`data_flow_runs.id` of this run."""

    def __init__(self, configuration: dict[str, Any]) -> None:
        self.configuration = configuration

    def run(self) -> Any:
        """Do the work."""
        raise NotImplementedError(f"{type(self).__qualname__} does not define run()")

    @property
    def logger(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger whose lines name the flow and the run."""
        return logging.LoggerAdapter(_log, {"flow": self.name, "run_id": self.run_id})

    @property
    def stopping(self) -> threading.Event:
        """Set when the run should end soon: its time is up, or the process stops. A long flow watches it."""
        of_run: Callable[[], threading.Event] | None = self.__dict__.get("_stopping")
        if of_run is not None:
            return of_run()
        event: threading.Event = self.__dict__.setdefault("_own_stopping", threading.Event())
        return event

    def connection(self) -> AbstractContextManager[psycopg.Connection[Any]]:
        """Lend a psycopg connection: `with self.connection() as conn:`.

        It commits when the block ends and rolls back when it raises. Raises DatabaseUnavailable when none can be
        had in time.
        """
        connect: Connect | None = self.__dict__.get("_connect")
        if connect is None:
            raise HeartbeatError(
                f"{type(self).__qualname__} was not started by a heartbeat: it has no connection"
            )
        return connect()

    def _bind(
        self,
        name: str,
        run_id: int,
        configuration: dict[str, Any],
        connect: Connect,
        stopping: Callable[[], threading.Event],
    ) -> None:
        """Tell an instance which run it is; its own __init__ need not know."""
        self.__dict__.setdefault("configuration", configuration)
        self.__dict__.update(name=name, run_id=run_id, _connect=connect, _stopping=stopping)


class Registry:
    """The classes that may run, by class name, dotted path and `name`.

    A row of the database can be edited by many; it picks among these and never imports code.
    """

    def __init__(self, classes: Iterable[type[DataFlow]] = (), modules: Iterable[str] = ()) -> None:
        """Register classes, and those that modules define. Raises SettingsError for what cannot be used."""
        self.classes: list[type[DataFlow]] = []
        self._by_name: dict[str, type[DataFlow]] = {}
        for cls in [*classes, *(cls for module in modules for cls in _defined_in(module))]:
            if cls not in self.classes:
                self._register(cls)

    def find(self, name: str, configuration: dict[str, Any]) -> type[DataFlow]:
        """Return the class of a row. Raises LookupError, naming what there is, when it is not registered."""
        wanted = configuration.get("class_name")
        if wanted is None:
            wanted = name
        if not isinstance(wanted, str):
            raise LookupError(  # noqa: TRY004 - a row's content is wrong, not the program's types
                f"configuration.class_name is {wanted!r}; expected the name of a registered class"
            )
        if wanted not in self._by_name:
            known = ", ".join(sorted(cls.__name__ for cls in self.classes)) or "none"
            raise LookupError(f"no class {wanted!r} is registered (registered: {known}); see HEARTBEAT_FLOWS")
        return self._by_name[wanted]

    def _register(self, cls: type[DataFlow]) -> None:
        _check(cls)
        for name in {cls.__name__, dotted_path(cls), cls.name or cls.__name__}:
            other = self._by_name.setdefault(name, cls)
            if other is not cls:
                raise SettingsError(
                    f"two flow classes go by the name {name!r}: {dotted_path(other)} and {dotted_path(cls)}; rename one"
                )
        self.classes.append(cls)

    @property
    def async_classes(self) -> set[str]:
        """The names of the classes whose `run` is `async def`."""
        return {name for name, cls in self._by_name.items() if inspect.iscoroutinefunction(cls.run)}


def dotted_path(cls: type) -> str:
    """Return where a class is defined: `package.module.Class`."""
    return f"{cls.__module__}.{cls.__qualname__}"


def _check(cls: type[DataFlow]) -> None:
    if not (isinstance(cls, type) and issubclass(cls, DataFlow)):
        raise SettingsError(f"{cls!r} is not a flow: derive a class from heartbeat.DataFlow")
    path = dotted_path(cls)
    if cls.run is DataFlow.run:
        raise SettingsError(f"{path} does not define run()")
    if inspect.isgeneratorfunction(cls.run) or inspect.isasyncgenfunction(cls.run):
        raise SettingsError(f"{path}.run is a generator and would never run: take the yield out of it")
    name = cls.name or cls.__name__ if isinstance(cls.name, str) else None
    if name is None or not name.strip() or len(name) > _NAME_LIMIT or not name.isprintable():
        raise SettingsError(
            f"{path}.name is {safe_repr(cls.name):.100}; expected printable text, at most {_NAME_LIMIT} characters"
        )
    interval = cls.run_interval
    if interval is not None and (
        isinstance(interval, bool) or not isinstance(interval, int) or not 0 < interval <= _INTERVAL_LIMIT
    ):
        raise SettingsError(
            f"{path}.run_interval is {safe_repr(interval):.100}; expected whole seconds, from 1 to ten years"
        )


def _defined_in(module: str) -> list[type[DataFlow]]:
    """Import a module and return the flow classes that it defines itself, bases without a `run` left out."""
    try:
        imported = importlib.import_module(module)
    except (Exception, SystemExit) as exc:  # whatever a module does at import, the message names it
        problem = " ".join(error_text(exc).split())
        raise SettingsError(f"HEARTBEAT_FLOWS names {module!r}, which cannot be imported: {problem}") from exc
    return [
        cls
        for cls in vars(imported).values()
        if isinstance(cls, type)
        and issubclass(cls, DataFlow)
        and cls.__module__ == imported.__name__
        and cls.run is not DataFlow.run
    ]
