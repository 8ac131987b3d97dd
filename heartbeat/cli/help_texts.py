"""What `heartbeat --help` says: the commands by what they are for, and the settings."""

from __future__ import annotations

from dataclasses import MISSING, fields

import click

from heartbeat.settings import PREFIX, Settings

_SECTIONS = {
    "Run flows": ("serve", "beat", "ping", "run"),
    "Look": ("flows", "runs", "check"),
    "Look after the database": ("migrate", "prune"),
    "See it work": ("demo",),
}

SETTINGS = {
    "database_url": "PostgreSQL as a libpq URL; without it, an embedded server under the data directory",
    "data_dir": "where the embedded server keeps its data",
    "token": "accepted tokens, separated by commas; serve wants one, ping sends the first",
    "token_file": "a file that holds the same",
    "allow_anonymous": "true: serve without a token",
    "allowed_ips": "addresses and networks that may send heartbeats; empty: any",
    "trusted_proxies": "networks whose X-Forwarded-For is believed",
    "path": "path of the endpoint",
    "flows": "modules with flow classes, separated by commas; the current directory is searched first",
    "sql_dir": "your own copy of the SQL files",
    "concurrency": "flows that run at once in one process",
    "time_budget": "seconds after which a heartbeat claims no more and answers",
    "run_timeout": "seconds that a run may take; 0 for no limit",
    "run_tolerance": "seconds early that still count as due",
    "runner_ttl": "seconds without a sign of life after which a process counts as dead",
    "drain_timeout": "seconds that a stopping process gives running flows",
    "retention_days": "age in days at which history is pruned; 0 keeps all",
    "log_format": "text or json",
}


class HelpfulGroup(click.Group):
    """A command group whose help is in sections."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, names in _SECTIONS.items():
            with formatter.section(title):
                commands = [(name, self.commands[name]) for name in names]
                formatter.write_dl([(name, command.get_short_help_str(70)) for name, command in commands])
        formatter.write_paragraph()
        formatter.write_text("`heartbeat COMMAND --help` says more about each.")

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Settings, from the environment or a .env file"):
            formatter.write_dl(
                [(PREFIX + name.upper(), meaning + _default(name)) for name, meaning in SETTINGS.items()]
            )
        formatter.write_paragraph()
        formatter.write_text("Exit status: 0 fine, 1 it ran and failed, 2 wrong usage or settings.")


def _default(name: str) -> str:
    default = next(field.default for field in fields(Settings) if field.name == name)
    if default is MISSING or default is None or isinstance(default, bool | tuple):
        return ""
    return f" [{default:g}]" if isinstance(default, int | float) else f" [{default}]"
