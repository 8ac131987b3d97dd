"""Serve the app with uvicorn so that no client can hold it and every run is recorded before it ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, ClassVar

import h11
from starlette.types import ASGIApp
from uvicorn import Config, Server
from uvicorn.protocols.http.h11_impl import H11Protocol

from heartbeat.api import Heartbeat
from heartbeat.http.security import parse_address

logger = logging.getLogger(__name__)

_BACKLOG = 512  # also how many connections asyncio accepts at a stroke, before one can be shed
_MAX_HEADER_BYTES = 65_536
_MAX_UNREAD_BYTES = 1_048_576  # of a body that nobody asked for, after the answer
_FILES_WANTED = 65_536
_EXIT_MARGIN = 4  # seconds past the drain for heartbeats to record and answer, before they are cut off


def serve(heartbeat: Heartbeat, app: ASGIApp, *, host: str = "127.0.0.1", port: int = 8000) -> int:
    """Serve until SIGTERM, SIGINT or SIGHUP, drain, record what still runs, and return the exit status.

    The first signal stops claiming; running flows get the drain timeout. A second one ends the drain at
    once, and still records. Whatever `heartbeat.start()` raises is raised, with nothing left behind.
    """
    try:
        listener = _bind(host, port)
    except (OSError, OverflowError, UnicodeError) as exc:
        logger.error("cannot listen on %s port %d: %s", host, port, getattr(exc, "strerror", None) or exc)
        return 1
    server = _Server(heartbeat, _config(app, heartbeat.settings.drain_timeout))
    server.url = _url(listener, heartbeat.settings.path)
    # Ours before and after uvicorn's own: a signal while starting or recording must not kill the process.
    with listener, _signals(server.handle_exit):
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


def leave(status: int) -> None:
    """End the process, also where a thread that never ends would hold the interpreter. For commands only."""
    logging.shutdown()
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    others = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
    if any(not thread.daemon for thread in others):
        os._exit(status)
    sys.exit(status)


class _Server(Server):
    """uvicorn's server, which drains from the signal on and exits with 0 after it."""

    url = ""

    def __init__(self, heartbeat: Heartbeat, config: Config) -> None:
        super().__init__(config)
        self._heartbeat = heartbeat
        self._drain_timeout = heartbeat.settings.drain_timeout

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            logger.info("listening on %s", self.url, extra={"event": "listening"})

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        logger.info(
            "stopping; running flows get up to %g s", self._drain_timeout, extra={"event": "stopping"}
        )
        await super().shutdown(sockets=sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # uvicorn waits for open requests before it ends the lifespan: the drain has to start here. It would
        # also raise the signal again after a graceful stop, which is why it is not told of it.
        self._heartbeat.stop_claiming(now=self.should_exit)
        self.should_exit = True


class Connection(H11Protocol):
    """uvicorn's HTTP/1.1, with a limit on everything that a client may do slowly or without end.

    `idle` holds the connections that have no request in progress, oldest first: those are shed when there
    are too many, and each is closed when its next request takes too long to arrive.
    """

    idle: ClassVar[dict[Connection, asyncio.TimerHandle]] = {}
    max_idle: ClassVar[int] = 1000
    header_seconds: ClassVar[float] = 10.0
    write_seconds: ClassVar[float] = 10.0

    _unread = 0
    _stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._note()
        if len(self.idle) > self.max_idle:
            oldest = next(iter(self.idle))
            oldest._forget()
            oldest.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.cycle is not None and self.cycle.response_complete and self.conn.their_state is h11.SEND_BODY:
            self._unread += len(data)
            if self._unread > _MAX_UNREAD_BYTES:
                self.transport.close()
                return
        super().data_received(data)

    def handle_events(self) -> None:
        super().handle_events()
        self._note()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._note()

    def pause_writing(self) -> None:
        # The client sends requests and reads no answers.
        super().pause_writing()
        self._stalled = self.loop.call_later(self.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def shutdown(self) -> None:
        try:
            super().shutdown()
        except h11.LocalProtocolError:  # it is being closed for what it sent
            self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        client = parse_address(self.client[0]) if self.client else None
        fields = {"event": "rejected", "client": client, "status": 400, "reason": "malformed request"}
        logger.warning("rejected", extra=fields)
        if self.cycle is not None:
            self.cycle.disconnected = True  # its own answer, if one is still to come, would be one too many
        body = json.dumps({"error": "malformed request"}).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        with contextlib.suppress(h11.LocalProtocolError):  # an answer is on its way already
            for event in (
                h11.Response(status_code=400, headers=headers),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _unsupported_upgrade_warning(self) -> None:
        """Say nothing: the request is answered as if it had not asked."""

    def _note(self) -> None:
        """Keep `idle` true, whatever has just happened. A closing connection too may have to be helped."""
        in_progress = self.cycle is not None and not self.cycle.response_complete
        if in_progress and not self.transport.is_closing():
            self._forget()
            self._unread = 0
        elif self not in self.idle:
            self.idle[self] = self.loop.call_later(self.header_seconds, self.transport.abort)

    def _forget(self) -> None:
        timer = self.idle.pop(self, None)
        if timer is not None:
            timer.cancel()


def _config(app: ASGIApp, drain_timeout: float) -> Config:
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # its warnings are ours, in other words
    return Config(
        app,
        loop="asyncio",
        http=_connections(),
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


def _connections() -> type[Connection]:
    """Make the protocol of one server: its own set of idle connections, as many as it has files for."""
    spare = (_raise_file_limit() - _BACKLOG) // 2
    return type("Connection", (Connection,), {"idle": {}, "max_idle": max(64, min(1000, spare))})


def _raise_file_limit() -> int:
    """Take as many files as the system allows, within reason: each connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    wanted = _FILES_WANTED if hard == unlimited else min(hard, _FILES_WANTED)
    if soft != unlimited and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return _FILES_WANTED if soft == unlimited else soft


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


@contextlib.contextmanager
def _signals(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """Handle the signals that end a service; one that is ignored, as under nohup, stays so."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
