"""One PostgreSQL server for the whole run, a fresh database and a clean environment for every test.

The controller starts the server and hands its URL to the xdist workers; each worker migrates one template
database with the project's own migrations, and every test gets a clone of it.
"""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.support import postgres
from tests.support.serving import Service, Services

SERVER = pytest.StashKey[postgres.Server]()


# --- the server -----------------------------------------------------------------------------------------


def pytest_configure(config: pytest.Config) -> None:
    # Under nohup SIGHUP is ignored, and so it would be by every process that a test starts.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # and SIGINT behind a shell's &
    if _is_worker(config) or config.option.collectonly:
        return
    try:
        config.stash[SERVER] = postgres.start(
            os.environ.get("HEARTBEAT_TEST_POSTGRES"), os.environ.get("HEARTBEAT_TEST_IMAGE")
        )
    except ValueError as exc:
        raise pytest.UsageError(str(exc)) from exc


def pytest_unconfigure(config: pytest.Config) -> None:
    if server := config.stash.get(SERVER, None):
        server.stop()


def pytest_report_header(config: pytest.Config) -> str | None:
    server = config.stash.get(SERVER, None)
    return f"postgres: {server.describe()}" if server else None


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Hand the server's URL to an xdist worker."""
    node.workerinput["server_url"] = node.config.stash[SERVER].url


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


@pytest.fixture(scope="session")
def server_url(pytestconfig: pytest.Config) -> str:
    """URL of the server's maintenance database, for creating databases and roles; never put tables there."""
    if _is_worker(pytestconfig):
        return str(pytestconfig.workerinput["server_url"])
    return pytestconfig.stash[SERVER].url


# --- databases ------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def template_database(server_url: str) -> Iterator[str]:
    """Name of a database that holds the migrated schema and nothing else."""
    from heartbeat.postgres.migrate import upgrade

    name = _fresh_name("template")
    try:
        upgrade(postgres.create_database(server_url, name))
        yield name
    finally:
        postgres.drop_database(server_url, name)


@pytest.fixture
def new_database(server_url: str) -> Iterator[Callable[..., str]]:
    """Create databases for the length of a test: `new_database(template="template0")` returns a URL."""
    names: list[str] = []

    def create(template: str = "template0") -> str:
        names.append(_fresh_name("test"))
        return postgres.create_database(server_url, names[-1], template)

    yield create
    for name in names:
        postgres.drop_database(server_url, name)


@pytest.fixture
def database_url(new_database: Callable[..., str], template_database: str) -> str:
    """URL of a database of this test's own, migrated and empty."""
    return new_database(template_database)


@pytest.fixture
def empty_database_url(new_database: Callable[..., str]) -> str:
    """URL of a database of this test's own that was never migrated."""
    return new_database()


@pytest.fixture
def db(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    """A DBA's psql: a connection to this test's database on which every statement commits at once."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


def _fresh_name(kind: str) -> str:
    return f"heartbeat_{kind}_{secrets.token_hex(6)}"


# --- a clean place to stand -----------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither the caller's `HEARTBEAT_…` variables nor a `.env` file may reach what is tested."""
    for name in [name for name in os.environ if name.startswith("HEARTBEAT_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def service(tmp_path: Path, database_url: str) -> Iterator[Services[Service]]:
    """Start `heartbeat serve` on this test's database: `service(source="…", runner_ttl=3)` gives one."""
    services = Services(partial(Service, tmp_path), database_url=database_url)
    yield services
    services.end_all()


# --- in CI nothing is skipped ---------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    return _refuse_skip((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, Any, Any]:
    return _refuse_skip((yield))


def _refuse_skip(report: Any) -> Any:
    """Where `CI` is set, a skipped test or module is a failure: nobody reads CI's list of skips."""
    expected_failure = hasattr(report, "wasxfail")
    if os.environ.get("CI") == "true" and report.skipped and not expected_failure:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"skipped, and in CI nothing may be: {reason}"
    return report
