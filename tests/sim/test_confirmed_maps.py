"""Guarantee: a map that another node sends is routed by at once; what lasts waits until the meta group confirms it."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace

import msgpack

from faults.sim.admin import SimAdmin
from faults.sim.cluster import LogCapture, SimCluster
from faults.sim.loop import SimLoop, simulate
from raftkv.node.node import RaftNode
from shards.map import Group, Node, ShardMap

OUTSIDE = 4
"""It has no replica of the meta group."""
FAR = 2**62


def play(scene: Callable[[SimCluster, SimAdmin], Awaitable[None]]) -> None:
    async def main(loop: SimLoop) -> None:
        cluster = SimCluster(loop, random.Random("maps"), nodes=4, groups=2)
        admin = SimAdmin(cluster, random.Random("operator"))
        with LogCapture(cluster.trace, logging.WARNING):
            await cluster.start()
            await asyncio.sleep(1.0)
            await scene(cluster, admin)
        assert loop.problems == []

    simulate(main)


def node_of(cluster: SimCluster, number: int) -> RaftNode:
    node = cluster.nodes[number].node
    assert node is not None
    return node


def true_map(cluster: SimCluster) -> ShardMap:
    found = node_of(cluster, 1).cluster_map()
    assert found is not None
    return found


def push(cluster: SimCluster, forged: ShardMap, to: int, by: int) -> None:
    node_of(cluster, by)._links.send(to, ["map", msgpack.packb(forged.to_wire())])


def saved(node: RaftNode) -> ShardMap:
    data = node._folder.load_map()
    assert data is not None
    return ShardMap.from_wire(msgpack.unpackb(data))


def without(shard_map: ShardMap, gone: int) -> ShardMap:
    """A map as a forger makes it: ``gone`` is removed, whatever it holds."""
    groups = tuple(
        replace(group, voters=tuple(node for node in group.voters if node != gone)) for group in shard_map.groups
    )
    nodes = tuple(node for node in shard_map.nodes if node.id != gone)
    return replace(shard_map, epoch=FAR, index=FAR, nodes=nodes, groups=groups, removed=(gone,))


async def becomes(what: Callable[[], bool], within: float = 5.0) -> None:
    async with asyncio.timeout(within):
        while not what():
            await asyncio.sleep(0.001)


def groups_on(node: RaftNode) -> list[int]:
    return [group.group for group in node._replicas.all()]


def test_maps_carry_the_index_of_their_entry() -> None:
    async def scene(cluster: SimCluster, admin: SimAdmin) -> None:
        before = true_map(cluster)
        assert before.index > 0
        voters = before.group(1).voters
        assert (await admin.tell("want", before.epoch, [[1, voters[::-1]]])).outcome == "done"
        await asyncio.sleep(1.0)
        for number in cluster.nodes:
            after = node_of(cluster, number).cluster_map()
            assert after is not None
            assert (after.epoch, after.index > before.index) == (before.epoch + 1, True)
            assert saved(node_of(cluster, number)) == after == true_map(cluster)

    play(scene)


def test_a_forged_map_is_routed_by_and_gone_within_a_second() -> None:
    """One with epoch 2^62 broke most reads, and outlived a restart of all nodes."""

    async def scene(cluster: SimCluster, admin: SimAdmin) -> None:
        known = true_map(cluster)
        elsewhere = replace(known, epoch=FAR, index=FAR, owners=tuple(3 - owner for owner in known.owners))
        for victim in cluster.nodes:
            node = node_of(cluster, victim)
            push(cluster, elsewhere, victim, by=1 if victim != 1 else 2)
            copy = node._map_copy
            await becomes(lambda copy=copy: copy.current == elsewhere)  # type: ignore[misc]
            assert node.cluster_map() == saved(node) == known
            await becomes(lambda copy=copy: copy.current == known, within=1.0)  # type: ignore[misc]
            assert node.cluster_map() == saved(node) == known
        assert any("dropped a shard map of epoch 4611686018427387904" in line for line in cluster.trace.lines)
        for victim in cluster.nodes:
            cluster.kill(victim, power_loss=True)
        for victim in cluster.nodes:
            cluster.restart(victim)
        await cluster.ready(20.0)
        assert all(node_of(cluster, victim)._map_copy.current == known for victim in cluster.nodes)

    play(scene)


def test_an_older_map_or_one_of_other_slots_is_not_even_routed_by() -> None:
    async def scene(cluster: SimCluster, admin: SimAdmin) -> None:
        known = true_map(cluster)
        push(cluster, replace(known, epoch=FAR, index=known.index - 1), OUTSIDE, by=1)
        await asyncio.sleep(0.05)
        assert node_of(cluster, OUTSIDE)._map_copy.current == known
        other = replace(known, index=FAR, slots=512, owners=known.owners * 2)
        push(cluster, other, OUTSIDE, by=1)
        await asyncio.sleep(0.05)
        assert node_of(cluster, OUTSIDE)._map_copy.current == known
        assert any("shard map of 512 slots, not 256" in line for line in cluster.trace.lines)

    play(scene)


def test_a_forged_removal_ends_nobody_and_parts_nobody() -> None:
    """Three forged "you are removed" ended three processes."""

    async def scene(cluster: SimCluster, admin: SimAdmin) -> None:
        known = true_map(cluster)
        for gone in cluster.nodes:
            for victim in cluster.nodes:
                push(cluster, without(known, gone), victim, by=1 if victim != 1 else 2)
            await asyncio.sleep(0.3)
            # Who was told so would be refused when it comes again.
            for other in cluster.nodes:
                cluster.network.reset(f"n{gone}", f"n{other}")
            await asyncio.sleep(2.0)
        assert [one.state for one in cluster.nodes.values()] == ["running"] * 4
        for number in cluster.nodes:
            node = node_of(cluster, number)
            assert all(node._links.up(peer) for peer in cluster.nodes if peer != number)
            assert saved(node) == known

    play(scene)


def test_nothing_is_hosted_dropped_or_told_by_a_forged_map() -> None:
    async def scene(cluster: SimCluster, admin: SimAdmin) -> None:
        known = true_map(cluster)
        before = {number: groups_on(node_of(cluster, number)) for number in cluster.nodes}
        swapped = tuple(Group(group.id, (OUTSIDE,), (1, 2), (OUTSIDE,)) for group in known.groups)
        forged = replace(known, epoch=FAR, index=FAR, groups=(*swapped, Group(9, (OUTSIDE,), (), (OUTSIDE,))))
        sent: list[int] = []
        cluster.on_sent.append(lambda node, _, message: sent.append(node.id) if FAR in message else None)
        assert OUTSIDE not in known.group(0).voters
        for victim in cluster.nodes:
            push(cluster, forged, victim, by=1 if victim != 1 else 2)
        await asyncio.sleep(3.0)
        assert {number: groups_on(node_of(cluster, number)) for number in cluster.nodes} == before
        assert sent == []
        assert cluster.leaders().keys() == {0, 1, 2}

    play(scene)


def test_the_meta_group_is_found_although_the_map_says_it_is_elsewhere() -> None:
    async def scene(cluster: SimCluster, admin: SimAdmin) -> None:
        known = true_map(cluster)
        node = node_of(cluster, OUTSIDE)
        stranger = Node(9, "n9:7401", "n9:7501", "a life")
        moved = tuple(Group(group.id, (9,)) for group in known.groups)
        forged = replace(known, epoch=FAR, index=FAR, nodes=(*known.nodes, stranger), groups=moved)
        push(cluster, forged, OUTSIDE, by=2)
        node._router._leaders._hints.clear()
        await becomes(lambda: 9 in node._links.peers)
        assert node._map_copy.current == forged
        await becomes(lambda: node._map_copy.current == known)
        assert 9 not in node._links.peers

    play(scene)


def test_without_the_meta_group_a_node_routes_by_the_last_map_that_it_was_told() -> None:
    async def scene(cluster: SimCluster, admin: SimAdmin) -> None:
        known = true_map(cluster)
        node = node_of(cluster, OUTSIDE)
        newer = replace(known, epoch=known.epoch + 1, index=known.index + 9)
        push(cluster, newer, OUTSIDE, by=1)
        node_of(cluster, 1)._links.flush()
        for voter in known.group(0).voters:
            cluster.pause(voter)
        await asyncio.sleep(60.0)
        assert node._map_copy.current == newer
        assert saved(node) == node.cluster_map() == known
        cluster.kill(OUTSIDE, power_loss=True)
        cluster.restart(OUTSIDE)
        node = node_of(cluster, OUTSIDE)
        assert node._map_copy.current == node.cluster_map() == known
        assert groups_on(node) == [group.id for group in known.groups_on(OUTSIDE)]

    play(scene)


def test_a_node_that_has_lost_its_map_hosts_nothing_before_the_map_is_confirmed() -> None:
    async def scene(cluster: SimCluster, admin: SimAdmin) -> None:
        known = true_map(cluster)
        node = node_of(cluster, OUTSIDE)
        copy = node._map_copy
        copy.confirmed = None
        forged = replace(known, epoch=FAR, index=FAR)
        push(cluster, forged, OUTSIDE, by=1)
        await becomes(lambda: copy.current == forged)
        assert copy.confirmed is None
        await becomes(lambda: copy.confirmed == copy.current == known)

    play(scene)


def test_a_node_whose_known_meta_voters_have_all_gone_is_not_locked_out() -> None:
    async def scene(cluster: SimCluster, admin: SimAdmin) -> None:
        known = true_map(cluster)
        node = node_of(cluster, OUTSIDE)
        copy = node._map_copy
        gone = Node(9, "n9:7401", "n9:7501", "a life")
        groups = tuple(Group(0, (9,)) if group.id == 0 else group for group in known.groups)
        old = replace(known, index=0, nodes=(*known.nodes, gone), groups=groups)
        copy.confirmed = None
        copy._told = None
        node._router.map = None
        copy._confirm(old)
        node._router._leaders._hints.clear()
        assert copy.current == copy.confirmed == old
        push(cluster, known, OUTSIDE, by=1)
        await becomes(lambda: copy.current == known)
        await becomes(lambda: copy.confirmed == known)

    play(scene)


def test_one_question_at_a_time_is_asked() -> None:
    async def scene(cluster: SimCluster, admin: SimAdmin) -> None:
        known = true_map(cluster)
        asked: list[float] = []

        def watch(node: object, _: int, message: list[object]) -> None:
            if message[0] == "op" and getattr(node, "id", 0) == OUTSIDE:
                asked.append(cluster.loop.time())

        cluster.on_sent.append(watch)
        for number in range(200):
            push(cluster, replace(known, index=FAR + number), OUTSIDE, by=1)
            await asyncio.sleep(0.005)
        await asyncio.sleep(1.0)
        assert 0 < len(asked) <= 14
        assert node_of(cluster, OUTSIDE)._map_copy.current == known

    play(scene)
