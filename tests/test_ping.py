"""The pinger against small servers that answer well, badly, late or never."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from heartbeat.cli.ping import Reply, _until_next, ping
from heartbeat.errors import SettingsError
from heartbeat.process import on_signals

COUNTS = {"flows_due": 0, "heartbeat_id": 1}

Respond = Callable[[BaseHTTPRequestHandler], None]


def answering(status: int, body: bytes, **headers: str) -> Respond:
    def respond(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    return respond


FINE = answering(200, json.dumps(COUNTS).encode())


class Target:
    """A server on a free port; `seen` has the path and token of each POST."""

    def __init__(self, respond: Respond) -> None:
        self.seen: list[tuple[str, str | None]] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(handler) -> None:
                self.seen.append((handler.path, handler.headers["Authorization"]))
                with contextlib.suppress(ConnectionError):
                    respond(handler)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/beat"

    def __enter__(self) -> Target:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def once(url: str, *, token: bytes = b"s3cret", timeout: float = 10.0) -> Reply:
    answers: list[Reply] = []
    failures = ping(url, [token, b"old"], timeout=timeout, on_answer=answers.append)
    (answer,) = answers
    assert failures == (not answer.ok)
    return answer


@pytest.fixture
def refused() -> Iterator[str]:
    """The URL of a port that nobody listens on."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}/beat"


def test_a_ping_posts_the_first_token_and_brings_the_counts() -> None:
    with Target(FINE) as target:
        assert once(target.url) == Reply(200, COUNTS)
    assert target.seen == [("/beat", "Bearer s3cret")]


def test_a_token_that_is_not_ascii_is_sent_as_its_bytes() -> None:
    with Target(FINE) as target:
        once(target.url, token="tökén".encode())
    assert target.seen[0][1] == "Bearer " + "tökén".encode().decode("latin-1")


def test_without_a_token_none_is_sent() -> None:
    with Target(FINE) as target:
        assert ping(target.url) == 0
    assert target.seen == [("/beat", None)]


def test_a_refusal_is_an_answer_with_its_status_and_error() -> None:
    with Target(answering(401, b'{"error": "unauthorized"}')) as target:
        answer = once(target.url)
    assert (answer.status, answer.error, answer.ok) == (401, "401 unauthorized", False)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed_so_the_token_stays_here(status: int) -> None:
    with Target(FINE) as elsewhere, Target(answering(status, b"", Location=elsewhere.url)) as target:
        answer = once(target.url)
    assert (answer.status, answer.ok) == (status, False)
    assert elsewhere.seen == []


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"\xff", b"[" * 100_000], ids=range(5))
def test_a_200_that_is_no_heartbeats_answer_is_a_failure(body: bytes) -> None:
    with Target(answering(200, body)) as target:
        answer = once(target.url)
    assert (answer.status, answer.ok) == (200, False)
    assert "no JSON object" in (answer.error or "")


def test_a_port_that_nobody_listens_on_is_a_failure_with_its_reason(refused: str) -> None:
    answer = once(refused)
    assert answer.status is None
    assert "refused" in (answer.error or "")


def test_an_answer_that_is_no_http_is_a_failure() -> None:
    def greet(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"SSH-2.0-x\r\n")

    with Target(greet) as target:
        assert not once(target.url).ok


def test_a_server_that_answers_a_byte_at_a_time_is_not_waited_for() -> None:
    def drip(handler: BaseHTTPRequestHandler) -> None:
        for _ in range(1000):
            handler.wfile.write(b"x")
            time.sleep(0.01)

    with Target(drip) as target:
        began = time.monotonic()
        answer = once(target.url, timeout=0.3)
    assert answer.error == "no answer within 0.3 s"
    assert time.monotonic() - began < 5


def test_the_environments_proxy_is_not_used_for_this_machine(
    monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    monkeypatch.setenv("http_proxy", refused)
    with Target(FINE) as target:
        assert once(target.url).ok


@pytest.mark.parametrize(
    "url",
    [
        *("", "host/beat", "ftp://h/", "file:///etc/passwd", "http://", "http://u:pw@h/", "http://h:x/"),
        *("http://[::1/", "http://h/a b\n", "http://h:99999/", "http://h:0/", "http://hä/"),
    ],
)
def test_what_cannot_be_a_url_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(SettingsError, match="must be like http://"):
        ping(url)


def test_it_goes_on_after_errors_until_it_is_stopped() -> None:
    stop = threading.Event()
    answers: list[Reply] = []
    respond = iter([answering(503, b"{}"), answering(200, b"oops"), FINE, FINE])

    def next_one(handler: BaseHTTPRequestHandler) -> None:
        next(respond)(handler)

    def note(answer: Reply) -> None:
        answers.append(answer)
        if len(answers) == 4:
            stop.set()

    with Target(next_one) as target:
        failures = ping(target.url, every=0.01, on_answer=note, stop=stop)
    assert [answer.ok for answer in answers] == [False, False, True, True]
    assert failures == 2


@pytest.mark.parametrize(
    ("passed", "expected"), [(0.0, 60.0), (0.5, 59.5), (59.9, 0.1), (60.0, 60.0), (130.0, 50.0)]
)
def test_the_pace_does_not_drift_and_what_was_overrun_falls_away(passed: float, expected: float) -> None:
    assert _until_next(passed, 60.0) == pytest.approx(expected)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_also_while_it_waits_for_an_answer(number: signal.Signals) -> None:
    waiting = threading.Event()

    def hang(handler: BaseHTTPRequestHandler) -> None:
        waiting.set()
        time.sleep(5)

    def interrupt() -> None:
        waiting.wait(10)
        os.kill(os.getpid(), number)

    began = time.monotonic()
    before = signal.getsignal(number)
    stop = threading.Event()
    with Target(hang) as target, on_signals(lambda _: stop.set()):
        threading.Thread(target=interrupt).start()
        assert ping(target.url, every=60, stop=stop) == 0
    assert time.monotonic() - began < 4
    assert signal.getsignal(number) is before
