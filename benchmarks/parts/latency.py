"""What one heartbeat takes, with one service on the machine, beside the least that it could take."""

from __future__ import annotations

import http.client
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import psycopg

from benchmarks import project
from benchmarks.measure import ROOT, MeasurementFailed, say
from benchmarks.record import Figure, Rounds
from benchmarks.server import Server, settle
from benchmarks.serving import Service, free_port, migrate
from benchmarks.timing import Action, in_turn, timed

TITLE = "Latency of a heartbeat"
ABOUT = (
    "From sending the POST to having read the answer, over a kept connection, with one service on the machine. The "
    "idle heartbeat and its references are taken in turn, one of each; then idle ones and ones with a flow due."
)
IDLE, INSERT, RESPONSE = (
    "idle heartbeat",
    "reference: insert and commit",
    "reference: empty Starlette response",
)
ONE_DUE, IDLE_BESIDE = "heartbeat with one flow due", "idle heartbeat, in turn with one due"
SIZES = {"full": (20, 50), "quick": (10, 30)}


def measure(server: Server, size: str) -> list[Figure]:
    """Return milliseconds of an idle heartbeat, one with a flow due, and the two references."""
    count, turns = SIZES[size]
    rounds = Rounds()
    with ExitStack() as stack:
        url = stack.enter_context(server.database())
        migrate(url)
        project.add_flows(url, 1, due=False)
        settle(url)
        service = stack.enter_context(Service(url, retention_days=0))
        idle = timed(service.beat)
        with _references(server) as references:
            in_turn(rounds, {IDLE: idle, **references}, count, turns)
        one = stack.enter_context(one_due(url, service))
        in_turn(rounds, {IDLE_BESIDE: idle, ONE_DUE: one}, count, turns)
    figures = [
        *(rounds.figure(case, "ms", f"rounds of {turns}") for case in rounds.values),
        rounds.ratio("heartbeat with one flow due against an idle one", ONE_DUE, IDLE_BESIDE),
        rounds.ratio("idle heartbeat against an insert and an empty response", IDLE, INSERT, RESPONSE),
    ]
    for figure in figures:
        say(f"   {figure.name}: {figure.median} {figure.unit}")
    return figures


@contextmanager
def one_due(url: str, service: Service) -> Iterator[Action]:
    """A heartbeat with one flow due; making it due is not counted."""
    with psycopg.connect(url, autocommit=True) as conn:

        def action() -> float:
            project.make_one_due(conn)
            started = time.perf_counter()
            answer = service.beat()
            seconds = time.perf_counter() - started
            if answer["flows_succeeded"] != 1:
                raise MeasurementFailed(f"one flow was due, and the answer was {answer}")
            return seconds

        yield action


@contextmanager
def _references(server: Server) -> Iterator[dict[str, Action]]:
    """A single-row insert with commit, over a connection as the service makes its own; and an empty response."""
    with server.database() as url, project.connect(url) as conn, _empty_response() as response:
        conn.execute(
            "CREATE TABLE reference (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, at timestamptz)"
        )
        insert = timed(lambda: conn.execute("INSERT INTO reference (at) VALUES (now())"))
        yield {INSERT: insert, RESPONSE: response}


@contextmanager
def _empty_response() -> Iterator[Action]:
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.reference_app", str(port)], cwd=ROOT)
    try:
        connection = _connected(port)

        def post() -> None:
            connection.request("POST", "/")
            connection.getresponse().read()

        yield timed(post)
        connection.close()
    finally:
        process.terminate()
        process.wait()


def _connected(port: int) -> http.client.HTTPConnection:
    for _ in range(200):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.connect()
            return connection
        except OSError:
            time.sleep(0.05)
    raise MeasurementFailed("the reference app did not start")
