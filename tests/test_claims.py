"""Claims: large ones of several processes wait for a permit, and none is worth a failed heartbeat."""

from __future__ import annotations

import time
from collections.abc import Iterator

import psycopg
import pytest

from heartbeat import DataFlow, Heartbeat
from tests.support.flow_classes import Noop
from tests.support.rows import Conn, add_flows, of_class, statuses_of
from tests.support.waiting import Background, wait_until


class Quick(DataFlow):
    async def run(self) -> None:
        pass


@pytest.fixture
def permits(database_url: str) -> Iterator[Conn]:
    """Another process that holds every permit, until its transaction ends."""
    with psycopg.connect(database_url) as other:
        for permit in (1, 2):
            other.execute(
                "SELECT pg_advisory_xact_lock(hashtext('data-flow-heartbeat claims'), %s)", [permit]
            )
        yield other


def waiting_for_a_permit(db: Conn) -> int:
    return int(
        db.execute(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted "
            "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        ).fetchone()[0]
    )


def test_a_large_claim_waits_for_a_permit_and_goes_on_when_there_is_one(
    db: Conn, database_url: str, permits: Conn
) -> None:
    add_flows(db, "quick", 300, of_class("Quick"))
    with Heartbeat(flows=[Quick], database_url=database_url, async_concurrency=300) as hb:
        beat = Background(hb.beat)
        wait_until(lambda: waiting_for_a_permit(db), what="the claim to wait")
        permits.rollback()
        assert beat.result().flows_succeeded == 300


def test_permits_that_somebody_keeps_fail_no_heartbeat(db: Conn, database_url: str, permits: Conn) -> None:
    add_flows(db, "quick", 300, of_class("Quick"))
    with Heartbeat(flows=[Quick], database_url=database_url, async_concurrency=300) as hb:
        report = hb.beat()
        assert (report.flows_due, report.flows_succeeded, report.flows_remaining) == (300, 300, 0)


def test_a_small_claim_waits_for_no_permit(db: Conn, database_url: str, permits: Conn) -> None:
    add_flows(db, "noop", 10, of_class("Noop"))
    with Heartbeat(flows=[Noop], database_url=database_url) as hb:
        begin = time.monotonic()
        assert hb.beat().flows_succeeded == 10
        assert time.monotonic() - begin < 1.5, "less than a permit is waited for"


def test_processes_that_claim_much_at_once_run_each_flow_once(db: Conn, database_url: str) -> None:
    add_flows(db, "quick", 3000, of_class("Quick"))
    services = [
        Heartbeat(flows=[Quick], database_url=database_url, async_concurrency=500).start() for _ in range(3)
    ]
    reports = [beat.result(60) for beat in [Background(hb.beat) for hb in services]]
    for hb in services:
        hb.close()
    assert sum(report.flows_succeeded for report in reports) == 3000
    assert statuses_of(db, "quick-%") == ["success"] * 3000
