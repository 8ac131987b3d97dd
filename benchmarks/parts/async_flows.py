"""Flows on the event loop: what they cost, and how many can wait at once."""

from __future__ import annotations

import threading
import time

import psutil

from benchmarks import project
from benchmarks.measure import MeasurementFailed, in_subprocess, say
from benchmarks.record import Figure, Rounds
from benchmarks.server import Server, settle
from benchmarks.serving import Service, migrate

TITLE = "Async flows"
ABOUT = "No-op flows of both kinds in interleaved rounds; then flows that all wait at once in one process."
UNIT = "flows a second"
SIZES = {"full": (5, 60_000, 3), "quick": (3, 20_000, 1)}
KINDS = {"sync no-op flows": "NoOp", "async no-op flows": "AsyncNoOp"}

WAITING, WAIT_MS = 1_000, 1_000
WAITED = f"{WAITING:,} async flows that wait {WAIT_MS / 1000:g} s each, in one process"
SAMPLE_SECONDS = 0.02


def measure(server: Server, size: str) -> list[Figure]:
    """Return both kinds' rates and their ratio; the seconds, memory and threads of the waiting ones."""
    count, items, waits = SIZES[size]
    return [*_no_ops(server, count, items), *_waiting(server, waits)]


def _no_ops(server: Server, count: int, items: int) -> list[Figure]:
    rounds = Rounds()
    for number in range(count):
        for name, flow in KINDS.items():
            with server.database() as url:
                rate = in_subprocess("benchmarks.service", url, items, {"flow": flow}, 600).rate
            rounds.add(name, number, rate)
            say(f"   round {number + 1}  {name}: {rate:,.0f} {UNIT}")
    return [
        *(rounds.figure(name, UNIT, f"{items:,} flows") for name in KINDS),
        rounds.ratio("async no-op flows against sync ones", "async no-op flows", "sync no-op flows"),
    ]


def _waiting(server: Server, waits: int) -> list[Figure]:
    """The limit of async flows is a setting of its own: a service that does not know it refuses to start."""
    setting = f"HEARTBEAT_ASYNC_CONCURRENCY={WAITING}"
    seconds: list[float] = []
    memory, threads = Course(), Course()
    with server.database() as url:
        migrate(url)
        try:
            with Service(url, async_concurrency=WAITING) as service:
                project.add_flows(url, WAITING, class_name="AsyncSleep", ms=WAIT_MS)
                settle(url)
                for _ in range(waits):
                    project.make_due(url, WAITING)
                    with Watch(psutil.Process(service.pid), memory, threads):
                        started = time.perf_counter()
                        service.drain()
                        seconds.append(time.perf_counter() - started)
                    say(f"   {WAITED}: {seconds[-1]:.2f} s, {memory} MiB, {threads} threads")
        except MeasurementFailed as exc:
            say(f"   {WAITED}: {exc}")
            return [Figure.of(WAITED, "s", [], note=f"not available: {exc}")]
        project.check_runs(url, WAITING * waits)
    return [
        Figure.of(WAITED, "s", seconds, note=setting),
        *memory.figures("memory", "MiB"),
        *threads.figures("threads", "threads"),
    ]


class Course:
    """What a process held before, at most during, and after its work."""

    def __init__(self) -> None:
        self.before: list[float] = []
        self.peak: list[float] = []
        self.after: list[float] = []

    def add(self, samples: list[float]) -> None:
        """Enter the samples of one piece of work, in their order."""
        self.before.append(samples[0])
        self.peak.append(max(samples))
        self.after.append(samples[-1])

    def figures(self, name: str, unit: str) -> list[Figure]:
        """Before, at most and after."""
        return [
            Figure.of(f"{name} before", unit, self.before),
            Figure.of(f"{name} at most", unit, self.peak),
            Figure.of(f"{name} after", unit, self.after),
        ]

    def __str__(self) -> str:
        return f"{self.before[-1]:.4g} → {self.peak[-1]:.4g} → {self.after[-1]:.4g}"


class Watch:
    """A context: looks at a process's memory and threads while the block runs."""

    def __init__(self, process: psutil.Process, memory: Course, threads: Course) -> None:
        self._process = process
        self._courses = (memory, threads)
        self._samples: list[tuple[float, float]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> None:
        self._sample()
        self._thread.start()

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()
        self._sample()
        for course, samples in zip(self._courses, zip(*self._samples, strict=True), strict=True):
            course.add(list(samples))

    def _look(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            self._sample()

    def _sample(self) -> None:
        with self._process.oneshot():
            self._samples.append((self._process.memory_info().rss / 2**20, self._process.num_threads()))
