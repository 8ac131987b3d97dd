"""What the handlers stand on: a request as ASGI has it, an Answer, and what is answered when it goes wrong."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.routing import Match, Route
from starlette.types import Receive, Scope, Send

from heartbeat.errors import DatabaseUnavailable, QueryError, SchemaError, Stopping
from heartbeat.http.security import client_address
from heartbeat.settings import Settings
from heartbeat.threads import Busy

log = logging.getLogger("heartbeat")

# From exception to answer, the first that fits: status, what the caller is told, seconds to stay away.
_ANSWERS: tuple[tuple[type[BaseException], int, str, int | None], ...] = (
    (Busy, 503, "too many heartbeats at once", 1),
    (Stopping, 503, "the service is stopping", 5),
    (DatabaseUnavailable, 503, "the database cannot be reached", 5),
    (SchemaError, 503, "the service is not ready", 60),
    (QueryError, 503, "the service is not ready", 60),
    (BaseException, 500, "internal error", None),
)

_REFUSALS: Mapping[int, tuple[str, Mapping[str, str]]] = {
    401: ("unauthorized", {"www-authenticate": "Bearer"}),
    403: ("forbidden", {}),
    405: ("method not allowed", {"allow": "POST"}),
}


@dataclass(slots=True)
class Answer:
    """What goes back to the caller."""

    status: int
    body: Mapping[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)
    log: Callable[[], None] = lambda: None
    """Write the request's line, if it has none yet. Called once the answer is sent, which it would delay by a tenth."""


class ExactRoute(Route):
    """A route for every method of a path. Starlette's own takes the path with a line feed behind it, too."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        return (Match.NONE, {}) if scope["path"].endswith("\n") else super().matches(scope)


class Endpoint:
    """Plain ASGI around a handler: the body is never read."""

    def __init__(self, handle: Callable[[Scope], Awaitable[Answer]]) -> None:
        self._handle = handle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000, "reason": ""})
            return
        try:
            answer = await self._handle(scope)
        except Exception as exc:  # noqa: BLE001 -- the table has an answer for it
            answer = failure(exc, {"event": "request"})
        body = json.dumps(answer.body).encode()
        headers = {
            "content-type": "application/json",
            "content-length": str(len(body)),
            "cache-control": "no-store",
            **answer.headers,
        }
        try:
            await send(
                {
                    "type": "http.response.start",
                    "status": answer.status,
                    "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
                }
            )
            await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
        finally:
            answer.log()


def refusal(
    status: int, *, client: str | None, reason: str | None, headers: Mapping[str, str] | None = None
) -> Answer:
    """Log a request that is turned away, and say no more than the table does."""
    error, usual_headers = _REFUSALS[status]
    fields = {"event": "rejected", "client": client, "status": status, "reason": reason}
    log.warning("rejected", extra=fields)
    return Answer(status, {"error": error}, headers or usual_headers)


def failure(exc: BaseException, fields: Mapping[str, Any]) -> Answer:
    """Log what went wrong and tell the caller no more than the table says."""
    status, error, seconds = next(row[1:] for row in _ANSWERS if isinstance(exc, row[0]))
    unexpected = status == 500
    reason = {} if unexpected else {"reason": str(exc)}
    log.error(error, exc_info=exc if unexpected else None, extra={**fields, "status": status, **reason})
    return Answer(status, {"error": error}, {"retry-after": str(seconds)} if seconds else {})


def peer_of(scope: Scope) -> str | None:
    """Return the address that the request came from, which may be a proxy's."""
    client = scope.get("client")
    return client[0] if client else None


def client_of(scope: Scope, settings: Settings) -> str | None:
    """Return the address of who sent the request, as far as it is believed."""
    address = client_address(peer_of(scope), scope["headers"], settings.trusted_proxies)
    return None if address is None else str(address)


def ms_since(began: float) -> float:
    """Return for how long a request has been handled, as the log says it."""
    return round((time.monotonic() - began) * 1000, 2)
