"""A cluster in memory, for tests that need no processes: the state machine of a node's group, without Raft and files.

Its clients are the real ones, on another transport. So whatever they are asked means what it means on a cluster.
"""

from __future__ import annotations

import asyncio
import threading
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Generic
from weakref import WeakSet

from raftkv.api.pipeline import Answers
from raftkv.api.status import NodeStatus, ReplicaStatus, Role
from raftkv.client.aio import AsyncClient
from raftkv.client.routing import View, view_of
from raftkv.client.sync import Client
from raftkv.client.transport import TransportError
from raftkv.clock import SystemClock
from raftkv.codecs import Codec, V, W
from raftkv.commands.base import Read, Write
from raftkv.commands.group import Genesis
from raftkv.commands.ranges import Scan
from raftkv.commands.watching import Cursor
from raftkv.errors import InvalidArgument
from raftkv.frontend.grpc.watch import ask_of, response_of
from raftkv.limits import MAX_TTL, WATCH_HEARTBEAT
from raftkv.store.records import Store
from raftkv.store.watching import Part, Watch, WatchAsk
from raftkv.text import shown
from raftkv.v1 import kv_pb2
from shards.slots import DEFAULT_SLOTS

if TYPE_CHECKING:
    from collections.abc import Callable

    from raftkv.api.pipeline import Batch
    from raftkv.commands.base import Command
    from raftkv.commands.results import Result

_ADDRESS: Final = "127.0.0.1:1"
"""Of the only node. Nothing is sent there."""
_GROUP: Final = 1
_TIMEOUT: Final = 60.0
"""Seconds: nothing but a slow machine is waited for."""


class FakeCluster:
    """What :class:`FakeClient` and :class:`FakeAsyncClient` ask, any number of them, of any threads.

    ``slots``: how many it has; which keys share one depends on it.

    >>> cluster = raftkv.testing.FakeCluster()
    >>> async with cluster.async_client() as writer, cluster.async_client() as reader:
    ...     await writer.put("a", "1")
    ...     (await reader.get("a")).value
    WriteResult(version=1)
    b'1'
    """

    def __init__(self, *, slots: int = DEFAULT_SLOTS) -> None:
        self._clock = SystemClock()
        self._began = self._clock.now()
        self._ahead = 0.0
        self._lock = threading.Lock()
        self._id = str(uuid.uuid4())
        self.slots = slots
        self._entries = 1
        self._store = Store()
        self._store.apply(0, [Genesis(tuple(range(slots)))])
        self._watches: dict[Watch, Callable[[], None]] = {}

    def client(self, *, codec: Codec[W, V] | None = None, timeout: float = _TIMEOUT) -> FakeClient[W, V]:
        """A further client of this cluster.

        >>> cluster = raftkv.testing.FakeCluster()
        >>> with cluster.client(codec=raftkv.codecs.STR) as kv:
        ...     kv.append("log", "one,")
        AppendResult(length=4, version=1)
        """
        return FakeClient(self, codec=codec, timeout=timeout)

    def async_client(self, *, codec: Codec[W, V] | None = None, timeout: float = _TIMEOUT) -> FakeAsyncClient[W, V]:
        """A further client of this cluster, for asyncio.

        >>> cluster = raftkv.testing.FakeCluster()
        >>> async with cluster.async_client(codec=raftkv.codecs.STR) as kv:
        ...     await kv.append("log", "one,")
        AppendResult(length=4, version=1)
        """
        return FakeAsyncClient(self, codec=codec, timeout=timeout)

    def advance(self, seconds: float) -> None:
        """Let time pass at once: what has a time to live is so many seconds older.

        >>> async with raftkv.testing.FakeAsyncClient() as kv:
        ...     await kv.put("session:7", "active", ttl=60)
        ...     kv.cluster.advance(60)
        ...     await kv.get("session:7") is None
        WriteResult(version=1)
        True
        """
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= MAX_TTL:
            raise InvalidArgument(f"{shown(seconds)} s cannot pass; it must be from 0 to {MAX_TTL}")
        with self._lock:
            self._ahead += seconds
            self._apply([])

    def endpoint(self, address: str) -> _Endpoint:
        """The node at ``address``, for the client's transport."""
        return _Endpoint(self, address)

    def execute(self, command: Read | Write) -> Result:
        """What a node's replica that leads would answer. Raises no errors of the store: they are results."""
        with self._lock:
            refusal = command.refusal()
            if refusal is not None:
                return refusal
            if isinstance(command, Read):
                self._apply([])
                return command.read(self._store)
            self._entries += 1
            return self._apply([command])[0]

    def _apply(self, commands: list[Command]) -> list[Result]:
        end = self._store.history.end
        now = int((self._clock.now() - self._began + self._ahead) * 1000)
        results = self._store.apply(now, commands)
        if self._store.history.end != end:
            for wake in self._watches.values():
                wake()
        return results

    def watch(self, ask: WatchAsk, wake: Callable[[], None]) -> tuple[Watch, Part]:
        """A watch, and what it tells first. ``wake`` is called, in any thread, when something has happened."""
        with self._lock:
            self._apply([])
            numbers = {number: slot.counter for number in ask.places if (slot := self._store.slot(number)) is not None}
            watch = Watch(self._store, ask, numbers)
            self._watches[watch] = wake
            return watch, watch.open()

    def told(self, watch: Watch) -> Part:
        """What a watch tells next."""
        with self._lock:
            self._apply([])
            part = watch.take()
            while not part and watch.behind:
                part = watch.take()
            return part

    def unwatch(self, watch: Watch) -> None:
        """The watch is over."""
        with self._lock:
            self._watches.pop(watch, None)
            watch.close()

    def view(self) -> View:
        """The map, as clients see it."""
        return view_of(self._id, 1, self.slots, [(1, _ADDRESS)], [(_GROUP, (1,), 1)], [(0, self.slots - 1, _GROUP)])

    def status(self) -> NodeStatus:
        """What the node says of itself."""
        from raftkv import __version__

        with self._lock:
            entries, records = self._entries, self._store.stats().records
            uptime = self._clock.now() - self._began
        replica = ReplicaStatus(_GROUP, Role.LEADER, 1, 1, entries, entries, entries, 0, records, (1,), {1: entries})
        return NodeStatus(1, self._id, __version__, 1, True, uptime, (replica,))


class FakeAsyncClient(AsyncClient[W, V], Generic[W, V]):
    """As :class:`raftkv.AsyncClient`, of a cluster in memory; of one of its own unless ``cluster`` names it.

    >>> async with raftkv.testing.FakeAsyncClient() as kv:
    ...     await kv.incr("visits")
    1
    """

    def __init__(
        self,
        cluster: FakeCluster | None = None,
        *,
        codec: Codec[W, V] | None = None,
        timeout: float = _TIMEOUT,
    ) -> None:
        self.cluster = cluster or FakeCluster()
        super().__init__(_ADDRESS, codec=codec, timeout=timeout, transport=self.cluster)


class FakeClient(Client[W, V], Generic[W, V]):
    """As :class:`raftkv.Client`, of a cluster in memory; of one of its own unless ``cluster`` names it.

    >>> with raftkv.testing.FakeClient() as kv:
    ...     kv.incr("visits")
    1
    """

    def __init__(
        self,
        cluster: FakeCluster | None = None,
        *,
        codec: Codec[W, V] | None = None,
        timeout: float = _TIMEOUT,
    ) -> None:
        self.cluster = cluster or FakeCluster()
        super().__init__(_ADDRESS, codec=codec, timeout=timeout, transport=self.cluster)


class _Endpoint:
    def __init__(self, cluster: FakeCluster, address: str) -> None:
        self._cluster = cluster
        self._address = address
        self._watches: WeakSet[_WatchStream] = WeakSet()

    async def open(self) -> _Stream:
        return _Stream(self._cluster)

    async def view(self, timeout: float) -> View:
        return self._cluster.view()

    async def status(self, timeout: float) -> NodeStatus:
        return self._cluster.status()

    async def scan(self, request: kv_pb2.ScanRequest, timeout: float) -> kv_pb2.ScanResponse:
        response = kv_pb2.ScanResponse()
        self._ask(Scan.from_request(request, self._cluster.slots), response)
        return response

    async def cursor(self, request: kv_pb2.CursorRequest, timeout: float) -> kv_pb2.CursorResponse:
        response = kv_pb2.CursorResponse()
        self._ask(Cursor.from_request(request, self._cluster.slots), response)
        return response

    def _ask(self, command: Read, response: Any) -> None:
        result = self._cluster.execute(command)
        if result.code:
            raise TransportError(result)
        command.respond(result, response)

    def watch(self, request: kv_pb2.WatchRequest) -> _WatchStream:
        stream = _WatchStream(self._cluster, request)
        self._watches.add(stream)
        return stream

    async def close(self) -> None:
        for stream in list(self._watches):
            stream.cancel()


class _WatchStream:
    def __init__(self, cluster: FakeCluster, request: kv_pb2.WatchRequest) -> None:
        self._cluster = cluster
        self._ask = ask_of(request, cluster.slots)
        self._loop = asyncio.get_running_loop()
        self._awake = asyncio.Event()
        self._watch: Watch | None = None
        self._over = False

    async def read(self) -> kv_pb2.WatchResponse | None:
        if self._over:
            return None
        if self._watch is None:
            self._watch, part = self._cluster.watch(self._ask, self._wake)
            return self._told(part)
        while not self._over:
            self._awake.clear()
            part = self._cluster.told(self._watch)
            if part:
                return self._told(part)
            try:
                async with asyncio.timeout(WATCH_HEARTBEAT):
                    await self._awake.wait()
            except TimeoutError:
                return response_of(self._watch.heartbeat())
        return None

    def _told(self, part: Part) -> kv_pb2.WatchResponse:
        if part.compacted:
            self.cancel()
        return response_of(part)

    def _wake(self) -> None:
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._awake.set)

    def cancel(self) -> None:
        self._over = True
        self._awake.set()
        if self._watch is not None:
            self._cluster.unwatch(self._watch)


class _Stream:
    def __init__(self, cluster: FakeCluster) -> None:
        view = cluster.view()
        self.cluster_id = view.cluster_id
        self._epoch = view.epoch
        self._cluster = cluster
        self._answers: asyncio.Queue[Answers | None] = asyncio.Queue()

    async def write(self, batch: Batch) -> None:
        results: list[Any] = [self._cluster.execute(command) for command in batch.commands]
        self._answers.put_nowait(Answers(batch.ids, results, self._epoch))

    async def read(self) -> Answers | None:
        return await self._answers.get()

    def cancel(self) -> None:
        self._answers.put_nowait(None)
