"""Keyword arguments, the environment and `.env`, read once into one frozen object."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from dotenv import dotenv_values
from psycopg.conninfo import conninfo_to_dict

from heartbeat import values
from heartbeat.errors import SettingsError
from heartbeat.values import BadValue, Network, shown

PREFIX = "HEARTBEAT_"

_YEARS = 100_000_000.0  # seconds, three years of them: the most that a wait takes without overflowing

_PARSERS: Mapping[str, Callable[[object], Any]] = {
    "database_url": values.database_url,
    "data_dir": values.file,
    "token": values.token,
    "token_file": values.file,
    "allow_anonymous": values.boolean,
    "allowed_ips": values.networks,
    "trusted_proxies": values.networks,
    "path": values.endpoint,
    "flows": values.modules,
    "sql_dir": values.directory,
    "concurrency": values.whole_number(1, 1000),
    "time_budget": values.number(0, _YEARS, above=True),
    "run_timeout": values.number(0, _YEARS),
    "run_tolerance": values.number(0, _YEARS),
    "runner_ttl": values.number(1, _YEARS),
    "drain_timeout": values.number(0, _YEARS),
    "retention_days": values.number(0, 36_500, unit="days"),
    "log_format": values.one_of("text", "json"),
}

_SECRET = frozenset({"database_url", "token"})

# What Kubernetes puts into every pod for a Service whose name begins with `heartbeat`: no settings of ours.
_KUBERNETES = re.compile(
    r"HEARTBEAT_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)"
    r"|HEARTBEAT_(\w+_)?PORT=(tcp|udp|sctp)://.*"
)

_TOKEN_FILE_BYTES = 65_536


@dataclass(frozen=True, slots=True, repr=False)
class Settings:
    """Every setting, checked; made by `load`. The fields are the variables' names in lower case.

    Durations are seconds. `tokens` are the accepted ones as bytes, wherever they came from; empty for none.
    """

    database_url: str | None = None
    data_dir: Path = Path(".heartbeat")
    token: str | None = None
    token_file: Path | None = None
    allow_anonymous: bool = False
    allowed_ips: tuple[Network, ...] = ()
    trusted_proxies: tuple[Network, ...] = ()
    path: str = "/data_flows/heartbeat"
    flows: tuple[str, ...] = ()
    sql_dir: Path | None = None
    concurrency: int = 8
    time_budget: float = 25.0
    run_timeout: float = 3600.0
    run_tolerance: float = 0.5
    runner_ttl: float = 30.0
    drain_timeout: float = 20.0
    retention_days: float = 30.0
    log_format: Literal["text", "json"] = "text"
    tokens: tuple[bytes, ...] = ()

    @classmethod
    def load(
        cls,
        *,
        environ: Mapping[str, str] = os.environ,
        dotenv: Path | None = Path(".env"),
        **overrides: Any,
    ) -> Settings:
        """Read the settings: `overrides` win over `HEARTBEAT_` variables, which win over the `dotenv` file.

        None, like an empty variable, says "the default" and hides what a weaker source has. Raises
        SettingsError: one line that names the setting and never shows a secret.
        """
        found = {
            name: source
            for name, source in _found(environ, dotenv, overrides).items()
            if source[1] is not None and source[1] != ""
        }
        if "token" in found and "token_file" in found:
            raise SettingsError(
                f"{found['token'][0]} and {found['token_file'][0]} are both set: "
                "give the token by value or by file, not both"
            )
        checked = {name: _parsed(name, origin, raw) for name, (origin, raw) in found.items()}
        if "token" in checked:
            checked["tokens"] = values.tokens(checked["token"])
        elif "token_file" in checked:
            checked["tokens"] = _tokens_in(checked["token_file"], found["token_file"][0])
        return cls(**checked)

    @property
    def health_path(self) -> str:
        """`health`, beside the heartbeat's path."""
        return f"{self.path.rpartition('/')[0]}/health"

    @property
    def database_label(self) -> str:
        """Where the database is, fit to be shown: the URL without its password and options."""
        if self.database_url is None:
            return f"embedded server in {self.data_dir}"
        part = {name: str(value) for name, value in conninfo_to_dict(self.database_url).items() if value}
        user = f"{part['user']}@" if "user" in part else ""
        port = f":{part['port']}" if "port" in part else ""
        return f"postgresql://{user}{part.get('host', '')}{port}/{part.get('dbname', '')}"

    def __repr__(self) -> str:
        visible = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "tokens"}
        visible["token"] = self.token and "***"
        visible["database_url"] = self.database_url and self.database_label
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in visible.items())})"


def _found(
    environ: Mapping[str, str], dotenv: Path | None, overrides: Mapping[str, Any]
) -> dict[str, tuple[str, Any]]:
    """For each setting that a source has: its name in messages, and the strongest source's value."""
    found: dict[str, tuple[str, Any]] = {}
    for source, suffix in ((_dotenv(dotenv), f" in {dotenv}"), (environ, "")):
        for variable, value in source.items():
            if variable.startswith(PREFIX) and not _is_foreign(variable, value):
                name = _known(variable, {PREFIX + name.upper(): name for name in _PARSERS}, suffix)
                found[name] = (variable + suffix, value)
    for name, value in overrides.items():
        found[_known(name, {name: name for name in _PARSERS}, "")] = (name, value)
    return found


def _dotenv(file: Path | None) -> Mapping[str, str | None]:
    if file is None:
        return {}
    try:
        return dotenv_values(file, interpolate=False)  # a password may hold a "${"
    except (OSError, UnicodeError) as exc:
        raise SettingsError(f"{file} cannot be read: {_reason(exc)}") from None


def _is_foreign(variable: str, value: str | None) -> bool:
    return (
        variable.startswith("HEARTBEAT_TEST_")
        or _KUBERNETES.fullmatch(variable) is not None
        or _KUBERNETES.fullmatch(f"{variable}={value}") is not None
    )


def _known(given: str, names: Mapping[str, str], suffix: str) -> str:
    """Look a setting up. Only the name is shown when there is none: its value may be a mistyped secret's."""
    if given in names:
        return names[given]
    close = difflib.get_close_matches(given, names, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(names)}"
    raise SettingsError(f"{shown(given)[1:-1]}{suffix} is not a setting; {hint}")


def _parsed(name: str, origin: str, raw: object) -> Any:
    try:
        return _PARSERS[name](raw)
    except BadValue as exc:
        expected = str(exc)
    # Raised out here, so that no secret hangs on as the exception's context.
    raise SettingsError(
        f"{origin} cannot be used; expected {expected}"
        if name in _SECRET
        else f"{origin} is {shown(raw)}; expected {expected}"
    )


def _tokens_in(file: Path, origin: str) -> tuple[bytes, ...]:
    try:
        with file.open("rb") as stream:
            content = stream.read(_TOKEN_FILE_BYTES + 1)
        if len(content) > _TOKEN_FILE_BYTES:
            raise BadValue(f"a file of at most {_TOKEN_FILE_BYTES} bytes")
        return values.tokens(content.decode("utf-8-sig"))
    except BadValue as exc:
        problem = f"does not hold what is expected: {exc}"
    except (OSError, UnicodeError) as exc:
        problem = f"cannot be read: {_reason(exc)}"
    # Raised out here: a decoding error carries the file's bytes.
    raise SettingsError(f"{origin}: {shown(str(file))} {problem}")


def _reason(exc: OSError | UnicodeError) -> str:
    return exc.strerror or type(exc).__name__ if isinstance(exc, OSError) else "it is not UTF-8"
