"""Streams between named hosts in one process.

They keep TCP's promises: bytes arrive in order, a cut stalls and loses nothing, a reset loses what had not arrived.
Delivery takes one turn of the running loop, so it is deterministic and works under any loop.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from typing import Any

from raftkv.peer.network import AddressInUse, Listener

_RESET = object()
_END = object()


class MemoryNetwork:
    """All hosts and the wires between them.

    With ``rng`` bytes arrive in pieces of random length, else as they were written.
    """

    def __init__(self, rng: random.Random | None = None) -> None:
        self.rng = rng
        self._listeners: dict[str, MemoryListener] = {}
        self._cuts: set[tuple[str, str]] = set()
        self._pipes: list[_Pipe] = []
        self._healed = asyncio.Event()

    def host(self, name: str) -> MemoryHost:
        """The network as the host ``name`` sees it."""
        return MemoryHost(self, name)

    def cut(self, source: str, target: str, *, one_way: bool = False) -> None:
        """Hold everything on the way from ``source`` to ``target``, and back unless ``one_way``."""
        self._cuts.add((source, target))
        if not one_way:
            self._cuts.add((target, source))

    def heal(self, source: str | None = None, target: str | None = None) -> None:
        """End the cuts between two hosts, or all; what was held arrives."""
        if source is None or target is None:
            self._cuts.clear()
        else:
            self._cuts -= {(source, target), (target, source)}
        healed, self._healed = self._healed, asyncio.Event()
        healed.set()
        for pipe in list(self._pipes):
            pipe.kick()

    def reset(self, one: str, other: str) -> None:
        """Break all connections between two hosts: both ends learn of it, and what had not arrived is lost."""
        for pipe in [p for p in self._pipes if (p.source, p.target) in ((one, other), (other, one))]:
            pipe.receiver.lose(ConnectionResetError("reset by the network"))

    def is_cut(self, source: str, target: str) -> bool:
        """Whether bytes from ``source`` to ``target`` are held."""
        return (source, target) in self._cuts

    async def connect(self, source: str, address: str, factory: Callable[[], asyncio.Protocol]) -> MemoryTransport:
        """Connect host ``source`` to a listener; waits while the way is cut. Raises ConnectionRefusedError."""
        await asyncio.sleep(0)
        while (listener := self._listeners.get(address)) is not None and (
            self.is_cut(source, listener.host) or self.is_cut(listener.host, source)
        ):
            await self._healed.wait()
        if listener is None:
            raise ConnectionRefusedError(f"nobody listens at {address}")
        dialler, acceptor = factory(), listener.factory()
        near = MemoryTransport(dialler, source, address)
        far = MemoryTransport(acceptor, listener.host, source)
        near.out = _Pipe(self, source, listener.host, far)
        far.out = _Pipe(self, listener.host, source, near)
        self._pipes += [near.out, far.out]
        far.begin()
        near.begin()
        return near

    def open_listener(self, host: str, address: str, factory: Callable[[], asyncio.Protocol]) -> MemoryListener:
        """Raises :class:`raftkv.peer.network.AddressInUse`."""
        if address in self._listeners:
            raise AddressInUse(f"peer address {address} is in use")
        listener = MemoryListener(self, host, address, factory)
        self._listeners[address] = listener
        return listener

    def close_listener(self, listener: MemoryListener) -> None:
        """Connections to it are refused from now on."""
        if self._listeners.get(listener.address) is listener:
            del self._listeners[listener.address]

    def forget(self, pipe: _Pipe) -> None:
        """The pipe's receiver is gone."""
        if pipe in self._pipes:
            self._pipes.remove(pipe)


class MemoryHost:
    """A :class:`raftkv.peer.network.Network` for one host."""

    def __init__(self, network: MemoryNetwork, name: str) -> None:
        self._network = network
        self._name = name

    async def dial(self, address: str, factory: Callable[[], asyncio.Protocol]) -> asyncio.Transport:
        return await self._network.connect(self._name, address, factory)

    async def listen(self, address: str, factory: Callable[[], asyncio.Protocol]) -> Listener:
        return self._network.open_listener(self._name, address, factory)


class MemoryListener:
    """A place where connections are accepted."""

    def __init__(
        self, network: MemoryNetwork, host: str, address: str, factory: Callable[[], asyncio.Protocol]
    ) -> None:
        self.host = host
        self.factory = factory
        self._network = network
        self._address = address

    @property
    def address(self) -> str:
        return self._address

    def close(self) -> None:
        self._network.close_listener(self)


class _Pipe:
    """One direction of a connection."""

    def __init__(self, network: MemoryNetwork, source: str, target: str, receiver: MemoryTransport) -> None:
        self.source = source
        self.target = target
        self.receiver = receiver
        self.waiting = 0
        self._network = network
        self._items: deque[Any] = deque()
        self._scheduled = False

    def put(self, data: bytes) -> None:
        if self.receiver.is_closing():
            return
        self._items.append(data)
        self.waiting += len(data)
        self.kick()

    def end(self) -> None:
        """The sender closed: its end comes after its data."""
        self._items.append(_END)
        self.kick()

    def reset(self) -> None:
        """The sender aborted: what has not arrived is lost."""
        self._items.clear()
        self.waiting = 0
        self._items.append(_RESET)
        self.kick()

    def drop(self) -> None:
        """The receiver is gone."""
        self._items.clear()
        self.waiting = 0
        self._network.forget(self)

    def kick(self) -> None:
        if self._items and not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._deliver)

    def _deliver(self) -> None:
        self._scheduled = False
        if not self._items or self.receiver.paused or self._network.is_cut(self.source, self.target):
            return
        item = self._items.popleft()
        if item is _RESET:
            self.receiver.lose(ConnectionResetError("reset by the other side"))
        elif item is _END:
            self.receiver.close()
        else:
            rng = self._network.rng
            if rng is not None and len(item) > 1:
                size = rng.randint(1, len(item))
                if size < len(item):
                    self._items.appendleft(item[size:])
                    item = item[:size]
            self.waiting -= len(item)
            self.receiver.protocol.data_received(item)
        self.kick()


class MemoryTransport(asyncio.Transport):
    """One end of a connection. ``writes`` counts the calls of :meth:`write`."""

    out: _Pipe

    def __init__(self, protocol: asyncio.Protocol, host: str, peer: str) -> None:
        super().__init__({"peername": peer, "sockname": host})
        self.protocol = protocol
        self.paused = False
        self.writes = 0
        self._closing = False

    def begin(self) -> None:
        """Tell the protocol."""
        self.protocol.connection_made(self)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._closing:
            self.writes += 1
            self.out.put(bytes(data))

    def get_write_buffer_size(self) -> int:
        return self.out.waiting

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False
        self.out.receiver.out.kick()

    def close(self) -> None:
        if not self._closing:
            self.out.end()
            self._finish(None)

    def abort(self) -> None:
        if not self._closing:
            self.out.reset()
            self._finish(None)

    def lose(self, error: Exception) -> None:
        """The connection broke under this end."""
        if not self._closing:
            self.out.drop()
            self._finish(error)

    def _finish(self, error: Exception | None) -> None:
        self._closing = True
        self.out.receiver.out.drop()
        asyncio.get_running_loop().call_soon(self.protocol.connection_lost, error)
