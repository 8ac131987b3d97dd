"""What can go wrong, as one tree under `HeartbeatError`.

Every message is one line that names the thing and says what to do about it.
"""

from __future__ import annotations

from typing import Any


class HeartbeatError(Exception):
    """Anything that this package raises on purpose."""


class SettingsError(HeartbeatError):
    """A setting is missing, malformed or unknown, or a flow module cannot be used."""


class ValidationError(HeartbeatError):
    """A value was refused: `field` is the column, `value` what was given."""

    def __init__(self, message: str, *, field: str | None = None, value: Any = None) -> None:
        super().__init__(message)
        self.field = field
        self.value = value


class FlowNotFound(HeartbeatError):
    """No row of `data_flows` has the name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no data flow is named {name!r:.100}; `heartbeat flows` lists those there are")
        self.name = name


class AlreadyRunning(HeartbeatError):
    """The flow has a live run, and a flow never has two."""

    def __init__(self, name: str, message: str | None = None) -> None:
        super().__init__(message or f"data flow {name!r} has a live run; wait until it has ended")
        self.name = name


class Stopping(HeartbeatError):
    """The process is stopping and starts nothing any more; another one, or this one later, will."""


class DatabaseUnavailable(HeartbeatError):
    """The database did not answer in time; what was asked may be asked again."""


class SessionEnded(DatabaseUnavailable):
    """The server ended the session instead of running a statement; in another session it can be run."""


class LockTimeout(DatabaseUnavailable):
    """Another session holds a lock that was needed, and did not let go in time."""


class StatementTimeout(DatabaseUnavailable):
    """A statement took longer than it may: the database is slow, or this statement always is."""


class SchemaError(HeartbeatError):
    """The schema in the database is not the one that this version was written for."""


class QueryError(HeartbeatError):
    """A statement of the SQL directory cannot be used: `file` and `query` say which."""

    def __init__(self, message: str, *, file: str, query: str | None = None) -> None:
        super().__init__(message)
        self.file = file
        self.query = query
