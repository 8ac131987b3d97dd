"""The network between the service and its database, as the tests' own proxy spoils it."""

from __future__ import annotations

import pytest

from tests.faults.checker import Snapshots, Trace
from tests.faults.conftest import Rules
from tests.faults.harness import Fleet, Pinger, beats_until_fresh_flow_ran, wait_begun, warm_up
from tests.faults.proxy import Proxy, Verdict, Way
from tests.support.rows import Conn, add_flow, add_flows, live_runs, of_class, runs_of, statuses_of
from tests.support.waiting import wait_until

RESULT = "a-result-nobody-else-has"


@pytest.mark.parametrize("fault", ["black_hole", "refuse"])
def test_a_database_out_of_reach_costs_a_503_in_time_and_no_outcome(
    fleet: Fleet, proxy: Proxy, db: Conn, trace: Trace, rules: Rules, fault: str
) -> None:
    service = fleet(database_url=proxy.url, runner_ttl=30)
    warm_up(db, service)
    add_flow(db, "long", of_class("Held"))
    service.ask_in_background()
    wait_begun(trace, "long")
    getattr(proxy, fault)()
    beats = [service.ask_in_background() for _ in range(12)]  # more than the pool has connections
    health = service.ask_health()
    assert health.status == 503
    assert health.seconds <= 5
    for answer in [beat.result() for beat in beats] + [service.ask()]:
        assert answer.status == 503, answer
        assert answer.seconds <= 5
        assert int(answer.headers["retry-after"]) > 0
    trace.let_go("long")
    wait_until(lambda: trace.of("end", "long"), what="the flow to return")
    proxy.heal()
    assert beats_until_fresh_flow_ran(db, service, limit=2) <= 2
    wait_until(lambda: statuses_of(db, "long") == ["success"], what="the outcome that was kept")
    assert service.ask_health().status == 200
    rules(db)


def test_cut_connections_are_replaced_before_anybody_notices(
    fleet: Fleet, proxy: Proxy, db: Conn, trace: Trace, rules: Rules
) -> None:
    service = fleet(database_url=proxy.url, runner_ttl=3)
    warm_up(db, service)
    add_flow(db, "long", of_class("Held"))
    waiting = service.ask_in_background()
    wait_begun(trace, "long")
    for _ in range(3):
        assert proxy.cut() > 0
        assert beats_until_fresh_flow_ran(db, service, limit=1) == 1
    trace.let_go("long")
    assert waiting.result().status == 200
    assert statuses_of(db, "long") == ["success"]
    rules(db)


def test_a_slow_network_slows_and_breaks_nothing(fleet: Fleet, proxy: Proxy, db: Conn, rules: Rules) -> None:
    service = fleet(database_url=proxy.url, runner_ttl=5)
    add_flows(db, "work", 20, of_class("Quick"))
    proxy.delay(0.05)  # each way: a hundred times a local network's
    answer = service.ask()
    assert (answer.status, answer.counts["flows_succeeded"]) == (200, 20)
    assert service.ask_health().status == 200
    rules(db)


def test_a_runner_cut_off_past_its_ttl_is_given_up_writes_nothing_and_begins_anew(
    fleet: Fleet, proxy: Proxy, db: Conn, trace: Trace, rules: Rules
) -> None:
    snapshots = Snapshots()
    lost = fleet(database_url=proxy.url)
    survivor = fleet()
    add_flow(db, "long", of_class("Held"))
    waiting = lost.ask_in_background()
    wait_begun(trace, "long")
    trace.mark("paused", pid=lost.pid)
    proxy.black_hole()
    with Pinger(lambda: [survivor], 0.3):
        wait_until(lambda: statuses_of(db, "long") == ["failed"], what="the burial")
        snapshots.take(db)
        trace.let_go("long")
        wait_until(lambda: trace.of("end", "long"), what="the flow to return")
        proxy.heal()
        trace.mark("resumed", pid=lost.pid)
        wait_until(lambda: lost.ask_health().status == 200, what="the lost one's health")
        beats_until_fresh_flow_ran(db, lost, limit=2)
    waiting.result()
    assert statuses_of(db, "long") == ["failed"]
    rules(db, snapshots)


def test_runs_whose_claim_was_committed_but_never_heard_of_are_closed_by_their_living_runner(
    fleet: Fleet, proxy: Proxy, db: Conn, trace: Trace, rules: Rules
) -> None:
    service = fleet(database_url=proxy.url)
    assert service.ask().status == 200
    add_flow(db, "claimed-unheard", of_class("Quick"), run_interval=1)
    claiming: set[int] = set()
    cuts: list[int] = []

    def watch(way: Way, data: bytes, connection: int) -> Verdict:
        """Drop what says that the claim was committed. Its answer is the one with the flow's name in it."""
        if cuts:
            return "pass"
        if way == "to_client" and b"claimed-unheard" in data:
            if not live_runs(db):  # the claim is done, and its commit still to come
                claiming.add(connection)
                return "pass"
            cuts.append(connection)
            return "cut"
        if way == "to_server" and connection in claiming and b"COMMIT" in data.upper():
            cuts.append(connection)
            return "pass_then_cut"
        return "pass"

    proxy.watch = watch
    service.ask()
    assert cuts, "the claim was never cut: the test tests nothing"
    wait_until(lambda: runs_of(db, "claimed-unheard")[0].status == "failed", what="the run to be closed")
    assert runs_of(db, "claimed-unheard")[0].error
    proxy.heal()
    wait_until(lambda: service.ask().status == 200 and trace.of("end"), what="the next run")
    assert statuses_of(db, "claimed-unheard")[:2] == ["failed", "success"]
    db.execute("UPDATE data_flows SET enabled = false")
    wait_until(lambda: not live_runs(db), what="the last run to end")
    rules(db)


@pytest.mark.parametrize("verdict", ["cut", "pass_then_cut"])
def test_a_connection_that_dies_with_an_outcome_on_it_loses_no_outcome(
    fleet: Fleet, proxy: Proxy, db: Conn, rules: Rules, verdict: Verdict
) -> None:
    service = fleet(database_url=proxy.url)
    add_flow(db, "work", of_class("Slow", seconds=0.5, result=RESULT))
    add_flows(db, "other", 5, of_class("Slow", seconds=0.5))
    cuts: list[int] = []

    def watch(way: Way, data: bytes, _: int) -> Verdict:
        """The outcome is the one message to the server that carries the result."""
        if way == "to_server" and not cuts and RESULT.encode() in data:
            cuts.append(len(data))
            return verdict
        return "pass"

    proxy.watch = watch
    answer = service.ask()
    assert cuts, "the outcome was never cut: the test tests nothing"
    wait_until(lambda: not live_runs(db), what="the outcomes")
    assert statuses_of(db, "%") == ["success"] * 6
    assert answer.status == 200
    assert answer.counts["flows_succeeded"] == 6
    wait_until(
        lambda: (
            db.execute("SELECT count(*) FROM data_flows WHERE last_run_status = 'success'").fetchone() == (6,)
        ),
        what="the flows to be told",
    )
    beats_until_fresh_flow_ran(db, service, limit=1)
    rules(db)
