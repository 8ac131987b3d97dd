"""The app over a heartbeat without a database: routes, statuses, bodies, log lines."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient
from starlette.types import Message

from heartbeat.errors import DatabaseUnavailable, QueryError, SchemaError, SettingsError
from heartbeat.http import create_app
from heartbeat.models import BeatReport, Health
from tests.support.fake_heartbeat import NOTHING_DUE, FakeHeartbeat

PATH = "/data_flows/heartbeat"
HEALTH = "/data_flows/health"
LIVE = "/data_flows/live"
TOKEN = (b"authorization", b"Bearer s3cret")


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


async def send(
    app: Starlette,
    method: str,
    path: str,
    *headers: tuple[bytes, bytes],
    client: str | None = "192.0.2.1",
    query: bytes = b"",
) -> Reply:
    """Put a request to the app whose body nobody may read."""
    sent: list[Message] = []

    async def receive() -> Message:
        raise AssertionError("the body was read")

    async def collect(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "root_path": "",
        "query_string": query,
        "headers": list(headers),
        "client": client and (client, 4711),
    }
    await app(scope, receive, collect)
    names = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return Reply(sent[0]["status"], names, sent[1]["body"])


def ask(app: Starlette, method: str, path: str, *headers: tuple[bytes, bytes], **options: Any) -> Reply:
    return asyncio.run(send(app, method, path, *headers, **options))


def make(**settings: Any) -> tuple[Starlette, FakeHeartbeat]:
    fake = FakeHeartbeat(**{"token": "s3cret", **settings})
    return create_app(heartbeat=fake.as_heartbeat), fake


def logged(caplog: pytest.LogCaptureFixture, event: str) -> list[dict[str, Any]]:
    return [vars(record) for record in caplog.records if vars(record).get("event") == event]


def test_a_heartbeat_with_the_token_is_made_and_answered_with_its_counts() -> None:
    app, fake = make()
    due = datetime(2026, 11, 23, 19, 5, 0, tzinfo=UTC)
    fake.on_beat = lambda: replace(
        NOTHING_DUE, flows_due=3, flows_triggered=3, flows_failed=1, next_due_at=due
    )
    reply = ask(app, "POST", PATH, TOKEN)
    assert reply.status == 200
    assert reply.headers["content-type"] == "application/json"
    assert reply.body.decode() == (
        '{"flows_due": 3, "flows_triggered": 3, "flows_succeeded": 0, "flows_failed": 1, "flows_running": 0, '
        '"flows_remaining": 0, "next_due_at": "2026-11-23T19:05:00Z", "heartbeat_id": 41, '
        '"timestamp": "2026-11-23T19:04:00Z"}'
    )
    assert fake.clients == ["192.0.2.1"]


def test_times_are_utc_in_whole_seconds_and_the_next_due_one_is_not_too_early() -> None:
    moment = datetime(2026, 11, 23, 20, 4, 0, 1, tzinfo=timezone(timedelta(hours=1)))
    answer = replace(NOTHING_DUE, timestamp=moment, next_due_at=moment).answer()
    assert (answer["timestamp"], answer["next_due_at"]) == ("2026-11-23T19:04:00Z", "2026-11-23T19:04:01Z")
    last = datetime.max.replace(tzinfo=UTC)
    assert replace(NOTHING_DUE, next_due_at=last).answer()["next_due_at"] == "9999-12-31T23:59:59Z"


@pytest.mark.parametrize(
    "method", ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "X", "post"]
)
def test_any_method_but_post_is_405_on_the_heartbeats_path(method: str) -> None:
    app, fake = make()
    reply = ask(app, method, PATH, TOKEN)
    assert (reply.status, reply.headers["allow"], fake.calls) == (405, "POST", [])
    assert reply.body == b"" if method == "HEAD" else reply.json == {"error": "method not allowed"}


def test_a_refused_request_touches_nothing_and_says_nothing_internal() -> None:
    app, fake = make(allowed_ips="192.0.2.0/24")
    assert ask(app, "POST", PATH, TOKEN, client="198.51.100.1").json == {"error": "forbidden"}
    assert ask(app, "POST", PATH, TOKEN, client=None).status == 403
    reply = ask(app, "POST", PATH)
    assert (reply.status, reply.headers["www-authenticate"], reply.json) == (
        401,
        "Bearer",
        {"error": "unauthorized"},
    )
    assert fake.calls == []


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "",
        f"{PATH}/",
        f"/{PATH}",
        f"{PATH}\n",
        f"{PATH}/x",
        f"{HEALTH}/",
        "/data_flows",
        PATH.upper(),
        "//evil/..",
    ],
)
@pytest.mark.parametrize("method", ["POST", "GET"])
def test_another_path_is_404_and_never_a_redirect(method: str, path: str) -> None:
    app, fake = make()
    reply = ask(app, method, path, TOKEN, (b"host", b"evil.example"))
    assert (reply.status, reply.json, fake.calls) == (404, {"error": "not found"}, [])
    assert "location" not in reply.headers


def test_the_path_is_a_setting_and_health_and_live_stand_beside_it() -> None:
    app, _ = make(path="/beat")
    assert ask(app, "POST", "/beat", TOKEN).status == 200
    assert ask(app, "GET", "/health").status == 200
    assert ask(app, "GET", "/live").status == 200
    assert ask(app, "POST", PATH, TOKEN).status == 404


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (DatabaseUnavailable("no route to db.internal"), 503, "5"),
        (SchemaError("internal"), 503, "60"),
        (QueryError("internal", file="internal.sql"), 503, "60"),
        (SettingsError("internal"), 500, None),
        (ValueError("internal"), 500, None),
        (SystemExit(3), 500, None),
    ],
)
def test_an_error_has_the_status_of_the_table_and_tells_nothing_internal(
    error: BaseException, status: int, retry_after: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    app, fake = make()

    def fail() -> BeatReport:
        raise error

    fake.on_beat = fail
    reply = ask(app, "POST", PATH, TOKEN)
    assert (reply.status, reply.headers.get("retry-after")) == (status, retry_after)
    assert list(reply.json) == ["error"]
    assert "internal" not in reply.json["error"].replace("internal error", "")
    assert [line["status"] for line in logged(caplog, "heartbeat")] == [status]


def test_health_needs_no_token_and_answers_with_status_and_stuck_threads() -> None:
    app, fake = make(allowed_ips="10.0.0.1")
    assert ask(app, "GET", HEALTH).json == {"status": "ok", "stuck_threads": 0}
    fake.on_health = lambda: Health(ok=False, stuck_threads=2, reason="internal")
    reply = ask(app, "GET", HEALTH)
    assert (reply.status, reply.json) == (503, {"status": "unavailable", "stuck_threads": 2})
    assert ask(app, "HEAD", HEALTH)[::2] == (503, b"")
    assert ask(app, "POST", HEALTH).headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    ("seconds", "query", "status"),
    [
        (59.0, b"fresh=60", 200),
        (61.0, b"fresh=60", 503),
        (61.0, b"other=60", 200),
        (61.0, b"", 200),
        (None, b"fresh=1e9", 503),
        *(
            (1.0, query, 400)
            for query in (b"fresh", b"fresh=", b"fresh=0", b"fresh=-1", b"fresh=nan", b"fresh=inf")
        ),
        *((1.0, query, 400) for query in (b"fresh=x", b"fresh=60&fresh=70", b"fresh=%ff")),
    ],
)
def test_health_is_503_where_the_newest_heartbeat_is_older_than_it_may_be(
    seconds: float | None, query: bytes, status: int
) -> None:
    app, fake = make()
    fake.on_health = lambda: Health(ok=True, seconds_since_heartbeat=seconds)
    assert ask(app, "GET", HEALTH, query=query).status == status


def test_live_is_200_while_the_process_answers_and_asks_nothing_of_the_database() -> None:
    fake = FakeHeartbeat(token="s3cret", allowed_ips="10.0.0.0/8")
    app = create_app(heartbeat=fake.as_heartbeat)
    fake.on_start = fake.on_health = lambda: (_ for _ in ()).throw(DatabaseUnavailable("away"))  # type: ignore[assignment]
    reply = ask(app, "GET", LIVE)
    assert (reply.status, reply.json) == (200, {"status": "ok"})
    assert fake.calls == []
    assert ask(app, "HEAD", LIVE).body == b""
    refused = ask(app, "POST", LIVE)
    assert (refused.status, refused.headers["allow"]) == (405, "GET, HEAD")


def test_health_is_503_where_the_start_or_the_check_itself_fails() -> None:
    app, fake = make()

    def fail() -> Any:
        raise RuntimeError("internal")

    fake.on_health = fail
    assert ask(app, "GET", HEALTH).json == {"status": "unavailable", "stuck_threads": 0}
    fake.on_start = fail
    assert ask(app, "GET", HEALTH).status == 503


def test_checks_of_health_at_the_same_time_are_one_check() -> None:
    app, fake = make()
    go = threading.Event()

    def slowly() -> Health:
        go.wait(10)
        return Health(ok=True)

    fake.on_health = slowly

    async def many() -> list[Reply]:
        asks = [asyncio.create_task(send(app, "GET", HEALTH)) for _ in range(100)]
        await asyncio.sleep(0)
        go.set()
        return await asyncio.gather(*asks)

    assert {reply.status for reply in asyncio.run(many())} == {200}
    assert fake.calls.count("health") == 1


def test_heartbeats_that_hang_leave_health_reachable_and_those_beyond_the_limit_are_told_to_come_back() -> (
    None
):
    app, fake = make()
    go = threading.Event()

    def hang() -> BeatReport:
        go.wait(10)
        return NOTHING_DUE

    fake.on_beat = hang

    async def crowd() -> tuple[list[Reply], Reply, Reply]:
        waiting = [asyncio.create_task(send(app, "POST", PATH, TOKEN)) for _ in range(64)]
        await asyncio.sleep(0)
        beyond = await send(app, "POST", PATH, TOKEN)
        health = await send(app, "GET", HEALTH)
        go.set()
        return await asyncio.gather(*waiting), beyond, health

    waited, beyond, health = asyncio.run(crowd())
    assert {reply.status for reply in waited} == {200}
    assert (beyond.status, beyond.headers["retry-after"]) == (503, "1")
    assert health.status == 200


def test_a_client_that_goes_away_does_not_stop_the_heartbeat(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "heartbeat")
    app, fake = make()
    begun, go, ended = threading.Event(), threading.Event(), threading.Event()

    def slowly() -> BeatReport:
        begun.set()
        go.wait(10)
        ended.set()
        return NOTHING_DUE

    fake.on_beat = slowly

    async def hang_up() -> None:
        request = asyncio.create_task(send(app, "POST", PATH, TOKEN))
        await asyncio.to_thread(begun.wait, 10)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        go.set()
        await asyncio.to_thread(ended.wait, 10)

    asyncio.run(hang_up())
    assert ended.is_set()


def test_every_request_is_logged_with_who_and_what_and_never_with_a_credential(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "heartbeat")
    app, _ = make(trusted_proxies="192.0.2.1")
    forwarded = (b"x-forwarded-for", b"198.51.100.7")
    ask(app, "POST", PATH, TOKEN, forwarded)
    ask(app, "POST", PATH, (b"x-heartbeat-token", b"wr0ng"), forwarded)
    ask(app, "GET", "/nowhere", forwarded)
    ask(app, "GET", HEALTH, forwarded)
    lines = [logged(caplog, event)[0] for event in ("heartbeat", "rejected", "not_found", "health")]
    assert [line["status"] for line in lines] == [200, 401, 404, 200]
    assert {line["client"] for line in lines} == {"198.51.100.7"}
    assert (lines[0]["flows_due"], lines[0]["heartbeat_id"], lines[0]["duration_ms"] >= 0) == (0, 41, True)
    assert lines[1]["reason"] == "wrong token"
    assert lines[3]["levelname"] == "DEBUG"
    assert "s3cret" not in caplog.text
    assert "wr0ng" not in caplog.text


def test_each_change_of_health_is_one_line_with_the_reason(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "heartbeat")
    app, fake = make()
    for reason in (None, "no route", "no route", "wrong password", None, None):
        state = Health(ok=reason is None, reason=reason)
        fake.on_health = lambda state=state: state  # type: ignore[misc]
        ask(app, "GET", HEALTH)
    [bad], [good] = logged(caplog, "unhealthy"), logged(caplog, "healthy")
    assert (bad["levelname"], bad["reason"], good["levelname"]) == ("WARNING", "no route", "INFO")


def test_an_app_without_a_token_is_refused_and_an_anonymous_one_warns_at_every_start(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(SettingsError, match="HEARTBEAT_TOKEN"):
        create_app(heartbeat=FakeHeartbeat().as_heartbeat)
    app, _ = make(token=None, allow_anonymous=True)
    for _ in range(2):
        with TestClient(app) as client:
            assert client.post(PATH).status_code == 200
    assert len(logged(caplog, "anonymous")) == 2


def test_a_heartbeat_and_what_makes_one_are_not_given_together() -> None:
    with pytest.raises(TypeError, match="not both"):
        create_app(heartbeat=FakeHeartbeat(token="x").as_heartbeat, token="y")


def test_the_lifespan_starts_and_drains_the_heartbeat() -> None:
    app, fake = make()
    with TestClient(app):
        assert fake.calls == ["start"]
    assert fake.calls == ["start", "stop_claiming", "close"]
    assert app.state.heartbeat is fake


def test_a_lifespan_that_cannot_start_stops_the_server() -> None:
    app, fake = make()

    def fail() -> None:
        raise DatabaseUnavailable("down")

    fake.on_start = fail
    with pytest.raises(DatabaseUnavailable), TestClient(app):
        pass


def test_two_apps_mounted_in_a_host_start_at_their_first_request() -> None:
    one, first = make()
    other, second = make(token="0ther", path="/beat")
    host = Starlette(routes=[Mount("/one", one), Mount("/other", other)])
    with TestClient(host) as client:
        assert client.post(f"/one{PATH}", headers={"X-Heartbeat-Token": "s3cret"}).status_code == 200
        assert client.post("/other/beat", headers={"X-Heartbeat-Token": "s3cret"}).status_code == 401
        assert client.post("/one/data_flows/heartbeat/").status_code == 404
    assert (first.calls, second.calls) == (["start", "beat"], [])


def test_a_start_that_failed_is_tried_again_with_the_next_request_and_then_no_more() -> None:
    app, fake = make()

    def fail() -> None:
        raise DatabaseUnavailable("down")

    fake.on_start = fail
    assert ask(app, "POST", PATH, TOKEN).status == 503
    fake.on_start = lambda: None
    assert [ask(app, "POST", PATH, TOKEN).status for _ in range(2)] == [200, 200]
    assert fake.calls == ["start", "start", "beat", "beat"]


words = st.sampled_from(["GET", "POST", "HEAD", "OPTIONS"]) | st.text(max_size=10)
paths = st.sampled_from([PATH, HEALTH, f"{PATH}/"]) | st.text(max_size=20)
headers = st.lists(
    st.tuples(
        st.sampled_from([b"authorization", b"x-heartbeat-token", b"x-forwarded-for", b"content-length"]),
        st.binary(max_size=20) | st.just(b"Bearer s3cret"),
    ),
    max_size=4,
)


@given(method=words, path=paths, headers=headers)
def test_no_request_makes_it_answer_5xx(method: str, path: str, headers: list[tuple[bytes, bytes]]) -> None:
    app, _ = make(trusted_proxies="192.0.2.1")
    assert ask(app, method, path, *headers).status < 500
