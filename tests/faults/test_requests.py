"""Requests that misbehave: no 5xx, no forged line, no token told, and heartbeats are answered meanwhile."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from tests.faults.checker import Trace
from tests.faults.conftest import Rules
from tests.faults.harness import Fleet, Process, wait_begun
from tests.support.rows import Conn, add_flow, add_flows, of_class, statuses_of
from tests.support.waiting import wait_until

TOKEN = "s3cret-token-that-nobody-may-see"


def connect(process: Process) -> socket.socket:
    where = urlsplit(process.url)
    assert where.hostname is not None
    return socket.create_connection((where.hostname, where.port or 80), timeout=10)


def head(process: Process, *lines: str, token: bool = True) -> bytes:
    """The beginning of a heartbeat request, without the empty line that ends it."""
    credentials = [f"Authorization: Bearer {process.token}"] if token else []
    request = [f"POST {urlsplit(process.url).path} HTTP/1.1", "Host: x", *credentials, *lines]
    return "\r\n".join(request).encode("latin-1") + b"\r\n"


def talk(process: Process, data: bytes) -> list[int]:
    """Send bytes and return the status code of what is answered first, if anything is."""
    with connect(process) as raw:
        answer = b""
        with contextlib.suppress(OSError):
            raw.sendall(data)
            while b"\r\n\r\n" not in answer and (chunk := raw.recv(65536)):
                answer += chunk
    return [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3})", answer)]


MALFORMED = {
    "nothing": b"\r\n\r\n",
    "noise": bytes(range(256)) * 40,
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 200,
    "no-version": b"POST /data_flows/heartbeat\r\n\r\n",
    "negative-length": b"POST /data_flows/heartbeat HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    "two-lengths": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
    "bad-chunk": b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "huge-chunk": b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
    "long-path": b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "percent": b"GET /%00%ff%zz%0a HTTP/1.1\r\nHost: x\r\n\r\n",
    "upgrade": b"GET /data_flows/heartbeat HTTP/1.1\r\nHost: x\r\n"
    b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
    "absolute": b"GET http://evil/data_flows/health HTTP/1.1\r\nHost: x\r\n\r\n",
    "head": b"HEAD /data_flows/health HTTP/1.1\r\nHost: x\r\n\r\n",
    "options": b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
    "large-header": b"GET /data_flows/health HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 8_000_000 + b"\r\n\r\n",
    "many-headers": b"GET /data_flows/health HTTP/1.1\r\nHost: x\r\n" + b"X: a\r\n" * 100_000 + b"\r\n",
}


def test_input_never_makes_a_5xx_and_memory_stays_bounded(fleet: Fleet, db: Conn, rules: Rules) -> None:
    service = fleet(token=TOKEN)
    assert service.ask().status == 200
    before = service.resident_mb()
    statuses_seen: dict[str, list[int]] = {name: talk(service, data) for name, data in MALFORMED.items()}
    credentials = [
        ["Authorization: Bearer \xe9\xff"],
        ["Authorization: Bearer"],
        ["Authorization: Basic Og=="],
        [f"Authorization: Bearer {TOKEN}", f"X-Heartbeat-Token: {TOKEN}"],
        [f"X-Heartbeat-Token: {TOKEN}", f"X-Heartbeat-Token: {TOKEN}"],
        ["X-Heartbeat-Token: \xff" + "a" * 60_000],
        [],
    ]
    for number, lines in enumerate(credentials):
        end = b"Content-Length: 0\r\nConnection: close\r\n\r\n"
        statuses_seen[f"credentials-{number}"] = talk(service, head(service, *lines, token=False) + end)
        assert statuses_seen[f"credentials-{number}"] in ([401], [400], [431]), (number, statuses_seen)
    bad = {name: found for name, found in statuses_seen.items() if any(status >= 500 for status in found)}
    assert bad == {}
    assert service.ask().status == 200
    assert service.resident_mb() - before < 120
    assert "Traceback" not in service.log()
    rules(db)


def test_a_large_body_is_neither_read_into_memory_nor_a_reason_to_fail(fleet: Fleet, db: Conn) -> None:
    service = fleet()
    add_flow(db, "work", of_class("Quick"))
    before = service.resident_mb()
    megabyte = b"x" * 2**20
    with connect(service) as raw, contextlib.suppress(OSError):
        raw.sendall(head(service, f"Content-Length: {200 * 2**20}") + b"\r\n")
        for _ in range(200):
            raw.sendall(megabyte)
    assert service.resident_mb() - before < 50
    wait_until(
        lambda: service.ask().status == 200 and statuses_of(db, "work") == ["success"], what="the flow"
    )
    assert len(statuses_of(db, "work")) == 1


def test_pipelined_heartbeats_are_answered_in_turn(fleet: Fleet, db: Conn) -> None:
    service = fleet()
    add_flow(db, "work", of_class("Quick"))
    one = head(service, "Content-Length: 0") + b"\r\n"
    last = head(service, "Content-Length: 0", "Connection: close") + b"\r\n"
    with connect(service) as raw:
        raw.sendall(one * 4 + last)
        answer = b""
        while chunk := raw.recv(65536):
            answer += chunk
    assert answer.count(b"HTTP/1.1 200") == 5
    assert statuses_of(db, "work") == ["success"]


@contextlib.contextmanager
def crowd(process: Process, *sayings: bytes, each: int) -> Iterator[None]:
    """Hold many connections open, each of which says its beginning and no more."""
    sockets = [connect(process) for _ in range(each * len(sayings))]
    try:
        for number, raw in enumerate(sockets):
            raw.sendall(sayings[number % len(sayings)])
        yield
    finally:
        for raw in sockets:
            raw.close()


def test_slow_and_silent_clients_keep_no_heartbeat_from_its_answer(fleet: Fleet, db: Conn) -> None:
    service = fleet()
    add_flows(db, "work", 20, of_class("Quick"))
    before = service.resident_mb()
    begun = head(service)
    half_a_body = head(service, token=False) + b"Content-Length: 1000\r\n\r\nhalf"
    accepted = begun + b"Content-Length: 1000\r\n\r\nhalf"
    with crowd(service, b"", begun, half_a_body, each=100), crowd(service, accepted, each=5):
        answer = service.ask()
        assert answer.status == 200
        assert answer.seconds < 5
        assert service.ask_health().seconds < 2
        wait_until(lambda: statuses_of(db, "work-%") == ["success"] * 20, what="the flows")
        assert service.resident_mb() - before < 100
    assert service.ask().status == 200


def test_a_client_that_goes_away_stops_no_run_and_one_that_retries_starts_none_twice(
    fleet: Fleet, db: Conn, trace: Trace, rules: Rules
) -> None:
    service = fleet()
    add_flow(db, "long", of_class("Held"))
    add_flow(db, "long-async", of_class("AsyncHeld"))
    with connect(service) as raw:
        raw.sendall(head(service, "Content-Length: 0") + b"\r\n")
        wait_begun(trace, "long", "long-async")
    for _ in range(5):
        service.ask(timeout=0.2)
    trace.let_go()
    wait_until(lambda: statuses_of(db, "long%") == ["success"] * 2, what="the runs to end")
    assert len(trace.of("begin")) == 2
    rules(db)


FORGED = "2026-11-23T00:00:00Z INFO forged"


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_no_request_forges_a_log_line_or_an_address(fleet: Fleet, db: Conn, log_format: str) -> None:
    service = fleet(token=TOKEN, allowed_ips="10.0.0.0/8", log_format=log_format)
    end = "Content-Length: 0", "Connection: close"
    spoofs = [
        "10.0.0.1",
        "10.0.0.1, 10.0.0.2",
        "::ffff:10.0.0.1",
        f"10.0.0.1\x0b{FORGED}",
        f"\x1b[2J{FORGED}",
    ]
    for spoof in spoofs:
        answer = talk(service, head(service, f"X-Forwarded-For: {spoof}", *end) + b"\r\n")
        assert answer in ([403], [400]), (spoof, answer)
    for path in (f"/%0a{FORGED.replace(' ', '%20')}", "/%1b%5b2J", "/\x85forged", f"/%0d%0a{FORGED[:10]}"):
        request = f"GET {path} HTTP/1.1\r\nHost: x\r\nUser-Agent: \x0b{FORGED}\r\nConnection: close\r\n\r\n"
        assert all(status < 500 for status in talk(service, request.encode("latin-1")))
    log = service.log()
    assert not [line for line in log.splitlines() if line.startswith(FORGED[:10]) and "forged" in line[:40]]
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", log), "control characters in the log"
    assert db.execute("SELECT count(*) FROM heartbeats").fetchone() == (0,)


def test_the_token_and_the_password_are_told_nowhere(
    fleet: Fleet, db: Conn, database_url: str, tmp_path: Path
) -> None:
    service = fleet(token=TOKEN)
    add_flow(db, "raises", of_class("Raises"))
    end = "Content-Length: 0", "Connection: close"
    assert service.ask().status == 200
    assert talk(service, head(service, f"X-Heartbeat-Token: {TOKEN}", *end) + b"\r\n") == [401]
    assert talk(service, head(service, "X-Heartbeat-Token: wrong-guess", *end, token=False) + b"\r\n") == [
        401
    ]
    query = (
        f"POST {urlsplit(service.url).path}?token={TOKEN} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    assert talk(service, query.encode()) == [401]
    arguments = Path(f"/proc/{service.pid}/cmdline")
    told = service.log() + (arguments.read_text() if arguments.exists() else "")
    for table in ("data_flows", "data_flow_runs", "heartbeats", "data_flow_runners"):
        told += str(db.execute(f"SELECT array_agg(t::text) FROM {table} AS t").fetchone())
    told += str(db.execute("SELECT array_agg(query || application_name) FROM pg_stat_activity").fetchone())
    service.stop(10)
    told += service.log()
    assert TOKEN not in told
    assert "wrong-guess" not in told
    password = psycopg.conninfo.conninfo_to_dict(database_url).get("password")
    assert not password or f":{password}@" not in told
