"""Who may send a heartbeat: address and headers in, allowed or why not out. No framework, no side effects."""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Literal

from heartbeat.parsers import Network
from heartbeat.settings import Settings

Address = IPv4Address | IPv6Address
Headers = Sequence[tuple[bytes, bytes]]

# `[2001:db8::1]`, `[2001:db8::1]:443` and `192.0.2.1:443`: how proxies write an address with its port.
_BRACKETED = re.compile(r"\[([^\[\]]*)\](?::[0-9]{1,5})?")
_V4_WITH_PORT = re.compile(r"([0-9.]+):[0-9]{1,5}")


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a request may be a heartbeat. `status` is the answer to give, 200 for "go on".

    `reason` is for the log, never for the answer; `client` is the address that is believed, None if unknown.
    """

    status: Literal[200, 401, 403, 405]
    reason: str | None
    client: str | None

    @property
    def allowed(self) -> bool:
        return self.status == 200


def decide(peer: str | None, headers: Headers, method: str, settings: Settings) -> Decision:
    """Judge a request by its address, then its method, then its credential, and stop at the first refusal."""
    address = client_address(peer, headers, settings.trusted_proxies)
    client = None if address is None else str(address)
    if settings.allowed_ips and (address is None or not _within(address, settings.allowed_ips)):
        return Decision(403, "address not allowed", client)
    if method != "POST":
        return Decision(405, "method not allowed", client)
    if reason := _unauthorized(headers, settings):
        return Decision(401, reason, client)
    return Decision(200, None, client)


def client_address(peer: str | None, headers: Headers, trusted: Iterable[Network]) -> Address | None:
    """Find who sent a request: the peer, or whom a chain of trusted proxies names.

    `X-Forwarded-For` is read from the right, one entry for each proxy that is trusted. An entry that is no
    address ends the chain: anybody may have written what stands left of it.
    """
    address = parse_address(peer or "")
    for entry in _forwarded(headers):
        if address is None or not _within(address, trusted):
            break
        hop = _parse_hop(entry)
        if hop is None:
            break
        address = hop
    return address


def parse_address(text: str) -> Address | None:
    """Read an address without its zone, an IPv4-mapped one as IPv4; None for anything else."""
    host, _, _ = text.partition("%") if ":" in text else (text, "", "")
    try:
        address = ip_address(host)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _forwarded(headers: Headers) -> Iterator[str]:
    """Yield the entries of all `X-Forwarded-For` lines, which are one list, from the right."""
    for name, value in reversed(headers):
        if name.lower() == b"x-forwarded-for":
            yield from reversed(value.decode("latin-1").split(","))


def _parse_hop(entry: str) -> Address | None:
    entry = entry.strip(" \t")
    with_port = _BRACKETED.fullmatch(entry) or _V4_WITH_PORT.fullmatch(entry)
    if with_port is None:
        return parse_address(entry)
    address = parse_address(with_port[1])
    if entry.startswith("[") and ":" not in with_port[1]:
        return None  # brackets are for IPv6
    return address


def _within(address: Address, networks: Iterable[Network]) -> bool:
    return any(address in network for network in networks)


def _unauthorized(headers: Headers, settings: Settings) -> str | None:
    """Say why the request is not authorized, None if it is."""
    if not settings.tokens:
        # Fail closed: no token to compare with is no reason to let anybody in.
        return None if settings.allow_anonymous else "no token is set"
    credentials = list(_credentials(headers))
    if len(credentials) != 1:
        return "more than one credential" if credentials else "no credential"
    given = credentials[0]
    if not given:
        return "malformed credential"
    # No early exit, so that the time taken does not tell which token came close.
    matches = [hmac.compare_digest(given, token) for token in settings.tokens]
    return None if any(matches) else "wrong token"


def _credentials(headers: Headers) -> Iterator[bytes]:
    """Yield each credential of the request; one of another scheme counts, as an empty one."""
    for name, value in headers:
        match name.lower():
            case b"x-heartbeat-token":
                yield value.strip(b" \t")
            case b"authorization":
                scheme, _, token = value.strip(b" \t").partition(b" ")
                yield token.strip(b" \t") if scheme.lower() == b"bearer" else b""
