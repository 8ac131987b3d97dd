"""graphile-worker (Node): as it comes, and at its best (local queue, batched completion).

Installed with npm into a cache directory of the machine's, at the version below; skipped where there is no Node.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measure import Measurement, MeasurementFailed, Unavailable
from benchmarks.server import settle

TITLE = "graphile-worker"
VERSION = "0.17.3"  # the newest that Node 20 runs; 0.18 asks for Node 22.18
RECORDS = "keeps no history: a job's row is deleted when it is done"
SCRIPT = Path(__file__).with_suffix(".js")

AS_IT_COMES: dict[str, Any] = {}
# Their documentation's own settings for speed are the first; the rest look for a better one.
CANDIDATES: dict[str, dict[str, Any]] = {
    "as it comes": AS_IT_COMES,
    **{
        f"concurrency {jobs}, queue {size}": {"concurrency": jobs, "local_queue": size, "batch_delay": 0}
        for jobs, size in ((24, 500), (24, 1000), (24, 2000), (100, 1000), (100, 2000), (10, 2000))
    },
    **{
        f"concurrency {jobs}, queue {size}, delay 5 ms": {
            "concurrency": jobs,
            "local_queue": size,
            "batch_delay": 5,
        }
        for jobs, size in ((500, 1000), (500, 2000), (1000, 2000))
    },
}
QUICK = (
    "concurrency 24, queue 500",
    "concurrency 100, queue 2000",
    "concurrency 500, queue 2000, delay 5 ms",
)


def run(
    url: str,
    items: int,
    *,
    concurrency: int | None = None,
    local_queue: int | None = None,
    batch_delay: int | None = None,
) -> Measurement:
    """Time `runOnce` in a warmed Node process: from the call until every job is done and deleted."""
    directory = install()
    options = {"concurrency": concurrency, "localQueue": local_queue, "batchDelay": batch_delay}
    process = subprocess.Popen(
        ["node", str(SCRIPT), url, str(items), json.dumps(options)],
        env={**os.environ, "NODE_PATH": str(directory / "node_modules"), "NO_LOG_SUCCESS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    if process.stdout.readline().strip() == "filled":
        settle(url)
        process.stdin.write("go\n")
        process.stdin.flush()
    output, errors = process.communicate(timeout=600)
    if process.returncode != 0:
        raise MeasurementFailed(f"graphile-worker: {errors.strip()[-2000:]}")
    answer = json.loads(output.splitlines()[-1])
    if (answer["done"], answer["left"]) != (items, 0):
        raise MeasurementFailed(f"graphile-worker ran {answer['done']} of {items}, left {answer['left']}")
    return Measurement(
        answer["seconds"], items, _note(concurrency, local_queue, batch_delay), {"node": answer["node"]}
    )


def install() -> Path:
    """Have the pinned version in a directory outside the repository, and give that directory."""
    if not (shutil.which("node") and shutil.which("npm")):
        raise Unavailable("graphile-worker needs node and npm, and there are none")
    directory = Path(tempfile.gettempdir()) / f"heartbeat-bench-graphile-worker-{VERSION}"
    if not (directory / "node_modules" / "graphile-worker").exists():
        directory.mkdir(exist_ok=True)
        (directory / "package.json").write_text('{"name": "heartbeat-bench", "private": true}\n')
        command = [
            "npm",
            "install",
            "--no-audit",
            "--no-fund",
            "--ignore-scripts",
            f"graphile-worker@{VERSION}",
        ]
        done = subprocess.run(
            command, cwd=directory, capture_output=True, text=True, timeout=300, check=False
        )
        if done.returncode != 0:
            raise Unavailable(
                f"npm could not install graphile-worker {VERSION}: {done.stderr.strip()[-300:]}"
            )
    return directory


def _note(concurrency: int | None, local_queue: int | None, batch_delay: int | None) -> str:
    if local_queue is None:
        return "as it comes (one job at a time), success not logged"
    return f"concurrency {concurrency}, local queue {local_queue}, completion batched with a delay of {batch_delay} ms"
