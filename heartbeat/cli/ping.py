"""A pinger: sends heartbeats to a URL, once or at a fixed pace."""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import json
import math
import queue
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from heartbeat.errors import SettingsError

_MAX_ANSWER = 1_048_576  # bytes


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back to a ping: the status and its JSON, or what went wrong on the way."""

    status: int | None = None
    body: dict[str, Any] | None = None
    error: str | None = None

    @property
    def ok(self) -> bool:
        """Whether a heartbeat answered 200 with its counts; flows may have failed all the same."""
        return self.status == 200 and self.body is not None


def ping(
    url: str,
    tokens: Sequence[bytes] = (),
    *,
    every: float | None = None,
    timeout: float = 60.0,
    on_answer: Callable[[Reply], object] = lambda answer: None,
    stop: threading.Event | None = None,
) -> int:
    """Send one heartbeat, or one every `every` (> 0) seconds until `stop` is set; return how many were not `ok`.

    A ping that fails or takes longer than `timeout` is an answer like any other. The pace does not drift: a
    ping that outlasts its interval makes the ones it overran fall away. Raises SettingsError for a URL that
    cannot be one.
    """
    opener = _opener(url)
    stop = stop or threading.Event()
    began = time.monotonic()
    failures = 0
    while not stop.is_set():
        answer = _within(timeout, lambda: _send(opener, url, tokens, timeout), stop)
        if answer is None:
            break
        on_answer(answer)
        failures += not answer.ok
        if every is None:
            break
        stop.wait(_until_next(time.monotonic() - began, every))
    return failures


def _until_next(passed: float, every: float) -> float:
    return (math.floor(passed / every) + 1) * every - passed


def _within(timeout: float, call: Callable[[], Reply], stop: threading.Event) -> Reply | None:
    """Make the call in a thread: a server that answers a byte at a time is not waited for, nor is one at stop."""
    answers: queue.SimpleQueue[Reply] = queue.SimpleQueue()
    threading.Thread(target=lambda: answers.put(call()), daemon=True, name="heartbeat-ping").start()
    deadline = time.monotonic() + timeout
    while not stop.is_set():
        left = deadline - time.monotonic()
        with contextlib.suppress(queue.Empty):
            return answers.get(timeout=max(0.0, min(left, 0.2)))
        if left <= 0:
            return Reply(error=f"no answer within {timeout:g} s")
    return None


def _send(opener: urllib.request.OpenerDirector, url: str, tokens: Sequence[bytes], timeout: float) -> Reply:
    headers = {"User-Agent": "data-flow-heartbeat", "Accept": "application/json"}
    if tokens:
        # Latin-1 is how http.client writes headers: the bytes come out as they are.
        headers["Authorization"] = f"Bearer {tokens[0].decode('latin-1')}"
    # S310: `_opener` has let nothing but http and https through.
    request = urllib.request.Request(url, data=b"", headers=headers, method="POST")  # noqa: S310
    try:
        with opener.open(request, timeout=timeout) as response:
            return _read(response.status, response)
    except urllib.error.HTTPError as refused:
        with refused:
            return _read(refused.code, refused)
    except urllib.error.URLError as exc:
        return Reply(error=str(exc.reason))
    except (OSError, http.client.HTTPException, ValueError) as exc:
        return Reply(error=str(exc) or type(exc).__name__)


def _read(status: int, response: Any) -> Reply:
    try:
        body = json.loads(response.read(_MAX_ANSWER))
    except (OSError, http.client.HTTPException, ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        return Reply(status, error=f"{status} {response.reason}, and no JSON object")
    if status == 200:
        return Reply(status, body)
    return Reply(status, body, error=f"{status} {body.get('error', response.reason)}")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Take a redirect for the answer: following one would hand the token to whoever it names."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _opener(url: str) -> urllib.request.OpenerDirector:
    try:
        parts = urlsplit(url)
        host = parts.hostname
        fine = parts.scheme in ("http", "https") and bool(host) and parts.port != 0
    except ValueError:
        host, fine = None, False
    if not fine or host is None or parts.username is not None or not url.isascii() or not url.isprintable():
        # Not shown: a password may stand in it.
        raise SettingsError("the URL to ping must be like http://127.0.0.1:8000/data_flows/heartbeat")
    # The environment's proxy, if any, is no way to this machine.
    proxies = urllib.request.ProxyHandler({}) if _is_loopback(host) else urllib.request.ProxyHandler()
    return urllib.request.build_opener(proxies, _NoRedirect)


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost" or host.endswith(".localhost")
