"""Guarantee: copies of the map that differ for long are a problem; a map on its way, or changing often, is none."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

from faults.sim.cluster import SimCluster
from faults.sim.loop import SimLoop, simulate
from raftkv.node.maps import PATIENCE, Maps, told
from shards.map import Group, Node, ShardMap
from tests.peer_world import ManualClock

NODES = tuple(Node(one, f"n{one}:7401", f"n{one}:7501", f"life {one}") for one in (1, 2))
MAP = ShardMap("c", 1, 256, NODES, (Group(0, (1,)), Group(1, (1,)), Group(2, (2,))), (1,) * 256)


def at(epoch: int, owner: int = 1) -> ShardMap:
    return replace(MAP, epoch=epoch, owners=(owner,) * 256)


def texts(maps: Maps) -> list[str]:
    return [problem.text for problem in maps.problems()]


def test_the_same_epoch_with_another_content_is_a_problem() -> None:
    clock = ManualClock()
    maps = Maps(clock.now)
    maps.use(at(3))
    maps.hear(2, told(at(3, owner=2)))
    assert texts(maps) == []
    for _ in range(11):
        clock.jump(1.0)
        maps.hear(2, told(at(3, owner=2)))
    assert texts(maps) == ["its shard map and that of node 2 are both of epoch 3, and differ, for more than 10 s"]
    maps.hear(2, told(at(3)))
    assert texts(maps) == []


def test_who_stays_behind_is_told_by_both() -> None:
    clock = ManualClock()
    ahead, behind = Maps(clock.now), Maps(clock.now)
    ahead.use(at(9))
    behind.use(at(7))
    ahead.hear(2, behind.own)
    behind.hear(1, ahead.own)
    clock.jump(PATIENCE + 1)
    assert texts(ahead) == ["its shard map is of epoch 9, that of node 2 of epoch 7, for more than 10 s"]
    assert texts(behind) == ["its shard map is of epoch 7, that of node 1 of epoch 9, for more than 10 s"]
    behind.use(at(9))
    assert texts(behind) == []
    ahead.forget(2)
    assert texts(ahead) == []


def test_a_node_without_a_map_is_behind_those_that_have_one() -> None:
    clock = ManualClock()
    maps = Maps(clock.now)
    maps.hear(2, told(None))
    clock.jump(60.0)
    assert texts(maps) == []
    maps.use(at(1))
    clock.jump(60.0)
    assert len(texts(maps)) == 1


def test_maps_that_change_all_the_time_are_no_problem() -> None:
    """Whoever is asked is a little behind whenever it is asked, as long as both go on."""
    clock = ManualClock()
    one, two = Maps(clock.now), Maps(clock.now)
    for epoch in range(1, 100):
        clock.jump(1.0)
        one.use(at(epoch + 1))
        two.use(at(epoch))
        one.hear(2, two.own)
        two.hear(1, one.own)
        assert texts(one) == texts(two) == []


def test_a_cluster_notices_a_copy_that_differs_and_sends_one_that_is_newer() -> None:
    async def main(loop: SimLoop) -> None:
        cluster = SimCluster(loop, random.Random(1), nodes=3, groups=2)
        await cluster.start()
        await asyncio.sleep(PATIENCE + 5)
        nodes = [one.node for one in cluster.nodes.values()]
        assert all(node is not None and node.status().problems == () for node in nodes)
        victim = cluster.nodes[2].node
        assert victim is not None
        shard_map = victim.cluster_map()
        assert shard_map is not None
        owners = shard_map.owners
        other = replace(shard_map, owners=(3 - owners[0], *owners[1:]))
        victim._map_copy.confirmed = None
        victim._map_copy._confirm(other)
        await asyncio.sleep(PATIENCE + 5)
        found = [[(problem.kind, problem.node) for problem in node.status().problems] for node in nodes if node]
        assert found == [[("map_differs", 2)], [("map_differs", 1), ("map_differs", 3)], [("map_differs", 2)]]
        victim._map_copy.confirmed = None
        victim._map_copy._confirm(shard_map)
        await asyncio.sleep(3.0)
        assert all(node is not None and node.status().problems == () for node in nodes)
        assert loop.problems == []

    simulate(main)
