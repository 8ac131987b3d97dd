"""What `heartbeat --help` says: the commands by what they are for, and the settings."""

from __future__ import annotations

from typing import Any

import click

from heartbeat.settings import PREFIX, SETTINGS

_SECTIONS = {
    "Run flows": ("serve", "beat", "ping", "run"),
    "Look": ("flows", "runs", "check"),
    "Look after the database": ("migrate", "prune"),
    "See it work": ("demo",),
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
                [
                    (PREFIX + name.upper(), setting.metadata["meaning"] + _default(setting.default))
                    for name, setting in SETTINGS.items()
                ]
            )
        formatter.write_paragraph()
        formatter.write_text("Exit status: 0 fine, 1 it ran and failed, 2 wrong usage or settings.")


def _default(value: Any) -> str:
    if value is None or isinstance(value, bool | tuple):
        return ""
    return f" [{value:g}]" if isinstance(value, int | float) else f" [{value}]"
