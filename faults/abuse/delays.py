"""Links that take their time: a proxy for each directed link between two nodes, in a thread of this process."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Final, Self

from raftkv.addresses import parse_address

Pair = tuple[int, int]
_HOST: Final = "127.0.0.1"
_CHUNK: Final = 65536


class SlowLinks:
    """Proxies between ``nodes``; bytes pass at once until :meth:`slow` is called. ``with`` starts and ends them.

    ``dial``: where each node reaches each other one, as LocalCluster wants it.
    """

    def __init__(self, nodes: Iterable[int], seed: int = 1) -> None:
        ids = list(nodes)
        self._listeners = {(a, b): socket.create_server((_HOST, 0)) for a in ids for b in ids if a != b}
        self.dial: dict[Pair, str] = {
            pair: f"{_HOST}:{listener.getsockname()[1]}" for pair, listener in self._listeners.items()
        }
        self._upstream: dict[int, str] = {}
        self.delayed = 0
        """Pieces that took their time."""
        self._slow: dict[Pair, tuple[float, float]] = {}
        self._rng = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._tasks: set[asyncio.Task[None]] = set()

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def lead_to(self, upstream: Mapping[int, str]) -> None:
        """Where the nodes themselves listen for their peers; before the first of them is started."""
        self._upstream = dict(upstream)

    def slow(self, pairs: Iterable[Pair], low: float, high: float) -> None:
        """What passes from now on between the two of each pair takes ``low`` to ``high`` seconds, in each direction."""
        self._slow = dict.fromkeys(pairs, (low, high))

    async def _listen(self) -> None:
        self._servers = [
            await asyncio.start_server(self._taker(pair), sock=listener) for pair, listener in self._listeners.items()
        ]

    def _taker(self, pair: Pair) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]:
        def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = self._loop.create_task(self._join(pair, reader, writer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        return take

    async def _join(self, pair: Pair, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            at = parse_address(self._upstream[pair[1]])
            far_reader, far_writer = await asyncio.open_connection(at.host, at.port)
        except (OSError, KeyError):
            writer.transport.abort()
            return
        ways = [
            asyncio.ensure_future(way)
            for way in (self._carry(pair, reader, far_writer), self._carry(pair, far_reader, writer))
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            writer.transport.abort()
            far_writer.transport.abort()

    async def _carry(self, pair: Pair, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """What has come first leaves first, as on a real connection."""
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        leaving = asyncio.create_task(self._leave(waiting, writer))
        due = 0.0
        try:
            with contextlib.suppress(OSError):
                while data := await reader.read(_CHUNK):
                    delay = self._rng.uniform(*self._slow.get(pair, (0.0, 0.0)))
                    self.delayed += delay > 0.0
                    due = max(due, self._loop.time() + delay)
                    waiting.put_nowait((due, data))
        finally:
            leaving.cancel()

    async def _leave(self, waiting: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while True:
                due, data = await waiting.get()
                await asyncio.sleep(max(0.0, due - self._loop.time()))
                writer.write(data)
                await writer.drain()

    async def _end(self) -> None:
        for server in self._servers:
            server.close()
        for task in [*self._tasks]:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for server in self._servers:
            await server.wait_closed()
