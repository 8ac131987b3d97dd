"""The database goes away and comes back: restarted, full, without our sessions."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import psycopg

from tests.faults.checker import Limits, Trace, check
from tests.faults.harness import Fleet, Pinger, beats_until_fresh_flow_ran, wait_begun, warm_up
from tests.faults.private import PrivateServer
from tests.support.rows import Conn, add_flow, of_class, runs_of, statuses_of
from tests.support.waiting import wait_until


@contextlib.contextmanager
def away(server: PrivateServer, trace: Trace) -> Iterator[None]:
    """Have the server gone for the length of a block, as after a crash."""
    trace.mark("away")
    server.stop("immediate")
    try:
        yield
    finally:
        server.start()
        trace.mark("back")


def test_a_restart_longer_than_the_ttl_fails_no_run_and_loses_no_outcome(
    private_fleet: Fleet, private_server: PrivateServer, private_database: str, trace: Trace
) -> None:
    ttl = 2
    runner, other = private_fleet.many(2, runner_ttl=ttl)
    with private_server.connect(private_database) as conn:
        add_flow(conn, "ends-meanwhile", of_class("Held"))
        add_flow(conn, "ends-meanwhile-async", of_class("AsyncHeld"))
        add_flow(conn, "ends-afterwards", of_class("Held"))
    runner.ask_in_background()
    wait_begun(trace, "ends-meanwhile", "ends-meanwhile-async", "ends-afterwards")
    with Pinger(lambda: [runner, other], 0.2) as pinger:
        with away(private_server, trace):
            trace.let_go("ends-meanwhile", "ends-meanwhile-async")
            wait_until(lambda: len(trace.of("end")) == 2, what="the short runs to return")
            time.sleep(ttl + 1)  # the length of the outage, not a wait for something
        trace.let_go("ends-afterwards")
        with private_server.connect(private_database) as conn:
            wait_until(lambda: "in_progress" not in statuses_of(conn, "%"), what="the records")
        wait_until(
            lambda: 200 in {answer.status for answer in pinger.answers[-1:]}, what="a heartbeat after it"
        )
    with private_server.connect(private_database) as conn:
        assert [(run.status, run.error) for run in runs_of(conn, "ends-%")] == [("success", None)] * 3
        assert {answer.status for answer in pinger.answers} == {200, 503}
        assert pinger.longest() <= 5
        for process in (runner, other):
            assert process.alive()
            beats_until_fresh_flow_ran(conn, process, limit=1)
        report = check(trace, conn, Limits(ttl=ttl))
        assert not report.violations, str(report)


def test_the_first_heartbeat_after_a_short_restart_works(
    private_fleet: Fleet, private_server: PrivateServer, private_database: str, trace: Trace
) -> None:
    service = private_fleet(runner_ttl=30)
    with private_server.connect(private_database) as conn:
        warm_up(conn, service, 50)  # every pool has connections, and all of them die
    with away(private_server, trace):
        answer = service.ask()
        assert (answer.status, answer.seconds < 5) == (503, True)
        assert service.ask_health().status == 503
    with private_server.connect(private_database) as conn:
        assert beats_until_fresh_flow_ran(conn, service, limit=1) == 1
        conn.execute("UPDATE data_flows SET next_run_at = now()")
        assert service.ask().counts["flows_succeeded"] == 51
        assert service.ask_health().status == 200


def fill(server: PrivateServer, taken: list[Conn]) -> None:
    """Take every connection that the server has left, the reserved ones too."""
    with contextlib.suppress(psycopg.OperationalError):
        while True:
            taken.append(server.connect())


def test_a_server_out_of_connections_costs_a_503_and_no_outcome(
    private_fleet: Fleet, private_server: PrivateServer, private_database: str, trace: Trace
) -> None:
    service = private_fleet(runner_ttl=30)
    conn = private_server.connect(private_database)
    add_flow(conn, "long", of_class("Held"))
    waiting = service.ask_in_background()
    wait_begun(trace, "long")
    taken: list[Conn] = []
    ours = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    try:
        fill(private_server, taken)

        def none_left() -> bool:
            conn.execute(f"SELECT pg_terminate_backend(pid) {ours}")
            fill(private_server, taken)
            return conn.execute(f"SELECT count(*) {ours}").fetchone() == (0,)

        wait_until(none_left, what="the service to be without connections")
        answer = service.ask()
        assert answer.status == 503, answer
        assert answer.seconds < 5
        assert int(answer.headers["retry-after"]) > 0
        health = service.ask_health()
        assert (health.status, health.seconds < 5) == (503, True)
        trace.let_go("long")
        wait_until(lambda: trace.of("end", "long"), what="the flow to return")
        assert service.alive()
    finally:
        for connection in taken:
            connection.close()
    wait_until(lambda: statuses_of(conn, "long") == ["success"], what="the outcome that was kept")
    waiting.result()
    assert beats_until_fresh_flow_ran(conn, service, limit=1) == 1
    conn.close()


def test_terminated_sessions_cost_no_run_and_no_heartbeat(fleet: Fleet, db: Conn, trace: Trace) -> None:
    service = fleet(runner_ttl=3)
    warm_up(db, service)
    add_flow(db, "long", of_class("Held"))
    waiting = service.ask_in_background()
    wait_begun(trace, "long")
    for _ in range(3):
        db.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        assert beats_until_fresh_flow_ran(db, service, limit=1) == 1
    trace.let_go("long")
    assert waiting.result().status == 200
    assert statuses_of(db, "long") == ["success"]
    report = check(trace, db, Limits(ttl=3))
    assert not report.violations, str(report)
