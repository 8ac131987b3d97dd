"""The benchmark: `python -m benchmarks.run --quick` (some three minutes) or `--full` (under twenty-five).

One embedded PostgreSQL 18 for everybody, a fresh database and a fresh process for every measurement, rounds
interleaved across the cases, medians. A run of everything writes docs/performance/figures.json and, of that file and
of nothing else, docs/performance.md. `--only PART` only prints, unless `--merge` says that the part's figures are to
replace those on record.
"""

from __future__ import annotations

import argparse
import sys
import time
from datetime import UTC, datetime
from typing import Any

from benchmarks import aims, machine, report, service
from benchmarks.measure import MeasurementFailed, Unavailable, say
from benchmarks.parts import PARTS, drain, snapshot
from benchmarks.record import Part, Record, load, save
from benchmarks.server import Server


def main() -> None:
    """Measure what was asked for, print it beside the aims, and write it down where it is whole."""
    given = _arguments()
    writes = given.merge or not (given.only or given.who)
    on_record, measured = load(report.FIGURES), Record()
    started = time.monotonic()
    with Server() as server:
        for name in given.only or PARTS:
            say(f"== {name}")
            try:
                measured[name] = _measure(server, name, given, {**on_record, **measured})
            except (MeasurementFailed, Unavailable) as exc:
                say(f"   {name} has no figures: {exc}")
                continue
            if writes:  # part by part: the last one's failure does not cost the others' figures
                merged = {**on_record, **measured}
                save({part: merged[part] for part in PARTS if part in merged}, report.FIGURES)
    if writes:
        report.write(load(report.FIGURES))
        say(f"{report.FIGURES} and {report.PAGE} are written")
    say(f"{(time.monotonic() - started) / 60:.1f} minutes")
    _print(measured)


def _measure(server: Server, name: str, given: argparse.Namespace, known: Record) -> Part:
    run = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": f"python -m benchmarks.run {' '.join(sys.argv[1:])}".strip(),
        "machine": machine.describe(),
        "versions": machine.versions(),
        "postgresql": server.settings,
    }
    found = PARTS[name].measure(server, given.size, **_extra(name, given, known))
    return Part(run, {figure.name: figure for figure in found})


def _extra(name: str, given: argparse.Namespace, known: Record) -> dict[str, Any]:
    """What two parts are told besides: who takes part, and how fast the service was."""
    if name == "simulate":
        return {"rate": known["drain"].median(service.TITLE) if "drain" in known else None}
    if given.who and PARTS[name] in (drain, snapshot):
        return {"who": tuple(given.who)}
    return {}


def _print(measured: Record) -> None:
    for part in measured.values():
        for figure in part.figures.values():
            print(f"{figure.name}: {aims.shown(figure)} {figure.unit}")
    print(report.aims_table(measured))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", dest="size", action="store_const", const="quick", default="quick")
    size.add_argument("--full", dest="size", action="store_const", const="full")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), help="these parts, and only print them")
    parser.add_argument("--merge", action="store_true", help="enter what --only measures into the record")
    parser.add_argument(
        "--who",
        nargs="+",
        choices=drain.EVERYBODY,
        help="these take part in drain and snapshot; only printed",
    )
    given = parser.parse_args()
    if given.merge and given.who:
        parser.error("--merge enters whole parts, and --who makes half ones")
    return given


if __name__ == "__main__":
    main()
