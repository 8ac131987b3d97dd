"""How long a serving process takes from its start to its first answered heartbeat."""

from __future__ import annotations

from benchmarks.measure import say
from benchmarks.record import Figure
from benchmarks.server import Server
from benchmarks.serving import Service, migrate

TITLE = "Start of `serve`"
ABOUT = (
    "From starting the process to the first heartbeat that is answered 200, with a migrated database there."
)
FIRST_ANSWER = "start of `serve` to its first answer"
SIZES = {"full": 20, "quick": 10}


def measure(server: Server, size: str) -> list[Figure]:
    """Return the seconds; the first start, which may compile the modules, does not count."""
    seconds = []
    with server.database() as url:
        migrate(url)
        for _ in range(1 + SIZES[size]):
            with Service(url) as service:
                seconds.append(service.start_seconds)
    figure = Figure.of(FIRST_ANSWER, "s", seconds[1:])
    say(f"   {figure.name}: {figure.median} s ({figure.lowest}–{figure.highest})")
    return [figure]
