"""The operators' client asks whoever answers, makes a change once, and says what is not known."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from grpc import aio

from raftkv.api.messages import map_message, map_of
from raftkv.client.admin import AdminClient
from raftkv.client.transport import connect
from raftkv.commands.meta import ChangeCluster
from raftkv.errors import ConditionFailed, DeadlineExceeded, InvalidArgument, Unavailable
from raftkv.v1 import admin_pb2
from shards.map import Group, Node, ShardMap
from tests.admin_world import World, world_of
from tests.waiting import PATIENCE


@pytest.fixture
def world() -> Iterator[World]:
    with world_of(nodes=3, groups=1) as made:
        yield made


@contextmanager
def silent() -> Iterator[str]:
    """An address that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


PAUSE = admin_pb2.ChangeRequest(pause=True)


def test_a_map_survives_the_wire_with_founders_and_incarnations() -> None:
    nodes = tuple(Node(number, f"a:{number}", f"b:{number}", f"{number:032x}") for number in (1, 2, 3))
    groups = (Group(0, (2, 1), (), (1, 2)), Group(1, (3, 1), (2,), (1, 2)), Group(4, (1,)))
    shard_map = ShardMap("c", 9, 256, nodes, groups, (1,) * 100 + (4,) * 156, (7, 8))
    shard_map = replace(shard_map, index=17)
    message = admin_pb2.GetMapResponse.FromString(map_message(shard_map, {1: 3}, to_member=True).SerializeToString())
    assert map_of(message) == shard_map
    told = admin_pb2.GetMapResponse.FromString(map_message(shard_map, {1: 3}).SerializeToString())
    assert map_of(told) == replace(shard_map, nodes=tuple(replace(node, incarnation="") for node in nodes))
    message.epoch = 0
    with pytest.raises(Unavailable, match="invalid shard map"):
        map_of(message)


def test_a_node_that_says_nothing_costs_a_part_of_the_time(world: World) -> None:
    async def main(endpoints: str) -> None:
        asked: list[str] = []

        def counted(address: str) -> aio.Channel:
            asked.append(address)
            return connect(address)

        async with AdminClient(endpoints, timeout=20.0, connect=counted) as client:
            assert (await client.state()).map.groups == world.map.groups
            # Whoever has answered is asked first.
            assert client._addresses[0] == world.address(2)
            await client.close()
            asked.clear()
            await client.state()
            assert asked == [world.address(2)]

    with silent() as address:
        asyncio.run(main(f"{address},{world.address(2)}"))


def test_the_nodes_of_the_map_are_asked_when_the_given_ones_are_gone(world: World) -> None:
    async def main() -> None:
        async with AdminClient(world.address(1), timeout=PATIENCE) as client:
            state = await client.state()
            assert (state.vouched, state.job, state.wanted, state.draining) == (True, None, {}, frozenset())
            await asyncio.to_thread(world.stop_node, 1)
            assert (await client.state()).leaders[1] != 1

    asyncio.run(main())


def test_a_refusal_is_final_and_says_why(world: World) -> None:
    async def main() -> None:
        async with AdminClient(world.endpoints, timeout=PATIENCE) as client:
            with pytest.raises(ConditionFailed, match="nothing is under way"):
                await client.change(PAUSE)

    asyncio.run(main())
    assert len([op for op in world.served if isinstance(op, ChangeCluster)]) == 1


def test_a_change_whose_outcome_is_not_known_is_told_as_such(world: World) -> None:
    world.answers_changes = False

    async def main() -> None:
        async with AdminClient(world.endpoints, timeout=1.5) as client:
            with pytest.raises(DeadlineExceeded, match="not known whether the change was made"):
                await client.change(PAUSE)

    asyncio.run(main())


def test_a_change_that_reached_nobody_surely_was_not_made() -> None:
    """Whatever gRPC says of it, if anything."""

    async def main(endpoints: str, problem: str) -> None:
        async with AdminClient(endpoints, timeout=0.5) as client:
            with pytest.raises(Unavailable, match=problem):
                await client.change(PAUSE)

    asyncio.run(main("127.0.0.1:1", "Connection refused"))
    asyncio.run(main("no-such-host.invalid:1", "no-such-host.invalid:1: "))
    with silent() as address:
        asyncio.run(main(address, f"{address}: "))


def test_a_change_after_whose_question_the_node_died_surely_was_not_made(world: World) -> None:
    async def main() -> None:
        async with AdminClient(world.address(1), timeout=1.0) as client:
            assert (await client.status(world.address(1))).node == 1
            for node in (1, 2, 3):
                await asyncio.to_thread(world.stop_node, node)
            with pytest.raises(Unavailable):
                await client.change(PAUSE)

    asyncio.run(main())
    assert [op for op in world.served if isinstance(op, ChangeCluster)] == []


def test_attempts_of_one_change_share_a_token(world: World) -> None:
    """The cluster answers the first attempt's outcome again."""

    async def main() -> None:
        async with AdminClient(world.endpoints, timeout=PATIENCE) as client:
            request = admin_pb2.ChangeRequest(add_group=admin_pb2.AddGroup(voters=[1, 2, 3]))
            first = await client.change(request)
            assert await client.change(request) == first == 2

    asyncio.run(main())
    assert len(world.map.groups) == 3


def test_endpoints_and_timeouts_are_checked() -> None:
    with pytest.raises(InvalidArgument):
        AdminClient("nonsense")
    with pytest.raises(InvalidArgument):
        AdminClient("a:1", timeout=0)
