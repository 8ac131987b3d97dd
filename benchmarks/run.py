"""The benchmark: `python -m benchmarks.run --quick` (minutes) or `--full` (some twenty minutes).

One embedded PostgreSQL 18 for everybody, a fresh database and a fresh process for every measurement, rounds
interleaved across the contestants, medians. The raw figures go to docs/performance/figures.json; the table in
docs/performance.md and the plots beside it are made of that file and of nothing else.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks import growth, latency, machine, memory, report, simulate
from benchmarks.measure import ROOT, Measurement, MeasurementFailed, Unavailable, in_subprocess, median
from benchmarks.server import Server

PARTS = ("drain", "latency", "growth", "memory", "simulate")
PEERS = ("pgqueuer", "procrastinate", "apscheduler", "graphile_worker")
TIMEOUT = 600.0


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything."""

    rounds: int
    fast_items: int  # the service, the bare loops, PgQueuer, graphile-worker at its best
    plain_graphile_items: int
    apscheduler_items: int
    procrastinate_items: int
    all_candidates: bool
    latency_flows: int
    latency_runs: int
    beats: int
    due: tuple[int, ...]
    growth_rounds: int
    processes: tuple[int, ...]
    process_items: int
    flow_ms: tuple[int, ...]
    concurrency: tuple[int, ...]
    timed_flows: int
    memory_items: int
    memory_beats: int
    simulated_flows: int


FULL = Sizes(
    rounds=5,
    fast_items=100_000,
    plain_graphile_items=10_000,
    apscheduler_items=5_000,
    procrastinate_items=2_000,
    all_candidates=True,
    latency_flows=1_000_000,
    latency_runs=5_000_000,
    beats=500,
    due=(1_000, 10_000, 100_000),
    growth_rounds=3,
    processes=(1, 2, 4),
    process_items=60_000,
    flow_ms=(0, 1, 10, 100),
    concurrency=(1, 2, 4, 8, 16, 32, 64),
    timed_flows=20_000,
    memory_items=100_000,
    memory_beats=1_000,
    simulated_flows=1_000_000,
)

QUICK = Sizes(
    rounds=3,
    fast_items=20_000,
    plain_graphile_items=2_000,
    apscheduler_items=1_000,
    procrastinate_items=400,
    all_candidates=False,
    latency_flows=50_000,
    latency_runs=200_000,
    beats=100,
    due=(1_000, 20_000),
    growth_rounds=1,
    processes=(1, 2),
    process_items=20_000,
    flow_ms=(0, 10),
    concurrency=(1, 8, 64),
    timed_flows=5_000,
    memory_items=20_000,
    memory_beats=200,
    simulated_flows=100_000,
)


@dataclass(frozen=True, slots=True)
class Contestant:
    """One line of the table of part 1 to 3."""

    key: str
    module: str
    items: int
    title: str
    records: str
    options: dict[str, Any]


def main() -> None:
    """Measure what was asked for, write the figures and the page."""
    given = _arguments()
    sizes = _sizes(given)
    started = time.monotonic()
    figures: dict[str, Any] = {
        "command": f"python -m benchmarks.run {' '.join(sys.argv[1:])}".strip(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine.describe(),
        "versions": machine.versions(),
        "sizes": asdict(sizes),
    }
    parts: dict[str, Callable[[Server, Sizes, dict[str, Any]], Any]] = {
        "drain": _drain,
        "latency": _latency,
        "growth": _growth,
        "memory": _memory,
        "simulate": _simulate,
    }
    with Server() as server:
        figures["postgresql"] = server.settings
        for part in given.only:
            _say(f"== {part}")
            figures[part] = parts[part](server, sizes, figures)
            given.json.parent.mkdir(parents=True, exist_ok=True)
            given.json.write_text(json.dumps(figures, indent=1) + "\n")
    _say(f"{(time.monotonic() - started) / 60:.1f} minutes; figures in {given.json}")
    if given.page:
        report.write(figures, given.page)
        _say(f"page in {given.page}")
    print(report.summary(figures))


def _drain(server: Server, sizes: Sizes, _: dict[str, Any]) -> dict[str, Any]:
    """Parts 1 to 3: everybody drains due no-op items, round by round, in turn."""
    skipped: dict[str, str] = {}
    failed: list[str] = []
    searched: dict[str, dict[str, float]] = {}
    contestants = [
        _ours("bare", "bare_loop", sizes.fast_items),
        _ours("pgbench", "pgbench_loop", sizes.fast_items),
        _ours("pgbench2", "pgbench_loop", sizes.fast_items, clients=2),
        _ours("service", "service", sizes.fast_items),
    ]
    for name in PEERS:
        try:
            contestants += _peer(server, sizes, name, searched)
        except Unavailable as exc:
            skipped[name] = str(exc)
            _say(f"   {name} is left out: {exc}")
    results: dict[str, list[dict[str, Any]]] = {contestant.key: [] for contestant in contestants}
    for number in range(sizes.rounds):
        for contestant in contestants:
            try:
                measured = _once(server, contestant)
            except Unavailable as exc:
                skipped[contestant.key] = str(exc)
                continue
            except MeasurementFailed as exc:
                # Half an hour's figures are not thrown away for one round of one peer.
                failed.append(f"round {number + 1}, {contestant.title}: {exc}")
                _say(f"   {failed[-1]}")
                continue
            results[contestant.key].append(measured.as_dict())
            _say(
                f"   round {number + 1}  {contestant.title}: {measured.rate:,.0f} a second ({measured.note})"
            )
    return {
        "contestants": {contestant.key: asdict(contestant) for contestant in contestants},
        "results": results,
        "median_rate": {key: median(row["rate"] for row in rows) for key, rows in results.items() if rows},
        "searched": searched,
        "skipped": skipped,
        "failed": failed,
    }


def _ours(key: str, module: str, items: int, **options: Any) -> Contestant:
    loaded = import_module(f"benchmarks.{module}")
    title = loaded.TITLE + (f", {options['clients']} clients" if "clients" in options else "")
    return Contestant(key, f"benchmarks.{module}", items, title, loaded.RECORDS, options)


def _peer(server: Server, sizes: Sizes, name: str, searched: dict[str, dict[str, float]]) -> list[Contestant]:
    """Find the peer's best settings in this very run, and enter it with those; graphile-worker as it comes, too."""
    module = f"benchmarks.peers.{name}"
    try:
        loaded = import_module(module)
    except ModuleNotFoundError as exc:
        raise Unavailable(f"{exc.name} is not installed") from exc
    items = {
        "procrastinate": sizes.procrastinate_items,
        "apscheduler": sizes.apscheduler_items,
    }.get(name, sizes.fast_items)
    plain = [
        label for label, options in loaded.CANDIDATES.items() if name == "graphile_worker" and not options
    ]
    labels = [
        label for label in (loaded.CANDIDATES if sizes.all_candidates else loaded.QUICK) if label not in plain
    ]
    rates: dict[str, float] = {}
    for label in labels:
        trial = Contestant(name, module, max(items // 2, 200), loaded.TITLE, "", loaded.CANDIDATES[label])
        try:
            rates[label] = _once(server, trial).rate
        except MeasurementFailed as exc:
            _say(f"   {loaded.TITLE}, {label}: {exc}")
            continue
        _say(f"   {loaded.TITLE}, {label}: {rates[label]:,.0f} a second")
    searched[name] = rates
    best = max(rates, key=lambda label: rates[label])
    contestant = Contestant(
        name, module, items, f"{loaded.TITLE}, {best}", loaded.RECORDS, loaded.CANDIDATES[best]
    )
    as_it_comes = [
        replace(
            contestant,
            key=f"{name}_plain",
            title=f"{loaded.TITLE}, {label}",
            options=loaded.CANDIDATES[label],
            items=sizes.plain_graphile_items,
        )
        for label in plain
    ]
    return [contestant, *as_it_comes]


def _once(server: Server, contestant: Contestant) -> Measurement:
    with server.database() as url:
        return in_subprocess(contestant.module, url, contestant.items, contestant.options, TIMEOUT)


def _latency(server: Server, sizes: Sizes, _: dict[str, Any]) -> dict[str, Any]:
    measured = latency.measure(server, flows=sizes.latency_flows, runs=sizes.latency_runs, beats=sizes.beats)
    for label, milliseconds in measured["p50"].items():
        _say(f"   {label}: {milliseconds:.2f} ms")
    return measured


def _growth(server: Server, sizes: Sizes, _: dict[str, Any]) -> dict[str, Any]:
    cases = growth.cases(
        due=sizes.due,
        processes=sizes.processes,
        process_items=sizes.process_items,
        flow_ms=sizes.flow_ms,
        concurrency=sizes.concurrency,
        most=sizes.timed_flows,
    )
    points: list[dict[str, Any]] = [{**asdict(case), "results": []} for case in cases]
    for _round in range(sizes.growth_rounds):
        for case, point in zip(cases, points, strict=True):
            try:
                measured = growth.measure_case(server, case, TIMEOUT)
            except MeasurementFailed as exc:
                _say(f"   {case.series} = {case.x}: failed: {exc}")
                point.setdefault("failed", []).append(str(exc))
                continue
            point["results"].append(measured.as_dict())
            _say(f"   {case.series} = {case.x}: {measured.rate:,.0f} a second")
    for point in points:
        point["median_rate"] = median(row["rate"] for row in point["results"]) if point["results"] else None
    return {"points": points, "slow_batch": growth.slow_batch(server, beats=20)}


def _memory(server: Server, sizes: Sizes, _: dict[str, Any]) -> dict[str, Any]:
    measured = memory.measure(server, items=sizes.memory_items, beats=sizes.memory_beats, warm_up=300)
    _say(f"   peak {measured['peak'] / 2**20:.0f} MiB; {measured['line']}")
    return measured


def _simulate(_: Server, sizes: Sizes, figures: dict[str, Any]) -> dict[str, Any]:
    """At the rate that this run measured, where it did."""
    rate = figures.get("drain", {}).get("median_rate", {}).get("service", simulate.Plan.rate)
    return simulate.run(simulate.Plan(flows=sizes.simulated_flows, rate=rate))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--quick", dest="sizes", action="store_const", const=QUICK, default=QUICK, help="two to three minutes"
    )
    size.add_argument("--full", dest="sizes", action="store_const", const=FULL, help="some twenty minutes")
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=list(PARTS), help="these parts; writes no page"
    )
    parser.add_argument("--rounds", type=int, help="rounds of the comparison and of growth")
    parser.add_argument("--latency-flows", type=int)
    parser.add_argument("--latency-runs", type=int)
    parser.add_argument("--json", type=Path, help="where the raw figures go")
    parser.add_argument("--page", type=Path, help="the page whose generated section is written")
    given = parser.parse_args()
    # A page of one run: only a run of every part writes the project's own, unless a page is named.
    whole = set(given.only) == set(PARTS)
    given.json = given.json or (
        ROOT / "docs/performance/figures.json" if whole else Path("bench-figures.json")
    )
    given.page = given.page or (ROOT / "docs/performance.md" if whole else None)
    return given


def _sizes(given: argparse.Namespace) -> Sizes:
    changes = {
        name: value
        for name, value in {
            "rounds": given.rounds,
            "growth_rounds": given.rounds,
            "latency_flows": given.latency_flows,
            "latency_runs": given.latency_runs,
        }.items()
        if value is not None
    }
    return replace(given.sizes, **changes)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
