"""What one heartbeat takes on large tables, against empty ones."""

from __future__ import annotations

from contextlib import ExitStack

from benchmarks import project
from benchmarks.measure import say
from benchmarks.parts.latency import one_due
from benchmarks.record import Figure, Rounds
from benchmarks.server import Server, settle
from benchmarks.serving import Service, migrate
from benchmarks.timing import Action, in_turn, timed

TITLE = "Latency on large tables"
ABOUT = "A service on empty tables and one on large ones, a heartbeat of each in turn."
SIZES = {"full": (1_000_000, 5_000_000, 10, 100), "quick": (50_000, 200_000, 5, 50)}


def measure(server: Server, size: str) -> list[Figure]:
    """Return milliseconds of idle heartbeats and of ones with a flow due, on both."""
    flows, runs, count, turns = SIZES[size]
    large = f"{flows:,} flows and {runs:,} ended runs"
    actions: dict[str, Action] = {}
    rounds = Rounds()
    with ExitStack() as stack:
        for label, filled in (("empty tables", False), (large, True)):
            url = stack.enter_context(server.database())
            _fill(url, flows if filled else 0, runs if filled else 0)
            service = stack.enter_context(Service(url, retention_days=0))
            actions[f"idle, {label}"] = timed(service.beat)
            actions[f"one due, {label}"] = stack.enter_context(one_due(url, service))
        in_turn(rounds, actions, count, turns)
    figures = [
        *(rounds.figure(case, "ms", f"rounds of {turns}") for case in actions),
        rounds.ratio(
            "idle heartbeat on large tables against empty ones", f"idle, {large}", "idle, empty tables"
        ),
    ]
    for figure in figures:
        say(f"   {figure.name}: {figure.median} {figure.unit}")
    return figures


def _fill(url: str, flows: int, runs: int) -> None:
    migrate(url)
    project.add_flows(url, 1, due=False)
    project.add_flows(url, flows, prefix="other", due=False)
    if runs:
        project.add_history(url, runs)
    settle(url)
