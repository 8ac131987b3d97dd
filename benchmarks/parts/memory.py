"""What the serving process holds while it drains, and whether heartbeats make it grow."""

from __future__ import annotations

import math

import numpy as np
import psutil

from benchmarks import project
from benchmarks.measure import say
from benchmarks.parts.async_flows import Course, Watch
from benchmarks.record import Figure
from benchmarks.server import Server, settle
from benchmarks.serving import Service, migrate

TITLE = "Memory of the serving process"
SIZES = {"full": (100_000, 1_000), "quick": (20_000, 200)}
WARM_UP = 300
DUE_EACH_BEAT = 10
ABOUT = (
    f"Before, during and after a drain; then heartbeats with {DUE_EACH_BEAT} due flows each, and the line that fits "
    "what the process holds after each."
)

BLOCKS = 20
T_95 = 2.101  # Student's t, two-sided 95 %, 18 degrees of freedom: 20 blocks, two fitted values


def measure(server: Server, size: str) -> list[Figure]:
    """Return MiB before, during and after a drain, and the bytes that a heartbeat adds."""
    items, beats = SIZES[size]
    memory, threads = Course(), Course()
    with server.database() as url:
        migrate(url)
        with Service(url) as service:
            process = psutil.Process(service.pid)
            project.add_flows(url, items)
            settle(url)
            with Watch(process, memory, threads):
                service.drain()
            samples = [_after_a_beat(url, service, process) for _ in range(WARM_UP + beats)][WARM_UP:]
    slope, low, high = _fitted_line(samples)
    note = f"{beats:,} heartbeats; 95 % confidence {low:.0f} to {high:.0f}"
    say(f"   {memory} MiB, {threads} threads; {slope:.0f} bytes a heartbeat ({note})")
    return [
        *memory.figures("memory", "MiB"),
        *threads.figures("threads", "threads"),
        Figure.of("growth by a heartbeat", "bytes", [slope], note=note),
        Figure.of("memory growth by a heartbeat, lower end of the 95 % interval", "bytes", [low]),
    ]


def _after_a_beat(url: str, service: Service, process: psutil.Process) -> int:
    project.make_due(url, DUE_EACH_BEAT)
    service.drain()
    held: int = process.memory_info().rss
    return held


def _fitted_line(samples: list[int]) -> tuple[float, float, float]:
    """Fit bytes a heartbeat, with a 95 % confidence interval.

    Memory grows in steps, so neighbouring samples are no independent evidence: the line goes through the means of 20
    blocks, whose scatter is what the interval is made of.
    """
    size = len(samples) // BLOCKS
    means = np.array(samples[: size * BLOCKS], dtype=float).reshape(BLOCKS, size).mean(axis=1)
    x = (np.arange(BLOCKS) + 0.5) * size
    slope, intercept = np.polyfit(x, means, 1)
    residuals = means - (slope * x + intercept)
    error = math.sqrt(float((residuals**2).sum()) / (BLOCKS - 2) / float(((x - x.mean()) ** 2).sum()))
    return float(slope), float(slope) - T_95 * error, float(slope) + T_95 * error
