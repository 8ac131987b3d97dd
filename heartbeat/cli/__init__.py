"""The command `heartbeat`: commands and their help, what they print, the check, the pinger. click and rich live here.

The door is `main`, which is the process: it runs the command and ends with its status.
"""

from heartbeat.cli.commands import main

__all__ = ["main"]
