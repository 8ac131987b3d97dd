"""Part 6, memory: what the serving process holds while it drains, and whether heartbeats make it grow."""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
import psutil

from benchmarks import project
from benchmarks.server import Server, settle

SAMPLE_SECONDS = 0.05
BLOCKS = 20
T_95 = 2.101  # Student's t, two-sided 95 %, 18 degrees of freedom: 20 blocks, two fitted values
DUE_EACH_BEAT = 10


def measure(server: Server, *, items: int, beats: int, warm_up: int) -> dict[str, Any]:
    """Return RSS in bytes: before, during and after a drain, after each of `beats` heartbeats, and a fitted line."""
    with server.database() as url:
        project.migrate(url)
        with project.Service(url) as service:
            process = psutil.Process(service.pid)
            service.beat()
            before = process.memory_info().rss
            project.add_flows(url, items)
            settle(url)
            during = _sampled(process, service.drain)
            after = process.memory_info().rss
            samples = []
            for number in range(warm_up + beats):
                project.make_due(url, DUE_EACH_BEAT)
                service.drain()
                if number >= warm_up:
                    samples.append(process.memory_info().rss)
    return {
        "items": items,
        "before": before,
        "during": during,
        "peak": max(during),
        "after": after,
        "beats": samples,
        "due_each_beat": DUE_EACH_BEAT,
        "line": fitted_line(samples),
    }


def fitted_line(samples: list[int]) -> dict[str, float]:
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
    return {
        "bytes_a_beat": float(slope),
        "low": float(slope) - T_95 * error,
        "high": float(slope) + T_95 * error,
        "intercept": float(intercept),
    }


def _sampled(process: psutil.Process, work: Any) -> list[int]:
    """Run the work and look at the process's memory meanwhile."""
    samples, stop = [process.memory_info().rss], threading.Event()

    def look() -> None:
        while not stop.wait(SAMPLE_SECONDS):
            samples.append(process.memory_info().rss)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        work()
    finally:
        stop.set()
        watcher.join()
    return samples
