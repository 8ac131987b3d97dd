"""What the commands have in common: a help in sections, and errors that are one line and an exit status."""

from __future__ import annotations

import errno
from typing import Any

import click

from heartbeat.errors import FlowNotFound, HeartbeatError, QueryError, SettingsError
from heartbeat.logs import escape
from heartbeat.settings import PREFIX, SETTINGS

_SECTIONS = {
    "Run flows": ("serve", "beat", "ping", "run"),
    "Look": ("flows", "runs", "check"),
    "Look after the database": ("migrate", "prune"),
    "See it work": ("demo",),
}


class Commands(click.Group):
    """The group of all commands. Its help lists them by what they are for, and the settings."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; what this package raises becomes one line on stderr and an exit status."""
        try:
            return super().invoke(ctx)
        except (HeartbeatError, OSError) as exc:
            if isinstance(exc, OSError) and exc.errno in (None, errno.EPIPE):
                raise  # a reader that has seen enough is click's business
            click.echo(f"Error: {escape(str(exc))}", err=True)
            ctx.exit(status_of(exc))

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
                [
                    (PREFIX + name.upper(), setting.metadata["meaning"] + _default(setting.default))
                    for name, setting in SETTINGS.items()
                ]
            )
        formatter.write_paragraph()
        formatter.write_text("Exit status: 0 fine, 1 it ran and failed, 2 wrong usage or settings.")


def status_of(exc: Exception) -> int:
    """Return the exit status: 2 where the command line or a setting has to change, else 1."""
    return 2 if isinstance(exc, SettingsError | QueryError | FlowNotFound) else 1


def _default(value: Any) -> str:
    if value is None or isinstance(value, bool | tuple):
        return ""
    return f" [{value:g}]" if isinstance(value, int | float) else f" [{value}]"
