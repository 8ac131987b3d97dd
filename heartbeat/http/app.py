"""The endpoint: a Starlette app that judges a request, makes one call and answers."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.types import Scope

from heartbeat import logs
from heartbeat.api import Heartbeat
from heartbeat.errors import SettingsError
from heartbeat.flows import DataFlow
from heartbeat.http.asgi import Answer, Endpoint, ExactRoute, client_of, failure, ms_since, peer_of, refusal
from heartbeat.http.health import HealthCheck
from heartbeat.http.security import decide
from heartbeat.models import BeatReport
from heartbeat.settings import Settings
from heartbeat.threads import Busy, SharedCall, ThreadPool, result_of

log = logging.getLogger("heartbeat")

_BEATS = 64  # heartbeats that wait for their flows at once; each holds a thread
_LOGGED = [
    *(column.name for column in dataclasses.fields(BeatReport) if column.name.startswith("flows_")),
    "heartbeat_id",
]


def create_app(
    *, flows: Iterable[type[DataFlow]] = (), heartbeat: Heartbeat | None = None, **settings: Any
) -> Starlette:
    """Make the app: a heartbeat at the path of the settings, `health` and `live` beside it, nothing else.

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
    handlers = _Handlers(heartbeat)
    health = HealthCheck(heartbeat, handlers.ensure_started)
    app = Starlette(
        routes=[
            ExactRoute(heartbeat.settings.path, Endpoint(handlers.heartbeat), name="heartbeat"),
            ExactRoute(heartbeat.settings.health_path, Endpoint(health.answer), name="health"),
            ExactRoute(heartbeat.settings.live_path, Endpoint(health.answer_live), name="live"),
        ],
        lifespan=handlers.lifespan,
    )
    # The redirect would show the caller's own Host header to whoever asks, before any authentication.
    app.router.redirect_slashes = False
    app.router.default = Endpoint(handlers.not_found)
    app.state.heartbeat = heartbeat
    return app


def require_token(settings: Settings) -> None:
    """Raise SettingsError where anybody could send a heartbeat and nobody said that this is meant."""
    if not settings.tokens and not settings.allow_anonymous:
        raise SettingsError(
            "no token is set: set HEARTBEAT_TOKEN or HEARTBEAT_TOKEN_FILE "
            "(or HEARTBEAT_ALLOW_ANONYMOUS=true, to let anybody start flows)"
        )


class _Handlers:
    """The app's handlers around one Heartbeat, which it starts with its lifespan or with its first request."""

    def __init__(self, heartbeat: Heartbeat) -> None:
        self._core = heartbeat
        self._settings = heartbeat.settings
        self._beats = ThreadPool("heartbeat-request", _BEATS)
        self._start = SharedCall("heartbeat-start", self._start_core)
        self._started = False

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        await result_of(self._start.ask())
        try:
            yield
        finally:
            self._core.stop_claiming()
            await ThreadPool("heartbeat-close", 1).run(self._core.close)

    async def heartbeat(self, scope: Scope) -> Answer:
        decision = decide(peer_of(scope), scope["headers"], scope["method"], self._settings)
        if not decision.allowed:
            return refusal(decision.status, client=decision.client, reason=decision.reason)
        try:
            beat = self._beats.submit(lambda: self._beat(decision.client))
        except Busy as exc:
            return failure(exc, {"event": "heartbeat", "client": decision.client})
        try:
            return await result_of(beat)
        except asyncio.CancelledError:
            # Nobody waits for the answer any more; the heartbeat goes on, and to the log.
            beat.add_done_callback(lambda _: beat.result().log())
            raise

    def _beat(self, client: str | None) -> Answer:
        """Make one heartbeat."""
        began = time.monotonic()
        fields: dict[str, Any] = {"event": "heartbeat", "client": client}
        try:
            self.ensure_started()
            answer = Answer(200, self._core.beat(client).answer())
        except BaseException as exc:  # noqa: BLE001 -- SystemExit would end the server
            return failure(exc, fields | {"duration_ms": ms_since(began)})
        fields |= {"status": 200, "duration_ms": ms_since(began)}
        answer.log = lambda: log.info(
            "heartbeat", extra=fields | {name: answer.body[name] for name in _LOGGED}
        )
        return answer

    async def not_found(self, scope: Scope) -> Answer:
        fields = {"client": client_of(scope, self._settings), "status": 404, "method": scope["method"]}
        log.info("not found", extra={"event": "not_found", **fields, "path": scope["path"][:200]})
        return Answer(404, {"error": "not found"})

    def ensure_started(self) -> None:
        """Start where no lifespan did. All who wait share the outcome; after a failure the next one tries."""
        if not self._started:
            self._start.ask().result()

    def _start_core(self) -> None:
        logs.ensure(self._settings.log_format, self._settings.log_level)
        if not self._settings.tokens:
            log.warning(
                "HEARTBEAT_ALLOW_ANONYMOUS is set: anybody who reaches this address starts flows",
                extra={"event": "anonymous"},
            )
        self._core.start()
        self._started = True
