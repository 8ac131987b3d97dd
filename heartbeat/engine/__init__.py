"""One heartbeat, and the runs on their way: what is due is claimed, run on threads or the event loop, and recorded.

The door is `Engine`. `docs/design.md` has the table of its threads, their state and their locks.
"""

from heartbeat.engine.engine import Engine

__all__ = ["Engine"]
