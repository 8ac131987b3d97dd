"""A Heartbeat without a database, for the tests of what stands in front of it: the app and the server."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, cast

from heartbeat.api import Heartbeat
from heartbeat.models import BeatReport, Health
from heartbeat.settings import Settings

NOTHING_DUE = BeatReport(
    flows_due=0,
    flows_triggered=0,
    flows_succeeded=0,
    flows_failed=0,
    flows_running=0,
    flows_remaining=0,
    next_due_at=None,
    heartbeat_id=41,
    timestamp=datetime(2026, 11, 23, 19, 4, 0, tzinfo=UTC),
)


class FakeHeartbeat:
    """Says what it was told to say, and keeps what it was asked in `calls`."""

    def __init__(self, **settings: Any) -> None:
        self.settings = Settings.load(environ={}, dotenv=None, **settings)
        self.calls: list[str] = []
        self.clients: list[str | None] = []
        self.on_start: Callable[[], None] = lambda: None
        self.on_beat: Callable[[], BeatReport] = lambda: NOTHING_DUE
        self.on_health: Callable[[], Health] = lambda: Health(ok=True)
        self.stopping = threading.Event()
        self.stopped_now = threading.Event()

    def start(self, *, run_flows: bool = True) -> FakeHeartbeat:
        self.calls.append("start")
        self.on_start()
        return self

    def beat(self, client_ip: str | None = None, *, until_all_ended: bool = False) -> BeatReport:
        self.calls.append("beat")
        self.clients.append(client_ip)
        return self.on_beat()

    def health(self) -> Health:
        self.calls.append("health")
        return self.on_health()

    def stop_claiming(self, *, now: bool = False) -> None:
        self.calls.append("stop_claiming now" if now else "stop_claiming")
        self.stopping.set()
        if now:
            self.stopped_now.set()

    def close(self) -> None:
        self.calls.append("close")

    @property
    def as_heartbeat(self) -> Heartbeat:
        return cast("Heartbeat", self)
