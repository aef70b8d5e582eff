"""Guarantee: dead, silent and greedy connections are noticed in time, and no buffer grows for ever."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from raftkv import limits
from raftkv.peer.frames import MessageTooLong
from raftkv.peer.wiring import MAX_STRANGERS
from tests.peer_world import ENCODER, World, rest, run


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


def test_the_state_of_both_directions_is_told() -> None:
    async def scenario(world: World) -> None:
        two, one = await world.node(2, [1]), await world.node(1, [2])
        await world.clock.advance(3.0)
        (state,) = one.links.states()
        assert (state.node, state.up, state.silence) == (2, True, 0.0)
        assert state.round_trip is not None
        assert 0.0 <= state.round_trip < 0.01
        world.network.cut("n2", "n1", one_way=True)
        await world.clock.advance(1.6)
        (deaf,), (dumb,) = one.links.states(), two.links.states()
        assert deaf.up
        assert deaf.round_trip is not None
        assert 1.0 <= deaf.round_trip < 1.7, "a ping waits for its answer"
        assert deaf.silence is not None
        assert 1.0 <= deaf.silence < 1.7
        assert dumb.silence == 0.0, "its own direction is not cut"
        await world.clock.advance(1.0)
        (deaf,) = one.links.states()
        assert (deaf.up, deaf.round_trip) == (False, None)
        await world.clock.advance(5.0)
        (deaf,) = one.links.states()
        assert deaf.silence is None

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
        assert peer.frames[-1] == [[17, world.clock.now(), world.clock.wall()]], "a ping is answered with its number"
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
        assert strangers[-1].frames == [["welcome", "boot", b""]]

    run(scenario)


def test_strangers_of_one_host_do_not_keep_out_those_of_another() -> None:
    async def scenario(world: World) -> None:
        await world.node(2, [])
        patient = await world.stranger(name="10.0.0.2:4711")
        flood = [await world.stranger(name=f"10.0.0.9:{port}") for port in range(1, 2 * MAX_STRANGERS)]
        await rest()
        assert not patient.closed
        assert sum(not stranger.closed for stranger in flood) == MAX_STRANGERS - 1
        await patient.hello()
        assert patient.frames == [["welcome", "boot", b""]]

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
            await peer.write(b"".join(ENCODER.frame_of([n]) for n in range(1, 5001)))
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
        await peer.write(ENCODER.frame_of([[1], [2]]) + ENCODER.frame_of([[3]]))
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
        assert one.links.link_number(2) == 2
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
