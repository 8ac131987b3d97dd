"""Serve the app with uvicorn so that no client can hold it and every run is recorded before it ends."""

from __future__ import annotations

import contextlib
import logging
import math
import socket
from collections.abc import Iterator

from starlette.types import ASGIApp
from uvicorn import Config, Server

from heartbeat.api import Heartbeat
from heartbeat.http.connection import limited
from heartbeat.process import on_signals

log = logging.getLogger("heartbeat")

_BACKLOG = 512  # also how many connections asyncio accepts at a stroke, before one can be shed
_MAX_HEADER_BYTES = 65_536
_EXIT_MARGIN = 4  # seconds past the drain for heartbeats to record and answer, before they are cut off


def serve(heartbeat: Heartbeat, app: ASGIApp, *, host: str = "127.0.0.1", port: int = 8000) -> int:
    """Serve until SIGTERM, SIGINT or SIGHUP, drain, record what still runs, and return the exit status.

    The first signal stops claiming; running flows get the drain timeout. A second one ends the drain at
    once, and still records. Whatever `heartbeat.start()` raises is raised, with nothing left behind.
    """
    try:
        listener = _bind(host, port)
    except (OSError, OverflowError, UnicodeError) as exc:
        reason = getattr(exc, "strerror", None) or exc
        log.error("cannot listen on %s port %d: %s", host, port, reason, extra={"event": "cannot_listen"})
        return 1
    url = _url(listener, heartbeat.settings.path)
    server = _Server(heartbeat, url, _config(app, heartbeat.settings.drain_timeout))
    # Around all of it: a signal while starting or recording must not kill the process.
    with listener, on_signals(server.stop):
        try:
            heartbeat.start()
            if not server.should_exit:
                server.run(sockets=[listener])
        except SystemExit:
            return 1  # uvicorn has logged why
        finally:
            heartbeat.stop_claiming()
            heartbeat.close()
    return 0


class _Server(Server):
    """uvicorn's server, which drains from the signal on and exits with 0 after it."""

    def __init__(self, heartbeat: Heartbeat, url: str, config: Config) -> None:
        super().__init__(config)
        self._heartbeat = heartbeat
        self._url = url

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            log.info("listening on %s", self._url, extra={"event": "listening"})

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        log.info(
            "stopping; running flows get up to %g s",
            self._heartbeat.settings.drain_timeout,
            extra={"event": "stopping"},
        )
        await super().shutdown(sockets=sockets)

    def stop(self, number: int) -> None:
        """Handle a signal. The drain starts here: uvicorn waits for open requests before it ends the lifespan."""
        self._heartbeat.stop_claiming(now=self.should_exit)
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to `stop`. uvicorn would take one that is ignored, and raise it again after the drain."""
        yield


def _config(app: ASGIApp, drain_timeout: float) -> Config:
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # its warnings are ours, in other words
    return Config(
        app,
        loop="asyncio",
        http=limited(_BACKLOG),
        ws="none",
        lifespan="on",
        interface="asgi3",
        log_config=None,
        access_log=False,  # every request is logged by the app
        proxy_headers=False,  # who is believed is a setting of ours
        server_header=False,
        backlog=_BACKLOG,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=math.ceil(drain_timeout) + _EXIT_MARGIN,
        h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
    )


def _bind(host: str, port: int) -> socket.socket:
    """Take the address before anything is started; who connects meanwhile waits until the app is ready."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(host != "::"))
        listener.bind(address)
        listener.listen(_BACKLOG)  # binding alone would let a second process bind, and fail later
    except BaseException:
        listener.close()
        raise
    return listener


def _url(listener: socket.socket, path: str) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}{path}" if ":" in host else f"http://{host}:{port}{path}"
