"""One parser for each kind of setting: text or a Python value goes in, the checked value comes out.

Each raises BadValue, whose message finishes the sentence "expected …" and never quotes a secret.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path

from heartbeat.database_url import is_readable

Network = IPv4Network | IPv6Network

_WORDS = {
    "true": True, "yes": True, "on": True, "1": True,
    "false": False, "no": False, "off": False, "0": False,
}  # fmt: skip

# One segment of a path: nothing that a client would have to escape or would fold away.
_SEGMENT = r"/(?!\.\.?(/|$))[A-Za-z0-9._~!$&'()*+,;=:@-]+"


class BadValue(Exception):
    """What was expected instead."""


def shown(value: object) -> str:
    """Quote a value on one line, cut to a length that fits a message."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def boolean(raw: object) -> bool:
    """Accept the usual words in any case."""
    if isinstance(raw, bool):
        return raw
    if not isinstance(raw, str) or raw.strip().lower() not in _WORDS:
        raise BadValue("true or false")
    return _WORDS[raw.strip().lower()]


def number(
    low: float, high: float, *, above: bool = False, unit: str = "seconds"
) -> Callable[[object], float]:
    """Make a parser for a plain decimal number from `low` (or above it) to `high`."""
    expected = f"a number of {unit}, {'above' if above else 'from'} {low:g} up to {high:,.0f}"

    def parse(raw: object) -> float:
        if isinstance(raw, str) and re.fullmatch(r"[0-9]+(\.[0-9]+)?", raw.strip()):
            raw = float(raw)
        if isinstance(raw, bool) or not isinstance(raw, int | float):
            raise BadValue(expected)
        if not low <= raw <= high or (above and raw == low):  # the comparison refuses nan too
            raise BadValue(expected)
        return float(raw)

    return parse


def whole_number(low: int, high: int) -> Callable[[object], int]:
    """Make a parser for a whole number from `low` to `high`."""

    def parse(raw: object) -> int:
        if isinstance(raw, str) and re.fullmatch(r"[0-9]{1,9}", raw.strip()):
            raw = int(raw)
        if isinstance(raw, bool) or not isinstance(raw, int) or not low <= raw <= high:
            raise BadValue(f"a whole number from {low} to {high}")
        return raw

    return parse


def one_of(*words: str) -> Callable[[object], str]:
    """Make a parser for one of some words."""

    def parse(raw: object) -> str:
        if not isinstance(raw, str) or raw not in words:
            raise BadValue(" or ".join(words))
        return raw

    return parse


def file(raw: object) -> Path:
    """Accept a path; `~` is the home directory, which no shell expands in a .env file."""
    text = os.fspath(raw) if isinstance(raw, str | os.PathLike) else None
    if not isinstance(text, str) or not text.strip() or "\0" in text:
        raise BadValue("a path")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise BadValue("a path below a home directory that exists") from None


def directory(raw: object) -> Path:
    """Accept a directory that exists."""
    path = file(raw)
    if not path.is_dir():
        raise BadValue("a directory that exists")
    return path


def networks(raw: object) -> tuple[Network, ...]:
    """Accept addresses and CIDR networks. Mapped ones become IPv4, as the peers compared with them do."""
    expected = "addresses or networks separated by commas, such as 10.0.0.0/8, 2001:db8::1"
    return tuple(dict.fromkeys(_network(item) for item in _items(raw, expected)))


def _network(item: object) -> Network:
    if not isinstance(item, str):
        if not hasattr(item, "max_prefixlen"):  # ip_network(10) is 0.0.0.10
            raise BadValue(f"addresses and networks as text, which {shown(item)} is not")
        item = str(item)
    network = _parsed_network(item)
    if isinstance(network, IPv6Network) and network.prefixlen >= 96:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return IPv4Network((int(mapped), network.prefixlen - 96))
    return network


def _parsed_network(text: str) -> Network:
    try:
        meant = ip_network(text, strict=False)
    except ValueError:
        raise BadValue(f"addresses and networks, and {shown(text)} is neither") from None
    if "%" in text:
        raise BadValue(f"a network without a zone, which peers are compared without: {shown(text)}")
    try:
        return ip_network(text)
    except ValueError:
        address = text.partition("/")[0]
        raise BadValue(f"a network without host bits: for {text} write {meant}, or {address}") from None


def modules(raw: object) -> tuple[str, ...]:
    """Accept names of modules."""
    expected = "names of modules separated by commas, such as shop.flows"
    names = [str(item) for item in _items(raw, expected)]
    for name in names:
        if not all(part.isidentifier() for part in name.split(".")):
            raise BadValue(f"{expected}; {shown(name)} is not one")
    return tuple(dict.fromkeys(names))


def _items(raw: object, expected: str) -> list[object]:
    """Split at commas, or take a list. An empty item is kept, to be refused: an empty list allows everybody."""
    if isinstance(raw, str):
        raw = raw.split(",")
    if not isinstance(raw, list | tuple | set | frozenset):
        raise BadValue(expected)
    return [item.strip() if isinstance(item, str) else item for item in raw]


def endpoint(raw: object) -> str:
    """Accept a path that a client can type as it stands, with room for `health` and `live` beside it."""
    if not isinstance(raw, str) or not re.fullmatch(f"({_SEGMENT})+", raw):
        raise BadValue("a path such as /data_flows/heartbeat: no slash at its end, nothing to be escaped")
    if raw.endswith(("/health", "/live")):
        raise BadValue("a path that does not end in /health or /live, which are the routes beside it")
    return raw


def database_url(raw: object) -> str:
    """Accept what libpq accepts as a URL. Its own message may quote the password and is dropped."""
    expected = "a URL such as postgresql://user@host:5432/name, with special characters percent-encoded"
    if (
        not isinstance(raw, str)
        or not raw.startswith(("postgresql://", "postgres://"))
        or not is_readable(raw)
    ):
        raise BadValue(expected)
    return raw


def token(raw: object) -> str:
    """Accept one or more tokens, as text or as a list, and give them back as text."""
    if isinstance(raw, list | tuple) and all(isinstance(item, str) and "," not in item for item in raw):
        raw = ",".join(raw)
    if not isinstance(raw, str):
        raise BadValue("one token, or several separated by commas")
    tokens(raw)
    return raw


def tokens(text: str) -> tuple[bytes, ...]:
    """Split the text of a token setting into what a request's token is compared with."""
    found = [item.strip(" \t\r\n") for item in text.split(",")]
    if not all(found):
        raise BadValue("one token, or several separated by commas; one of them is empty")
    if not all(item.isprintable() and " " not in item for item in found):
        raise BadValue("tokens without white space and control characters in them")
    return tuple(dict.fromkeys(item.encode() for item in found))
