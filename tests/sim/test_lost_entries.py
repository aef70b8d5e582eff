"""Guarantee: a node whose disk went back in time counts no more where it had acknowledged; it and its leader say so."""

from __future__ import annotations

import asyncio
import random

from faults.sim.cluster import SimCluster
from faults.sim.loop import SimLoop, simulate


def found(cluster: SimCluster) -> dict[int, set[tuple[str, int | None, int | None]]]:
    """What each node finds wrong: kind, group, node."""
    nodes = {one.id: one.node for one in cluster.nodes.values() if one.node is not None}
    return {
        number: {(problem.kind, problem.group, problem.node) for problem in node.status().problems}
        for number, node in nodes.items()
    }


def test_a_disk_that_went_back_in_time_is_barred_until_its_replicas_are_replaced() -> None:
    async def main(loop: SimLoop) -> None:
        cluster = SimCluster(loop, random.Random(1), nodes=3, groups=1)
        await cluster.start()
        await asyncio.sleep(10.0)
        leader = cluster.leaders()[1]
        victim = next(one for one in cluster.nodes if one not in cluster.leaders().values())
        async with cluster.client("c1", timeout=5.0) as client:
            for number in range(20):
                await client.put(f"k{number}", "early")
            await asyncio.sleep(1.0)
            disk = cluster.nodes[victim].disk.copy()
            for number in range(20):
                await client.put(f"k{number}", "late")
            await asyncio.sleep(1.0)
            cluster.kill(victim, power_loss=False)
            cluster.nodes[victim].disk = disk
            cluster.restart(victim)
            lost = ("lost_entries", 1, victim)
            for _ in range(2):
                async with asyncio.timeout(20):
                    while lost not in found(cluster)[victim] or lost not in found(cluster)[cluster.leaders()[1]]:
                        await asyncio.sleep(0.1)
                # The bar outlives the leader's term and the node's own start.
                cluster.kill(leader, power_loss=False)
                await asyncio.sleep(2.0)
                assert 1 not in cluster.leaders(), "the third one has no majority with the one that lost entries"
                cluster.kill(victim, power_loss=True)
                cluster.restart(victim)
                cluster.restart(leader)
                async with asyncio.timeout(20):
                    while 1 not in cluster.leaders():
                        await asyncio.sleep(0.1)
                leader = cluster.leaders()[1]
            assert leader != victim
            for number in range(20):
                await client.put(f"k{number}", "latest")
                record = await client.get(f"k{number}", consistency="quorum")
                assert record is not None
                assert record.value == b"latest"

    simulate(main)
