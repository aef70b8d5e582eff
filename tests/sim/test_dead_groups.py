"""Guarantee: a group without a majority hurts only itself, and holds nothing for callers that have gone."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from itertools import combinations

import pytest

from faults.sim.cluster import SimCluster
from faults.sim.loop import SimLoop, simulate
from raftkv.commands.base import Command
from raftkv.commands.records import Put
from raftkv.commands.results import Result
from raftkv.errors import Code
from raftkv.frontend.port import Caller
from raftkv.limits import MAX_PENDING_OPS
from raftkv.node.node import RaftNode
from shards.map import ShardMap

FLOOD = 24_000


class World:
    """Five nodes, two of them stopped, so that ``dead`` has no majority and ``healthy`` has one."""

    def __init__(self, cluster: SimCluster, shard_map: ShardMap) -> None:
        self.cluster = cluster
        self.map = shard_map
        groups = {group.id: set(group.voters) for group in shard_map.groups if group.id}
        for two in combinations(cluster.nodes, 2):
            dead = [number for number, voters in groups.items() if len(voters & set(two)) > 1]
            if dead and len(dead) < len(groups):
                break
        self.stopped, self.dead = two, dead[0]
        self.healthy = next(number for number in groups if number not in dead)
        left = [number for number in cluster.nodes if number not in two]
        self.member = next(number for number in left if number in groups[self.dead])
        self.outsider = next(number for number in left if number not in groups[self.dead])

    def stop(self) -> None:
        for number in self.stopped:
            self.cluster.kill(number, power_loss=False)

    def node(self, number: int) -> RaftNode:
        node = self.cluster.nodes[number].node
        assert node is not None
        return node

    def slot(self, group: int) -> int:
        return self.map.owners.index(group)

    def writes(self, group: int, count: int) -> list[Command]:
        return [Put(self.slot(group), b"k%d" % number, b"v") for number in range(count)]

    def submit(self, number: int, ops: list[Command], timeout: float, caller: Caller) -> list[Result]:
        """Have node ``number`` execute ``ops``; the results as they come."""
        results: list[Result] = []

        def reply(_: int, result: Result) -> None:
            results.append(result)

        self.cluster.nodes[number].process.run(self.node(number).submit, ops, timeout, reply, caller)
        return results

    async def healthy_write(self, number: int) -> Result:
        results = self.submit(number, self.writes(self.healthy, 1), 5.0, Caller())
        for _ in range(100):
            if results:
                return results[0]
            await asyncio.sleep(0.05)
        raise AssertionError("a write to a healthy group has no answer")


def play(scene: Callable[[World], Awaitable[None]]) -> None:
    async def main(loop: SimLoop) -> None:
        cluster = SimCluster(loop, random.Random("dead groups"), nodes=5, groups=5)
        await cluster.start()
        await asyncio.sleep(1.0)
        first = cluster.nodes[1].node
        assert first is not None
        assert first.cluster_map() is not None
        shard_map = first.cluster_map()
        assert shard_map is not None
        await scene(World(cluster, shard_map))
        assert loop.problems == []

    simulate(main)


@pytest.mark.parametrize("through", ["member", "outsider"])
def test_healthy_groups_are_served_beside_a_flood_for_a_dead_one(through: str) -> None:
    """24,000 writes to the dead group filled the node, and all others were refused until their time was up."""

    async def scene(world: World) -> None:
        world.stop()
        await asyncio.sleep(2.0)
        number = world.member if through == "member" else world.outsider
        results = [
            world.submit(number, part, 30.0, Caller())
            for part in [world.writes(world.dead, FLOOD // 24) for _ in range(24)]
        ]
        for _ in range(10):
            assert (await world.healthy_write(number)).code == Code.OK
            assert world.node(number)._router.outstanding[0] <= MAX_PENDING_OPS // 2
        await asyncio.sleep(4.0)
        codes = Counter(result.code for part in results for result in part)
        assert codes[Code.OVERLOADED] + codes[Code.UNAVAILABLE] >= FLOOD - 200, "the few that were asked may wait"
        assert codes[Code.UNAVAILABLE]

    play(scene)


@pytest.mark.parametrize("through", ["member", "outsider"])
def test_a_dead_group_refuses_at_once_and_serves_again_as_soon_as_it_has_a_leader(through: str) -> None:
    async def scene(world: World) -> None:
        number = world.member if through == "member" else world.outsider
        world.stop()
        first = world.submit(number, world.writes(world.dead, 10), 60.0, Caller())
        await asyncio.sleep(10.0)
        # What had been sent to a leader that was stopped may have been done; nothing else waits.
        assert {result.code for result in first} <= {Code.UNAVAILABLE}
        await asyncio.sleep(0.9)
        later = world.submit(number, world.writes(world.dead, 100), 60.0, Caller())
        await asyncio.sleep(0.5)
        assert [result.code for result in later].count(Code.UNAVAILABLE) >= 99
        for stopped in world.stopped:
            world.cluster.restart(stopped)
        await asyncio.sleep(5.0)
        again = world.submit(number, world.writes(world.dead, 10), 5.0, Caller())
        await asyncio.sleep(1.0)
        assert [result.code for result in again] == [Code.OK] * 10

    play(scene)


def test_an_ordinary_election_refuses_nothing() -> None:
    async def scene(world: World) -> None:
        leader = world.cluster.leaders()[world.healthy]
        world.cluster.kill(leader, power_loss=False)
        number = next(one for one in world.cluster.nodes if one != leader)
        results: list[list[Result]] = []
        for _ in range(20):
            results.append(world.submit(number, world.writes(world.healthy, 5), 10.0, Caller()))
            await asyncio.sleep(0.1)
        await asyncio.sleep(2.0)
        assert [[result.code for result in part] for part in results] == [[Code.OK] * 5] * 20

    play(scene)


@pytest.mark.parametrize("through", ["member", "outsider"])
def test_what_waits_for_a_caller_that_has_gone_is_dropped(through: str) -> None:
    """It stayed until its time was up, up to ten minutes after its client had gone."""

    async def scene(world: World) -> None:
        world.stop()
        await asyncio.sleep(2.0)
        number = world.member if through == "member" else world.outsider
        caller = Caller()
        results = world.submit(number, world.writes(world.dead, 5000), 600.0, caller)
        await asyncio.sleep(0.5)
        assert world.node(number)._router.outstanding[0] >= 5000
        caller.gone = True
        await asyncio.sleep(0.5)
        assert world.node(number)._router.outstanding[0] == 0
        assert len(results) == 5000

    play(scene)
