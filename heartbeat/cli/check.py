"""What `heartbeat check` looks at: each thing that a start needs, by itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace

from heartbeat.api import Heartbeat
from heartbeat.errors import HeartbeatError, QueryError, SchemaError, SettingsError
from heartbeat.flows import Registry
from heartbeat.postgres.queries import SHIPPED, Queries
from heartbeat.settings import Settings


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was checked: what was found, or the problem."""

    subject: str
    found: str = ""
    problem: HeartbeatError | None = None


def checkup(settings: Settings) -> Iterator[Finding]:
    """Check the settings' consequences one after the other; what depends on a failed one is left out."""
    yield Finding("settings", _summary(settings))
    yield _flows(settings)
    files = _files(settings)
    yield files
    # Files that cannot be read are no reason not to look at the database: the shipped ones do for that.
    yield from _database(settings, statements=files.problem is None)


def _summary(settings: Settings) -> str:
    tokens = "anybody" if settings.allow_anonymous else "no token (`heartbeat serve` wants one)"
    if settings.tokens:
        tokens = "one token" if len(settings.tokens) == 1 else f"{len(settings.tokens)} tokens"
    networks = ", ".join(map(str, settings.allowed_ips)) or "any address"
    return f"endpoint {settings.path}; {tokens}; {networks}"


def _flows(settings: Settings) -> Finding:
    try:
        classes = Registry((), settings.flows).classes
    except SettingsError as exc:
        return Finding("flows", problem=exc)
    if not settings.flows:
        return Finding("flows", "HEARTBEAT_FLOWS names no module")
    named = (
        f"{cls.__name__} (every {cls.run_interval} s)"
        if cls.run_interval
        else f"{cls.__name__} (no interval)"
        for cls in classes
    )
    return Finding("flows", f"{', '.join(settings.flows)}: {', '.join(named) or 'no flow class'}")


def _files(settings: Settings) -> Finding:
    directory = settings.sql_dir or SHIPPED
    try:
        Queries(settings.sql_dir)
    except QueryError as exc:
        return Finding("sql files", problem=exc)
    return Finding("sql files", f"{len(list(directory.glob('*.sql')))} in {directory}")


def _database(settings: Settings, *, statements: bool) -> Iterator[Finding]:
    chosen = replace(settings, flows=(), sql_dir=settings.sql_dir if statements else None)
    problem: HeartbeatError | None = None
    damage: str | None = None
    with closing(Heartbeat(settings=chosen)) as heartbeat:
        try:
            heartbeat.start(run_flows=False)
            damage = heartbeat.health().reason
        except HeartbeatError as exc:
            problem = exc
    reached = problem is None or isinstance(problem, SchemaError | QueryError)
    yield Finding("database", settings.database_label, None if reached else problem)
    if not reached:
        return
    wrong_schema = isinstance(problem, SchemaError)
    yield Finding("schema", "is this version's", problem if wrong_schema else None)
    if statements and not wrong_schema:
        yield Finding("statements", "each fits the schema", problem)
    if problem is None:
        yield Finding("state", "can be written, is whole", SchemaError(damage) if damage else None)
