"""The server under requests that misbehave and signals that come at any time: real sockets, no database."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import Mock
from urllib.parse import urlsplit

import pytest
from starlette.applications import Starlette
from uvicorn import Config
from uvicorn.server import ServerState

from heartbeat.http.connection import Connection
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[1]
PATH = "/data_flows/heartbeat"
LIMIT = 30.0


class Service:
    """A server in a process of its own."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.fake_service", *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[dict[str, Any]] = []
        # Read all the time: a full pipe would hold the server.
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            self.lines.append(json.loads(line))

    def until_listening(self) -> Service:
        message = self.until("listening")["message"]
        url = urlsplit(message.removeprefix("listening on "))
        assert url.path == PATH
        assert url.port
        self.port = url.port
        return self

    def until(self, event: str) -> dict[str, Any]:
        """Wait for a line of the log with that event."""
        wait_until(lambda: any(line["event"] == event for line in self.lines), seconds=LIMIT, what=event)
        return next(line for line in self.lines if line["event"] == event)

    def connect(self) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=LIMIT)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def status(self, request: bytes | None = None) -> int | None:
        """Send a request and return the status, None where the connection was closed without one."""
        with self.connect() as connection, contextlib.suppress(ConnectionError):
            connection.sendall(request or heartbeat())
            return status_in(connection)
        return None

    def end(self) -> tuple[int, list[str]]:
        """Wait for the end: the exit status, and what the heartbeat was asked."""
        self.process.wait(LIMIT)
        self._reader.join(LIMIT)
        assert self.process.stdout
        return self.process.returncode, json.loads(self.process.stdout.read().splitlines()[-1])

    def stop(self) -> None:
        self.process.kill()
        self.process.wait(LIMIT)
        self._reader.join(LIMIT)
        for stream in (self.process.stdout, self.process.stderr):
            if stream:
                stream.close()


def heartbeat(*headers: str, body: str = "", method: str = "POST") -> bytes:
    lines = [f"{method} {PATH} HTTP/1.1", "Host: h", "X-Heartbeat-Token: s3cret", *headers]
    return "\r\n".join([*lines, "", body]).encode()


def status_in(connection: socket.socket) -> int | None:
    head = b""
    while b"\r\n" not in head:
        received = connection.recv(1)
        if not received:
            return None
        head += received
    return int(head.split()[1])


def closed(connection: socket.socket) -> bool:
    """Wait until the other side has closed, whatever it still sends."""
    with contextlib.suppress(ConnectionError):
        while connection.recv(65_536):
            pass
    return True


def drip(connection: socket.socket, data: bytes) -> None:
    """Send byte by byte, too slowly ever to end, and expect to be cut off."""
    with contextlib.suppress(ConnectionError):
        for byte in data:
            connection.sendall(bytes([byte]))
            time.sleep(0.03)
        raise AssertionError("all was taken")


@contextlib.contextmanager
def running(*arguments: str) -> Iterator[Service]:
    service = Service(*arguments)
    try:
        yield service
    finally:
        service.stop()


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    """A server that many tests share: each proves too that the ones before did it no harm."""
    with running("--header-seconds", "1") as started:
        yield started.until_listening()
    assert [line for line in started.lines if line["level"] == "ERROR"] == []


def test_a_heartbeat_is_answered(service: Service) -> None:
    assert service.status() == 200


def test_headers_that_arrive_too_slowly_end_the_connection(service: Service) -> None:
    with service.connect() as connection:
        began = time.monotonic()
        drip(connection, heartbeat(*["X-Slow: yes"] * 1000))
        assert 0.5 < time.monotonic() - began < LIMIT


def test_a_connection_that_says_nothing_is_closed(service: Service) -> None:
    with service.connect() as connection:
        assert closed(connection)


def test_more_idle_connections_than_there_is_room_for_leave_heartbeats_answered() -> None:
    with running("--header-seconds", "600") as service, contextlib.ExitStack() as stack:
        service.until_listening()
        first = stack.enter_context(service.connect())
        first.sendall(b"POST ")
        for _ in range(1200):
            stack.enter_context(service.connect())
        assert service.status() == 200
        assert closed(first), "the oldest gave way"


def test_thousands_of_connections_at_a_stroke_leave_heartbeats_answered(service: Service) -> None:
    def one(_: int) -> int | None:
        return service.status()

    with ThreadPoolExecutor(32) as pool, contextlib.ExitStack() as stack:
        for _ in range(400):
            stack.enter_context(service.connect())
        assert set(pool.map(one, range(100))) == {200}


@pytest.mark.parametrize("reads_again", [False, True])
def test_a_client_that_does_not_read_its_answers_is_cut_off(
    monkeypatch: pytest.MonkeyPatch, reads_again: bool
) -> None:
    monkeypatch.setattr(Connection, "write_seconds", 0.01)
    monkeypatch.setattr(Connection, "idle", {})
    transport = Mock(asyncio.Transport)
    transport.get_extra_info.return_value = None

    async def fill_the_buffer() -> None:
        connection = Connection(Config(Starlette(), log_config=None), ServerState(), {})
        connection.connection_made(transport)
        connection.pause_writing()
        if reads_again:
            connection.resume_writing()
        await asyncio.sleep(0.05)
        connection.connection_lost(None)

    asyncio.run(fill_the_buffer())
    assert transport.abort.called is not reads_again


def test_headers_of_eight_megabytes_are_refused(service: Service) -> None:
    assert service.status(heartbeat("X-Big: " + "x" * 8_000_000)) in (400, 431, None)
    assert service.status() == 200


@pytest.mark.parametrize(
    "framing", ["Content-Length: 1000000000", "Transfer-Encoding: chunked"], ids=["length", "chunked"]
)
@pytest.mark.parametrize("token", ["X-Other: x", "X-Heartbeat-Token: twice"], ids=["accepted", "rejected"])
def test_of_a_body_of_a_gigabyte_little_is_read_and_the_answer_comes_first(
    service: Service, framing: str, token: str
) -> None:
    chunk = b"10000\r\n" + b"x" * 65_536 + b"\r\n" if "chunked" in framing else b"x" * 65_536
    sent = 0
    with service.connect() as connection:
        connection.sendall(heartbeat(framing, token))
        assert status_in(connection) == (200 if "Other" in token else 401)
        with contextlib.suppress(ConnectionError):
            while sent < 1_000_000_000:
                connection.sendall(chunk)
                sent += len(chunk)
    assert sent < 100_000_000
    assert service.status() == 200


def test_a_body_that_drips_does_not_hold_the_connection(service: Service) -> None:
    with service.connect() as connection:
        connection.sendall(heartbeat("Content-Length: 1000000"))
        assert status_in(connection) == 200
        drip(connection, b"x" * 1000)


def test_a_client_that_expects_to_be_told_to_continue_gets_its_answer_instead(service: Service) -> None:
    assert service.status(heartbeat("Expect: 100-continue", "Content-Length: 1000000000")) == 200


def test_pipelined_requests_are_answered_in_turn(service: Service) -> None:
    with service.connect() as connection:
        connection.sendall(heartbeat() * 49 + heartbeat("Connection: close"))
        connection.settimeout(LIMIT)
        answer = b""
        while received := connection.recv(65_536):
            answer += received
    assert answer.count(b"HTTP/1.1 200") == 50


MALFORMED = [
    b"\r\n\r\n\r\n",
    b"\0\0\0\0\r\n\r\n",
    b"GET\r\n\r\n",
    b"POST / HTTP/9.9\r\n\r\n",
    b"POST /\xff HTTP/1.1\r\nHost: h\r\n\r\n",
    b"POST / HTTP/1.1\r\nno colon\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n",
    b"POST / HTTP/1.1\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: h\r\nX: a\0b\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x80" * 100 + b"\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
]


@pytest.mark.parametrize("request_bytes", MALFORMED, ids=range(len(MALFORMED)))
def test_a_malformed_request_is_400_and_never_5xx(service: Service, request_bytes: bytes) -> None:
    with service.connect() as connection:
        connection.sendall(request_bytes)
        connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            assert status_in(connection) in (400, 404, None)
        assert closed(connection)
    assert service.status() == 200


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"CONNECT h:1 HTTP/1.1\r\nHost: h\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n",
        b"POST http://h/data_flows/heartbeat HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET /%00%0a%ff%e2%80%a8 HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET /chat HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"POST /data_flows%2fheartbeat%0a HTTP/1.0\r\n\r\n",
    ],
    ids=range(6),
)
def test_an_odd_request_is_404(service: Service, request_bytes: bytes) -> None:
    assert service.status(request_bytes) == 404


def test_a_body_that_turns_out_malformed_after_the_answer_only_ends_its_connection(service: Service) -> None:
    with service.connect() as connection:
        connection.sendall(heartbeat("Transfer-Encoding: chunked"))
        assert status_in(connection) == 200
        connection.sendall(b"no length\r\n")
        assert closed(connection)
    assert service.status() == 200


def test_a_client_that_hangs_up_at_once_is_no_error(service: Service) -> None:
    for _ in range(20):
        with service.connect() as connection:
            connection.sendall(heartbeat())
    assert service.status() == 200


def test_every_request_of_these_left_one_line_and_no_traceback() -> None:
    with running() as service:
        service.until_listening()
        for request in MALFORMED:
            service.status(request + b"\r\n\r\n")
        service.process.terminate()
        assert service.end()[0] == 0
    events = {line["event"] for line in service.lines}
    assert events <= {"listening", "rejected", "not_found", "stopping"}
    assert not any("traceback" in line for line in service.lines)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_it_with_status_0_after_draining(number: signal.Signals) -> None:
    with running() as service:
        service.until_listening()
        service.process.send_signal(number)
        status, calls = service.end()
    assert status == 0
    assert calls[:3] == ["start", "start", "stop_claiming"], "in the handler, before anything else"
    assert calls[-1] == "close"
    assert "stop_claiming now" not in calls


def test_at_a_signal_the_pinger_that_waits_gets_its_answer_and_nobody_else_holds_the_exit() -> None:
    with running("--beat", "until-stopped") as service, contextlib.ExitStack() as stack:
        service.until_listening()
        half_headers, half_body, _silent, waiting = (stack.enter_context(service.connect()) for _ in range(4))
        half_headers.sendall(b"POST /data_flows/heartbeat HTTP/1.1\r\nHost")
        half_body.sendall(heartbeat("Content-Length: 1000"))
        waiting.sendall(heartbeat())
        wait_until(lambda: sum(line["event"] == "beating" for line in service.lines) == 2, seconds=LIMIT)
        began = time.monotonic()
        service.process.terminate()
        assert status_in(waiting) == 200
        status, calls = service.end()
        took = time.monotonic() - began
    assert (status, calls.count("beat"), calls[-1]) == (0, 2, "close")
    assert took < 4, "less than the drain timeout"


def test_a_second_signal_ends_the_drain_at_once_and_still_records() -> None:
    with running("--beat", "until-stopped-now", "--drain-timeout", "60") as service:
        service.until_listening()
        with service.connect() as waiting:
            waiting.sendall(heartbeat())
            service.until("beating")
            service.process.terminate()
            service.until("stopping")
            time.sleep(1.1)  # earlier, it would be the first one's echo
            service.process.terminate()
            assert status_in(waiting) == 200
        status, calls = service.end()
    assert (status, calls[-1]) == (0, "close")
    assert "stop_claiming now" in calls


def test_a_signal_that_comes_twice_at_once_is_one() -> None:
    with running("--beat", "until-stopped-now", "--drain-timeout", "0") as service:
        service.until_listening()
        with service.connect() as waiting:
            waiting.sendall(heartbeat())
            time.sleep(0.1)
            service.process.terminate()
            service.until("stopping")
            service.process.send_signal(signal.SIGINT)
            status, calls = service.end()
    assert status == 0
    assert "stop_claiming now" not in calls


def test_a_signal_that_is_ignored_stays_so() -> None:
    with running("--ignore-interrupts") as service:
        service.until_listening()
        status = Path(f"/proc/{service.process.pid}/status").read_text()
        ignored = int(status.partition("SigIgn:")[2].split()[0], 16)
        assert ignored & 1 << (signal.SIGINT - 1)
        service.process.send_signal(signal.SIGINT)
        assert service.status() == 200


def test_a_heartbeat_that_never_returns_does_not_hold_the_exit_past_the_deadline() -> None:
    with running("--beat", "until-stopped-now", "--drain-timeout", "0", "--exit-margin", "1") as service:
        service.until_listening()
        with service.connect() as waiting:
            waiting.sendall(heartbeat())
            service.until("beating")
            service.process.terminate()
            status, calls = service.end()
    assert (status, calls[-1]) == (0, "close")


def test_a_signal_while_it_starts_ends_it_with_status_0() -> None:
    with running("--start", "until-stopped") as service:
        assert service.process.stdout
        assert service.process.stdout.readline() == "starting\n"
        service.process.terminate()
        status, calls = service.end()
    assert status == 0
    assert calls == ["start", "stop_claiming", "stop_claiming", "close"]


def test_a_start_that_fails_is_raised_and_leaves_nothing_open() -> None:
    with running("--start", "fails") as service:
        status, calls = service.end()
    assert (status, calls[-1]) == (7, "close")


def test_a_thread_that_never_ends_does_not_hold_the_process() -> None:
    with running("--leave-a-thread") as service:
        service.until_listening()
        service.process.terminate()
        assert service.end()[0] == 0


def test_a_port_in_use_is_one_clear_line_and_status_1_before_anything_is_started() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with running("--port", str(port)) as service:
            status, calls = service.end()
    assert (status, calls) == (1, [])
    messages = [line["message"] for line in service.lines]
    assert messages == [f"cannot listen on 127.0.0.1 port {port}: Address already in use"]
