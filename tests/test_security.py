"""Who may send a heartbeat, tried with every address and header that somebody might."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heartbeat.http.security import Decision, client_address, decide, parse_address
from heartbeat.settings import Settings

TOKEN = b"s3cret"
BEARER = (b"authorization", b"Bearer s3cret")


def settings(**overrides: Any) -> Settings:
    return Settings.load(environ={}, dotenv=None, **{"token": "s3cret,old", **overrides})


def ask(
    *headers: tuple[bytes, bytes], peer: str | None = "192.0.2.1", method: str = "POST", **overrides: Any
) -> Decision:
    return decide(peer, headers, method, settings(**overrides))


def forwarded(*values: bytes) -> list[tuple[bytes, bytes]]:
    return [(b"x-forwarded-for", value) for value in values]


@pytest.mark.parametrize(
    "header",
    [
        BEARER,
        (b"authorization", b"bearer s3cret"),
        (b"Authorization", b"BEARER   s3cret "),
        (b"authorization", b"Bearer old"),
        (b"x-heartbeat-token", b"s3cret"),
        (b"X-Heartbeat-Token", b"\told "),
    ],
)
def test_a_request_with_one_right_token_is_allowed(header: tuple[bytes, bytes]) -> None:
    assert ask(header) == Decision(200, None, "192.0.2.1")
    assert ask(header).allowed


@pytest.mark.parametrize(
    "header",
    [
        (b"authorization", b"Bearer s3cre"),
        (b"authorization", b"Bearer s3cret2"),
        (b"authorization", b"Bearer S3CRET"),
        (b"authorization", b"Bearer s3cret,old"),
        (b"authorization", b"Bearer s3cret Bearer s3cret"),
        (b"authorization", b"Bearer"),
        (b"authorization", b"Bearer "),
        (b"authorization", b""),
        (b"authorization", b"s3cret"),
        (b"authorization", b"Basic s3cret"),
        (b"authorization", b"Bearer\xa0s3cret"),
        (b"x-heartbeat-token", b""),
        (b"x-heartbeat-token", b"Bearer s3cret"),
        (b"x-heartbeat-token", "s3crét".encode()),
        (b"x-heartbeat-token", b"s3cr\xe9t"),
        (b"x-heartbeat-tokens", b"s3cret"),
        (b"cookie", b"token=s3cret"),
    ],
)
def test_anything_but_a_right_token_is_401(header: tuple[bytes, bytes]) -> None:
    assert ask(header).status == 401


def test_more_than_one_credential_is_none_even_if_each_is_right() -> None:
    for second in (BEARER, (b"x-heartbeat-token", TOKEN), (b"authorization", b"Basic dTpw")):
        assert ask(BEARER, second) == Decision(401, "more than one credential", "192.0.2.1")


def test_without_a_token_set_nobody_gets_in_unless_anonymous_is_allowed() -> None:
    assert ask(token=None).status == 401
    assert ask((b"x-heartbeat-token", b""), token=None).status == 401
    assert ask(token=None, allow_anonymous=True).allowed
    assert ask(allow_anonymous=True).status == 401, "a token that is set is asked for"


def test_a_token_is_compared_as_bytes() -> None:
    assert ask((b"x-heartbeat-token", "tökén".encode()), token="tökén").allowed
    assert ask((b"x-heartbeat-token", "tökén".encode("latin-1")), token="tökén").status == 401


def test_the_address_is_judged_first_then_the_method_then_the_token() -> None:
    assert ask(method="GET", allowed_ips="10.0.0.0/8").status == 403
    assert ask(method="GET").status == 405
    assert ask(method="HEAD").status == 405
    assert ask(method="post").status == 405
    assert ask().status == 401


@pytest.mark.parametrize(
    ("peer", "allowed"),
    [
        ("10.1.2.3", True),
        ("::ffff:10.1.2.3", True),
        ("11.0.0.1", False),
        ("::ffff:11.0.0.1", False),
        ("2001:db8::7", True),
        ("2001:db8::7%eth0", True),
        ("2001:db9::7", False),
        ("010.1.2.3", False),
        ("10.1.2.3%x", False),
        ("testclient", False),
        ("", False),
        (None, False),
    ],
)
def test_an_allowlist_lets_in_only_whom_it_names(peer: str | None, allowed: bool) -> None:
    decision = ask(BEARER, peer=peer, allowed_ips="10.0.0.0/8,2001:db8::/64")
    assert decision.status == (200 if allowed else 403)


def test_without_an_allowlist_any_address_will_do_also_an_unknown_one() -> None:
    assert ask(BEARER, peer=None) == Decision(200, None, None)


TRUSTED = settings(trusted_proxies="10.0.0.0/8,2001:db8::/32").trusted_proxies


@pytest.mark.parametrize(
    ("peer", "entries", "expected"),
    [
        ("192.0.2.1", [b"198.51.100.7"], "192.0.2.1"),
        ("10.0.0.1", [b"198.51.100.7"], "198.51.100.7"),
        ("::ffff:10.0.0.1", [b"198.51.100.7"], "198.51.100.7"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", [b""], "10.0.0.1"),
        ("10.0.0.1", [b"6.6.6.6, 198.51.100.7"], "198.51.100.7"),
        ("10.0.0.1", [b"6.6.6.6, 198.51.100.7, 10.0.0.2"], "198.51.100.7"),
        ("10.0.0.1", [b"6.6.6.6", b"198.51.100.7", b"10.0.0.2"], "198.51.100.7"),
        ("10.0.0.1", [b"10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ("10.0.0.1", [b"198.51.100.7, unknown, 10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", [b"198.51.100.7, "], "10.0.0.1"),
        ("10.0.0.1", [b"198.51.100.7:4711"], "198.51.100.7"),
        ("10.0.0.1", [b"[2001:db9::7]:4711"], "2001:db9::7"),
        ("10.0.0.1", [b"[2001:db9::7]"], "2001:db9::7"),
        ("10.0.0.1", [b"2001:db9::7"], "2001:db9::7"),
        ("10.0.0.1", [b"fe80::7%eth0"], "fe80::7"),
        ("10.0.0.1", [b"::ffff:198.51.100.7"], "198.51.100.7"),
        ("10.0.0.1", [b"[::ffff:198.51.100.7]:1"], "198.51.100.7"),
        ("10.0.0.1", [b"[198.51.100.7]"], "10.0.0.1"),
        ("10.0.0.1", [b"198.51.100.7:port"], "10.0.0.1"),
        ("10.0.0.1", [b"198.51.100.007"], "10.0.0.1"),
        ("10.0.0.1", [b"[2001:db9::7"], "10.0.0.1"),
        ("10.0.0.1", [b"198.51.100.7\x00"], "10.0.0.1"),
        ("10.0.0.1", [b"\xff\xfe"], "10.0.0.1"),
        ("testclient", [b"198.51.100.7"], None),
    ],
)
def test_a_forwarded_address_is_believed_only_from_trusted_proxies_and_from_the_right(
    peer: str, entries: list[bytes], expected: str | None
) -> None:
    address = client_address(peer, forwarded(*entries), TRUSTED)
    assert (None if address is None else str(address)) == expected


def test_without_trusted_proxies_a_forwarded_address_is_never_believed() -> None:
    spoofed = forwarded(b"10.0.0.1")
    assert ask(BEARER, *spoofed, peer="127.0.0.1", allowed_ips="10.0.0.0/8").status == 403


addresses = st.ip_addresses().map(str)
noise = st.binary(max_size=40)
names = st.sampled_from(
    [b"authorization", b"x-heartbeat-token", b"x-forwarded-for", b"X-Forwarded-For", b"host"]
)
headers = st.lists(st.tuples(names | noise, noise | addresses.map(str.encode)), max_size=6)
configured = st.sampled_from(
    [
        settings(),
        settings(token=None),
        settings(allowed_ips="10.0.0.0/8,::1", trusted_proxies="0.0.0.0/0,::/0"),
        settings(allowed_ips="::1", token=None, allow_anonymous=True),
    ]
)


@given(
    peer=st.none() | st.text(max_size=40) | addresses, headers=headers, method=st.text(), settings=configured
)
def test_no_request_raises_and_none_without_the_token_is_allowed(
    peer: str | None, headers: list[tuple[bytes, bytes]], method: str, settings: Settings
) -> None:
    decision = decide(peer, headers, method, settings)
    assert decision.client is None or str(parse_address(decision.client)) == decision.client
    if decision.allowed:
        assert method == "POST"
        assert settings.allow_anonymous or any(
            token in value for _, value in headers for token in settings.tokens
        )


@given(entries=st.lists(noise | addresses.map(str.encode), max_size=5), real=addresses)
def test_nothing_left_of_the_first_untrusted_address_changes_who_the_client_is(
    entries: list[bytes], real: str
) -> None:
    trusted = settings(trusted_proxies="127.0.0.1").trusted_proxies
    with_noise = client_address("127.0.0.1", forwarded(b",".join([*entries, real.encode()])), trusted)
    alone = client_address("127.0.0.1", forwarded(real.encode()), trusted)
    assert with_noise == alone or str(alone) == "127.0.0.1"
