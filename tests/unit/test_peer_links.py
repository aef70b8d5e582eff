"""Links on an in-memory network and a clock that the test moves: what the node's groups may rely on."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from tests.peer_world import Node, World, rest, run


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
        assert (one.links.link_number(2), one.links.up(2)) == (0, False)
        two = await world.node(2, [])
        await world.clock.advance(1.0)
        assert (one.links.link_number(2), one.links.up(2)) == (1, True)
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
        assert one.links.link_number(2) == 3

    run(scenario)


def test_what_is_sent_on_a_breaking_link_does_not_appear_on_the_next_one() -> None:
    async def scenario(world: World) -> None:
        two, one = await world.node(2, []), await world.node(1, [2])
        world.network.reset("n1", "n2")
        assert one.links.up(2), "not yet noticed"
        one.links.send(2, ["of the first link"])
        await rest()
        await world.clock.advance(1.0)
        assert one.links.link_number(2) == 2
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


def test_peers_come_and_go_and_their_epochs_go_on() -> None:
    async def scenario(world: World) -> None:
        two, one = await world.node(2, [1]), await world.node(1, [])
        one.links.add_peer(2, "n2:1")
        await world.clock.advance(0.5)
        assert one.links.link_number(2) == 1
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
        assert one.links.link_number(2) == 2
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
        assert one.links.link_number(2) == 1, "the same address changes nothing"
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
