"""Flows for the fault tests: each leaves a trace outside Postgres, and most misbehave in one way.

The traces go to the file that `FAULTS_TRACE` names, one JSON line an event, each line one `write` on a
descriptor opened with O_APPEND, so that lines of many processes never mix: `begin` before the work, then
`end` if the work returned, `raised` if it did not, or `leaving` right before the process ends itself. A
process that was killed leaves a `begin` alone.

The behaviour of a flow is taken from its row: `{"class_name": "Slow", "seconds": 2}`.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

from heartbeat import DataFlow


def write_event(event: str, **fields: Any) -> None:
    """Append one line, with the wall clock (the database's) and the monotonic one (for order)."""
    line = {"event": event, **fields, "pid": os.getpid(), "mono": time.monotonic(), "wall": time.time()}
    descriptor = os.open(os.environ["FAULTS_TRACE"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, json.dumps(line).encode() + b"\n")
    finally:
        os.close(descriptor)


def is_held(flow: DataFlow) -> bool:
    """Whether the test has yet to let the flow go (`Trace.let_go`)."""
    trace = Path(os.environ["FAULTS_TRACE"])
    return not any(trace.with_name(name).exists() for name in ("go", f"go-{flow.name}"))


class Tracing:
    """Write `begin`, and `end` or `raised`, around a flow's work."""

    def __init__(self, flow: DataFlow) -> None:
        self.fields = {"flow": flow.name, "run": flow.run_id}

    def __enter__(self) -> None:
        write_event("begin", **self.fields)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            write_event("end", **self.fields)
        else:
            write_event("raised", **self.fields, what=kind.__name__)


class Traced(DataFlow):
    """A sync flow that leaves its trace."""

    def run(self) -> Any:
        with Tracing(self):
            return self.work()

    def work(self) -> Any:
        return None

    def option(self, name: str, default: Any) -> Any:
        return self.configuration.get(name, default)

    def leaving(self) -> None:
        write_event("leaving", flow=self.name, run=self.run_id)


class AsyncTraced(DataFlow):
    """An async flow that leaves its trace."""

    async def run(self) -> Any:
        with Tracing(self):
            return await self.work()

    async def work(self) -> Any:
        return None

    def option(self, name: str, default: Any) -> Any:
        return self.configuration.get(name, default)


# Well-behaved


class Quick(Traced):
    """Do nothing."""


class AsyncQuick(AsyncTraced):
    """Do nothing, on the loop."""


class Slow(Traced):
    """Sleep for `seconds`, and return `result`."""

    def work(self) -> Any:
        time.sleep(self.option("seconds", 1))
        return self.option("result", None)


class AsyncSlow(AsyncTraced):
    """Sleep for `seconds` on the loop."""

    async def work(self) -> Any:
        await asyncio.sleep(self.option("seconds", 1))


class Held(Traced):
    """Run until the test lets it go, look at nothing else, and return `result`."""

    def work(self) -> Any:
        until = time.monotonic() + self.option("seconds", 3600)
        while is_held(self) and time.monotonic() < until:
            time.sleep(0.02)
        return self.option("result", None)


class AsyncHeld(AsyncTraced):
    """Wait on the loop until the test lets it go."""

    async def work(self) -> Any:
        while is_held(self):
            await asyncio.sleep(0.02)


class UsesConnection(Traced):
    """Use the connection as most flows do, and fail if somebody before left it dirty."""

    def work(self) -> Any:
        with self.connection() as conn:
            cursor = conn.execute(
                "SELECT current_user = session_user, current_setting('search_path') LIKE '%public%',"
                " current_setting('default_transaction_read_only'),"
                " to_regclass('pg_temp.data_flows') IS NULL,"
                " current_setting('statement_timeout')"
            )
            own_role, own_path, read_only, unshadowed, statement_timeout = cursor.fetchone()
            found = conn.execute("SELECT name FROM data_flows WHERE name = %s", (self.name,)).fetchone()
        if not (own_role and own_path and unshadowed) or read_only != "off" or statement_timeout == "1ms":
            raise RuntimeError("the connection came dirty from the flow before")
        if found is None:
            raise RuntimeError("the flow does not find its own row")


# What a flow can raise


class OwnInterrupt(BaseException):
    """A BaseException of the flow's own."""


class Mute(Exception):
    """An exception that cannot even say what it is."""

    def __str__(self) -> str:
        raise RuntimeError("no text either")

    __repr__ = __str__


def _cycle() -> Exception:
    first, second = ValueError("one"), ValueError("two")
    first.__cause__, second.__cause__ = second, first
    return first


RAISABLE: dict[str, Any] = {
    "Exception": lambda: Exception("plain"),
    "SystemExit": lambda: SystemExit(3),
    "KeyboardInterrupt": KeyboardInterrupt,
    "GeneratorExit": GeneratorExit,
    "StopIteration": lambda: StopIteration(7),
    "StopAsyncIteration": StopAsyncIteration,
    "CancelledError": asyncio.CancelledError,
    "OwnInterrupt": OwnInterrupt,
    "BaseExceptionGroup": lambda: BaseExceptionGroup("several", [KeyboardInterrupt(), ValueError("x")]),
    "MemoryError": MemoryError,
    "Mute": Mute,
    "nul": lambda: ValueError("before\x00after"),
    "surrogate": lambda: ValueError("before\ud800after"),
    "megabytes": lambda: ValueError("x" * 5_000_000),
    "cycle": _cycle,
}


class Raises(Traced):
    """Raise what `what` names."""

    def work(self) -> Any:
        raise RAISABLE[self.option("what", "Exception")]()


class AsyncRaises(AsyncTraced):
    """Raise what `what` names, on the loop."""

    async def work(self) -> Any:
        raise RAISABLE[self.option("what", "Exception")]()


class Recurses(Traced):
    """Fall a thousand frames deep."""

    def work(self) -> Any:
        return self.work()


class FailsToStart(DataFlow):
    """Leave the process in the constructor, as `sys.exit` in an import would."""

    def __init__(self, configuration: dict[str, Any]) -> None:
        raise SystemExit(4)

    def run(self) -> None:
        """Never reached."""


# What a flow can do to its process


class Exits(Traced):
    """End the process without a word."""

    def work(self) -> Any:
        time.sleep(self.option("seconds", 0))
        self.leaving()
        os._exit(9)


class Crashes(Traced):
    """End the process by a segmentation fault."""

    def work(self) -> Any:
        time.sleep(self.option("seconds", 0))
        self.leaving()
        faulthandler.disable()
        os.kill(os.getpid(), signal.SIGSEGV)
        time.sleep(30)  # another thread may be the one that takes the signal


class LeavesAThread(Traced):
    """Return, and leave a thread behind that is no daemon and never ends."""

    def work(self) -> Any:
        threading.Thread(target=time.sleep, args=(3600,), daemon=False).start()


# What a flow can do to its connection

_leaked: list[Any] = []


class LeaksTransaction(Traced):
    """Open a connection, lock its own row, and never give the connection back."""

    def work(self) -> Any:
        context = self.connection()
        conn = context.__enter__()
        _leaked.append((context, conn))  # or the garbage collector would tidy up
        conn.execute("UPDATE data_flows SET description = 'leaked' WHERE name = %s", (self.name,))


class ClosesConnection(Traced):
    """Close the connection inside its block."""

    def work(self) -> Any:
        with self.connection() as conn:
            conn.execute("SELECT 1")
            conn.close()


class KillsBackend(Traced):
    """Have the server end the connection's session."""

    def work(self) -> Any:
        with self.connection() as conn:
            conn.execute("SELECT pg_terminate_backend(pg_backend_pid())")


class PoisonsConnection(Traced):
    """Run into an error, swallow it, and go on as if nothing had been."""

    def work(self) -> Any:
        with self.connection() as conn:
            try:
                conn.execute("SELECT 1 / 0")
            except Exception:
                return None
        return None


class ChangesSession(Traced):
    """Leave `statement` behind in the session: a role, a search path, a shadowing temporary table."""

    def work(self) -> Any:
        with self.connection() as conn:
            conn.execute(self.option("statement", "SET search_path = nowhere"))


class KeepsAutocommit(Traced):
    """Switch the connection to autocommit and open a transaction by hand."""

    def work(self) -> Any:
        with self.connection() as conn:
            conn.autocommit = True
            conn.execute("BEGIN")
            conn.execute("SET LOCAL search_path = nowhere")


# What a flow can do with time


class HangsUntilAsked(Traced):
    """Never end by itself, but end when asked through `stopping`."""

    def work(self) -> Any:
        self.stopping.wait(3600)
        return {"stopping": True}


class BlocksLoop(AsyncTraced):
    """Stop the loop that every async flow shares, until the test lets it go."""

    async def work(self) -> Any:
        until = time.monotonic() + self.option("seconds", 3600)
        while is_held(self) and time.monotonic() < until:
            time.sleep(0.02)


class SwallowsCancel(AsyncTraced):
    """Take every cancellation as a joke, until the test lets it go."""

    async def work(self) -> Any:
        while is_held(self):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.02)


# What a flow can return


class Unprintable:
    """A result that has no repr."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


def _circular() -> list[Any]:
    circle: list[Any] = []
    circle.append(circle)
    return circle


def _deep() -> list[Any]:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    return deep


RETURNABLE: dict[str, Any] = {
    "object": object,
    "nan": lambda: {"x": float("nan")},
    "infinity": lambda: float("inf"),
    "nul": lambda: "a\x00b",
    "surrogate": lambda: {"\ud800": "\udfff"},
    "bytes": lambda: b"\x00\xff",
    "huge": lambda: "x" * 5_000_000,
    "huge_number": lambda: 10**6000,
    "unprintable": Unprintable,
    "circular": _circular,
    "deep": _deep,
    "keys": lambda: {(1, 2): 3},
}


class Returns(Traced):
    """Return what `what` names."""

    def work(self) -> Any:
        return RETURNABLE[self.option("what", "object")]()
