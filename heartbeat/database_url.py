"""A database's URL as libpq reads it, where nobody connects: the settings check it, people are shown part of it."""

from __future__ import annotations

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict, make_conninfo


def is_readable(url: str) -> bool:
    """Whether libpq can read it, all of it. Why not is not told: libpq's message may quote the password."""
    try:
        return bool(conninfo_to_dict(url)) and "\0" not in url  # which would end it
    except (ProgrammingError, ValueError):
        return False


def label(url: str) -> str:
    """Return the URL without its password and options, fit to be shown."""
    part = {name: str(value) for name, value in conninfo_to_dict(url).items() if value}
    user = f"{part['user']}@" if "user" in part else ""
    port = f":{part['port']}" if "port" in part else ""
    return f"postgresql://{user}{part.get('host', '')}{port}/{part.get('dbname', '')}"


def without_password(url: str) -> str:
    """Return what psql takes to reach the same database, options and all, except for the password."""
    part = {name: value for name, value in conninfo_to_dict(url).items() if value and name != "password"}
    return make_conninfo("", **part)
