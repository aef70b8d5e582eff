"""Guarantee: a member may move, and nobody else can have it looked for, or noted, at another place."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from raftkv.commands.base import GroupCommand
from raftkv.commands.meta import ChangeCluster
from raftkv.commands.results import Result
from raftkv.errors import Code
from raftkv.node import messages
from raftkv.node.drivers.addresses import Addresses
from raftkv.node.drivers.internal_client import Failed
from raftkv.store.codec import unpack
from raftkv.store.meta import MetaStore
from shards.map import Group, Node, ShardMap
from tests.peer_world import ManualClock, rest

NODES = tuple(Node(i, f"h{i}:1", f"h{i}:2", f"life{i}") for i in (1, 2, 3))
MOVED = ("g2:1", "g2:2")


class FakePeers:
    """Links of node 1: what is up, what was dialled in vain, and what was sent."""

    def __init__(self) -> None:
        self.at = {2: "h2:2", 3: "h3:2"}
        self.reached = {2, 3}
        self.in_vain: set[int] = set()
        self.sent: list[tuple[int, list[Any]]] = []

    def up(self, node: int) -> bool:
        return node in self.reached

    def missed(self, node: int) -> bool:
        return node in self.in_vain

    def dialled(self, node: int) -> str:
        return self.at[node]

    def set_dial(self, node: int, address: str) -> None:
        self.at[node] = address
        self.in_vain.discard(node)
        self.reached.discard(node)

    def send(self, node: int, message: list[Any]) -> None:
        self.sent.append((node, message))

    def send_to_all(self, message: list[Any]) -> None:
        for node in self.at:
            self.send(node, message)


class World:
    """Node 1, which leads the meta group; its commands are executed at once."""

    def __init__(self, own: tuple[str, str] = ("h1:1", "h1:2"), dial: dict[int, str] | None = None) -> None:
        self.meta = MetaStore()
        self.meta.form(_packed(ShardMap("c", 1, 256, NODES, (Group(0, (1, 2, 3)), Group(1, (1, 2, 3))), (1,) * 256)))
        self.peers = FakePeers()
        self.clock = ManualClock()
        self.leads = True
        self.asked: list[list[Any]] = []
        dials = dial or {}
        self.addresses = Addresses(
            1,
            own,
            peers=self.peers,
            current=lambda: self.meta.map,
            dial=lambda node: dials.get(node.id, node.peer_address),
            leading=lambda: self.meta.state if self.leads else None,
            ask=self.ask,
            now=self.clock.now,
            rng=random.Random(1),
        )

    async def ask(self, op: GroupCommand) -> Result:
        assert isinstance(op, ChangeCluster)
        self.asked.append([op.verb, *unpack(op.arguments)])
        (result,) = self.meta.apply(5, [op])
        if result.code != Code.OK:
            raise Failed(result.detail)
        return result

    def places(self, node: int) -> tuple[str, str]:
        assert self.meta.map is not None
        entry = self.meta.map.node(node)
        return entry.address, entry.peer_address

    async def run(self) -> None:
        self.addresses.run()
        await rest()


def _packed(shard_map: ShardMap) -> bytes:
    from raftkv.store.codec import pack

    return pack(shard_map.to_wire())


def play(scenario: Callable[[World], Coroutine[Any, Any, None]], world: World | None = None) -> None:
    async def main() -> None:
        played = world or World()
        await scenario(played)
        played.addresses.close()

    asyncio.run(main())


def test_a_member_that_has_moved_is_found_and_noted() -> None:
    async def scenario(world: World) -> None:
        peers = world.peers
        peers.reached.discard(2)
        peers.in_vain.add(2)
        world.addresses.hear(2, *MOVED)
        assert peers.at[2] == "g2:2", "at once"
        await world.run()
        assert world.asked == [], "it has not proven there who it is"
        peers.reached.add(2)
        await world.run()
        assert world.asked == [["readdress node", 2, "life2", *MOVED]]
        assert world.places(2) == MOVED
        await world.run()
        assert len(world.asked) == 1

    play(scenario)


def test_while_it_answers_where_it_was_nothing_changes() -> None:
    """Two processes with one data folder: the map stays with the one that is there."""

    async def scenario(world: World) -> None:
        for _ in range(3):
            world.addresses.hear(2, *MOVED)
            await world.run()
        assert world.peers.at[2] == "h2:2"
        assert world.asked == []

    play(scenario)


def test_a_place_at_which_nobody_answers_never_gets_into_the_map() -> None:
    async def scenario(world: World) -> None:
        seen = []
        world.peers.reached.discard(2)
        for _ in range(4):
            world.peers.in_vain.add(2)
            world.addresses.hear(2, *MOVED)
            seen.append(world.peers.at[2])
            await world.run()
        assert seen == ["g2:2", "h2:2", "g2:2", "h2:2"], "both places by turns"
        assert world.asked == []

    play(scenario)


def test_one_that_answers_at_home_is_not_looked_for_elsewhere_when_it_is_away_next() -> None:
    async def scenario(world: World) -> None:
        peers = world.peers
        peers.in_vain.add(2)
        world.addresses.hear(2, *MOVED)
        peers.in_vain.add(2)
        await world.run()
        assert peers.at[2] == "h2:2"
        peers.reached.add(2)
        await world.run()
        peers.reached.discard(2)
        peers.in_vain.add(2)
        await world.run()
        assert peers.at[2] == "h2:2"

    play(scenario)


def test_only_the_leader_has_the_map_changed_and_only_on_a_fresh_word() -> None:
    async def scenario(world: World) -> None:
        world.leads = False
        world.peers.in_vain.add(2)
        world.addresses.hear(2, *MOVED)
        world.peers.reached.add(2)
        await world.run()
        assert world.asked == []
        world.leads = True
        world.clock.jump(60)
        await world.run()
        assert world.asked == []
        world.addresses.hear(2, *MOVED)
        await world.run()
        assert world.places(2) == MOVED

    play(scenario)


def test_another_members_address_is_refused_and_said(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        world.peers.in_vain.add(2)
        world.addresses.hear(2, "h3:1", "g2:2")
        world.peers.reached.add(2)
        await world.run()
        assert len(world.asked) == 1
        assert world.places(2) == ("h2:1", "h2:2")

    play(scenario)
    assert "node 2 says that it is reached at h3:1 and g2:2: node 3 has the address" in caplog.text


def test_behind_a_proxy_of_its_own_it_is_dialled_there_and_noted_elsewhere() -> None:
    async def scenario(world: World) -> None:
        world.peers.at[2] = "proxy:1"
        world.addresses.hear(2, *MOVED)
        await world.run()
        assert (world.peers.at[2], world.places(2)) == ("proxy:1", MOVED)

    play(scenario, World(dial={2: "proxy:1"}))


def test_a_node_tells_where_it_is_until_the_map_says_so() -> None:
    async def scenario(world: World) -> None:
        world.leads = False
        world.addresses.greet(3)
        await world.run()
        message = ["address", "g1:1", "g1:2"]
        assert messages.addresses(message) == ("g1:1", "g1:2")
        assert world.peers.sent == [(3, message), (2, message), (3, message)]
        world.leads = True
        await world.run()
        assert world.places(1) == ("g1:1", "g1:2"), "it leads the meta group itself"
        world.peers.sent.clear()
        world.addresses.greet(3)
        await world.run()
        assert world.peers.sent == []

    play(scenario, World(own=("g1:1", "g1:2")))


def test_who_is_no_member_is_not_heard() -> None:
    async def scenario(world: World) -> None:
        world.addresses.hear(9, "g9:1", "g9:2")
        await world.run()
        assert world.asked == []

    play(scenario)


@pytest.mark.parametrize(
    "message",
    [["address"], ["address", "h:1"], ["address", "h:1", 2], ["address", "h:1", "0.0.0.0:1"], ["address", "", "h:1"]],
)
def test_what_is_no_address_is_malformed(message: list[Any]) -> None:
    with pytest.raises(messages.Malformed):
        messages.addresses(message)
