"""What is claimed and not begun, and how much more to claim.

A lane for the sync flows, which threads run, and one for the async flows, which the event loop runs, each with a limit
of its own. Claiming threads reserve and put, flow threads and the loop take. Each lane's condition guards its counts;
taking a run, and marking it active or ended, are single steps, for they come once a run.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence

from heartbeat.engine.run import Run

CLAIM = 1000
"""Most runs in one claim, however fast they end."""

_AHEAD_SECONDS = 0.1
"""How much work is claimed ahead: a slow flow holds up no more than that."""

_FACTOR = 8
"""Expect at most so many times what was seen to end: eight quick flows say little about a thousand others."""


class Pace:
    """How fast runs end, from looks at how many have ended so far."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, int]] = deque()

    def expected(self, now: float, ended: int, seconds: float) -> int:
        """Return how many runs will end in so many seconds, if it goes on as in the last of them.

        `now` is a time of `time.monotonic()`, `ended` how many have ended since the process began. Where the looks
        do not go back that far (work has just begun), the rate so far is taken.
        """
        while self._looks and self._looks[0][0] < now - seconds:
            self._looks.popleft()
        since, before = self._looks[0] if self._looks else (now, ended)
        self._looks.append((now, ended))
        if now == since:
            return 0
        count = ended - before
        return min(int(count * seconds / (now - since)), _FACTOR * count)


class Lane:
    """The claimed runs of one kind: those that wait, and those that run, at most `limit` at once."""

    def __init__(self, limit: int, room: threading.Event) -> None:
        self.limit = limit
        self.active: set[Run] = set()
        """Begun, and not ended or given up. Runs are added and discarded in single steps."""
        self._room = room
        self._pace = Pace()
        self._waiting: deque[Run] = deque()
        self._put = 0  # all that ever were
        self._on_the_way = 0  # asked for by claims that are under way
        self._low_water = 0  # as few may wait when the next claim is worth its while
        self._claim_seconds = 0.0  # how long the last claim took
        self._arrival = threading.Condition()
        self._is_closed = False

    # ── how much more to claim ───────────────────────────────────────────────────────────────────────────────

    def reserve(self) -> int:
        """Return how many runs to claim now, 0 while enough work waits already. Call `release` after the claim.

        Enough is about 100 ms of it, or twice what a claim takes if that is longer: as many runs as end in that time
        lately, and never fewer than may begin at once. Three claims' worth at most: one is run while two are on their
        way.
        """
        with self._arrival:
            waiting, active = len(self._waiting), len(self.active)
            seconds = max(_AHEAD_SECONDS, 2 * self._claim_seconds)
            expected = self._pace.expected(time.monotonic(), self._put - waiting - active, seconds)
            ahead = min(3 * CLAIM, max(self.limit - active, expected))
            worthwhile = min(CLAIM, (ahead + 1) // 2)
            self._low_water = ahead - worthwhile - self._on_the_way
            if ahead == 0 or waiting > self._low_water:
                return 0
            size = min(CLAIM, ahead - waiting - self._on_the_way)
            self._on_the_way += size
            return size

    def release(self, size: int, seconds: float | None = None) -> None:
        """Say that a claim of so many has ended and how long it took, or that it was not made."""
        with self._arrival:
            self._on_the_way -= size
            if seconds is not None:
                self._claim_seconds = seconds

    # ── through the lane ─────────────────────────────────────────────────────────────────────────────────────

    def put(self, runs: Sequence[Run]) -> None:
        """Queue runs, and wake as many threads as can take one."""
        with self._arrival:
            self._put += len(runs)
            self._waiting.extend(runs)
            self._arrival.notify(len(runs))

    def take(self) -> Run | None:
        """Begin the run that has waited longest; None where none waits."""
        try:
            run = self._waiting.popleft()
        except IndexError:
            return None
        self.active.add(run)
        run.begin()
        return run

    def await_one(self, seconds: float) -> Run | None:
        """Begin the next run as soon as there is one; None where none comes in that time, or the lane is closed."""
        if (run := self.take()) is not None:
            return run  # a thread that comes straight from its last run takes no lock
        deadline = time.monotonic() + seconds
        with self._arrival:
            while (run := self.take()) is None:
                left = deadline - time.monotonic()
                if self._is_closed or left <= 0:
                    return None
                self._arrival.wait(left)
            return run

    def ended(self, run: Run) -> bool:
        """Make room for another: the run has ended, was given up, or goes on elsewhere. False: another was first."""
        try:
            self.active.remove(run)
        except KeyError:
            return False
        if len(self._waiting) <= self._low_water and not self._room.is_set():
            self._room.set()
        return True

    @property
    def waiting(self) -> int:
        """Runs that nobody has begun."""
        return len(self._waiting)

    def close(self) -> None:
        """Let the threads that wait for a run go."""
        with self._arrival:
            self._is_closed = True
            self._arrival.notify_all()


class Backlog:
    """The two lanes, and the wait for room in either."""

    def __init__(self, concurrency: int, async_concurrency: int) -> None:
        self._room = threading.Event()
        self.threads = Lane(concurrency, self._room)
        self.loop = Lane(async_concurrency, self._room)

    @property
    def lanes(self) -> tuple[Lane, Lane]:
        return (self.threads, self.loop)

    def wait_for_room(self, timeout: float) -> None:
        """Wait until a lane has room, or `wake_claimers` is called: a heartbeat's last claim has been made."""
        self._room.wait(timeout)
        self._room.clear()

    def wake_claimers(self) -> None:
        """Have the threads that wait for room look whether there is still anything to claim."""
        self._room.set()

    def close(self) -> None:
        """Let every thread that waits for a run go."""
        for lane in self.lanes:
            lane.close()
