"""The proxy and the private server do the damage that they promise."""

from __future__ import annotations

import time
from typing import Any

import psycopg
import pytest

from tests.faults.private import PrivateServer
from tests.faults.proxy import Proxy, Verdict, Way
from tests.support.waiting import Background


def connect(proxy: Proxy, timeout: int = 2) -> psycopg.Connection[Any]:
    return psycopg.connect(f"{proxy.url}&connect_timeout={timeout}", autocommit=True)


def test_a_healed_proxy_passes_everything(proxy: Proxy) -> None:
    with connect(proxy) as conn:
        assert conn.execute("SELECT repeat('x', 300000)").fetchone() == ("x" * 300_000,)


def test_a_cut_connection_is_gone_at_once(proxy: Proxy) -> None:
    conn = connect(proxy)
    assert proxy.cut() == 1
    with pytest.raises(psycopg.OperationalError):
        conn.execute("SELECT 1")
    connect(proxy).close()


def test_a_refusing_proxy_refuses_until_healed(proxy: Proxy) -> None:
    proxy.refuse()
    with pytest.raises(psycopg.OperationalError, match="refused"):
        connect(proxy)
    proxy.heal()
    connect(proxy).close()


def test_a_black_hole_swallows_old_and_new_connections(proxy: Proxy) -> None:
    conn = connect(proxy)
    proxy.black_hole()
    asking = Background(lambda: conn.execute("SELECT 7").fetchone())
    with pytest.raises(psycopg.OperationalError, match="timeout"):
        connect(proxy, timeout=2)
    assert not asking.done
    proxy.heal()
    assert asking.result() == (7,)
    conn.close()


def test_a_delay_holds_every_chunk(proxy: Proxy) -> None:
    with connect(proxy) as conn:
        proxy.delay(0.2)
        begin = time.monotonic()
        conn.execute("SELECT 1")
        assert 0.4 <= time.monotonic() - begin < 2


@pytest.mark.parametrize(("verdict", "written"), [("cut", 0), ("pass_then_cut", 1)])
def test_a_connection_dies_before_or_after_what_it_asked_was_done(
    proxy: Proxy, db: psycopg.Connection[Any], verdict: Verdict, written: int
) -> None:
    db.execute("CREATE TABLE written (n integer)")

    def watch(way: Way, data: bytes, _: int) -> Verdict:
        return verdict if way == "to_server" and b"INSERT INTO written" in data else "pass"

    conn = connect(proxy)
    proxy.watch = watch
    with pytest.raises(psycopg.OperationalError):
        conn.execute("INSERT INTO written VALUES (1)")
    assert db.execute("SELECT count(*) FROM written").fetchone() == (written,)


def test_a_private_server_comes_back_from_an_immediate_stop(private_server: PrivateServer) -> None:
    name = private_server.create_database()
    with private_server.connect(name) as conn:
        conn.execute("CREATE TABLE kept (n integer)")
        conn.execute("INSERT INTO kept VALUES (1)")
        private_server.stop("immediate")
        with pytest.raises(psycopg.OperationalError):
            conn.execute("SELECT 1")
    private_server.start()
    with private_server.connect(name) as conn:
        assert conn.execute("SELECT count(*) FROM kept").fetchone() == (1,)
