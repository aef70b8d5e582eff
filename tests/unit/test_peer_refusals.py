"""Guarantee: who does not belong here or speaks nonsense is refused, named once and harms no other connection."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from raftkv import limits
from raftkv.peer.frames import LENGTH, ProtocolViolation
from raftkv.peer.hello import PROTOCOL_VERSION, HelloRefused, Reason
from shards.slots import SLOT_RULE
from tests.log_lines import written
from tests.peer_world import ENCODER, Stranger, World, rest, run


@pytest.mark.parametrize(
    ("identity", "reason", "text"),
    [
        ({"cluster": "foreign"}, Reason.OTHER_CLUSTER, "this node belongs to cluster c, not 'foreign'"),
        ({"incarnation": "wiped"}, Reason.REPLACED_FOLDER, "you have lost your disk"),
    ],
)
def test_a_refused_node_is_told_why_hears_nothing_and_tries_again(
    identity: dict[str, str], reason: Reason, text: str
) -> None:
    async def scenario(world: World) -> None:
        two = await world.node(2, [])
        two.verdict = HelloRefused(Reason.REPLACED_FOLDER, "you have lost your disk")
        one = await world.node(1, [2], **identity)
        assert one.refusals == [(2, reason, text)]
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
        assert one.refusals == [(3, Reason.OTHER_NODE, "this is node 2, not node 3")]

    run(scenario)


def test_a_refused_node_is_welcome_once_the_reason_is_gone() -> None:
    async def scenario(world: World) -> None:
        two = await world.node(2, [])
        two.verdict = HelloRefused(Reason.NOT_A_MEMBER, "not yet")
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
        told = f"protocol version 99 is not supported, only {PROTOCOL_VERSION}"
        assert stranger.frames == [["refuse", Reason.VERSION, told, b""]]
        assert stranger.closed

    run(scenario)


def test_the_same_refusal_is_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        two = await world.node(2, [])
        two.verdict = HelloRefused(Reason.NOT_A_MEMBER, "not yet")
        await world.node(1, [2])
        await world.clock.advance(3.0)
        assert len([line for line in written(caplog) if "refused node 1" in line]) == 1
        assert len([line for line in written(caplog) if "link to node 2" in line]) == 1

    with caplog.at_level("WARNING"):
        run(scenario)


@pytest.mark.parametrize(
    ("garbage", "reason"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "the limit is 4096"),
        (LENGTH.pack(5000), "a frame of 5000 bytes was announced"),
        (LENGTH.pack(1) + bytes(4) + b"\x90", "wrong checksum"),
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
        logged = [r.message for r in caplog.records if "dropped the connection from an unknown peer" in r.message]
        assert len(logged) == 1
        assert reason in logged[0]
        assert "at stranger" in logged[0]

    with caplog.at_level("WARNING"):
        run(scenario)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (LENGTH.pack(limits.MAX_FRAME_BYTES + 1), "was announced, the limit is"),
        (LENGTH.pack(1) + bytes(4) + b"\x90", "wrong checksum"),
        (bytes(ENCODER.frame_of([[1], "text", [2]])), "a message is str, not an array"),
        (bytes(ENCODER.frame_of([[1], True])), "a message is bool, not an array"),
    ],
)
def test_a_violation_after_the_hello_drops_the_connection_and_is_logged_once(
    caplog: pytest.LogCaptureFixture, bad: bytes, reason: str
) -> None:
    async def scenario(world: World) -> None:
        two = await world.node(2, [])
        peer = await world.stranger()
        await peer.hello()
        assert peer.frames == [["welcome", "boot", b""]]
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


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: raftkv\r\n\r\n",
        bytes(ENCODER.frame_of(["memcached"])),
        bytes(ENCODER.frame_of(["raftkv", 99, "c", 1, 2, "i", "b", b""])),
        bytes(ENCODER.frame_of(["raftkv", PROTOCOL_VERSION, SLOT_RULE, "foreign", 1, 2, "i", "b", b""])),
    ],
    ids=["HTTP", "another protocol", "another version", "another cluster"],
)
def test_a_scan_of_the_port_is_one_line_for_each_host(caplog: pytest.LogCaptureFixture, sent: bytes) -> None:
    async def scenario(world: World) -> None:
        await world.node(2, [])
        for _ in range(50):
            for host in ("10.0.0.8", "10.0.0.9"):
                await (await world.stranger(name=f"{host}:4711")).write(sent)

    with caplog.at_level("WARNING"):
        run(scenario)
    assert len(caplog.records) == 100
    assert len(written(caplog)) == 2


def test_a_scan_hides_no_refusal_from_the_same_host(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        await world.node(2, [])
        for sent in (
            b"GET / HTTP/1.1\r\n\r\n",
            bytes(ENCODER.frame_of(["raftkv", PROTOCOL_VERSION, SLOT_RULE, "foreign", 1, 2, "i", "b", b""])),
        ):
            await (await world.stranger(name="10.0.0.9:4711")).write(sent)

    with caplog.at_level("WARNING"):
        run(scenario)
    assert [line.rpartition(": ")[2] for line in written(caplog)][1] == "this node belongs to cluster c, not 'foreign'"


def test_connections_that_say_nothing_are_one_line(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        await world.node(2, [])
        for _ in range(100):
            await world.stranger(name="10.0.0.9:4711")
        await world.clock.advance(5.0)

    with caplog.at_level("WARNING"):
        run(scenario)
    assert len(caplog.records) == 100
    assert len(written(caplog)) == 1


def test_a_node_that_breaks_the_protocol_again_and_again_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        await world.node(2, [])
        for _ in range(50):
            peer = await world.stranger()
            await peer.hello()
            await peer.say("nonsense")

    with caplog.at_level("WARNING"):
        run(scenario)
    assert len(caplog.records) == 50
    assert len(written(caplog)) == 1


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
                self._transport.write(ENCODER.frame_of(["welcome", "b", b""]))
                self._transport.write(ENCODER.frame_of([["a message"]]))

        listener = await world.network.host("n2").listen("n2:1", Talkative)
        one = await world.node(1, [2])
        assert one.events == [(2, 1, True), (2, 1, False)]
        assert one.got == []
        listener.close()

    run(scenario)
