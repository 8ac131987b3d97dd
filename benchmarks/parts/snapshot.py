"""Somebody's transaction stands open: what was overwritten since cannot be cleaned up, and all reads go past it.

Every item runs, sixty times over, while a REPEATABLE READ transaction with a snapshot stands open (a dump, a forgotten
psql), and then a few times more, which are what counts; against the same without the transaction.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from statistics import median
from typing import Any

import psycopg

from benchmarks.measure import Measurement, MeasurementFailed, Unavailable, in_subprocess, say
from benchmarks.record import Figure, Rounds
from benchmarks.server import Server, settle

TITLE = "Drained while somebody's snapshot stands open"
WARM_ROUNDS, TIMED_ROUNDS = 60, 5
ABOUT = (
    f"Every item is made due and run {WARM_ROUNDS} times while a REPEATABLE READ transaction stands open, then "
    f"{TIMED_ROUNDS} times more: these are shown, against the same without the transaction."
)
UNIT = "items a second"
SIZES = {"full": (2, 2_000), "quick": (1, 500)}
LIMIT = 90.0  # seconds of the sixty rounds; who is not through by then is timed where he stands

CONTESTANTS = {
    "the service": ("benchmarks.service", None),
    "PgQueuer": ("benchmarks.peers.pgqueuer", "GOOD"),
    "graphile-worker": ("benchmarks.peers.graphile_worker", "GOOD"),
}
STATES = {"no snapshot": False, "open snapshot": True}


def measure(server: Server, size: str, who: tuple[str, ...] = ()) -> list[Figure]:
    """Return each contestant's rate with and without the open transaction, and the ratio of the two."""
    count, items = SIZES[size]
    rounds, notes, courses = Rounds(), dict[str, str](), dict[str, list[float]]()
    chosen = [name for name, (module, _) in CONTESTANTS.items() if not who or module.split(".")[-1] in who]
    for number in range(count):
        for name in chosen:
            for state, held in STATES.items():
                case = f"{name}, {state}"
                try:
                    measured = _once(server, name, items, held)
                except (MeasurementFailed, Unavailable) as exc:
                    notes[case] = str(exc)
                    say(f"   {case}: {exc}")
                    continue
                rounds.add(case, number, measured.rate)
                notes[case], courses[case] = measured.note, measured.details["rates"]
                say(f"   round {number + 1}  {case}: {measured.rate:,.0f} {UNIT} ({measured.note})")
    cases = {f"{name}, {state}": None for name in chosen for state in STATES}
    return [
        *(
            Figure.of(
                case,
                UNIT,
                rounds.values.get(case, {}).values(),
                note=notes.get(case, ""),
                course=courses.get(case, ()),
            )
            for case in cases
        ),
        *(
            rounds.ratio(
                f"{name}: open snapshot against none", f"{name}, open snapshot", f"{name}, no snapshot"
            )
            for name in chosen
        ),
    ]


def _once(server: Server, name: str, items: int, held: bool) -> Measurement:
    module, best = CONTESTANTS[name]
    options: dict[str, Any] = {"module": module, "held": held}
    if best:
        try:
            loaded = import_module(module)
        except ModuleNotFoundError as exc:
            raise Unavailable(f"{exc.name} is not installed") from exc
        options["options"] = loaded.CANDIDATES[getattr(loaded, best)]
    with server.database() as url:
        return in_subprocess("benchmarks.parts.snapshot", url, items, options, 600)


def run(
    url: str, items: int, *, module: str, held: bool, options: dict[str, Any] | None = None
) -> Measurement:
    """In a process of its own: open the contestant, hold the snapshot, and drain round after round."""
    with import_module(module).opened(url, **(options or {})) as queue:
        queue.fill(items)
        settle(url)
        with _snapshot(url, held):
            seconds = [queue.drain()]
            deadline = time.monotonic() + LIMIT
            while len(seconds) < WARM_ROUNDS and time.monotonic() < deadline:
                queue.fill(items)
                seconds.append(queue.drain())
            warm = len(seconds)
            for _ in range(TIMED_ROUNDS):
                queue.fill(items)
                seconds.append(queue.drain())
        queue.check(items * len(seconds))
    note = f"{items:,} items" + (f", after {warm} rounds only" if warm < WARM_ROUNDS else "")
    rates = [items / spent for spent in seconds]
    return Measurement(median(seconds[warm:]), items, note, {"rates": rates})


@contextmanager
def _snapshot(url: str, held: bool) -> Iterator[None]:
    """A forgotten psql: a transaction that has read something and does not end."""
    if not held:
        yield
        return
    with psycopg.connect(url) as conn:
        conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        conn.execute("SELECT count(*) FROM pg_class")
        yield
