"""graphile-worker (Node): as it comes, and at its best (local queue, batched completion).

Installed with npm into a cache directory of the machine's, at the version below; skipped where there is no Node.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from benchmarks import drained
from benchmarks.measure import Measurement, MeasurementFailed, Unavailable

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
        for jobs, size in ((24, 500), (24, 2000), (100, 1000), (100, 2000), (10, 2000))
    },
    **{
        f"concurrency {jobs}, queue {size}, delay 5 ms": {
            "concurrency": jobs,
            "local_queue": size,
            "batch_delay": 5,
        }
        for jobs, size in ((500, 2000), (1000, 2000))
    },
}
QUICK = ("concurrency 24, queue 2000", "concurrency 100, queue 2000")
GOOD = "concurrency 100, queue 2000"  # for the open snapshot, where no settings are looked for


def run(url: str, items: int, **options: Any) -> Measurement:
    """Time `runOnce` in a warmed Node process: from the call until every job is done and deleted."""
    return drained.once(opened(url, **options), url, items)


@contextmanager
def opened(
    url: str,
    *,
    concurrency: int | None = None,
    local_queue: int | None = None,
    batch_delay: int | None = None,
) -> Iterator[drained.Queue]:
    """A Node process that has drained a first few jobs."""
    directory = install()
    options = {"concurrency": concurrency, "localQueue": local_queue, "batchDelay": batch_delay}
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            ["node", str(SCRIPT), url, json.dumps(options)],
            env={**os.environ, "NODE_PATH": str(directory / "node_modules"), "NO_LOG_SUCCESS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        try:
            yield _Jobs(process, errors, _note(concurrency, local_queue, batch_delay))
        finally:
            process.communicate(timeout=60)  # closes its standard input, which ends it


class _Jobs:
    def __init__(self, process: subprocess.Popen[str], errors: IO[str], note: str) -> None:
        self._process = process
        self._errors = errors
        self.note = note
        self._done = 0
        self._left = -1

    def fill(self, items: int) -> None:
        self._ask(f"fill {items}")

    def drain(self) -> float:
        answer = self._ask("drain")
        self._done, self._left = answer["done"], answer["left"]
        return float(answer["seconds"])

    def check(self, items: int) -> None:
        if (self._done, self._left) != (items, 0):
            raise MeasurementFailed(f"graphile-worker ran {self._done} of {items}, left {self._left}")

    def _ask(self, command: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(command, file=self._process.stdin, flush=True)
        for line in self._process.stdout:
            if line.startswith("{"):  # the rest is its log
                answer: dict[str, Any] = json.loads(line)
                return answer
        self._errors.seek(0)
        raise MeasurementFailed(f"graphile-worker: {self._errors.read().strip()[-2000:]}")


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
