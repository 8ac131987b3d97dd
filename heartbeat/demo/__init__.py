"""The demo: what is watched, the flows to copy, and what to try next.

The door is `watch`: it runs the demo and says what happens; the command prints it. `demo.flows` is user code, as an
example, and is found as any such module is: by its name in HEARTBEAT_FLOWS.
"""

from heartbeat.demo.show import watch

__all__ = ["watch"]
