"""How much work to claim ahead: about as much as ends in the next moment, judged by the last one."""

from __future__ import annotations

from collections import deque

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
