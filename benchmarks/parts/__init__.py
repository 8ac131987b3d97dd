"""The parts of the benchmark, in the order of the page.

Each is a module with TITLE and ABOUT for its section, SIZES, and `measure(server, size, ...) -> figures`.
"""

from __future__ import annotations

from benchmarks.parts import (
    async_flows,
    drain,
    growth,
    latency,
    memory,
    processes,
    simulation,
    snapshot,
    start,
    tables,
)

PARTS = {
    "drain": drain,
    "processes": processes,
    "async": async_flows,
    "snapshot": snapshot,
    "latency": latency,
    "start": start,
    "tables": tables,
    "growth": growth,
    "memory": memory,
    "simulate": simulation,
}
