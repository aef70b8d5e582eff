"""Streams between named hosts in one process.

They keep TCP's promises: bytes of one connection arrive in order, loss and cuts show as stalls, a reset loses what had
not arrived. Across connections nothing is promised: what was on the way over one that its dialler gave up may arrive
after what the next one carried.

With :class:`Conditions` every delivery takes time on the running loop's clock, else one turn of the loop. What happens
at a host is a callback of the process that dialled or listened there (:mod:`faults.sim.loop`): it waits while that
process is paused.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
import zlib
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from faults.sim.loop import SimProcess, current_process
from faults.sim.repeats import Repeats
from raftkv.addresses import parse_address
from raftkv.peer.network import AddressInUse, Listener

_RESET: Final = object()
_END: Final = object()

_HIGH: Final = 64 * 1024
"""Bytes on the way at which the sender is asked to pause."""

_RETRANSMIT: Final = 0.2
"""Seconds until lost bytes are sent again; twice as long each further time."""

_LONGEST_RETRANSMIT: Final = 3.2


@dataclass(slots=True)
class Conditions:
    """How a wire behaves. Times in seconds, shares from 0 to 1.

    ``base``: usual delay, spread log-normally by ``spread``. ``slow``: share of deliveries that take ``tail`` times a
    Pareto-distributed number more, ``longest`` at most. ``loss``: share of sendings that are lost and sent again.
    ``pieces``: share of deliveries that arrive in pieces. ``late``: share of broken connections whose bytes on the way
    arrive all the same, up to ``late_by`` later. ``again``: share of sendings over a renewed connection that something
    sent over a former one follows once more, where the network repeats at all (:attr:`MemoryNetwork.repeatable`).
    """

    base: float = 0.0005
    spread: float = 0.4
    slow: float = 0.01
    tail: float = 0.005
    longest: float = 2.0
    loss: float = 0.0
    pieces: float = 0.05
    late: float = 0.3
    late_by: float = 0.5
    again: float = 0.0

    def delay(self, rng: random.Random) -> tuple[float, int]:
        """Seconds that a sending takes, and how often it was lost."""
        delay = self.base * rng.lognormvariate(0.0, self.spread)
        if self.slow and rng.random() < self.slow:
            delay += min(self.longest, self.tail * rng.paretovariate(1.1))
        lost, again = 0, _RETRANSMIT
        while self.loss and rng.random() < self.loss:
            delay += again
            again = min(2 * again, _LONGEST_RETRANSMIT)
            lost += 1
        return delay, lost


class MemoryNetwork:
    """All hosts and the wires between them.

    With ``rng`` and no ``conditions`` bytes arrive in pieces of random length, else as they were written.
    ``links`` has the conditions of single directions, (source, target), where they differ.
    """

    def __init__(self, rng: random.Random | None = None, conditions: Conditions | None = None) -> None:
        self.rng = rng
        self.conditions = conditions
        self.links: dict[tuple[str, str], Conditions] = {}
        self.effects: dict[str, int] = {}
        """How often something happened to bytes on the way: lost, stalled, late, broken, refused, unanswered."""
        self.trace: Callable[[str], None] | None = None
        """Told of every delivery."""
        self.repeatable: Callable[[str, bytes], Iterable[int]] | None = None
        """What kinds of messages a sending to an address consists of; none if a harsh network must not repeat it."""
        self.names: dict[str, str] = {}
        """Other names of addresses."""
        self._repeats: dict[tuple[str, str], Repeats] = {}
        self._listeners: dict[str, MemoryListener] = {}
        self._cuts: set[tuple[str, str]] = set()
        self._unanswered: set[tuple[str, str]] = set()
        """Ways that somebody dialled while they were cut."""
        self._down: set[str] = set()
        self._pipes: dict[_Pipe, None] = {}
        self._healed = asyncio.Event()

    def host(self, name: str) -> MemoryHost:
        """The network as the host ``name`` sees it."""
        return MemoryHost(self, name)

    # -- faults

    def cut(self, source: str, target: str, *, one_way: bool = False) -> None:
        """Hold everything on the way from ``source`` to ``target``, and back unless ``one_way``."""
        self._cuts.add((source, target))
        if not one_way:
            self._cuts.add((target, source))

    def heal(self, source: str | None = None, target: str | None = None, *, one_way: bool = False) -> None:
        """End the cuts between two hosts, or all; what was held arrives."""
        if source is None or target is None:
            self._cuts.clear()
            self._unanswered.clear()
        else:
            self._cuts.discard((source, target))
            self._unanswered.discard((source, target))
            if not one_way:
                self._cuts.discard((target, source))
        self._wake_dials()
        for pipe in list(self._pipes):
            pipe.heal()

    def reset(self, one: str, other: str) -> int:
        """Break all connections between two hosts; returns how many.

        Both ends learn of it and what had not arrived is lost, except that the accepting end may first get late bytes.
        """
        hosts = ((one, other), (other, one))
        ends = [p.receiver for p in self._pipes if (p.source, p.target) in hosts and p.receiver.dialled]
        for end in ends:
            if not end.is_closing():
                self.count("broken")
                end.out.break_off()
                end.lose(ConnectionResetError("reset by the network"), keep=True)
        return len(ends)

    def kill(self, host: str) -> None:
        """The process at ``host`` died: the kernel sends what it had written and ends its connections."""
        self._close_listeners(host)
        for end in self._ends(host):
            end.out.finish(abruptly=self._chance(0.5))
            end.vanish()

    def lose_power(self, host: str) -> None:
        """The machine ``host`` is gone: nothing comes from it, and nobody is told, until :meth:`power_on`."""
        self._close_listeners(host)
        self._down.add(host)
        for end in self._ends(host):
            end.out.orphan(keep=self._chance(0.5))
            end.vanish()

    def power_on(self, host: str) -> None:
        """The machine knows nothing of its former connections, and says so to whoever still uses one."""
        if host not in self._down:
            return
        self._down.discard(host)
        for pipe in list(self._pipes):
            if pipe.source == host and pipe.orphaned:
                pipe.reset()
        self._wake_dials()

    def is_cut(self, source: str, target: str) -> bool:
        """Whether bytes from ``source`` to ``target`` are held."""
        return (source, target) in self._cuts

    def held(self, ways: Iterable[tuple[str, str]]) -> bool:
        """Whether a cut of these ways holds bytes or has held dials."""
        wanted = set(ways)
        return not self._unanswered.isdisjoint(wanted) or any(
            pipe.waiting and (pipe.source, pipe.target) in wanted for pipe in self._pipes
        )

    # -- connections

    async def connect(self, source: str, address: str, factory: Callable[[], asyncio.Protocol]) -> MemoryTransport:
        """Connect host ``source`` to a listener; waits while the way is cut. Raises OSError or BadAddress."""
        await asyncio.sleep(0)
        address = self.names.get(address, address)
        host = parse_address(address).host
        while True:
            if host in self._down or self.is_cut(source, host) or self.is_cut(host, source):
                self.count("unanswered")
                self._unanswered.update(way for way in ((source, host), (host, source)) if self.is_cut(*way))
                await self._healed.wait()
                continue
            if (delay := self.delay(source, host) + self.delay(host, source)) > 0:
                await asyncio.sleep(delay)
                if host in self._down or self.is_cut(source, host) or self.is_cut(host, source):
                    continue
            break
        listener = self._listeners.get(address)
        if listener is None:
            self.count("refused")
            raise ConnectionRefusedError(f"nobody listens at {address}")
        near = MemoryTransport(self, source, address, dialled=True, process=current_process())
        far = MemoryTransport(self, listener.host, source, dialled=False, process=listener.process)
        near.out = _Pipe(self, source, listener.host, far)
        far.out = _Pipe(self, listener.host, source, near)
        self._pipes[near.out] = self._pipes[far.out] = None
        if listener.process is None:
            far.begin(listener.factory)
        else:
            asyncio.get_running_loop().call_soon(far.begin, listener.factory, context=far.context)
        near.begin(factory)
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
        self._pipes.pop(pipe, None)

    # -- for the pipes

    def repeat(self, address: str, pipe: _Pipe, data: bytes) -> bytes | None:
        """``data`` was sent to ``address``: what follows it from an earlier connection of the same two, if anything."""
        conditions = self.between(pipe.source, pipe.target)
        if self.rng is None or conditions is None or not conditions.again:
            return None
        sent = self._repeats.setdefault((pipe.source, address), Repeats())
        again = sent.draw(pipe, conditions.again, self.rng)
        if again is not None:
            self.count("again")
        if self.repeatable is not None:
            sent.remember(self.repeatable(address, data), data)
        return again

    def count(self, effect: str) -> None:
        """Something happened to bytes on the way."""
        self.effects[effect] = self.effects.get(effect, 0) + 1

    def between(self, source: str, target: str) -> Conditions | None:
        """The conditions of one direction."""
        return self.links.get((source, target), self.conditions) if self.links else self.conditions

    def delay(self, source: str, target: str) -> float:
        """Seconds that the next sending takes."""
        conditions = self.between(source, target)
        if conditions is None or self.rng is None:
            return 0.0
        delay, lost = conditions.delay(self.rng)
        if lost:
            self.count("lost")
        return delay

    def _chance(self, share: float) -> bool:
        return self.rng is not None and self.rng.random() < share

    def _ends(self, host: str) -> list[MemoryTransport]:
        """The ends of connections at ``host``."""
        return [p.receiver for p in self._pipes if p.target == host and not p.receiver.is_closing()]

    def _close_listeners(self, host: str) -> None:
        for listener in [one for one in self._listeners.values() if one.host == host]:
            listener.close()

    def _wake_dials(self) -> None:
        healed, self._healed = self._healed, asyncio.Event()
        healed.set()


class MemoryHost:
    """A :class:`raftkv.peer.network.Network` for one host. Its addresses are ``<name>:<port>``."""

    def __init__(self, network: MemoryNetwork, name: str) -> None:
        self._network = network
        self._name = name

    async def dial(self, address: str, factory: Callable[[], asyncio.Protocol]) -> asyncio.Transport:
        return await self._network.connect(self._name, address, factory)

    async def listen(self, address: str, factory: Callable[[], asyncio.Protocol]) -> Listener:
        return self._network.open_listener(self._name, address, factory)

    def doubt(self, connection: asyncio.BaseTransport, cluster_id: str, node: int) -> str:
        """Nobody is simulated who pretends to be a node: what is at the other end says who it is."""
        return ""


class MemoryListener:
    """A place where connections are accepted."""

    def __init__(
        self, network: MemoryNetwork, host: str, address: str, factory: Callable[[], asyncio.Protocol]
    ) -> None:
        self.host = host
        self.factory = factory
        self.process = current_process()
        self._network = network
        self._address = address

    @property
    def address(self) -> str:
        return self._address

    def close(self) -> None:
        self._network.close_listener(self)


class _Pipe:
    """One direction of a connection. Items carry the time of their arrival, which never falls."""

    def __init__(self, network: MemoryNetwork, source: str, target: str, receiver: MemoryTransport) -> None:
        self.source = source
        self.target = target
        self.receiver = receiver
        self.waiting = 0
        self.orphaned = False
        """The sender's machine is gone and the receiver does not know."""
        self._network = network
        self._loop = asyncio.get_running_loop()
        self._items: deque[tuple[float, Any]] = deque()
        self._arrival = 0.0
        self._scheduled = False
        self._stalled = False

    # What the sender does.

    def put(self, data: bytes) -> None:
        if self.receiver.is_closing():
            return
        self.waiting += len(data)
        self._send(data)

    def finish(self, *, abruptly: bool) -> None:
        """The sender closed: its end comes after its data."""
        self._send(_RESET if abruptly else _END)

    def reset(self) -> None:
        """The sender aborted: what has not arrived is lost."""
        self.orphaned = False
        self._clear()
        self._send(_RESET)

    def break_off(self) -> None:
        """The sender gave up while the wire still carries its bytes: a first part of them may arrive, and late."""
        rng, conditions = self._network.rng, self._network.between(self.source, self.target)
        if rng is None or conditions is None or not self._items or rng.random() >= conditions.late:
            self.reset()
            return
        self._network.count("late")
        kept = rng.randint(1, len(self._items))
        later = rng.uniform(0.0, conditions.late_by)
        items = [(arrival + later, item) for arrival, item in list(self._items)[:kept]]
        self._clear()
        self._items.extend(items)
        self.waiting = sum(len(item) for _, item in items if isinstance(item, bytes))
        self._arrival = items[-1][0]
        self._send(_RESET)

    def orphan(self, *, keep: bool) -> None:
        """The sender's machine is gone: nobody sends again what was held. ``keep``: what is on the way arrives."""
        if not keep or self._stalled or self._network.is_cut(self.source, self.target):
            self._clear()
        self.orphaned = True

    def drop(self) -> None:
        """The receiver is gone."""
        self._clear()
        self._network.forget(self)

    def heal(self) -> None:
        """The way may be open again: what was held goes out with the sender's next attempt."""
        if self._stalled and not self._network.is_cut(self.source, self.target):
            self._stalled = False
            if self._network.rng is not None and self._network.between(self.source, self.target) is not None:
                first = self._loop.time() + self._network.rng.uniform(0.0, 2 * _RETRANSMIT)
                self._items = deque((max(first, arrival), item) for arrival, item in self._items)
                self._arrival = max(first, self._arrival)
        self.kick()

    def kick(self) -> None:
        """See to it that the first item is delivered at its time."""
        if not self._items or self._scheduled or self._stalled:
            return
        self._scheduled = True
        arrival = self._items[0][0]
        if arrival > 0.0:
            self._loop.call_at(arrival, self._deliver, context=self.receiver.context)
        else:
            self._loop.call_soon(self._deliver, context=self.receiver.context)

    def _send(self, item: Any) -> None:
        delay = self._network.delay(self.source, self.target)
        if delay:
            self._arrival = max(self._arrival, self._loop.time() + delay)
        self._items.append((self._arrival, item))
        self.kick()

    def _clear(self) -> None:
        self._items.clear()
        self.waiting = 0
        self._stalled = False

    # What the receiver gets: a callback of its process.

    def _deliver(self) -> None:
        self._scheduled = False
        if not self._items or self.receiver.paused:
            return
        network = self._network
        if network.is_cut(self.source, self.target):
            self._stalled = True
            network.count("stalled")
            return
        arrival, item = self._items[0]
        if arrival > 0.0 and arrival > self._loop.time():
            self.kick()  # what was to be delivered now has been replaced
            return
        self._items.popleft()
        if item is _RESET:
            self.receiver.lose(ConnectionResetError("reset by the other side"))
        elif item is _END:
            self.receiver.close()
        else:
            if len(item) > 1 and network.rng is not None and self._in_pieces(network.rng):
                size = network.rng.randint(1, len(item))
                if size < len(item):
                    self._items.appendleft((arrival, item[size:]))
                    item = item[:size]
            self.waiting -= len(item)
            if network.trace is not None:
                network.trace(f"{self.source}>{self.target} {len(item)} {zlib.crc32(item):08x}")
            self.receiver.out.receiver.drained()
            self.receiver.protocol.data_received(item)
        self.kick()

    def _in_pieces(self, rng: random.Random) -> bool:
        conditions = self._network.between(self.source, self.target)
        return conditions is None or rng.random() < conditions.pieces


class MemoryTransport(asyncio.Transport):
    """One end of a connection. ``writes`` counts the calls of :meth:`write`."""

    out: _Pipe
    protocol: asyncio.Protocol

    def __init__(
        self, network: MemoryNetwork, host: str, peer: str, *, dialled: bool, process: SimProcess | None
    ) -> None:
        super().__init__({"peername": peer, "sockname": host})
        self.dialled = dialled
        self.repeats = dialled and network.repeatable is not None
        self.context = contextvars.Context() if process is None else process.context
        self.paused = False
        self.writes = 0
        self._network = network
        self._peer = peer
        self._choked = False
        self._closing = False

    def begin(self, factory: Callable[[], asyncio.Protocol]) -> None:
        """Make the protocol and tell it."""
        self.protocol = factory()
        self.protocol.connection_made(self)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._closing:
            self.writes += 1
            self.out.put(bytes(data))
            if self.repeats and (again := self._network.repeat(self._peer, self.out, bytes(data))):
                self.out.put(again)
            if self.out.waiting > _HIGH and not self._choked:
                self._choked = True
                self.protocol.pause_writing()

    def drained(self) -> None:
        """Some of what was written has arrived."""
        if self._choked and self.out.waiting <= _HIGH // 4:
            self._choked = False
            asyncio.get_running_loop().call_soon(self._unchoke, context=self.context)

    def _unchoke(self) -> None:
        if not self._closing:
            self.protocol.resume_writing()

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
            self.out.finish(abruptly=False)
            self._finish(None)

    def abort(self) -> None:
        if not self._closing:
            self.out.break_off()
            self._finish(None)

    def lose(self, error: Exception, *, keep: bool = False) -> None:
        """The connection broke under this end. ``keep``: what it had sent may still arrive."""
        if not self._closing:
            if not keep:
                self.out.drop()
            self._finish(error)

    def vanish(self) -> None:
        """The process at this end is gone, and cannot be told."""
        self._closing = True
        self.out.receiver.out.drop()

    def _finish(self, error: Exception | None) -> None:
        self._closing = True
        self.out.receiver.out.drop()
        asyncio.get_running_loop().call_soon(self.protocol.connection_lost, error, context=self.context)
