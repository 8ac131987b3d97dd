"""`GET health`: is this process fit to take a heartbeat? `GET live`: does it answer at all?

Both without a token, and whatever the allowlist says.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from starlette.types import Scope

from heartbeat.api import Heartbeat
from heartbeat.http.asgi import Answer, client_of, ms_since, refusal
from heartbeat.models import Health
from heartbeat.threads import SharedCall, result_of

log = logging.getLogger("heartbeat")

_SECONDS = 5.0


class HealthCheck:
    """The handler of the route, and the check that it asks for, in a thread of its own."""

    def __init__(self, heartbeat: Heartbeat, ensure_started: Callable[[], None]) -> None:
        self._heartbeat = heartbeat
        self._ensure_started = ensure_started
        # A thread of its own: beats that hang never make health unreachable.
        self._checks = SharedCall("heartbeat-health", self._check)
        self._was_ok = True  # known to the event loop alone

    async def answer(self, scope: Scope) -> Answer:
        client = client_of(scope, self._heartbeat.settings)
        if refused := _refused(scope, client):
            return refused
        began = time.monotonic()
        health = await self._newest()
        self._tell_change(health)
        status = 200 if health.ok else 503
        fields = {"event": "health", "client": client, "status": status, "duration_ms": ms_since(began)}
        log.debug("health", extra=fields | ({"reason": health.reason} if health.reason else {}))
        body = {"status": "ok" if health.ok else "unavailable", "stuck_threads": health.stuck_threads}
        return Answer(status, body)

    async def answer_live(self, scope: Scope) -> Answer:
        """Say that the process answers, and ask nothing of the database: no outage may have it restarted."""
        return _refused(scope, client_of(scope, self._heartbeat.settings)) or Answer(200, {"status": "ok"})

    def _tell_change(self, health: Health) -> None:
        if health.ok == self._was_ok:
            return
        self._was_ok = health.ok
        if health.ok:
            log.info("healthy again", extra={"event": "healthy"})
        else:
            log.warning("unhealthy: %s", health.reason, extra={"event": "unhealthy", "reason": health.reason})

    async def _newest(self) -> Health:
        try:
            # One check for everybody who asks meanwhile: a flood of them costs no more than one.
            return await asyncio.wait_for(result_of(self._checks.ask()), _SECONDS)
        except TimeoutError:
            return Health(ok=False, reason="the check takes too long")

    def _check(self) -> Health:
        try:
            self._ensure_started()
            return self._heartbeat.health()
        except BaseException as exc:  # noqa: BLE001 -- whatever it is, the answer is 503
            return Health(ok=False, reason=str(exc))


def _refused(scope: Scope, client: str | None) -> Answer | None:
    if scope["method"] in ("GET", "HEAD"):
        return None
    return refusal(405, client=client, reason="method not allowed", headers={"allow": "GET, HEAD"})
