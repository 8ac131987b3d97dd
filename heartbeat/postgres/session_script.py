"""A script of BEGIN and SET LOCAL lines, read as what libpq's `options` give a session from its start."""

from __future__ import annotations

import re

# What may stand in a session script. A string is a plain one: E'…' and $$…$$ are not taken.
_BEGIN = re.compile(r"(?:BEGIN|START\s+TRANSACTION)\b[\w\s,]*", re.IGNORECASE)
_VALUE = re.compile(
    r"'(?P<string>(?:[^']|'')*)'|\"(?P<quoted>(?:[^\"]|\"\")+)\"|(?!DEFAULT\b)(?P<word>[\w.+-]+)", re.I
)
_ONE = re.sub(r"\?P<\w+>", "?:", _VALUE.pattern)
_SETTING = re.compile(
    rf"SET\s+LOCAL\s+(?P<name>[\w.]+)\s*(?:=|(?<=\s)TO\b)\s*(?P<values>(?:{_ONE})(?:\s*,\s*(?:{_ONE}))*)",
    re.I,
)
# Settings whose values are names: SET takes each as it is written, a session's options would fold and split them.
_NAME_LISTS = {"search_path", "temp_tablespaces", "local_preload_libraries", "session_preload_libraries"}
_PIECE = re.compile(r"""(?P<comment>--[^\n]*|/\*.*?\*/)|(?P<end>;)|'(?:[^']|'')*'|"[^"]*"|.""", re.DOTALL)


def options(script: str) -> str:
    """Return what a script sets, as libpq's `options`.

    Raises ValueError, naming it, for a line that a session could not have from its start: left out in silence, it
    would hold behind a pooler, where the script is run, and nowhere else.
    """
    lines = [line for line in _split(script) if not _BEGIN.fullmatch(line)]
    return " ".join(_option(line) for line in lines)


def _option(line: str) -> str:
    setting = _SETTING.fullmatch(line)
    if setting is None:
        raise ValueError(
            f"a session cannot have this from its start: {' '.join(line.split())} "
            "(only BEGIN and SET LOCAL name = value may stand here, with plain strings, words and numbers)"
        )
    # libpq cuts at spaces, and takes the character behind a backslash as it is.
    value = re.sub(r"([\\\s])", r"\\\1", _value(setting))
    return f"-c {setting['name'].lower()}={value}"


def _split(script: str) -> list[str]:
    """Cut a script at its semicolons, without comments; those in quotes are text."""
    lines = [""]
    for piece in _PIECE.finditer(script):
        if piece["end"]:
            lines.append("")
        else:
            lines[-1] += " " if piece["comment"] else piece[0]
    return [line.strip() for line in lines if line.strip()]


def _value(setting: re.Match[str]) -> str:
    """Return what a setting is set to, as a configuration file would say it."""
    values = [_bare(found) for found in _VALUE.finditer(setting["values"])]
    if setting["name"].lower() in _NAME_LISTS:
        values = ['"' + value.replace('"', '""') + '"' for value in values]
    return ", ".join(values)


def _bare(found: re.Match[str]) -> str:
    if found["word"]:
        return found["word"].lower()
    return found["quoted"].replace('""', '"') if found["quoted"] else found["string"].replace("''", "'")
