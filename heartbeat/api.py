"""`Heartbeat`: the service without the web, used by the web app and the command line alike."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import fields
from types import TracebackType
from typing import Any, Self

from heartbeat import validation
from heartbeat.cleaning import parse_json, safe_repr
from heartbeat.engine import Engine
from heartbeat.errors import DatabaseUnavailable, FlowNotFound, HeartbeatError, SchemaError, ValidationError
from heartbeat.flows import DataFlow, Registry
from heartbeat.models import BeatReport, DataFlowRecord, DataFlowRun, Health
from heartbeat.postgres.database import Database
from heartbeat.postgres.deadlines import Deadlines
from heartbeat.postgres.errors import translated
from heartbeat.postgres.pruning import prune
from heartbeat.postgres.queries import Queries
from heartbeat.postgres.schema import check_schema
from heartbeat.settings import Settings


class Heartbeat:
    """Everything that a heartbeat needs, in one object: `with Heartbeat(flows=[…]) as hb: hb.beat()`."""

    def __init__(
        self, *, flows: Iterable[type[DataFlow]] = (), settings: Settings | None = None, **overrides: Any
    ) -> None:
        """Read the settings, register the flow classes and load the SQL; nothing is connected yet.

        `flows` are classes, besides those of the modules in HEARTBEAT_FLOWS; `overrides` are settings by their
        lower-case names. Raises SettingsError and QueryError.
        """
        self.settings = settings or Settings.load(**overrides)
        self.registry = Registry(flows, self.settings.flows)
        self._queries = Queries(self.settings.sql_dir)
        self._lock = threading.Lock()
        self._opened: _Opened | None = None

    # ── start and stop ───────────────────────────────────────────────────────────────────────────────────────

    def start(self, *, run_flows: bool = True) -> Self:
        """Connect and check; with `run_flows`, add the rows of classes that lack one, and begin to run flows.

        Does nothing when it has been done. Raises DatabaseUnavailable, SchemaError and QueryError.
        """
        with self._lock:
            if self._opened is None:
                self._opened = _Opened.open(self.settings, self._queries)
            if run_flows and self._opened.engine is None:
                try:
                    self._opened.run_flows(self.settings, self.registry, self._queries)
                except BaseException:
                    self._opened.close()
                    self._opened = None
                    raise
        return self

    def stop_claiming(self, *, now: bool = False) -> None:
        """Claim no more and start the drain's clock, or with `now` end it. May be called in a signal handler."""
        opened = self._opened
        if opened is not None and opened.engine is not None:
            opened.engine.stop_claiming(now=now)

    def close(self) -> None:
        """Drain, record what still runs as failed (interrupted), and disconnect. May be started again."""
        with self._lock:  # who closes at the same time waits until all is recorded
            if self._opened is not None:
                self._opened.close()
                self._opened = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # ── running ──────────────────────────────────────────────────────────────────────────────────────────────

    def beat(self, client_ip: str | None = None, *, until_all_ended: bool = False) -> BeatReport:
        """Run what is due, and return the counts of the HTTP answer.

        Lasts as long as the flows that it started, at most the time budget; with `until_all_ended`, until the
        last has ended. Raises DatabaseUnavailable.
        """
        return self._engine.beat(client_ip, until_all_ended=until_all_ended)

    def trigger_run(self, name: str) -> DataFlowRun:
        """Run one flow now, in this process, whatever its schedule says, and return the run.

        Raises what the flow raised, after recording it; FlowNotFound; AlreadyRunning; DatabaseUnavailable.
        """
        outcome = self._engine.run_now(_name(name))
        exception, outcome.exception = (
            outcome.exception,
            None,
        )  # nothing of ours keeps what the flow held alive
        if exception is not None:
            try:
                raise exception
            finally:
                del exception  # this frame is in its traceback: a circle that only the collector would free
        row = self._database.run(self._queries.get_run, run_id=outcome.run.run_id)
        if row is None:
            raise FlowNotFound(name)
        return _run(row)

    def health(self) -> Health:
        """Say whether the database is reachable, its schema whole, and what ended is on record within one TTL.

        Never raises; takes four seconds at most.
        """
        opened = self._opened
        if opened is None:
            return Health(ok=False, reason="not started")
        stuck = opened.engine.stuck_threads if opened.engine else 0
        try:
            seconds = opened.database.run_within(2.0, self._look)
        except HeartbeatError as exc:
            return Health(ok=False, stuck_threads=stuck, reason=str(exc))
        problem = opened.engine.problem() if opened.engine else None
        return Health(
            ok=problem is None, stuck_threads=stuck, reason=problem, seconds_since_heartbeat=seconds
        )

    def _look(self, conn: Any) -> float | None:
        check_schema(conn, self._queries)
        if damage := self._queries.list_damage(conn):
            raise SchemaError("; ".join(row.problem for row in damage))
        seconds: float | None = self._queries.seconds_since_heartbeat(conn)
        return seconds

    # ── flows and their history ──────────────────────────────────────────────────────────────────────────────

    def add_flow(
        self,
        name: str,
        *,
        run_interval: int,
        description: str | None = None,
        enabled: bool = True,
        configuration: dict[str, Any] | None = None,
        run_timeout: int | None = None,
    ) -> DataFlowRecord:
        """Insert a flow; `run_interval` and `run_timeout` are whole seconds.

        Raises ValidationError, whose `field` names the column.
        """
        values = {
            "name": validation.text("name", name),
            "description": None if description is None else validation.text("description", description),
            "enabled": validation.boolean("enabled", enabled),
            "configuration": validation.json_object(
                "configuration", {} if configuration is None else configuration
            ),
            "run_interval": validation.whole_number("run_interval", run_interval),
            "run_timeout": None
            if run_timeout is None
            else validation.whole_number("run_timeout", run_timeout),
        }
        try:
            return _record(self._database.run(self._queries.add_flow, **values))
        except ValidationError as exc:
            given = {"name": name, "run_interval": run_interval, "run_timeout": run_timeout}
            raise ValidationError(
                f"{exc}; got {safe_repr(given[exc.field]):.100}" if exc.field in given else str(exc),
                field=exc.field,
                value=given.get(exc.field or ""),
            ) from exc

    def due_to_run(self) -> list[DataFlowRecord]:
        """Return the flows that are due now, oldest first."""
        with self._database.transaction() as conn:
            moment = self._queries.database_time(conn)
            rows = self._queries.due_to_run(conn, as_of=moment, run_tolerance=self.settings.run_tolerance)
        return [_record(row) for row in rows]

    def flows(self) -> list[DataFlowRecord]:
        """Return every flow, by name."""
        return [_record(row) for row in self._database.run(self._queries.list_flows)]

    def flow_status(self) -> list[dict[str, Any]]:
        """Return every flow with how it stands: the columns of data_flow_status and of data_flows."""
        rows = self._database.run_within(60.0, self._queries.list_flow_status)
        return [{**row._asdict(), "configuration": parse_json(row.configuration)} for row in rows]

    def runs(self, name: str | None = None, *, limit: int = 20) -> list[DataFlowRun]:
        """Return the newest runs, of one flow or of all, newest first. Raises FlowNotFound."""
        if validation.whole_number("limit", limit) < 0:
            raise ValidationError(f"limit must not be negative; got {limit}", field="limit", value=limit)
        if name is None:
            rows = self._database.run(self._queries.list_runs, max_rows=limit)
        else:
            flow = self._database.run(self._queries.find_flow, name=_name(name))
            if flow is None:
                raise FlowNotFound(name)
            rows = self._database.run(self._queries.list_runs_of_flow, data_flow_id=flow.id, max_rows=limit)
        return [_run(row) for row in rows]

    def prune(self, progress: Callable[[int], None] | None = None) -> int:
        """Delete all ended runs and heartbeats older than the retention; returns how many rows.

        Works in batches, and calls `progress` with each one's count. A retention of 0 keeps everything.
        """
        total = 0
        for deleted in prune(self._database, self._queries, self.settings.retention_days):
            total += deleted
            if progress is not None:
                progress(deleted)
        return total

    @property
    def _database(self) -> Database:
        opened = self._opened
        if opened is None:
            raise DatabaseUnavailable("the service is not started; use `with Heartbeat(…) as hb:`")
        return opened.database

    @property
    def _engine(self) -> Engine:
        opened = self._opened
        if opened is None or opened.engine is None:
            raise DatabaseUnavailable("the service is not started; use `with Heartbeat(…) as hb:`")
        return opened.engine


class _Opened:
    """What a started service holds and must give back."""

    def __init__(self, database: Database, deadlines: Deadlines) -> None:
        self.database = database
        self.deadlines = deadlines
        self.engine: Engine | None = None

    @classmethod
    def open(cls, settings: Settings, queries: Queries) -> _Opened:
        deadlines = Deadlines()
        deadlines.start()
        opened = cls(Database(settings, queries, deadlines), deadlines)
        try:
            opened.database.open()
            if opened.database.is_embedded:
                from heartbeat.postgres.migrate import upgrade  # yoyo is a tenth of the time to start

                upgrade(opened.database.url)
            with closing(opened.database.connect()) as conn, translated():
                check_schema(conn, queries)
                queries.check(conn)
        except BaseException:
            opened.close()
            raise
        return opened

    def run_flows(self, settings: Settings, registry: Registry, queries: Queries) -> None:
        for cls in registry.classes:
            if cls.run_interval is not None:
                _add_row_of(cls, self.database, queries)
        engine = Engine(settings, registry, self.database, queries, self.deadlines)
        engine.start()
        self.engine = engine

    def close(self) -> None:
        if self.engine is not None:
            self.engine.close()
        self.database.close()
        self.deadlines.stop()


def _add_row_of(cls: type[DataFlow], database: Database, queries: Queries) -> None:
    """Insert the row of a class that names an interval; never touches one that is there."""
    name = cls.name or cls.__name__
    database.run(
        queries.add_flow_if_absent,
        name=name,
        description=(cls.__doc__ or "").strip().split("\n", 1)[0] or None,
        configuration=json.dumps({} if name == cls.__name__ else {"class_name": cls.__name__}),
        run_interval=cls.run_interval,
    )


def _record(row: Any) -> DataFlowRecord:
    return DataFlowRecord(**{**row._asdict(), "configuration": parse_json(row.configuration)})


def _run(row: Any) -> DataFlowRun:
    columns = {field.name: getattr(row, field.name) for field in fields(DataFlowRun)}
    return DataFlowRun(**{**columns, "result": parse_json(row.result)})


def _name(value: object) -> str:
    """Accept a name that Postgres could have stored."""
    try:
        return validation.text("name", value)
    except ValidationError as exc:
        raise FlowNotFound(str(value)) from exc
