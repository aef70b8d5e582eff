"""Links over real TCP on the loopback, on both event loops that a node may run."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop

from raftkv import limits
from raftkv.addresses import BadAddress
from raftkv.clock import SystemClock
from raftkv.peer.frames import Decoder, Encoder
from raftkv.peer.handshake import Accepting, Secret
from raftkv.peer.hello import Hello, HelloRefused, Identity, Reason
from raftkv.peer.links import Links
from raftkv.peer.network import AddressInUse, CannotListen, TcpNetwork
from tests.waiting import PATIENCE

Runner = Callable[[Coroutine[Any, Any, None]], None]


def _run_uvloop(main: Coroutine[Any, Any, None]) -> None:
    uvloop.run(main)


def _run_asyncio(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(main)


@pytest.fixture(params=[_run_asyncio, _run_uvloop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Runner:
    runner: Runner = request.param
    return runner


SECRET = Secret(b"known to both ends", random.Random(0))


class Node:
    """Links on TCP, and conditions to wait for."""

    def __init__(
        self, node: int, dial: dict[int, str] | None = None, listen: str = "127.0.0.1:0", cluster: str = "c"
    ) -> None:
        self.got: list[list[Any]] = []
        self.events: list[tuple[int, int, bool]] = []
        self.refusals: list[tuple[int, int, str]] = []
        self._changed = asyncio.Event()
        identity = Identity(cluster, node, f"inc-{node}", "boot")
        rng = random.Random(node)
        args = (self._admit, self._on_message, self._on_link, self._on_refused, rng)
        self.links = Links(TcpNetwork(), SystemClock(), identity, SECRET, listen, dial or {}, *args)

    def _admit(self, hello: Hello) -> None:
        pass

    def _on_message(self, node: int, message: list[Any]) -> None:
        self.got.append(message)
        self._changed.set()

    def _on_link(self, node: int, link_number: int, up: bool) -> None:
        self.events.append((node, link_number, up))
        self._changed.set()

    def _on_refused(self, node: int, refusal: HelloRefused) -> None:
        self.refusals.append((node, refusal.reason, str(refusal)))
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


class Acceptor(asyncio.Protocol):
    """The other end by hand: shakes hands, then does what the test wants."""

    def __init__(self, pause: bool = False) -> None:
        self.frames: list[list[Any]] = []
        self.chunks = 0
        self.transport: asyncio.Transport | None = None
        self._handshake = Accepting(Identity("c", 2, "inc-2", "b"), SECRET)
        self._decoder = Decoder()
        self._pause = pause

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self.chunks += 1
        for frame in self._decoder.feed(data):
            if frame[0] not in ("raftkv", "proof"):
                self.frames.append(frame)
                continue
            assert self.transport is not None
            reply = self._handshake.take(frame)
            if reply is None:
                reply = self._handshake.welcome()
                self._decoder.seal, _ = self._handshake.seals()
                if self._pause:
                    self.transport.pause_reading()
            self.transport.write(Encoder().frame_of(reply))


def test_messages_both_ways_in_order_with_large_ones_between(run: Runner) -> None:
    async def main() -> None:
        two = Node(2)
        await two.links.start()
        one = Node(1, {2: two.links.address})
        await one.links.start()
        two.links.add_peer(1, one.links.address)
        await one.until(lambda: one.links.up(2))
        await two.until(lambda: two.links.up(1))
        sent = [[n, b"x" * (3_000_000 if n % 100 == 50 else n)] for n in range(300)]
        for message in sent:
            one.links.send(2, message)
            two.links.send(1, message)
        await two.until(lambda: len(two.got) == len(sent))
        await one.until(lambda: len(one.got) == len(sent))
        assert one.got == two.got == sent
        await one.links.close()
        await two.links.close()

    run(main())


def test_all_messages_of_one_turn_are_one_frame(run: Runner) -> None:
    async def main() -> None:
        acceptor = Acceptor()
        listener = await TcpNetwork().listen("127.0.0.1:0", lambda: acceptor)
        one = Node(1, {2: listener.address})
        await one.links.start()
        await one.until(lambda: one.links.up(2))
        for n in range(100):
            one.links.send(2, [n])
        async with asyncio.timeout(PATIENCE):
            while not acceptor.frames:
                await asyncio.sleep(0.001)
        assert acceptor.frames[0] == [[n] for n in range(100)]
        await one.links.close()
        listener.close()
        assert acceptor.transport is not None
        acceptor.transport.abort()
        await asyncio.sleep(0)

    run(main())


def test_a_restarted_node_is_found_again_with_a_higher_link_number(run: Runner) -> None:
    async def main() -> None:
        two = Node(2)
        await two.links.start()
        address = two.links.address
        one = Node(1, {2: address})
        await one.links.start()
        await one.until(lambda: one.links.up(2))
        await two.links.close()
        await one.until(lambda: not one.links.up(2))
        two = Node(2, listen=address)
        await two.links.start()
        await one.until(lambda: one.links.up(2))
        assert one.events == [(2, 1, True), (2, 1, False), (2, 2, True)]
        one.links.send(2, ["again"])
        await two.until(lambda: two.got == [["again"]])
        await one.links.close()
        await two.links.close()

    run(main())


def test_a_foreign_cluster_is_refused(run: Runner) -> None:
    async def main() -> None:
        two = Node(2)
        await two.links.start()
        one = Node(1, {2: two.links.address}, cluster="foreign")
        await one.links.start()
        await one.until(lambda: bool(one.refusals))
        assert one.refusals[0] == (2, Reason.OTHER_CLUSTER, "this node belongs to cluster c, not 'foreign'")
        assert one.events == []
        await one.links.close()
        await two.links.close()

    run(main())


@asynccontextmanager
async def linked_to_one_that_does_not_read() -> AsyncIterator[Node]:
    """Node 1 with its link to a peer that says welcome and then stops reading, each time it is dialled."""
    acceptors: list[Acceptor] = []

    def accept() -> Acceptor:
        acceptors.append(Acceptor(pause=True))
        return acceptors[-1]

    listener = await TcpNetwork().listen("127.0.0.1:0", accept)
    one = Node(1, {2: listener.address})
    await one.links.start()
    await one.until(lambda: one.links.up(2))
    yield one
    await one.links.close()
    listener.close()
    for acceptor in acceptors:
        assert acceptor.transport is not None
        acceptor.transport.abort()
    await asyncio.sleep(0)


def test_a_peer_that_stops_reading_is_dropped_when_its_buffer_is_full(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_PEER_BUFFER_BYTES", 8_000_000)

    async def main() -> None:
        async with linked_to_one_that_does_not_read() as one:
            sent = 0
            while one.links.link_number(2) == 1 and one.links.up(2):
                one.links.send(2, [b"x" * 900_000])
                sent += 1
                assert sent < 60, "the buffer has no bound"
                await asyncio.sleep(0)
            assert sent >= 8
            await one.until(lambda: one.links.link_number(2) == 2)

    run(main())


def test_a_peer_that_accepts_and_is_silent_is_dropped_after_two_seconds(run: Runner) -> None:
    async def main() -> None:
        async with linked_to_one_that_does_not_read() as one:
            began = SystemClock().now()
            await one.until(lambda: not one.links.up(2))
            assert SystemClock().now() - began >= 1.9
            await one.until(lambda: one.links.link_number(2) == 2)

    run(main())


def test_garbage_on_the_port_harms_nobody(run: Runner) -> None:
    async def main() -> None:
        two = Node(2)
        await two.links.start()
        one = Node(1, {2: two.links.address})
        await one.links.start()
        await one.until(lambda: one.links.up(2))
        host, port = two.links.address.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
        async with asyncio.timeout(PATIENCE):
            try:
                assert await reader.read() == b""
            except ConnectionResetError:
                pass
        writer.close()
        one.links.send(2, ["fine"])
        await two.until(lambda: two.got == [["fine"]])
        assert one.events == [(2, 1, True)]
        await one.links.close()
        await two.links.close()

    run(main())


def test_both_ends_send_without_nagles_delay(run: Runner) -> None:
    async def main() -> None:
        seen: list[int] = []

        class Probe(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                self.transport = transport
                ends.append(self)
                made.set()

        ends: list[Probe] = []
        made = asyncio.Event()
        listener = await TcpNetwork().listen("127.0.0.1:0", Probe)
        await TcpNetwork().dial(listener.address, Probe)
        while len(ends) < 2:
            made.clear()
            await made.wait()
        for end in ends:
            sock = end.transport.get_extra_info("socket")
            seen.append(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            end.transport.close()
        assert all(seen)
        listener.close()
        await asyncio.sleep(0)

    run(main())


def test_a_port_in_use_and_an_address_that_cannot_be_had_are_named(run: Runner) -> None:
    async def main() -> None:
        first = Node(1)
        await first.links.start()
        address = first.links.address
        with pytest.raises(AddressInUse, match=address):
            await Node(2, listen=address).links.start()
        with pytest.raises(CannotListen, match=r"192\.0\.2\.1:0"):
            await Node(2, listen="192.0.2.1:0").links.start()
        with pytest.raises(BadAddress, match="'nowhere'"):
            await Node(2, listen="nowhere").links.start()
        await first.links.close()

    run(main())
