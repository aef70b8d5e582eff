"""The in-memory network that the tests of links stand on."""

from __future__ import annotations

import asyncio
import random

import pytest

from faults.sim.network import MemoryNetwork, MemoryTransport
from raftkv.peer.network import AddressInUse


class Recorder(asyncio.Protocol):
    """Notes what happens on one end of a connection."""

    def __init__(self) -> None:
        self.transport: asyncio.BaseTransport | None = None
        self.chunks: list[bytes] = []
        self.end: list[Exception | None] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.chunks.append(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.end.append(exc)


async def turns(count: int = 50) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def pair(network: MemoryNetwork) -> tuple[MemoryTransport, Recorder, Recorder]:
    near, far = Recorder(), Recorder()
    await network.host("b").listen("b:1", lambda: far)
    transport = await network.host("a").dial("b:1", lambda: near)
    assert isinstance(transport, MemoryTransport)
    return transport, near, far


def test_a_cut_stalls_and_loses_nothing_and_is_one_way_if_asked() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        transport, near, far = await pair(network)
        network.cut("a", "b", one_way=True)
        transport.write(b"one")
        transport.write(b"two")
        assert isinstance(far.transport, asyncio.Transport)
        far.transport.write(b"back")
        await turns()
        assert (near.chunks, far.chunks) == ([b"back"], [])
        assert transport.get_write_buffer_size() == 6
        network.heal()
        await turns()
        assert far.chunks == [b"one", b"two"]
        assert transport.get_write_buffer_size() == 0

    asyncio.run(main())


def test_a_reset_ends_both_sides_and_loses_what_had_not_arrived() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        transport, near, far = await pair(network)
        transport.write(b"lost")
        network.reset("a", "b")
        await turns()
        assert far.chunks == []
        assert [type(e) for e in near.end + far.end] == [ConnectionResetError] * 2

    asyncio.run(main())


def test_close_delivers_first_and_abort_behind_a_cut_is_not_heard() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        transport, near, far = await pair(network)
        transport.write(b"last words")
        transport.close()
        await turns()
        assert far.chunks == [b"last words"]
        assert near.end == [None]
        assert far.end == [None]

        network = MemoryNetwork()
        transport, near, far = await pair(network)
        network.cut("a", "b")
        transport.abort()
        await turns()
        assert near.end == [None]
        assert far.end == []
        network.heal("a", "b")
        await turns()
        assert len(far.end) == 1

    asyncio.run(main())


def test_dialling_waits_behind_a_cut_and_is_refused_without_a_listener() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        with pytest.raises(ConnectionRefusedError):
            await network.host("a").dial("b:1", Recorder)
        listener = await network.host("b").listen("b:1", Recorder)
        with pytest.raises(AddressInUse):
            await network.host("c").listen("b:1", Recorder)
        network.cut("a", "b")
        dialling = asyncio.ensure_future(network.host("a").dial("b:1", Recorder))
        await turns()
        assert not dialling.done()
        network.heal()
        await turns()
        assert dialling.done()
        listener.close()
        with pytest.raises(ConnectionRefusedError):
            await network.host("a").dial("b:1", Recorder)

    asyncio.run(main())


def test_with_randomness_bytes_arrive_in_pieces_but_in_order() -> None:
    async def main() -> None:
        network = MemoryNetwork(random.Random(1))
        transport, _, far = await pair(network)
        transport.write(bytes(range(200)))
        await turns(500)
        assert b"".join(far.chunks) == bytes(range(200))
        assert len(far.chunks) > 1

    asyncio.run(main())
