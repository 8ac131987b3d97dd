"""`GET health`: is this process fit to take a heartbeat? `GET live`: does it answer at all?

Both without a token, and whatever the allowlist says.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from urllib.parse import parse_qs

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
        try:
            fresh = _fresh(scope)
        except ValueError as exc:
            return Answer(400, {"error": str(exc)})
        began = time.monotonic()
        health = await self._newest()
        self._tell_change(health)
        reason = health.reason or _late(health.seconds_since_heartbeat, fresh)
        is_ok = health.ok and reason is None
        status = 200 if is_ok else 503
        fields = {"event": "health", "client": client, "status": status, "duration_ms": ms_since(began)}
        log.debug("health", extra=fields | ({"reason": reason} if reason else {}))
        body = {"status": "ok" if is_ok else "unavailable", "stuck_threads": health.stuck_threads}
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


def _fresh(scope: Scope) -> float | None:
    """Read how old the newest heartbeat may be, in seconds; None where nobody asks. Raises ValueError."""
    given = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True).get("fresh")
    if given is None:
        return None
    try:
        [seconds] = map(float, given)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ValueError("fresh must be one positive number of seconds")
    return seconds


def _late(seconds: float | None, fresh: float | None) -> str | None:
    """Say so where the newest heartbeat is older than it may be."""
    if fresh is None or (seconds is not None and seconds <= fresh):
        return None
    return "there was no heartbeat yet" if seconds is None else f"no heartbeat for {seconds:.0f} s"


def _refused(scope: Scope, client: str | None) -> Answer | None:
    if scope["method"] in ("GET", "HEAD"):
        return None
    return refusal(405, client=client, reason="method not allowed", headers={"allow": "GET, HEAD"})
