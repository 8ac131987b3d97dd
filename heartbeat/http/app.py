"""The endpoint: a Starlette app that judges a request, makes one call and answers."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from starlette.applications import Starlette
from starlette.routing import Match, Route
from starlette.types import Receive, Scope, Send

from heartbeat import logs
from heartbeat.api import Heartbeat
from heartbeat.errors import DatabaseUnavailable, QueryError, SchemaError, SettingsError, Stopping
from heartbeat.flows import DataFlow
from heartbeat.http.security import client_address, decide
from heartbeat.models import BeatReport, Health
from heartbeat.settings import Settings
from heartbeat.threads import Busy, Shared, Threads, waited

logger = logging.getLogger(__name__)

_BEATS = 64  # heartbeats that wait for their flows at once; each holds a thread
_HEALTH_SECONDS = 5.0
_REPORTED = [column.name for column in dataclasses.fields(BeatReport)]
_LOGGED = [*(name for name in _REPORTED if name.startswith("flows_")), "heartbeat_id"]

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


def create_app(
    *, flows: Iterable[type[DataFlow]] = (), heartbeat: Heartbeat | None = None, **settings: Any
) -> Starlette:
    """Make the app: a heartbeat at the path of the settings, `health` beside it, nothing else.

    `settings` are the settings' names in lower case. It starts with its lifespan; mounted in another app,
    where no lifespan reaches it, with its first request. `app.state.heartbeat` is the Heartbeat: such a host
    calls `app.state.heartbeat.close()` when it stops, which waits for running flows as long as the drain
    timeout says. (`stop_claiming()` before that is for a signal handler: it returns at once.)

    Raises SettingsError for a bad setting, and where there is neither a token nor `allow_anonymous`.
    """
    if heartbeat is None:
        heartbeat = Heartbeat(flows=flows, **settings)
    elif flows or settings:
        raise TypeError("create_app takes a heartbeat, or the flows and settings to make one; not both")
    require_token(heartbeat.settings)
    service = _Service(heartbeat)
    app = Starlette(
        routes=[
            _ExactRoute(heartbeat.settings.path, _Endpoint(service.heartbeat), name="heartbeat"),
            _ExactRoute(heartbeat.settings.health_path, _Endpoint(service.health), name="health"),
        ],
        lifespan=service.lifespan,
    )
    # The redirect would show the caller's own Host header to whoever asks, before any authentication.
    app.router.redirect_slashes = False
    app.router.default = _Endpoint(service.not_found)
    app.state.heartbeat = heartbeat
    return app


def require_token(settings: Settings) -> None:
    """Raise SettingsError where anybody could send a heartbeat and nobody said that this is meant."""
    if not settings.tokens and not settings.allow_anonymous:
        raise SettingsError(
            "no token is set: set HEARTBEAT_TOKEN or HEARTBEAT_TOKEN_FILE "
            "(or HEARTBEAT_ALLOW_ANONYMOUS=true, to let anybody start flows)"
        )


def payload(report: BeatReport) -> dict[str, Any]:
    """Make the object that answers a heartbeat. Times are UTC in whole seconds, `next_due_at` rounded up."""
    answer = {name: getattr(report, name) for name in _REPORTED}
    answer["timestamp"] = _instant(report.timestamp)
    if report.next_due_at is not None:
        answer["next_due_at"] = _instant(report.next_due_at, up=True)
    return answer


@dataclass(slots=True)
class Answer:
    """What goes back to the caller."""

    status: int
    body: Mapping[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)
    log: Callable[[], None] = lambda: None
    """Write the request's line, if it has none yet. Called once the answer is sent, which it would delay by a tenth."""


class _ExactRoute(Route):
    """A route for every method of a path. Starlette's own takes the path with a line feed behind it, too."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        return (Match.NONE, {}) if scope["path"].endswith("\n") else super().matches(scope)


class _Endpoint:
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
            answer = _failed(exc, {"event": "request"})
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


class _Service:
    """The app's handlers around one Heartbeat."""

    def __init__(self, heartbeat: Heartbeat) -> None:
        self._core = heartbeat
        self._settings = heartbeat.settings
        self._beats = Threads("heartbeat-request", _BEATS)
        # Threads of their own: beats that hang never make health unreachable.
        self._start = Shared("heartbeat-start", self._start_core)
        self._check = Shared("heartbeat-health", self._check_core)
        self._started = False

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        await waited(self._start.ask())
        try:
            yield
        finally:
            self._core.stop_claiming()
            await Threads("heartbeat-close", 1).run(self._core.close)

    async def heartbeat(self, scope: Scope) -> Answer:
        decision = decide(_peer(scope), scope["headers"], scope["method"], self._settings)
        if not decision.allowed:
            return _refusal(decision.status, client=decision.client, reason=decision.reason)
        try:
            beat = self._beats.submit(lambda: self._beat(decision.client))
        except Busy as exc:
            return _failed(exc, {"event": "heartbeat", "client": decision.client})
        try:
            return await waited(beat)
        except asyncio.CancelledError:
            # Nobody waits for the answer any more; the heartbeat goes on, and to the log.
            beat.add_done_callback(lambda _: beat.result().log())
            raise

    def _beat(self, client: str | None) -> Answer:
        """Make one heartbeat."""
        began = time.monotonic()
        fields: dict[str, Any] = {"event": "heartbeat", "client": client}
        try:
            self._ensure_started()
            report = self._core.beat(client)
            answer = Answer(200, payload(report))
        except BaseException as exc:  # noqa: BLE001 -- SystemExit would end the server
            return _failed(exc, fields | {"duration_ms": _ms_since(began)})
        fields |= {"status": 200, "duration_ms": _ms_since(began)}
        answer.log = lambda: _log_heartbeat(answer.body, fields)
        return answer

    async def health(self, scope: Scope) -> Answer:
        client = self._client(scope)
        if scope["method"] not in ("GET", "HEAD"):
            return _refusal(405, client=client, reason="method not allowed", headers={"allow": "GET, HEAD"})
        began = time.monotonic()
        health = await self._healthy()
        status = 200 if health.ok else 503
        fields = {"event": "health", "client": client, "status": status, "duration_ms": _ms_since(began)}
        logger.debug("health", extra=fields | ({"reason": health.reason} if health.reason else {}))
        state = "ok" if health.ok else "unavailable"
        return Answer(status, {"status": state, "stuck_threads": health.stuck_threads})

    async def _healthy(self) -> Health:
        try:
            # One check for everybody who asks meanwhile: a flood of them costs no more than one.
            return await asyncio.wait_for(waited(self._check.ask()), _HEALTH_SECONDS)
        except TimeoutError:
            return Health(ok=False, reason="the check takes too long")

    def _check_core(self) -> Health:
        try:
            self._ensure_started()
            return self._core.health()
        except BaseException as exc:  # noqa: BLE001 -- whatever it is, the answer is 503
            return Health(ok=False, reason=str(exc))

    async def not_found(self, scope: Scope) -> Answer:
        fields = {"client": self._client(scope), "status": 404, "method": scope["method"]}
        logger.info("not found", extra={"event": "not_found", **fields, "path": scope["path"][:200]})
        return Answer(404, {"error": "not found"})

    def _client(self, scope: Scope) -> str | None:
        address = client_address(_peer(scope), scope["headers"], self._settings.trusted_proxies)
        return None if address is None else str(address)

    def _ensure_started(self) -> None:
        """Start where no lifespan did. All who wait share the outcome; after a failure the next one tries."""
        if not self._started:
            self._start.ask().result()

    def _start_core(self) -> None:
        logs.ensure(self._settings.log_format)
        if not self._settings.tokens:
            logger.warning(
                "HEARTBEAT_ALLOW_ANONYMOUS is set: anybody who reaches this address starts flows",
                extra={"event": "anonymous"},
            )
        self._core.start()
        self._started = True


def _log_heartbeat(body: Mapping[str, Any], fields: Mapping[str, Any]) -> None:
    logger.info("heartbeat", extra={**fields, **{name: body[name] for name in _LOGGED}})


def _refusal(
    status: int, *, client: str | None, reason: str | None, headers: Mapping[str, str] | None = None
) -> Answer:
    error, usual_headers = _REFUSALS[status]
    fields = {"event": "rejected", "client": client, "status": status, "reason": reason}
    logger.warning("rejected", extra=fields)
    return Answer(status, {"error": error}, headers or usual_headers)


def _failed(exc: BaseException, fields: Mapping[str, Any]) -> Answer:
    """Log what went wrong and tell the caller no more than the table says."""
    status, error, seconds = next(row[1:] for row in _ANSWERS if isinstance(exc, row[0]))
    unexpected = status == 500
    reason = {} if unexpected else {"reason": str(exc)}
    logger.error(error, exc_info=exc if unexpected else None, extra={**fields, "status": status, **reason})
    return Answer(status, {"error": error}, {"retry-after": str(seconds)} if seconds else {})


def _peer(scope: Scope) -> str | None:
    client = scope.get("client")
    return client[0] if client else None


def _ms_since(began: float) -> float:
    return round((time.monotonic() - began) * 1000, 2)


def _instant(moment: datetime, *, up: bool = False) -> str:
    moment = moment.astimezone(UTC)
    if up and moment.microsecond and moment.year < 9999:  # rounding up there would leave Python's calendar
        moment += timedelta(seconds=1)
    return moment.replace(microsecond=0).isoformat().replace("+00:00", "Z")
