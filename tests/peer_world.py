"""Nodes' links on an in-memory network and a clock that the test moves."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

from faults.sim.network import MemoryNetwork, MemoryTransport
from raftkv.clock import Timer
from raftkv.peer.frames import Decoder, Encoder
from raftkv.peer.handshake import Secret
from raftkv.peer.hello import PROTOCOL_VERSION, Hello, HelloRefused, Identity
from raftkv.peer.links import Links
from shards.slots import SLOT_RULE

ENCODER = Encoder()


class _Pending:
    def __init__(self, when: float, callback: Callable[[], None]) -> None:
        self.when = when
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class ManualClock:
    """A clock that only moves when told; timers fire in order, and the loop comes to rest between two of them."""

    def __init__(self) -> None:
        self._now = 1000.0
        self._timers: list[_Pending] = []

    def now(self) -> float:
        return self._now

    def wall(self) -> float:
        return self._now

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        timer = _Pending(self._now + delay, callback)
        self._timers.append(timer)
        return timer

    async def advance(self, seconds: float) -> None:
        end = self._now + seconds
        while due := [t for t in self._timers if t.callback is not None and t.when <= end]:
            timer = min(due, key=lambda t: t.when)
            self._timers.remove(timer)
            self._now = max(self._now, timer.when)
            if timer.callback is not None:
                timer.callback()
            await rest()
        self._now = end
        await rest()

    def jump(self, seconds: float) -> None:
        """Time passes while the process stands still."""
        self._now += seconds


async def rest() -> None:
    """Let the loop run until an in-memory exchange of a few messages is surely over."""
    for _ in range(60):
        await asyncio.sleep(0)


class Node:
    """Links and what they reported."""

    def __init__(
        self, world: World, node: int, peers: list[int], cluster: str = "c", incarnation: str = "", boot: str = "boot"
    ) -> None:
        self.got: list[tuple[int, list[Any]]] = []
        self.events: list[tuple[int, int, bool]] = []
        self.refusals: list[tuple[int, int, str]] = []
        self.hellos: list[Hello] = []
        self.crashes: list[Exception] = []
        self.verdict: HelloRefused | None = None
        self.doubted = ""
        self.on_message: Callable[[int, list[Any]], None] = lambda peer, message: self.got.append((peer, message))
        self.dials: list[float] = []
        self.transports: list[MemoryTransport] = []
        self._world = world
        self._host = world.network.host(f"n{node}")
        self.links = Links(
            self,
            world.clock,
            Identity(cluster, node, incarnation or f"inc-{node}", boot),
            world.secret,
            f"n{node}:1",
            {peer: f"n{peer}:1" for peer in peers},
            self._admit,
            self._deliver,
            lambda peer, link_number, up: self.events.append((peer, link_number, up)),
            lambda peer, refusal: self.refusals.append((peer, refusal.reason, str(refusal))),
            random.Random(node),
            self.crashes.append,
        )

    def _deliver(self, peer: int, message: list[Any]) -> None:
        self.on_message(peer, message)

    def _admit(self, hello: Hello) -> None:
        self.hellos.append(hello)
        if self.verdict is not None:
            raise self.verdict

    async def dial(self, address: str, factory: Callable[[], asyncio.Protocol]) -> asyncio.Transport:
        self.dials.append(self._world.clock.now())
        transport = await self._host.dial(address, factory)
        assert isinstance(transport, MemoryTransport)
        self.transports.append(transport)
        return transport

    async def listen(self, address: str, factory: Callable[[], asyncio.Protocol]) -> Any:
        return await self._host.listen(address, factory)

    def doubt(self, connection: asyncio.BaseTransport, cluster_id: str, node: int) -> str:
        return self.doubted


class World:
    """A network, a clock and the nodes on them."""

    def __init__(self, rng: random.Random | None = None, secret: Secret | None = None) -> None:
        self.secret = secret
        self.network = MemoryNetwork(rng)
        self.clock = ManualClock()
        self.nodes: list[Node] = []

    async def node(self, node: int, peers: list[int], **identity: str) -> Node:
        new = Node(self, node, peers, **identity)
        self.nodes.append(new)
        await new.links.start()
        await rest()
        return new

    async def stranger(self, address: str = "n2:1", name: str = "stranger") -> Stranger:
        stranger = Stranger()
        await self.network.host(name).dial(address, lambda: stranger)
        return stranger


class Stranger(asyncio.Protocol):
    """A connection whose bytes the test writes by hand."""

    def __init__(self) -> None:
        self.frames: list[list[Any]] = []
        self.closed = False
        self._decoder = Decoder()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self.frames += self._decoder.feed(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True

    async def write(self, data: bytes | bytearray) -> None:
        assert self._transport is not None
        self._transport.write(data)
        await rest()

    async def say(self, *messages: Any) -> None:
        await self.write(ENCODER.frame_of(messages))

    async def hello(self, node: int = 1, to: int = 2, boot: str = "boot") -> None:
        await self.say("raftkv", PROTOCOL_VERSION, SLOT_RULE, "c", node, to, f"inc-{node}", boot, b"")

    def close(self) -> None:
        assert self._transport is not None
        self._transport.close()


def run(scenario: Callable[[World], Coroutine[Any, Any, None]], rng: random.Random | None = None) -> None:
    async def main() -> None:
        world = World(rng)
        await scenario(world)
        world.network.heal()
        for node in world.nodes:
            closing = asyncio.ensure_future(node.links.close())
            await rest()
            await world.clock.advance(1.0)
            await closing
        await rest()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, "closing leaves no task behind"

    asyncio.run(main())
