"""Several serving processes on this machine share the due flows."""

from __future__ import annotations

from benchmarks.measure import in_subprocess, say
from benchmarks.record import Figure, Rounds
from benchmarks.server import Server

TITLE = "Several serving processes"
ABOUT = "Each process has a pinger of its own, and all begin at once; the rounds are interleaved."
UNIT = "flows a second"
SIZES = {"full": (7, 60_000), "quick": (3, 20_000)}
COUNTS = (1, 2, 4)


def measure(server: Server, size: str) -> list[Figure]:
    """Return flows a second of one, two and four processes, and the latter against the first."""
    count, items = SIZES[size]
    rounds = Rounds()
    for number in range(count):
        for processes in COUNTS:
            with server.database() as url:
                rate = in_subprocess("benchmarks.service", url, items, {"processes": processes}, 600).rate
            rounds.add(_named(processes), number, rate)
            say(f"   round {number + 1}  {_named(processes)}: {rate:,.0f} {UNIT}")
    return [
        *(rounds.figure(_named(processes), UNIT, f"{items:,} flows") for processes in COUNTS),
        *(
            rounds.ratio(f"{_named(processes)} against one", _named(processes), _named(1))
            for processes in COUNTS[1:]
        ),
    ]


def _named(processes: int) -> str:
    return f"{processes} process{'es' if processes > 1 else ''}"
