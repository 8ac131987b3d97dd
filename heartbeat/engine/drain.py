"""Whether the process stops, and until when its runs may go on.

Set by `begin`, also in a signal handler, where a lock might be held by the very thread that was interrupted: so there
is none, and each field is written in one step. Claims, heartbeats and the engine's end read it.
"""

from __future__ import annotations

import time

from heartbeat.errors import Stopping


class Drain:
    """The end of the process, once it has begun."""

    def __init__(self) -> None:
        self.until = float("inf")
        """When the drain is over, by `time.monotonic()`."""
        self.has_begun = False
        """No claim begins any more."""

    def begin(self, seconds: float) -> None:
        """Claim no more, and give running flows so long at most. Asked again, the earlier end holds."""
        self.until = min(self.until, time.monotonic() + seconds)
        self.has_begun = True

    @property
    def is_over(self) -> bool:
        """Whether what still runs is interrupted."""
        return time.monotonic() >= self.until

    def refuse(self) -> None:
        """Raise Stopping where it has begun."""
        if self.has_begun:
            raise Stopping("the service is stopping; it starts nothing any more")
