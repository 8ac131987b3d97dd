"""Everybody drains due no-op items, round by round, in turn."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from benchmarks import pgbench_loop, service
from benchmarks.measure import MeasurementFailed, Unavailable, in_subprocess, say
from benchmarks.record import Figure, Rounds
from benchmarks.server import Server

TITLE = "Due no-op items drained"
ABOUT = (
    "Filling the queue and starting the process are not counted. Each peer's best settings are looked for first, with "
    "half the items, and enter the rounds."
)
UNIT = "items a second"
TIMEOUT = 600.0

SERVICE, CEILING, GRAPHILE = "service", "pgbench2", "graphile_worker"
EVERYBODY = (
    SERVICE, "pgbench", CEILING, "pgqueuer", "procrastinate", "apscheduler", GRAPHILE, "graphile_plain"
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sizes:
    """Rounds, items for the fast and for the slow ones, and whether all settings of the peers are tried."""

    rounds: int
    items: int
    slow_items: dict[str, int]
    all_candidates: bool


SIZES = {
    "full": Sizes(5, 100_000, {"graphile_plain": 10_000, "apscheduler": 5_000, "procrastinate": 2_000}, True),
    "quick": Sizes(3, 20_000, {"graphile_plain": 2_000, "apscheduler": 1_000, "procrastinate": 400}, False),
}


@dataclass(frozen=True, slots=True)
class Contestant:
    """One line of the table."""

    title: str
    module: str
    items: int
    records: str
    options: dict[str, Any] = field(default_factory=dict)
    settings: str = ""


def measure(server: Server, size: str, who: tuple[str, ...] = EVERYBODY) -> list[Figure]:
    """Return what each did a second, the settings tried, and the service against each."""
    sizes, rounds = SIZES[size], Rounds()
    figures: list[Figure] = []
    contestants: dict[str, Contestant] = {}
    for name in who:
        try:
            contestants[name] = _entered(server, name, sizes, figures)
        except (Unavailable, MeasurementFailed) as exc:
            figures.append(Figure.of(name, UNIT, [], note=str(exc)))
            say(f"   {name} is left out: {exc}")
    for number in range(sizes.rounds):
        for name, contestant in contestants.items():
            _enter(server, name, contestant, number, rounds)
    ranked = sorted(contestants, key=lambda name: -(_median(rounds, name) or 0))
    return [
        *(_figure(rounds, name, contestants[name]) for name in ranked),
        *figures,
        *(
            rounds.ratio(f"{service.TITLE} against {contestants[name].title}", SERVICE, name)
            for name in ranked
            if SERVICE in contestants and name != SERVICE
        ),
    ]


def _entered(server: Server, name: str, sizes: Sizes, figures: list[Figure]) -> Contestant:
    items = sizes.slow_items.get(name, sizes.items)
    if name == SERVICE:
        return Contestant(service.TITLE, "benchmarks.service", items, service.RECORDS)
    if name in ("pgbench", CEILING):
        clients = 2 if name == CEILING else 1
        title = f"{pgbench_loop.TITLE}, {clients} client{'s' if clients > 1 else ''}"
        return Contestant(title, "benchmarks.pgbench_loop", items, pgbench_loop.RECORDS, {"clients": clients})
    if name == "graphile_plain":
        return _peer(GRAPHILE, "as it comes", "as it comes", items)
    label = _best(server, name, sizes.all_candidates, items // 2, figures)
    return _peer(name, "at its best", label, items)


def _peer(name: str, how: str, label: str, items: int) -> Contestant:
    module = f"benchmarks.peers.{name}"
    loaded = import_module(module)
    return Contestant(f"{loaded.TITLE} {how}", module, items, loaded.RECORDS, loaded.CANDIDATES[label], label)


def _best(server: Server, name: str, everything: bool, items: int, figures: list[Figure]) -> str:
    """Try the peer's settings once each, in this very run, and name the fastest."""
    try:
        loaded = import_module(f"benchmarks.peers.{name}")
    except ModuleNotFoundError as exc:
        raise Unavailable(f"{exc.name} is not installed") from exc
    rates: dict[str, float] = {}
    for label in loaded.CANDIDATES if everything else loaded.QUICK:
        if label == "as it comes" and name == GRAPHILE:
            continue
        try:
            rates[label] = _once(server, _peer(name, "", label, items))
        except MeasurementFailed as exc:
            say(f"   {loaded.TITLE}, {label}: {exc}")
            continue
        say(f"   {loaded.TITLE}, {label}: {rates[label]:,.0f} {UNIT}")
        figures.append(Figure.of(f"tried: {loaded.TITLE}, {label}", UNIT, [rates[label]]))
    if not rates:
        raise MeasurementFailed(f"none of the settings of {name} did its work")
    return max(rates, key=lambda label: rates[label])


def _enter(server: Server, name: str, contestant: Contestant, number: int, rounds: Rounds) -> None:
    """Run one contestant in one round; a round that does not finish its work does not count, and is said."""
    try:
        rate = _once(server, contestant)
    except MeasurementFailed as exc:
        say(f"   round {number + 1}  {contestant.title}: {exc}")
        return
    rounds.add(name, number, rate)
    say(f"   round {number + 1}  {contestant.title}: {rate:,.0f} {UNIT}")


def _once(server: Server, contestant: Contestant) -> float:
    with server.database() as url:
        return in_subprocess(contestant.module, url, contestant.items, contestant.options, TIMEOUT).rate


def _figure(rounds: Rounds, name: str, contestant: Contestant) -> Figure:
    notes = (contestant.settings, f"{contestant.items:,} items", contestant.records)
    return Figure.of(
        contestant.title, UNIT, rounds.values.get(name, {}).values(), note="; ".join(filter(None, notes))
    )


def _median(rounds: Rounds, name: str) -> float | None:
    return rounds.figure(name, UNIT).median
