"""The simulated network: what its faults do to connections."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

from faults.sim.loop import SimLoop, SimProcess, simulate
from faults.sim.network import Conditions, MemoryNetwork, MemoryTransport

CALM = Conditions(slow=0.0, pieces=0.0, late=0.0)


class End(asyncio.Protocol):
    """Notes what happens at one end, with the time."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.transport: asyncio.Transport | None = None
        self.got: list[tuple[float, bytes]] = []
        self.lost: list[tuple[float, Exception | None]] = []
        self.choked = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.got.append((self.loop.time(), data))

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append((self.loop.time(), exc))

    def pause_writing(self) -> None:
        self.choked += 1

    def resume_writing(self) -> None:
        self.choked -= 1

    @property
    def data(self) -> bytes:
        return b"".join(data for _, data in self.got)


class Wire:
    """Hosts a and b, each with a process; b listens."""

    def __init__(self, loop: SimLoop, conditions: Conditions, seed: int = 1) -> None:
        self.network = MemoryNetwork(random.Random(seed), conditions)
        self.a, self.b = SimProcess(loop, "a"), SimProcess(loop, "b")
        self.accepted: list[End] = []

    async def listen(self) -> None:
        await self.b.spawn(_listen(self))

    async def dial(self) -> tuple[MemoryTransport, End]:
        end = End()
        transport = await self.a.spawn(_dial(self, end))
        assert isinstance(transport, MemoryTransport)
        return transport, end


async def _listen(wire: Wire) -> None:
    def accept() -> End:
        wire.accepted.append(End())
        return wire.accepted[-1]

    await wire.network.host("b").listen("b:1", accept)


async def _dial(wire: Wire, end: End) -> asyncio.Transport:
    return await wire.network.host("a").dial("b:1", lambda: end)


def run(
    scenario: Callable[[Wire, SimLoop], Coroutine[Any, Any, None]], conditions: Conditions = CALM, seed: int = 1
) -> dict[str, int]:
    """The effects that the network counted."""

    async def main(loop: SimLoop) -> dict[str, int]:
        wire = Wire(loop, conditions, seed)
        await wire.listen()
        await scenario(wire, loop)
        assert loop.problems == []
        return wire.network.effects

    return simulate(main)


def test_deliveries_take_time_keep_their_order_and_have_a_heavy_tail() -> None:
    async def scenario(wire: Wire, loop: SimLoop) -> None:
        transport, _ = await wire.dial()
        sent = []
        for number in range(500):
            sent.append((loop.time(), number.to_bytes(2, "big")))
            transport.write(sent[-1][1])
            await asyncio.sleep(0.05)
        await asyncio.sleep(3.0)
        (far,) = wire.accepted
        assert far.data == b"".join(data for _, data in sent)
        delays = sorted(got - at for (got, _), (at, _) in zip(far.got, sent, strict=True))
        assert 0.0001 < delays[0] < delays[250] < 0.001
        assert delays[-1] > 0.01, "some are much slower than most"

    run(scenario, Conditions(slow=0.05, pieces=0.0))


def test_loss_shows_as_a_stall_of_the_connection_and_loses_nothing() -> None:
    async def scenario(wire: Wire, loop: SimLoop) -> None:
        transport, _ = await wire.dial()
        for number in range(100):
            transport.write(bytes([number]))
            await asyncio.sleep(0.05)
        await asyncio.sleep(10.0)
        (far,) = wire.accepted
        assert far.data == bytes(range(100))
        gaps = [later - earlier for (earlier, _), (later, _) in zip(far.got, far.got[1:], strict=False)]
        assert max(gaps) > 0.15, "a retransmission is waited for"

    assert run(scenario, Conditions(slow=0.0, pieces=0.0, loss=0.1))["lost"] > 0


def test_bytes_come_in_pieces() -> None:
    async def scenario(wire: Wire, loop: SimLoop) -> None:
        transport, _ = await wire.dial()
        transport.write(bytes(range(200)))
        await asyncio.sleep(1.0)
        assert wire.accepted[0].data == bytes(range(200))
        assert len(wire.accepted[0].got) > 1

    run(scenario, Conditions(slow=0.0, pieces=1.0))


def test_a_cut_holds_what_is_sent_and_dials_until_it_heals() -> None:
    async def scenario(wire: Wire, loop: SimLoop) -> None:
        transport, near = await wire.dial()
        await asyncio.sleep(0.1)
        (far,) = wire.accepted
        wire.network.cut("a", "b", one_way=True)
        transport.write(b"held")
        assert far.transport is not None
        far.transport.write(b"passes")
        dialling = asyncio.ensure_future(wire.dial())
        await asyncio.sleep(60.0)
        assert (near.data, far.data, dialling.done()) == (b"passes", b"", False)
        healed = loop.time()
        wire.network.heal("a", "b")
        await asyncio.sleep(2.0)
        assert far.data == b"held"
        assert healed < far.got[0][0] < healed + 1.0
        assert dialling.done()

    effects = run(scenario)
    assert effects["stalled"] >= 1
    assert effects["unanswered"] >= 1


def test_a_reset_ends_both_sides_and_loses_what_was_on_the_way() -> None:
    async def scenario(wire: Wire, loop: SimLoop) -> None:
        transport, near = await wire.dial()
        await asyncio.sleep(0.1)
        transport.write(b"lost")
        assert wire.network.reset("a", "b") == 1
        await asyncio.sleep(1.0)
        (far,) = wire.accepted
        assert far.data == b""
        assert [type(error) for _, error in near.lost + far.lost] == [ConnectionResetError] * 2

    assert run(scenario)["broken"] == 1


def test_late_bytes_of_a_broken_connection_arrive_after_those_of_the_next_one() -> None:
    async def scenario(wire: Wire, loop: SimLoop) -> None:
        transport, _ = await wire.dial()
        await asyncio.sleep(0.1)
        transport.write(b"old")
        wire.network.reset("a", "b")
        again, _ = await wire.dial()
        again.write(b"new")
        await asyncio.sleep(1.0)
        old, new = wire.accepted
        assert (old.data, new.data) == (b"old", b"new")
        assert old.got[0][0] > new.got[0][0]
        assert isinstance(old.lost[0][1], ConnectionResetError)

    assert run(scenario, Conditions(slow=0.0, pieces=0.0, late=1.0), seed=2)["late"] == 1


def test_a_paused_process_gets_connections_and_bytes_when_it_goes_on() -> None:
    async def scenario(wire: Wire, loop: SimLoop) -> None:
        wire.b.pause()
        transport, near = await wire.dial()
        transport.write(b"one")
        await asyncio.sleep(5.0)
        transport.write(b"two")
        assert near.transport is not None, "its kernel accepts"
        assert wire.accepted == []
        wire.b.resume()
        await asyncio.sleep(0.1)
        assert wire.accepted[0].data == b"onetwo"
        assert wire.accepted[0].got[0][0] >= 5.0

    run(scenario)


def test_the_kernel_of_a_killed_process_sends_what_it_wrote_and_refuses_dials() -> None:
    async def scenario(wire: Wire, loop: SimLoop) -> None:
        transport, near = await wire.dial()
        await asyncio.sleep(0.1)
        (far,) = wire.accepted
        assert far.transport is not None
        far.transport.write(b"last words")
        transport.write(b"never read")
        wire.b.kill()
        wire.network.kill("b")
        await asyncio.sleep(1.0)
        assert near.data == b"last words"
        assert len(near.lost) == 1
        assert (far.data, far.lost) == (b"", [])
        try:
            await wire.dial()
        except ConnectionRefusedError:
            return
        raise AssertionError("nobody listens there")

    assert run(scenario)["refused"] == 1


def test_a_machine_without_power_is_silent_until_it_is_on_again() -> None:
    async def scenario(wire: Wire, loop: SimLoop) -> None:
        transport, near = await wire.dial()
        await asyncio.sleep(0.1)
        wire.b.kill()
        wire.network.lose_power("b")
        dialling = asyncio.ensure_future(wire.dial())
        transport.write(b"into the void")
        await asyncio.sleep(60.0)
        assert (near.lost, dialling.done()) == ([], False)
        wire.network.power_on("b")
        await asyncio.sleep(1.0)
        assert [type(error) for _, error in near.lost] == [ConnectionResetError]
        assert isinstance(dialling.exception(), ConnectionRefusedError)

    run(scenario)


def test_a_sender_is_asked_to_pause_while_much_is_on_the_way() -> None:
    async def scenario(wire: Wire, loop: SimLoop) -> None:
        transport, near = await wire.dial()
        for _ in range(100):
            transport.write(bytes(1024))
        assert near.choked == 1
        await asyncio.sleep(1.0)
        assert near.choked == 0
        assert len(wire.accepted[0].data) == 100 * 1024

    run(scenario)
