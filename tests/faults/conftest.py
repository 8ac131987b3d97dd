"""What every fault test stands on: a trace, a fleet of processes, the checker, and a server to kill."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.faults.checker import Limits, Report, Snapshots, Trace, check
from tests.faults.harness import Fleet
from tests.faults.private import PrivateServer
from tests.faults.proxy import Proxy

Rules = Callable[..., Report]


@pytest.fixture
def trace(tmp_path: Path) -> Trace:
    """The file outside Postgres in which flows leave their traces."""
    return Trace(tmp_path / "trace.jsonl")


@pytest.fixture
def fleet(tmp_path: Path, trace: Trace, database_url: str) -> Iterator[Fleet]:
    """Start processes on this test's database, which live and die with a TTL of two seconds."""
    fleet = Fleet(tmp_path, trace, database_url=database_url)
    yield fleet
    fleet.end_all()


@pytest.fixture
def proxy(database_url: str) -> Iterator[Proxy]:
    """A proxy in front of this test's database; the `db` fixture goes round it."""
    with Proxy(database_url) as proxy:
        yield proxy


@pytest.fixture
def rules(trace: Trace) -> Rules:
    """Check every rule and fail on the first violation: `rules(db, snapshots)`."""

    def assert_kept(
        conn: psycopg.Connection[Any],
        snapshots: Snapshots | None = None,
        *,
        settled: bool = True,
        limits: Limits | None = None,
    ) -> Report:
        report = check(trace, conn, limits or Limits(ttl=2), snapshots, settled=settled)
        assert not report.violations, str(report)
        return report

    return assert_kept


@pytest.fixture(scope="session")
def private_server() -> Iterator[PrivateServer]:
    """A server of this worker's own; whoever stops it starts it again."""
    with PrivateServer(max_connections=40) as server:
        yield server


@pytest.fixture(scope="session")
def private_template(private_server: PrivateServer) -> str:
    """Name of a migrated database on the private server."""
    from heartbeat.postgres.migrate import upgrade

    name = private_server.create_database()
    upgrade(private_server.url(name))
    return name


@pytest.fixture
def private_database(private_server: PrivateServer, private_template: str) -> str:
    """Name of a migrated database of this test's own on the private server."""
    return private_server.create_database(private_template)


@pytest.fixture
def private_fleet(
    tmp_path: Path, trace: Trace, private_server: PrivateServer, private_database: str
) -> Iterator[Fleet]:
    """A fleet on the private server."""
    fleet = Fleet(tmp_path, trace, database_url=private_server.url(private_database))
    yield fleet
    fleet.end_all()
