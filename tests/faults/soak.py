"""A soak: faults at random over some minutes, on a server of its own, and the checker's word at the end.

    python -m tests.faults.soak --minutes 2 --seed 1 --processes 4

The seed decides which faults come in which order and how long each takes; what the machine makes of them
varies. Ends with the checker's figures and exit status 0 if no rule was broken, 1 if one was, 2 if the soak
itself failed.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from heartbeat.postgres.migrate import upgrade
from tests.faults.checker import Limits, Report, Snapshots, Trace, check
from tests.faults.harness import Answer, Fleet, Pinger, Process, beats_until_fresh_flow_ran
from tests.faults.private import PrivateServer
from tests.faults.proxy import Proxy
from tests.support.rows import add_flow, add_flows, live_runs, of_class
from tests.support.waiting import wait_until

TTL = 2.0
SETTINGS: dict[str, float] = {"runner_ttl": TTL, "drain_timeout": 2, "time_budget": 5, "concurrency": 4}

FLOWS: dict[str, tuple[int, dict[str, Any]]] = {
    # class: how many, and their rows
    "Quick": (40, {"run_interval": 1}),
    "AsyncQuick": (20, {"run_interval": 1}),
    "Slow": (6, {"run_interval": 2, "seconds": 1.5}),
    "AsyncSlow": (6, {"run_interval": 2, "seconds": 3}),
    "UsesConnection": (10, {"run_interval": 1}),
    "Raises": (2, {"run_interval": 2, "what": "SystemExit"}),
    "AsyncRaises": (2, {"run_interval": 2, "what": "KeyboardInterrupt"}),
    "LeaksTransaction": (1, {"run_interval": 15}),
    "ChangesSession": (1, {"run_interval": 3}),
    "HangsUntilAsked": (1, {"run_interval": 10, "run_timeout": 1}),
    "Held": (1, {"run_interval": 15, "run_timeout": 1, "seconds": 4}),
    "AsyncHeld": (1, {"run_interval": 10, "run_timeout": 1}),
    "BlocksLoop": (1, {"run_interval": 20, "run_timeout": 1, "seconds": 3}),
    "Exits": (1, {"run_interval": 25}),
}


@dataclass
class Soak:
    """The server, the processes and everything that may happen to them; one fault at a time."""

    server: PrivateServer
    proxy: Proxy
    fleet: Fleet
    database: str
    trace: Trace
    chance: random.Random
    processes: int
    snapshots: Snapshots = field(default_factory=Snapshots)
    done: Counter[str] = field(default_factory=Counter)

    def connect(self) -> psycopg.Connection[Any]:
        return self.server.connect(self.database)

    def start_missing(self) -> None:
        """Bring the processes back to their number; every other one goes by way of the proxy."""
        missing = self.processes - len(self.fleet.living())
        started = []
        for _ in range(missing):
            through_proxy = len(self.fleet.started) % 2 == 1
            options = {"database_url": self.proxy.url} if through_proxy else {}
            started.append(self.fleet(wait=False, **options))
        for process in started:
            process.wait_until_listening(60)

    def through_proxy(self) -> list[Process]:
        return [p for number, p in enumerate(self.fleet.started) if number % 2 == 1 and p.alive()]

    def some(self, least: float, most: float) -> float:
        return self.chance.uniform(least, most)

    # The faults

    def kill(self) -> None:
        self.chance.choice(self.fleet.living()).kill()

    def kill_all(self) -> None:
        for process in self.fleet.living():
            process.kill()

    def pause(self) -> None:
        process = self.chance.choice(self.fleet.living())
        process.pause()
        time.sleep(self.some(0.5, TTL * 2))
        process.resume()

    def stop(self) -> None:
        self.chance.choice(self.fleet.living()).stop(15)

    def restart_server(self) -> None:
        self.trace.mark("away")
        self.server.stop(self.chance.choice(["immediate", "fast"]))
        time.sleep(self.some(0, TTL * 1.5))
        self.server.start()
        self.trace.mark("back")

    def black_hole(self) -> None:
        self._cut_off(self.proxy.black_hole, self.some(0.5, TTL * 2.5))

    def refuse(self) -> None:
        self._cut_off(self.proxy.refuse, self.some(0.5, TTL * 2.5))

    def _cut_off(self, fault: Callable[[], None], seconds: float) -> None:
        lost = self.through_proxy()
        for process in lost:
            self.trace.mark("paused", pid=process.pid, why="network")
        fault()
        time.sleep(seconds)
        self.proxy.heal()
        for process in lost:
            self.trace.mark("resumed", pid=process.pid)

    def cut(self) -> None:
        for _ in range(5):
            self.proxy.cut()
            time.sleep(self.some(0, 0.3))

    def terminate_sessions(self) -> None:
        with self.connect() as conn:
            conn.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )

    def lock_table(self) -> None:
        with self.connect() as conn, conn.transaction():
            conn.execute(self.chance.choice(["LOCK TABLE data_flows", "LOCK TABLE data_flow_runs"]))
            time.sleep(self.some(0.5, 3))

    def edit_rows(self) -> None:
        with self.connect() as conn, conn.transaction():
            conn.execute("UPDATE data_flows SET description = 'edited' WHERE id % 3 = 0")
            time.sleep(self.some(0.5, 3))

    def request_runs(self) -> None:
        with self.connect() as conn:
            conn.execute(
                "INSERT INTO data_flow_runs (data_flow_id) SELECT id FROM data_flows WHERE id % 5 = 0"
                " ON CONFLICT DO NOTHING"
            )

    def burst(self) -> None:
        with self.connect() as conn:
            add_flows(conn, f"burst-{self.done['burst']}", 500, of_class("Quick"))

    # The run

    def run(self, minutes: float) -> Report:
        with self.connect() as conn:
            for class_name, (number, row) in FLOWS.items():
                for n in range(number):
                    columns = {name: value for name, value in row.items() if name.startswith("run_")}
                    options = {name: value for name, value in row.items() if name not in columns}
                    add_flow(conn, f"{class_name}-{n}", of_class(class_name, **options), **columns)
        self.start_missing()
        faults = [
            self.kill, self.kill, self.kill_all, self.pause, self.pause, self.stop, self.restart_server,
            self.black_hole, self.refuse, self.cut, self.terminate_sessions, self.lock_table, self.edit_rows,
            self.request_runs, self.burst,
        ]  # fmt: skip
        until = time.monotonic() + minutes * 60
        with Pinger(self.fleet.living, 0.3) as pinger:
            while time.monotonic() < until:
                fault = self.chance.choice(faults)
                say(f"{until - time.monotonic():6.0f} s left: {fault.__name__}")
                fault()
                self.done[fault.__name__] += 1
                self.start_missing()
                with self.connect() as conn:
                    self.snapshots.take(conn)
                time.sleep(self.some(0, 1))
        return self.settle(pinger.answers)

    def settle(self, answers: list[Answer]) -> Report:
        """Let everything end, see that a fresh flow runs, stop, and check."""
        with self.connect() as conn:
            conn.execute("UPDATE data_flows SET enabled = false")
            wait_until(lambda: self._beat_all() and not live_runs(conn), seconds=30, what="all runs to end")
            fresh = [beats_until_fresh_flow_ran(conn, process, limit=2) for process in self.fleet.living()]
            for process in self.fleet.living():
                process.stop(15)
            report = check(self.trace, conn, Limits(TTL, beat=1, slack=3, threads=4), self.snapshots)
        statuses = Counter(answer.status for answer in answers)
        report.figures |= {f"fault_{name}": count for name, count in sorted(self.done.items())}
        report.figures |= {f"answered_{status}": count for status, count in sorted(statuses.items(), key=str)}
        report.figures["beats_until_fresh_flow"] = max(fresh)
        report.violations += [f"answered {status}" for status in statuses if status not in (200, 503, None)]
        answered = [answer for answer in answers if not self._was_stopped(answer)]
        # A heartbeat whose budget has gone by still has its own last wait for the database before it.
        for status, limit in ((200, SETTINGS["time_budget"] + 4.5), (503, SETTINGS["time_budget"] + 5)):
            longest = max((a.seconds for a in answered if a.status == status), default=0.0)
            report.figures[f"longest_{status}_s"] = longest
            if longest > limit:
                report.violations.append(f"a heartbeat was answered {status} after {longest:.1f} s")
        return report

    def _was_stopped(self, answer: Answer) -> bool:
        """Whether the process stood still while it was asked: then it could not answer in time."""
        marks = [e for e in self.trace.events() if e.get("pid") == answer.pid and e.get("why") != "network"]
        stopped = [e["mono"] for e in marks if e["event"] in ("paused", "resumed")]
        return any(answer.at - answer.seconds - 6 < moment < answer.at for moment in stopped)

    def _beat_all(self) -> bool:
        return all(process.ask().status == 200 for process in self.fleet.living())


def say(line: str) -> None:
    print(line, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=4, choices=range(2, 9))
    parser.add_argument("--keep", action="store_true", help="keep the logs and the trace")
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="heartbeat-soak-"))
    trace = Trace(directory / "trace.jsonl")
    with PrivateServer(max_connections=200) as server:
        database = server.create_database()
        upgrade(server.url(database))
        with Proxy(server.url(database)) as proxy:
            fleet = Fleet(directory, trace, database_url=server.url(database), **SETTINGS)
            chance = random.Random(options.seed)
            soak = Soak(server, proxy, fleet, database, trace, chance, options.processes)
            try:
                report = soak.run(options.minutes)
            finally:
                fleet.end_all()
    say(f"seed {options.seed}, {options.minutes:g} minutes, {options.processes} processes\n{report}")
    if options.keep or report.violations:
        say(f"logs and trace: {directory}")
    else:
        shutil.rmtree(directory, ignore_errors=True)
    return 1 if report.violations else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (AssertionError, psycopg.Error, RuntimeError) as exc:
        say(f"the soak itself failed: {exc}")
        sys.exit(2)
