"""`heartbeat serve` as its users run it: a process of its own, spoken to over HTTP only."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, Self, TypeVar
from urllib.parse import urljoin

import httpx2

from tests.support.environment import environment, write_flows
from tests.support.waiting import wait_until

TOKEN = "a-token-for-tests"
LISTENING = re.compile(r"listening on (http://127\.0\.0\.1:\d+/[^\s\"]*)")


class Service:
    """One `heartbeat serve` process: start it, beat it, stop it or kill it.

    `settings` are the contract's by lower-case name (`runner_ttl=3`); `token` is set unless it is given (None
    for no token). `source` is the text of a module of flows: it is written into `directory`, which is on the
    import path, and named in `HEARTBEAT_FLOWS`. The process's output goes to a file, which `log()` reads.
    """

    def __init__(
        self,
        directory: Path,
        *,
        source: str | None = None,
        arguments: tuple[str, ...] = (),
        environ: dict[str, str] | None = None,
        **settings: Any,
    ) -> None:
        settings = {"token": TOKEN, **settings}
        if source is not None:
            settings["flows"] = write_flows(directory, source)
        settings = {name: value for name, value in settings.items() if value is not None}
        self.token = str(settings.get("token", ""))
        self.log_path = directory / f"serve-{time.monotonic_ns()}.log"
        self.url = ""
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "heartbeat", "serve", "--port", "0", *arguments],
                cwd=directory,
                env=environment(**settings) | {"PYTHONUNBUFFERED": "1"} | (environ or {}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    # --- its life

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait_until_listening(self, seconds: float = 30) -> Self:
        """Wait for the line that says where it listens; fail with the log of a process that ends instead."""
        try:
            self.url = wait_until(self._listening, seconds=seconds, what="`heartbeat serve` to listen")
        except AssertionError as exc:
            raise AssertionError(f"{exc}; it wrote:\n{self.log()}") from None
        return self

    def _listening(self) -> str | None:
        if found := LISTENING.search(self.log()):
            return found[1]
        if self.process.poll() is not None:
            raise AssertionError(f"`heartbeat serve` ended with status {self.process.returncode}")
        return None

    def signal(self, number: signal.Signals) -> None:
        """Send the process a signal; one that has ended already gets none."""
        self.process.send_signal(number)

    def stop(self, seconds: float = 30) -> int:
        """Ask the process to stop, as a supervisor does, and return its exit status."""
        self.signal(signal.SIGTERM)
        return self.wait(seconds)

    def kill(self) -> int:
        """End the process without asking, as the kernel does when memory runs out."""
        self.signal(signal.SIGKILL)
        return self.wait()

    def wait(self, seconds: float = 30) -> int:
        """Wait for the process to end by itself, and return its exit status."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"`heartbeat serve` still runs after {seconds} s:\n{self.log()}") from None

    def log(self) -> str:
        """Return everything that the process has written so far."""
        return self.log_path.read_text(errors="replace")

    # --- what is asked of it

    def beat(self, *, token: str | None = None, timeout: float = 40, **request: Any) -> httpx2.Response:
        """Send one heartbeat with the service's token, or another, and return the answer."""
        headers = {"Authorization": f"Bearer {self.token if token is None else token}"}
        headers |= request.pop("headers", {})
        return httpx2.post(self.url, headers=headers, timeout=timeout, trust_env=False, **request)

    def health(self, timeout: float = 10) -> httpx2.Response:
        """Ask how the service is: no token is needed."""
        return httpx2.get(urljoin(self.url, "health"), timeout=timeout, trust_env=False)


S = TypeVar("S", bound=Service)


class Services(Generic[S]):
    """Starts services and, at the end, ends every one that still runs."""

    def __init__(self, start: Callable[..., S], **defaults: Any) -> None:
        self._start = start
        self._defaults = defaults
        self.started: list[S] = []

    def __call__(self, *, wait: bool = True, **options: Any) -> S:
        """Start a service and wait until it listens; `wait=False` returns at once, for a start that fails."""
        service = self._start(**{**self._defaults, **options})
        self.started.append(service)
        return service.wait_until_listening() if wait else service

    def end_all(self) -> None:
        for service in self.started:
            if service.process.poll() is None:
                # A stopped process (SIGSTOP) takes SIGKILL too; nothing here is worth waiting for a drain.
                service.kill()
