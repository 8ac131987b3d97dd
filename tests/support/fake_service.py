"""`python -m tests.support.fake_service`: the server and the app over a heartbeat without a database.

Prints what the heartbeat was asked, as JSON, when the server has ended.
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import threading
from collections.abc import Callable

from heartbeat import logs
from heartbeat.errors import DatabaseUnavailable
from heartbeat.http import create_app, server
from heartbeat.http.connection import Connection
from heartbeat.models import BeatReport
from heartbeat.process import leave
from tests.support.fake_heartbeat import NOTHING_DUE, FakeHeartbeat

logger = logging.getLogger("heartbeat.fake")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument(
        "--beat", choices=["at-once", "until-stopped", "until-stopped-now"], default="at-once"
    )
    parser.add_argument("--start", choices=["works", "fails", "until-stopped"], default="works")
    parser.add_argument("--drain-timeout", type=float, default=5)
    parser.add_argument("--header-seconds", type=float, default=10)
    parser.add_argument("--exit-margin", type=int, default=4)
    parser.add_argument("--leave-a-thread", action="store_true")
    parser.add_argument("--ignore-interrupts", action="store_true")
    options = parser.parse_args()

    fake = FakeHeartbeat(token="s3cret", drain_timeout=options.drain_timeout)
    fake.on_beat = _beats(fake)[options.beat]
    fake.on_start = _starts(fake)[options.start]
    Connection.header_seconds = options.header_seconds
    server._EXIT_MARGIN = options.exit_margin
    logs.configure("json")
    if options.ignore_interrupts:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if options.leave_a_thread:
        threading.Thread(target=threading.Event().wait).start()
    status = 7
    try:
        app = create_app(heartbeat=fake.as_heartbeat)
        status = server.serve(fake.as_heartbeat, app, host="127.0.0.1", port=options.port)
    finally:
        print(json.dumps(fake.calls))
        leave(status)


def _beats(fake: FakeHeartbeat) -> dict[str, Callable[[], BeatReport]]:
    def until(event: threading.Event) -> Callable[[], BeatReport]:
        def beat() -> BeatReport:
            logger.info("beating", extra={"event": "beating"})
            event.wait(60)
            return NOTHING_DUE

        return beat

    return {
        "at-once": lambda: NOTHING_DUE,
        "until-stopped": until(fake.stopping),
        "until-stopped-now": until(fake.stopped_now),
    }


def _starts(fake: FakeHeartbeat) -> dict[str, Callable[[], None]]:
    def fail() -> None:
        raise DatabaseUnavailable("the database is down")

    def wait() -> None:
        print("starting", flush=True)
        fake.stopping.wait(60)

    return {"works": lambda: None, "fails": fail, "until-stopped": wait}


if __name__ == "__main__":
    main()
