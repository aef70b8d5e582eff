"""Guarantee: a node that has left a group never takes part in it again by mistake, and finds whom to ask."""

from __future__ import annotations

import asyncio
import errno
import random
from collections.abc import Awaitable, Callable
from typing import Any, cast

from faults.sim.admin import SimAdmin
from faults.sim.cluster import SimCluster
from faults.sim.loop import SimLoop, simulate
from raftkv.store.meta_state import MetaState
from shards.map import ShardMap

GROUP = 1


async def state_of(admin: SimAdmin) -> MetaState:
    state = await admin.look()
    assert state is not None
    return state


async def map_of(admin: SimAdmin) -> ShardMap:
    shard_map = (await state_of(admin)).map
    assert shard_map is not None
    return shard_map


async def leave(admin: SimAdmin) -> int:
    """One node leaves GROUP for another; it has dropped its replica when this returns. Its id."""
    shard_map = await map_of(admin)
    voters = shard_map.group(GROUP).voters
    leaving = voters[-1]
    new = next(node.id for node in shard_map.nodes if node.id not in voters)
    assert (await admin.tell("want", shard_map.epoch, [[GROUP, [*voters[:-1], new]]])).outcome == "done"
    for _ in range(100):
        await asyncio.sleep(0.1)
        state = await state_of(admin)
        if not state.wanted and not state.garbage:
            return leaving
    raise AssertionError("the members did not change")


def play(scene: Callable[[SimCluster, SimAdmin], Awaitable[None]]) -> None:
    async def main(loop: SimLoop) -> None:
        cluster = SimCluster(loop, random.Random("members"), nodes=4, groups=2)
        admin = SimAdmin(cluster, random.Random("operator"))
        await cluster.start()
        await scene(cluster, admin)
        assert loop.problems == []

    simulate(main)


def test_a_dropped_replica_stays_dropped_after_a_restart() -> None:
    """A node's saved map was older than its leaving, and made it host the group again with an empty log."""

    async def scene(cluster: SimCluster, admin: SimAdmin) -> None:
        left = await leave(admin)
        for power_loss in (False, True):
            node = cluster.nodes[left]
            assert node.node is not None
            assert node.node._replicas.get(GROUP) is None
            cluster.kill(left, power_loss=power_loss)
            cluster.restart(left)
            assert node.node is not None
            assert node.node._replicas.get(GROUP) is None
            await asyncio.sleep(1.0)
            assert node.node._replicas.get(GROUP) is None

    play(scene)


def test_a_map_that_could_not_be_saved_is_not_called_saved() -> None:
    """A node whose disk was full dropped its replica later, kept an old map, and hosted the group again after a
    restart."""

    async def scene(cluster: SimCluster, admin: SimAdmin) -> None:
        shard_map = await map_of(admin)
        leaving = shard_map.group(GROUP).voters[-1]
        one = cluster.nodes[leaving].node
        assert one is not None

        def fail(_: bytes) -> None:
            raise OSError(errno.ENOSPC, "no space")

        folder = cast(Any, one._folder)
        save, folder.save_map = folder.save_map, fail
        group = shard_map.group(GROUP)
        assert (await admin.tell("want", shard_map.epoch, [[GROUP, group.voters[::-1]]])).outcome == "done"
        await asyncio.sleep(1.0)
        assert not one._map_copy._saved
        folder.save_map = save
        assert (await admin.tell("want", (await map_of(admin)).epoch, [[GROUP, group.voters]])).outcome == "done"
        assert await leave(admin) == leaving
        cluster.kill(leaving, power_loss=True)
        cluster.restart(leaving)
        node = cluster.nodes[leaving].node
        assert node is not None
        assert node._replicas.get(GROUP) is None

    play(scene)


def test_a_node_that_has_left_may_come_back() -> None:
    async def scene(cluster: SimCluster, admin: SimAdmin) -> None:
        left = await leave(admin)
        shard_map = await map_of(admin)
        voters = (*shard_map.group(GROUP).voters[:2], left)
        assert (await admin.tell("want", shard_map.epoch, [[GROUP, list(voters)]])).outcome == "done"
        for _ in range(100):
            await asyncio.sleep(0.1)
            if not (await state_of(admin)).wanted:
                break
        assert set((await map_of(admin)).group(GROUP).voters) == set(voters)
        node = cluster.nodes[left].node
        assert node is not None
        replica = node._replicas.get(GROUP)
        assert replica is not None
        assert set(replica.voters) == set(voters)

    play(scene)


def test_a_replica_left_over_finds_the_leader() -> None:
    """Its own belief who leads was asked before what others say, and never changed as nobody speaks to it any more."""

    async def scene(cluster: SimCluster, admin: SimAdmin) -> None:
        await asyncio.sleep(0.5)
        shard_map = await map_of(admin)
        group = shard_map.group(GROUP)
        leader = cluster.leaders()[GROUP]
        me = next(node for node in group.voters if node != leader)
        other = next(node for node in group.voters if node not in (me, leader))
        one = cluster.nodes[me].node
        assert one is not None
        router = one._router
        assert router.leader_of(GROUP) == leader
        new = next(node.id for node in shard_map.nodes if node.id not in group.voters)
        after = shard_map.with_group(type(group)(GROUP, (leader, other, new), (), group.founders))
        router.on_map(after, None)
        router.on_leads(other, [GROUP])
        assert router.leader_of(GROUP) == other

    play(scene)


def test_nodes_say_what_they_lead() -> None:
    """A node without a replica of a group did not know its leader until it had asked around for an operation."""

    async def scene(cluster: SimCluster, admin: SimAdmin) -> None:
        await asyncio.sleep(0.5)
        shard_map = await map_of(admin)
        leaders = cluster.leaders()
        for node in cluster.nodes.values():
            assert node.node is not None
            assert node.node.leaders() == leaders
        outside = [(node, group.id) for node in cluster.nodes for group in shard_map.groups if node not in group.voters]
        assert outside

    play(scene)


def test_leaderships_go_where_the_map_prefers_them_also_after_a_restart() -> None:
    async def scene(cluster: SimCluster, admin: SimAdmin) -> None:
        shard_map = await map_of(admin)
        preferred = {group.id: group.voters[0] for group in shard_map.groups}
        await asyncio.sleep(20.0)
        assert cluster.leaders() == preferred
        node = preferred[GROUP]
        cluster.kill(node, power_loss=True)
        await asyncio.sleep(3.0)
        assert cluster.leaders()[GROUP] != node
        cluster.restart(node)
        await asyncio.sleep(20.0)
        assert cluster.leaders() == preferred

    play(scene)
