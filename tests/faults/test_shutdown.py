"""A process that is asked to stop drains, records what it could not finish, answers, and is gone in time."""

from __future__ import annotations

import signal
import socket
import time
from urllib.parse import urlsplit

import pytest

from tests.faults.checker import Trace
from tests.faults.conftest import Rules
from tests.faults.harness import Fleet, Process, wait_begun
from tests.support.rows import Conn, add_flow, live_runs, of_class, runs_of, statuses_of
from tests.support.waiting import wait_until

DRAIN = 1.5


def send(process: Process, data: bytes) -> socket.socket:
    where = urlsplit(process.url)
    assert where.hostname is not None
    raw = socket.create_connection((where.hostname, where.port or 80), timeout=10)
    raw.sendall(data)
    return raw


def assert_nothing_left(db: Conn) -> None:
    assert live_runs(db) == []
    assert db.execute("SELECT count(*) FROM data_flow_runners").fetchone() == (0,)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_ends_while_draining_is_recorded_and_the_pinger_answered(
    fleet: Fleet, db: Conn, trace: Trace, rules: Rules, number: signal.Signals
) -> None:
    service = fleet(drain_timeout=10, concurrency=1)
    add_flow(db, "long", of_class("Held"))
    add_flow(db, "not-yet", of_class("Quick"))
    waiting = service.ask_in_background()
    wait_begun(trace, "long")
    service.signal(number)
    wait_until(lambda: "stopping" in service.log(), what="the drain to begin")
    trace.let_go("long")
    assert service.wait(9) in (0, 128 + number, -number)
    answer = waiting.result()
    assert answer.status == 200
    assert (answer.counts["flows_triggered"], answer.counts["flows_remaining"]) == (1, 1)
    assert statuses_of(db, "long") == ["success"]
    assert statuses_of(db, "not-yet") == []
    assert_nothing_left(db)
    rules(db)


@pytest.mark.parametrize("flow", ["Held", "AsyncHeld", "SwallowsCancel", "BlocksLoop", "HangsUntilAsked"])
def test_what_outlives_the_drain_is_recorded_as_interrupted_before_the_exit(
    fleet: Fleet, db: Conn, trace: Trace, rules: Rules, flow: str
) -> None:
    service = fleet(drain_timeout=DRAIN)
    add_flow(db, "endless", of_class(flow))
    waiting = service.ask_in_background()
    wait_begun(trace, "endless")
    begin = time.monotonic()
    service.signal(signal.SIGTERM)
    service.wait(DRAIN + 3.5)
    taken = time.monotonic() - begin
    [run] = runs_of(db, "endless")
    if flow == "HangsUntilAsked":  # asked through `stopping`, it returned in time
        assert run.status == "success"
    else:
        assert taken >= DRAIN - 0.1
        assert run.status == "failed"
        assert "interrupted" in run.error.lower()
    assert waiting.result().status == 200
    assert_nothing_left(db)
    rules(db)


def test_half_sent_requests_a_stray_thread_and_a_second_signal_do_not_hold_the_exit(
    fleet: Fleet, db: Conn, trace: Trace, rules: Rules
) -> None:
    service = fleet(drain_timeout=DRAIN)
    add_flow(db, "stray", of_class("LeavesAThread"))
    assert service.ask().counts["flows_succeeded"] == 1
    add_flow(db, "endless", of_class("Held"))
    waiting = service.ask_in_background()
    wait_begun(trace, "endless")
    path = urlsplit(service.url).path.encode()
    head = b"POST " + path + b" HTTP/1.1\r\nHost: x\r\n"
    token = f"Authorization: Bearer {service.token}\r\n".encode()
    sockets = [
        send(service, b""),
        send(service, head),
        send(service, head + token + b"Content-Length: 1000\r\n\r\nhalf"),
        send(
            service, b"GET " + path.rpartition(b"/")[0] + b"/health HTTP/1.1\r\nHost: x\r\n\r\n"
        ),  # kept alive
    ]
    service.signal(signal.SIGTERM)
    time.sleep(1.1)  # within a second it would be the same wish
    service.signal(signal.SIGTERM)
    service.wait(DRAIN + 3.5)
    assert waiting.result().status == 200
    for raw in sockets:
        raw.close()
    assert statuses_of(db, "endless") == ["failed"]
    assert_nothing_left(db)
    rules(db)


def test_an_idle_process_stops_at_once(fleet: Fleet, db: Conn) -> None:
    service = fleet(drain_timeout=20)
    begin = time.monotonic()
    assert service.stop(5) in (0, 128 + signal.SIGTERM, -signal.SIGTERM)
    assert time.monotonic() - begin < 3
    assert_nothing_left(db)
