"""A client's connection: uvicorn's HTTP/1.1, with a limit on everything that a client may do slowly or without end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import resource
from typing import ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from heartbeat.http.security import parse_address

log = logging.getLogger("heartbeat")

_MAX_UNREAD_BYTES = 1_048_576  # of a body that nobody asked for, after the answer
_FILES_WANTED = 65_536


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
        log.warning("rejected", extra=fields)
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


def limited(backlog: int) -> type[Connection]:
    """Make the protocol of one server: its own set of idle connections, as many as it has files for."""
    spare = (_raise_file_limit() - backlog) // 2
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
