"""Guarantee: a running node takes over another way to a peer and another way of reading."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from msgspec.structs import replace

from faults.sim.cluster import SimCluster
from faults.sim.loop import SimLoop, simulate


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20.0):
        while not holds():
            await asyncio.sleep(0.05)


def test_a_node_reaches_its_peers_and_reads_as_the_new_configuration_says() -> None:
    async def main(loop: SimLoop) -> None:
        cluster = SimCluster(loop, random.Random(1), nodes=3, groups=1)
        await cluster.start()
        node, config = cluster.nodes[1].node, cluster.config(1)
        assert node is not None

        def up() -> dict[int, bool]:
            return {peer.node: peer.up for peer in node.status().peers}

        await until(lambda: up() == {2: True, 3: True})
        links = node._links
        numbers = {peer: links.link_number(peer) for peer in links.peers}
        node.reconfigure(replace(config, dial={2: "nowhere:1"}))
        await until(lambda: up() == {2: False, 3: True})
        quorum = replace(config.node, reads="quorum")
        node.reconfigure(replace(config, node=quorum))
        await until(lambda: up() == {2: True, 3: True})
        assert links.link_number(3) == numbers[3], "the other link is not touched"
        assert node._router.execution.quorum_reads
        async with cluster.client("c1", timeout=5.0) as client:
            await client.put("k", "v")
            found = await client.get("k")
            assert found is not None
            assert found.value == b"v"

    simulate(main)
