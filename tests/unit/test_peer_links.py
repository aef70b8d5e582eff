"""Links on an in-memory network and a clock that the test moves: what the node's groups may rely on."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from faults.sim.network import MemoryNetwork, MemoryTransport
from raftkv import limits
from raftkv.clock import Timer
from raftkv.peer.frames import HEADER, Decoder, Encoder, MessageTooLong, ProtocolViolation
from raftkv.peer.hello import Hello, Identity
from raftkv.peer.links import Links
from raftkv.peer.wiring import MAX_STRANGERS


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
        self.refusals: list[tuple[int, str]] = []
        self.hellos: list[Hello] = []
        self.crashes: list[Exception] = []
        self.verdict: str | None = None
        self.on_message: Callable[[int, list[Any]], None] = lambda peer, message: self.got.append((peer, message))
        self.dials: list[float] = []
        self.transports: list[MemoryTransport] = []
        self._world = world
        self._host = world.network.host(f"n{node}")
        self.links = Links(
            self,
            world.clock,
            Identity(cluster, node, incarnation or f"inc-{node}", boot),
            f"n{node}:1",
            {peer: f"n{peer}:1" for peer in peers},
            self._admit,
            self._deliver,
            lambda peer, epoch, up: self.events.append((peer, epoch, up)),
            lambda peer, reason: self.refusals.append((peer, reason)),
            random.Random(node),
            self.crashes.append,
        )

    def _deliver(self, peer: int, message: list[Any]) -> None:
        self.on_message(peer, message)

    def _admit(self, hello: Hello) -> str | None:
        self.hellos.append(hello)
        return self.verdict

    async def dial(self, address: str, factory: Callable[[], asyncio.Protocol]) -> asyncio.Transport:
        self.dials.append(self._world.clock.now())
        transport = await self._host.dial(address, factory)
        assert isinstance(transport, MemoryTransport)
        self.transports.append(transport)
        return transport

    async def listen(self, address: str, factory: Callable[[], asyncio.Protocol]) -> Any:
        return await self._host.listen(address, factory)


class World:
    """A network, a clock and the nodes on them."""

    def __init__(self, rng: random.Random | None = None) -> None:
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
        self._encoder = Encoder()
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
        await self.write(self._encoder.frame_of(messages))

    async def hello(self, node: int = 1, to: int = 2, boot: str = "boot") -> None:
        await self.say("raftkv", 1, "c", node, to, f"inc-{node}", boot)

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


def test_messages_arrive_in_order_and_one_turn_leaves_as_one_write() -> None:
    async def scenario(world: World) -> None:
        two, one = await world.node(2, []), await world.node(1, [2])
        before = one.transports[0].writes
        sent = [[group, "append", b"x" * group] for group in range(100)]
        for message in sent:
            one.links.send(2, message)
        assert one.transports[0].writes == before
        await rest()
        assert one.transports[0].writes == before + 1
        assert two.got == [(1, message) for message in sent]

    run(scenario)


def test_flush_sends_at_once_and_the_rest_of_the_turn_follows() -> None:
    async def scenario(world: World) -> None:
        two, one = await world.node(2, []), await world.node(1, [2])
        before = one.transports[0].writes
        one.links.send(2, ["first"])
        one.links.flush()
        assert one.transports[0].writes == before + 1
        one.links.flush()
        one.links.send(2, ["second"])
        await rest()
        assert one.transports[0].writes == before + 2
        assert two.got == [(1, ["first"]), (1, ["second"])]

    run(scenario)


def test_a_message_is_packed_when_it_is_sent() -> None:
    async def scenario(world: World) -> None:
        two, one = await world.node(2, []), await world.node(1, [2])
        message: list[Any] = ["as it was"]
        one.links.send(2, message)
        message[0] = "changed later"
        await rest()
        assert two.got == [(1, ["as it was"])]

    run(scenario)


def test_many_bytes_of_one_turn_are_split_into_frames() -> None:
    async def scenario(world: World) -> None:
        two, one = await world.node(2, []), await world.node(1, [2])
        before = one.transports[0].writes
        for n in range(10):
            one.links.send(2, [n, b"x" * 300_000])
        await rest()
        assert one.transports[0].writes == before + 4
        assert [message[0] for _, message in two.got] == list(range(10))

    run(scenario)


def test_messages_survive_any_splitting_of_the_stream() -> None:
    async def scenario(world: World) -> None:
        nodes = [await world.node(node, [p for p in (1, 2, 3) if p != node]) for node in (1, 2, 3)]
        for _ in range(5):
            await world.clock.advance(0.5)
        assert all(node.links.up(peer) for node in nodes for peer in node.links.peers)
        for n in range(50):
            for node in nodes:
                for peer in node.links.peers:
                    node.links.send(peer, [n])
        for _ in range(40):
            await rest()
        for number, node in enumerate(nodes, start=1):
            for peer in {1, 2, 3} - {number}:
                assert [m for p, m in node.got if p == peer] == [[n] for n in range(50)]

    run(scenario, random.Random(7))


def test_peers_are_served_in_the_order_of_their_ids() -> None:
    async def scenario(world: World) -> None:
        order: list[int] = []
        for node in (4, 3, 2):
            new = await world.node(node, [])
            new.on_message = lambda peer, message: order.append(message[0])
        one = await world.node(1, [4, 2, 3])
        assert one.links.peers == [2, 3, 4]
        for peer in (3, 4, 2):
            one.links.send(peer, [peer])
        await rest()
        assert order == [2, 3, 4]

    run(scenario)


def test_nothing_is_sent_before_the_welcome_and_nothing_kept_for_later() -> None:
    async def scenario(world: World) -> None:
        one = await world.node(1, [2])
        one.links.send(2, ["to nobody"])
        one.links.send(9, ["to no peer"])
        assert (one.links.epoch(2), one.links.up(2)) == (0, False)
        two = await world.node(2, [])
        await world.clock.advance(1.0)
        assert (one.links.epoch(2), one.links.up(2)) == (1, True)
        assert two.got == []

    run(scenario)


def test_epochs_grow_with_every_connection_and_each_change_is_reported_once() -> None:
    async def scenario(world: World) -> None:
        _, one = await world.node(2, []), await world.node(1, [2])
        for _ in range(2):
            world.network.reset("n1", "n2")
            await rest()
            assert not one.links.up(2)
            await world.clock.advance(1.0)
        assert one.events == [(2, 1, True), (2, 1, False), (2, 2, True), (2, 2, False), (2, 3, True)]
        assert one.links.epoch(2) == 3

    run(scenario)


def test_what_is_sent_on_a_breaking_link_does_not_appear_on_the_next_one() -> None:
    async def scenario(world: World) -> None:
        two, one = await world.node(2, []), await world.node(1, [2])
        world.network.reset("n1", "n2")
        assert one.links.up(2), "not yet noticed"
        one.links.send(2, ["of the first link"])
        await rest()
        await world.clock.advance(1.0)
        assert one.links.epoch(2) == 2
        one.links.send(2, ["of the second link"])
        await rest()
        assert two.got == [(1, ["of the second link"])]

    run(scenario)


def test_redials_are_spread_between_their_bounds() -> None:
    async def scenario(world: World) -> None:
        one = await world.node(1, [2])
        await world.clock.advance(20.0)
        pauses = [b - a for a, b in zip(one.dials, one.dials[1:], strict=False)]
        assert len(pauses) > 40
        assert min(pauses) >= 0.05
        assert max(pauses) <= 0.5 + 1e-9
        assert max(pauses[:1]) <= 0.1 + 1e-9
        assert max(pauses) > 0.3, "the pauses grow"
        assert len({round(p, 6) for p in pauses}) == len(pauses)

    run(scenario)


def test_a_node_that_comes_back_is_dialled_at_once() -> None:
    async def scenario(world: World) -> None:
        one = await world.node(1, [2])
        await world.clock.advance(5.0)
        await world.node(2, [1])
        assert one.links.up(2), "its hello says that it lives: no need to wait for the next try"

    run(scenario)


def test_a_hello_of_a_new_start_replaces_the_link_to_the_earlier_one() -> None:
    async def scenario(world: World) -> None:
        two, one = await world.node(2, []), await world.node(1, [2])
        assert two.hellos[0].boot == "boot"
        returned = await world.stranger("n1:1")
        await returned.hello(node=2, to=1, boot="another boot")
        assert one.events[-1] == (2, 1, False)
        again = await world.stranger("n1:1")
        await world.clock.advance(0.5)
        await again.hello(node=2, to=1, boot="boot")
        assert one.events[-1] == (2, 2, True)
        assert one.links.up(2), "a hello of the same start changes nothing"

    run(scenario)


@pytest.mark.parametrize(
    ("identity", "reason"),
    [
        ({"cluster": "foreign"}, "this node belongs to cluster c, not 'foreign'"),
        ({"incarnation": "wiped"}, "you have lost your disk"),
    ],
)
def test_a_refused_node_is_told_why_hears_nothing_and_tries_again(identity: dict[str, str], reason: str) -> None:
    async def scenario(world: World) -> None:
        two = await world.node(2, [])
        two.verdict = "you have lost your disk"
        one = await world.node(1, [2], **identity)
        assert one.refusals == [(2, reason)]
        assert not one.links.up(2)
        assert one.events == []
        one.links.send(2, ["unheard"])
        await world.clock.advance(2.0)
        assert two.got == []
        assert len(one.refusals) > 2

    run(scenario)


def test_an_address_that_leads_to_another_node_is_refused() -> None:
    async def scenario(world: World) -> None:
        await world.node(2, [])
        one = await world.node(1, [])
        one.links.add_peer(3, "n2:1")
        await rest()
        assert one.refusals == [(3, "this is node 2, not node 3")]

    run(scenario)


def test_a_refused_node_is_welcome_once_the_reason_is_gone() -> None:
    async def scenario(world: World) -> None:
        two = await world.node(2, [])
        two.verdict = "not yet"
        one = await world.node(1, [2])
        two.verdict = None
        await world.clock.advance(1.0)
        assert one.links.up(2)

    run(scenario)


def test_another_protocol_version_is_refused() -> None:
    async def scenario(world: World) -> None:
        await world.node(2, [])
        stranger = await world.stranger()
        await stranger.say("raftkv", 99, "c", 1, 2, "i", "b")
        assert stranger.frames == [["refuse", "protocol version 99 is not spoken here, only 1"]]
        assert stranger.closed

    run(scenario)


def test_the_same_refusal_is_logged_once_until_the_node_was_welcome(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        two = await world.node(2, [])
        two.verdict = "not yet"
        await world.node(1, [2])
        await world.clock.advance(3.0)
        assert len([r for r in caplog.records if "refused node 1" in r.message]) == 1
        assert len([r for r in caplog.records if "link to node 2" in r.message]) == 1

    with caplog.at_level("WARNING"):
        run(scenario)


@pytest.mark.parametrize(
    ("garbage", "reason"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "the limit is 4096"),
        (HEADER.pack(5000, 0), "a frame of 5000 bytes was announced"),
        (HEADER.pack(1, 0) + b"\x90", "wrong checksum"),
    ],
)
def test_garbage_before_a_hello_costs_only_its_own_connection(
    caplog: pytest.LogCaptureFixture, garbage: bytes, reason: str
) -> None:
    async def scenario(world: World) -> None:
        two, one = await world.node(2, []), await world.node(1, [2])
        stranger = await world.stranger()
        await stranger.write(garbage)
        await stranger.write(garbage)
        assert stranger.closed
        one.links.send(2, ["still here"])
        await rest()
        assert two.got == [(1, ["still here"])]
        logged = [r.message for r in caplog.records if "dropped the connection from a stranger" in r.message]
        assert len(logged) == 1
        assert reason in logged[0]
        assert "at stranger" in logged[0]

    with caplog.at_level("WARNING"):
        run(scenario)


_ENCODER = Encoder()


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (HEADER.pack(limits.MAX_FRAME_BYTES + 1, 0), "was announced, the limit is"),
        (HEADER.pack(1, 0) + b"\x90", "wrong checksum"),
        (bytes(_ENCODER.frame_of([[1], "text", [2]])), "a message is str, not an array"),
        (bytes(_ENCODER.frame_of([[1], True])), "a message is bool, not an array"),
    ],
)
def test_a_violation_after_the_hello_drops_the_connection_and_is_logged_once(
    caplog: pytest.LogCaptureFixture, bad: bytes, reason: str
) -> None:
    async def scenario(world: World) -> None:
        two = await world.node(2, [])
        peer = await world.stranger()
        await peer.hello()
        assert peer.frames == [["welcome", "boot"]]
        await peer.say(["good"])
        await peer.write(bad + bad)
        await peer.say(["too late"])
        assert peer.closed
        assert two.got[0] == (1, ["good"])
        assert (1, ["too late"]) not in two.got
        logged = [r.message for r in caplog.records if "dropped the connection from node 1" in r.message]
        assert len(logged) == 1
        assert reason in logged[0]
        assert two.crashes == []

    with caplog.at_level("WARNING"):
        run(scenario)


def test_the_consumer_can_call_a_message_a_violation(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        two = await world.node(2, [])

        def refuse(peer: int, message: list[Any]) -> None:
            raise ProtocolViolation("no such group")

        two.on_message = refuse
        peer = await world.stranger()
        await peer.hello()
        await peer.say([7])
        assert peer.closed
        assert two.crashes == []
        assert "no such group" in caplog.text

    with caplog.at_level("WARNING"):
        run(scenario)


def test_an_exception_of_the_consumer_reaches_the_supervisor() -> None:
    async def scenario(world: World) -> None:
        two = await world.node(2, [])
        bug = RuntimeError("a bug")

        def fail(peer: int, message: list[Any]) -> None:
            raise bug

        two.on_message = fail
        peer = await world.stranger()
        await peer.hello()
        await peer.say([1], [2])
        assert two.crashes == [bug]
        assert peer.closed

    run(scenario)


def test_garbage_instead_of_an_answer_fails_the_attempt_only() -> None:
    async def scenario(world: World) -> None:
        class Rude(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                assert isinstance(transport, asyncio.Transport)
                transport.write(b"220 smtp.example ready\r\n")

        listener = await world.network.host("n2").listen("n2:1", Rude)
        one = await world.node(1, [2])
        await world.clock.advance(1.0)
        assert len(one.dials) > 2
        listener.close()
        await world.node(2, [])
        await world.clock.advance(1.0)
        assert one.links.up(2)
        assert one.crashes == []

    run(scenario)


def test_messages_on_the_answering_side_are_a_violation() -> None:
    async def scenario(world: World) -> None:
        class Talkative(Stranger):
            def data_received(self, data: bytes) -> None:
                assert self._transport is not None
                self._transport.write(self._encoder.frame_of(["welcome", "b"]))
                self._transport.write(self._encoder.frame_of([["a message"]]))

        listener = await world.network.host("n2").listen("n2:1", Talkative)
        one = await world.node(1, [2])
        assert one.events == [(2, 1, True), (2, 1, False)]
        assert one.got == []
        listener.close()

    run(scenario)


def test_a_silent_peer_is_noticed_within_seconds_and_dialled_anew() -> None:
    async def scenario(world: World) -> None:
        _, one = await world.node(2, []), await world.node(1, [2])
        await world.clock.advance(10.0)
        assert one.events == [(2, 1, True)], "an idle link stays up"
        world.network.cut("n2", "n1", one_way=True)
        await world.clock.advance(1.9)
        assert one.links.up(2)
        await world.clock.advance(1.2)
        assert not one.links.up(2)
        world.network.heal()
        await world.clock.advance(3.0)
        assert one.events == [(2, 1, True), (2, 1, False), (2, 2, True)]

    run(scenario)


def test_a_hanging_dial_and_a_hanging_handshake_end_after_two_seconds() -> None:
    async def scenario(world: World) -> None:
        await world.node(2, [])
        world.network.cut("n1", "n2")
        one = await world.node(1, [2])
        await world.clock.advance(1.9)
        assert len(one.dials) == 1
        await world.clock.advance(0.2)
        assert len(one.dials) == 2
        world.network.heal()
        await rest()
        assert one.links.up(2)

        mute = await world.network.host("n3").listen("n3:1", asyncio.Protocol)
        one.links.add_peer(3, "n3:1")
        await rest()
        assert len(one.dials) == 3
        await world.clock.advance(2.2)
        assert len(one.dials) == 4
        mute.close()

    run(scenario)


def test_a_node_that_stood_still_itself_does_not_blame_its_peers() -> None:
    async def scenario(world: World) -> None:
        two, one = await world.node(2, [1]), await world.node(1, [2])
        heard = await world.stranger()
        await heard.hello(node=3)
        world.network.cut("n2", "n1", one_way=True)
        await world.clock.advance(1.1)
        world.network.heal()
        world.clock.jump(60.0)  # the pongs wait in the kernel, and the timers come first
        await world.clock.advance(3.0)
        assert one.events == [(2, 1, True)]
        assert two.events == [(1, 1, True)]
        assert not heard.closed

    run(scenario)


def test_a_silent_connection_is_dropped_by_the_acceptor() -> None:
    async def scenario(world: World) -> None:
        two = await world.node(2, [])
        peer = await world.stranger()
        await peer.hello()
        await world.clock.advance(4.0)
        await peer.say(17)
        assert peer.frames[-1] == [17], "a ping is answered with its number"
        await world.clock.advance(4.9)
        assert not peer.closed
        await world.clock.advance(1.2)
        assert peer.closed
        assert two.got == []

    run(scenario)


def test_a_connection_without_a_hello_is_dropped() -> None:
    async def scenario(world: World) -> None:
        await world.node(2, [])
        stranger = await world.stranger()
        await world.clock.advance(1.5)
        assert not stranger.closed
        await world.clock.advance(1.1)
        assert stranger.closed

    run(scenario)


def test_a_hello_that_drips_in_is_dropped() -> None:
    async def scenario(world: World) -> None:
        await world.node(2, [])
        stranger = await world.stranger()
        for _ in range(7):
            if not stranger.closed:
                await stranger.write(b"\x00")
            await world.clock.advance(0.4)
        assert stranger.closed

    run(scenario)


def test_strangers_are_bounded_and_the_oldest_goes() -> None:
    async def scenario(world: World) -> None:
        await world.node(2, [])
        strangers = [await world.stranger() for _ in range(MAX_STRANGERS + 1)]
        await rest()
        assert [n for n, s in enumerate(strangers) if s.closed] == [0]
        await strangers[-1].hello()
        assert strangers[-1].frames == [["welcome", "boot"]]

    run(scenario)


def test_a_second_connection_of_a_node_replaces_the_first() -> None:
    async def scenario(world: World) -> None:
        two = await world.node(2, [])
        first, second = await world.stranger(), await world.stranger()
        await first.hello()
        await first.say(["by the first"])
        await second.hello()
        assert first.closed
        await second.say(["by the second"])
        await first.say(["too late"])
        assert two.got == [(1, ["by the first"]), (1, ["by the second"])]

    run(scenario)


def test_a_peer_that_pings_and_does_not_read_is_dropped() -> None:
    async def scenario(world: World) -> None:
        await world.node(2, [])
        peer = await world.stranger()
        await peer.hello()
        assert peer._transport is not None
        peer._transport.pause_reading()
        for _ in range(2):
            await peer.write(b"".join(_ENCODER.frame_of([n]) for n in range(1, 5001)))
        peer._transport.resume_reading()
        await rest()
        assert peer.closed

    run(scenario)


def test_nothing_is_delivered_after_the_consumer_removed_the_peer() -> None:
    async def scenario(world: World) -> None:
        two = await world.node(2, [])
        got: list[Any] = []

        def remove(peer: int, message: list[Any]) -> None:
            got.append(message)
            two.links.remove_peer(peer)

        two.on_message = remove
        peer = await world.stranger()
        await peer.hello()
        await peer.write(_ENCODER.frame_of([[1], [2]]) + _ENCODER.frame_of([[3]]))
        assert got == [[1]]
        assert peer.closed

    run(scenario)


def test_unsent_bytes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_PEER_BUFFER_BYTES", 5_000_000)

    async def scenario(world: World) -> None:
        two, one = await world.node(2, []), await world.node(1, [2])
        world.network.cut("n1", "n2", one_way=True)
        for n in range(8):
            one.links.send(2, [n, b"x" * 900_000])
        one.links.flush()
        assert not one.links.up(2)
        one.links.send(2, ["dropped"])
        await rest()
        assert one.events == [(2, 1, True), (2, 1, False)]
        world.network.heal()
        await world.clock.advance(1.0)
        assert one.links.epoch(2) == 2
        one.links.send(2, ["on the new link"])
        await rest()
        assert two.got == [(1, ["on the new link"])], "what waited was lost with its connection"

    run(scenario)


def test_a_message_too_long_for_a_frame_is_the_senders_error_and_harms_nothing() -> None:
    async def scenario(world: World) -> None:
        two, one = await world.node(2, []), await world.node(1, [2])
        one.links.send(2, ["before"])
        with pytest.raises(MessageTooLong):
            one.links.send(2, [b"x" * limits.MAX_FRAME_BYTES])
        with pytest.raises(TypeError):
            one.links.send(2, [object()])
        one.links.send(2, ["after"])
        await rest()
        assert two.got == [(1, ["before"]), (1, ["after"])]

    run(scenario)


def test_peers_come_and_go_and_their_epochs_go_on() -> None:
    async def scenario(world: World) -> None:
        two, one = await world.node(2, [1]), await world.node(1, [])
        one.links.add_peer(2, "n2:1")
        await world.clock.advance(0.5)
        assert one.links.epoch(2) == 1
        assert two.links.up(1)
        one.links.remove_peer(2)
        one.links.remove_peer(2)
        await rest()
        assert one.links.peers == []
        assert one.events[-1] == (2, 1, False)
        assert not two.links.up(1), "the other direction is closed as well"
        one.links.send(2, ["dropped"])
        one.links.add_peer(2, "n2:1")
        await rest()
        assert one.links.epoch(2) == 2
        one.links.add_peer(4, "n4:1")
        one.links.add_peer(3, "n3:1")
        assert one.links.peers == [2, 3, 4]
        for node in (0, 1, 2):
            with pytest.raises(ValueError, match="cannot be added"):
                one.links.add_peer(node, "n9:1")

    run(scenario)


def test_a_removed_peer_is_not_dialled_again() -> None:
    async def scenario(world: World) -> None:
        one = await world.node(1, [2])
        one.links.remove_peer(2)
        dials = len(one.dials)
        await world.clock.advance(5.0)
        assert len(one.dials) == dials

    run(scenario)


def test_a_peer_that_moved_is_dialled_at_its_new_address() -> None:
    async def scenario(world: World) -> None:
        two, one = await world.node(2, []), await world.node(1, [2])
        one.links.set_dial(2, "n2:1")
        await rest()
        assert one.links.epoch(2) == 1, "the same address changes nothing"
        await two.links.close()
        await rest()
        world.network.cut("n1", "n7")
        await world.network.host("n7").listen("n7:1", asyncio.Protocol)
        one.links.set_dial(2, "n7:1")
        await world.clock.advance(0.6)
        assert not one.links.up(2)
        moved = Node(world, 2, [], boot="second")
        world.nodes.append(moved)
        await moved.links.start()
        one.links.set_dial(2, "n2:1")
        await world.clock.advance(0.6)
        assert one.links.up(2)
        with pytest.raises(KeyError):
            one.links.set_dial(9, "n9:1")

    run(scenario)


def test_close_sends_what_waits() -> None:
    async def scenario(world: World) -> None:
        two, one = await world.node(2, []), await world.node(1, [2])
        one.links.send(2, ["last words"])
        await one.links.close()
        await one.links.close()
        await rest()
        assert two.got == [(1, ["last words"])]
        assert one.events == [(2, 1, True), (2, 1, False)]
        one.links.send(2, ["nobody listens"])
        dials = len(one.dials)
        await world.clock.advance(5.0)
        assert len(one.dials) == dials
        with pytest.raises(ConnectionRefusedError):
            await world.stranger("n1:1")

    run(scenario)


def test_close_while_dialling_ends_at_once() -> None:
    async def scenario(world: World) -> None:
        await world.node(2, [])
        world.network.cut("n1", "n2")
        one = await world.node(1, [2])
        await one.links.close()
        assert one.events == []

    run(scenario)


def test_two_runs_of_one_seed_are_the_same() -> None:
    def history() -> list[list[Any]]:
        found: list[list[Any]] = []

        async def scenario(world: World) -> None:
            nodes = [await world.node(node, [p for p in (1, 2, 3) if p != node]) for node in (1, 2, 3)]
            for step in range(6):
                world.network.reset("n1", f"n{2 + step % 2}")
                for node in nodes:
                    for peer in node.links.peers:
                        node.links.send(peer, [step])
                await world.clock.advance(0.3)
            found.extend([node.events, node.dials, node.got] for node in nodes)

        run(scenario, random.Random(5))
        return found

    assert history() == history()
