"""A TCP proxy in front of Postgres that does to connections what networks do.

    with Proxy(url) as proxy:
        service = start(proxy.url)
        proxy.black_hole()      # accepts, forwards nothing, also on connections that stand
        proxy.heal()

It listens on 127.0.0.1 only. An asyncio loop in a thread of its own does the work; every method may be called
from any thread and has taken effect when it returns.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import quote

from psycopg import conninfo

from tests.faults.private import free_port

Way = Literal["to_server", "to_client"]
Verdict = Literal["pass", "cut", "pass_then_cut"]
T = TypeVar("T")


@dataclass(eq=False)
class Link:
    """One client's connection and the server's side of it."""

    number: int
    client: asyncio.StreamWriter
    server: asyncio.StreamWriter | None = None
    dead: bool = False
    drops_answer: bool = False

    def reset(self) -> None:
        """Close both sides at once; linger 0 makes the kernel send RST, as a router without state does."""
        self.dead = True
        for writer in (self.client, self.server):
            if writer is not None:
                raw: socket.socket | None = writer.get_extra_info("socket")
                if raw is not None and raw.fileno() != -1 and raw.family == socket.AF_INET:
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()


class Proxy:
    """Pass, cut, swallow, delay or refuse what goes between clients and one Postgres server.

    `watch`, where set, sees every chunk, and the number of its connection, before it is forwarded. It decides:
    `pass`, `cut` (drop it and reset this connection) or `pass_then_cut` (forward it to the server, then drop the
    answer and reset). It runs on the proxy's loop, so everything else waits for it.
    """

    def __init__(self, url: str) -> None:
        self._target = conninfo.conninfo_to_dict(url)
        self._links: set[Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._delay = 0.0
        self._listener: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self.watch: Callable[[Way, bytes, int], Verdict] | None = None
        self.accepted = 0
        self.port = free_port()

    def __enter__(self) -> Proxy:
        self._thread.start()
        self._call(self._open())
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    @property
    def url(self) -> str:
        """The database's URL by way of the proxy, without encryption, so that `watch` sees what is said."""
        user = quote(str(self._target.get("user") or "postgres"), safe="")
        password = self._target.get("password")
        secret = f":{quote(str(password), safe='')}" if password else ""
        name = quote(str(self._target.get("dbname") or user), safe="")
        return f"postgresql://{user}{secret}@127.0.0.1:{self.port}/{name}?sslmode=disable&gssencmode=disable"

    def black_hole(self) -> None:
        """Accept, and forward nothing any more in either direction."""
        self._do(lambda: self._flowing.clear())

    def delay(self, seconds: float) -> None:
        """Hold every chunk for so long before it goes on."""
        self._delay = seconds

    def cut(self) -> int:
        """Reset every connection there is, and return how many there were."""
        return self._do(self._reset_all)

    def refuse(self) -> None:
        """Reset what there is, and let the kernel refuse what comes."""
        self._do(self._stop_listening)
        self.cut()

    def heal(self) -> None:
        """Pass everything again; what a black hole held goes on, as retransmitted segments would."""
        self._delay = 0.0
        self.watch = None
        self._call(self._open())

    async def _open(self) -> None:
        if not hasattr(self, "_flowing"):
            self._flowing = asyncio.Event()
        self._flowing.set()
        if self._listener is None:
            self._listener = await asyncio.start_server(
                self._accept, "127.0.0.1", self.port, reuse_address=True
            )

    async def _close(self) -> None:
        self._stop_listening()
        self._reset_all()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _reset_all(self) -> int:
        links = [link for link in self._links if not link.dead]
        for link in links:
            link.reset()
        return len(links)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        link = Link(self.accepted, writer)
        self._links.add(link)
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._flowing.wait()
            server_reader, link.server = await self._connect()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._forward(link, reader, link.server, "to_server"))
                group.create_task(self._forward(link, server_reader, writer, "to_client"))
        except (OSError, ExceptionGroup, asyncio.CancelledError):
            pass  # a server that is not there looks to the client as a connection that breaks
        finally:
            link.reset()
            self._links.discard(link)
            self._tasks.discard(task)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host = str(self._target.get("hostaddr") or self._target.get("host") or "127.0.0.1")
        port = int(self._target.get("port") or 5432)
        if host.startswith("/"):
            return await asyncio.open_unix_connection(str(Path(host) / f".s.PGSQL.{port}"))
        return await asyncio.open_connection(host, port)

    async def _forward(
        self, link: Link, source: asyncio.StreamReader, target: asyncio.StreamWriter, way: Way
    ) -> None:
        while data := await source.read(65536):
            if self._delay:
                await asyncio.sleep(self._delay)
            await self._flowing.wait()
            if link.drops_answer and way == "to_client":
                break  # the server has answered: what was asked is done for certain
            verdict = self.watch(way, data, link.number) if self.watch is not None else "pass"
            if verdict == "cut":
                break
            link.drops_answer = link.drops_answer or verdict == "pass_then_cut"
            target.write(data)
            await target.drain()
        raise ConnectionResetError  # one side is gone: so is the other

    def _do(self, action: Callable[[], T]) -> T:
        async def on_the_loop() -> T:
            return action()

        return self._call(on_the_loop())

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)
