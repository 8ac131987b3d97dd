"""Keyword arguments, the environment and `.env`, read once into one frozen object."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from dotenv import dotenv_values

from heartbeat import database_url, parsers
from heartbeat.errors import SettingsError
from heartbeat.parsers import BadValue, Network, shown

PREFIX = "HEARTBEAT_"

_YEARS = 100_000_000.0  # seconds, three years of them: the most that a wait takes without overflowing

# What Kubernetes puts into every pod for a Service whose name begins with `heartbeat`: no settings of ours.
_KUBERNETES = re.compile(
    r"HEARTBEAT_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)"
    r"|HEARTBEAT_(\w+_)?PORT=(tcp|udp|sctp)://.*"
)

_TOKEN_FILE_BYTES = 65_536


def _setting(default: Any, parse: Callable[[object], Any], meaning: str, *, is_secret: bool = False) -> Any:
    """Declare a setting: all that reading, refusing, showing and explaining it takes."""
    return field(default=default, metadata={"parse": parse, "meaning": meaning, "is_secret": is_secret})


@dataclass(frozen=True, slots=True, repr=False)
class Settings:
    """Every setting, checked; made by `load`. The fields are the variables' names in lower case.

    Durations are seconds. `tokens` are the accepted ones as bytes, wherever they came from; empty for none.
    """

    database_url: str | None = _setting(
        None,
        parsers.database_url,
        "PostgreSQL as a libpq URL; without it, an embedded server under the data directory",
        is_secret=True,
    )
    data_dir: Path = _setting(Path(".heartbeat"), parsers.file, "where the embedded server keeps its data")
    token: str | None = _setting(
        None,
        parsers.token,
        "accepted tokens, separated by commas; serve wants one, ping sends the first",
        is_secret=True,
    )
    token_file: Path | None = _setting(None, parsers.file, "a file that holds the same")
    allow_anonymous: bool = _setting(False, parsers.boolean, "true: serve without a token")
    allowed_ips: tuple[Network, ...] = _setting(
        (), parsers.networks, "addresses and networks that may send heartbeats; empty: any"
    )
    trusted_proxies: tuple[Network, ...] = _setting(
        (), parsers.networks, "networks whose X-Forwarded-For is believed"
    )
    path: str = _setting("/data_flows/heartbeat", parsers.endpoint, "path of the endpoint")
    flows: tuple[str, ...] = _setting(
        (),
        parsers.modules,
        "modules with flow classes, separated by commas; the current directory is searched first",
    )
    sql_dir: Path | None = _setting(None, parsers.directory, "your own copy of the SQL files")
    concurrency: int = _setting(
        8, parsers.whole_number(1, 1000), "sync flows that run at once in one process"
    )
    async_concurrency: int = _setting(
        100, parsers.whole_number(1, 10_000), "async flows that run at once in one process"
    )
    time_budget: float = _setting(
        25.0,
        parsers.number(0, _YEARS, above=True),
        "seconds after which a heartbeat claims no more and answers",
    )
    run_timeout: float = _setting(
        3600.0, parsers.number(0, _YEARS), "seconds that a run may take; 0 for no limit"
    )
    run_tolerance: float = _setting(0.5, parsers.number(0, _YEARS), "seconds early that still count as due")
    runner_ttl: float = _setting(
        30.0,
        parsers.number(1, _YEARS),
        "seconds without a sign of life after which a process counts as dead",
    )
    drain_timeout: float = _setting(
        20.0, parsers.number(0, _YEARS), "seconds that a stopping process gives running flows"
    )
    retention_days: float = _setting(
        30.0,
        parsers.number(0, 36_500, unit="days"),
        "age in days at which history is pruned; 0 keeps all",
    )
    log_format: Literal["text", "json"] = _setting("text", parsers.one_of("text", "json"), "text or json")
    log_level: Literal["debug", "info", "warning", "error"] = _setting(
        "info",
        parsers.one_of("debug", "info", "warning", "error"),
        "from which level on lines are logged: debug, info, warning or error",
    )
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
            checked["tokens"] = parsers.tokens(checked["token"])
        elif "token_file" in checked:
            checked["tokens"] = _tokens_in(checked["token_file"], found["token_file"][0])
        return cls(**checked)

    @property
    def health_path(self) -> str:
        """`health`, beside the heartbeat's path."""
        return self._beside("health")

    @property
    def live_path(self) -> str:
        """`live`, beside the heartbeat's path."""
        return self._beside("live")

    def _beside(self, name: str) -> str:
        return f"{self.path.rpartition('/')[0]}/{name}"

    @property
    def database_label(self) -> str:
        """Where the database is, fit to be shown: the URL without its password and options."""
        if self.database_url is None:
            return f"embedded server in {self.data_dir}"
        return database_url.label(self.database_url)

    def __repr__(self) -> str:
        visible = {name: getattr(self, name) for name in SETTINGS}
        visible |= {
            name: visible[name] and "***" for name in SETTINGS if SETTINGS[name].metadata["is_secret"]
        }
        visible["database_url"] = self.database_url and self.database_label
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in visible.items())})"


SETTINGS = {field.name: field for field in fields(Settings) if field.metadata}
"""What each setting's one entry above says, by its name."""


def _found(
    environ: Mapping[str, str], dotenv: Path | None, overrides: Mapping[str, Any]
) -> dict[str, tuple[str, Any]]:
    """For each setting that a source has: its name in messages, and the strongest source's value."""
    found: dict[str, tuple[str, Any]] = {}
    for source, suffix in ((_dotenv(dotenv), f" in {dotenv}"), (environ, "")):
        for variable, value in source.items():
            if variable.startswith(PREFIX) and not _is_foreign(variable, value):
                name = _known(variable, {PREFIX + name.upper(): name for name in SETTINGS}, suffix)
                found[name] = (variable + suffix, value)
    for name, value in overrides.items():
        found[_known(name, {name: name for name in SETTINGS}, "")] = (name, value)
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
    about = SETTINGS[name].metadata
    try:
        return about["parse"](raw)
    except BadValue as exc:
        expected = str(exc)
    # Raised out here, so that no secret hangs on as the exception's context.
    problem = "cannot be used" if about["is_secret"] else f"is {shown(raw)}"
    raise SettingsError(f"{origin} {problem}; expected {expected}")


def _tokens_in(file: Path, origin: str) -> tuple[bytes, ...]:
    try:
        with file.open("rb") as stream:
            content = stream.read(_TOKEN_FILE_BYTES + 1)
        if len(content) > _TOKEN_FILE_BYTES:
            raise BadValue(f"a file of at most {_TOKEN_FILE_BYTES} bytes")
        return parsers.tokens(content.decode("utf-8-sig"))
    except BadValue as exc:
        problem = f"does not hold what is expected: {exc}"
    except (OSError, UnicodeError) as exc:
        problem = f"cannot be read: {_reason(exc)}"
    # Raised out here: a decoding error carries the file's bytes.
    raise SettingsError(f"{origin}: {shown(str(file))} {problem}")


def _reason(exc: OSError | UnicodeError) -> str:
    return exc.strerror or type(exc).__name__ if isinstance(exc, OSError) else "it is not UTF-8"
