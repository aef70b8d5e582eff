"""Guarantee: nodes that come back at other addresses find their cluster and are found, a majority at once too."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from faults.sim.cluster import SimCluster
from faults.sim.loop import SimLoop, simulate
from raftkv.node.config import PeerSection


def move(cluster: SimCluster, node: int) -> None:
    """The next start of ``node`` is at other addresses; the others run on with what they were told before."""
    peers = list(cluster._peers)
    address, peer_address = f"n{node}:7411", f"n{node}:7511"
    cluster.network.names[address] = f"n{node}:7401"
    peers[node - 1] = PeerSection(id=node, address=address, peer_address=peer_address)
    cluster._peers = tuple(peers)


def places(cluster: SimCluster) -> list[dict[int, tuple[str, str]]]:
    """As each node has them."""
    maps = [node.node.cluster_map() for node in cluster.nodes.values() if node.node is not None]
    return [{one.id: (one.address, one.peer_address) for one in known.nodes} for known in maps if known is not None]


def wanted(cluster: SimCluster) -> dict[int, tuple[str, str]]:
    return {peer.id: (peer.address, peer.peer_address) for peer in cluster._peers}


async def noted(cluster: SimCluster) -> None:
    async with asyncio.timeout(60):
        while places(cluster) != [wanted(cluster)] * len(cluster.nodes):
            await asyncio.sleep(0.1)
    await cluster.ready(60)


def play(scene: Callable[[SimCluster], Awaitable[None]], seed: str) -> None:
    async def main(loop: SimLoop) -> None:
        cluster = SimCluster(loop, random.Random(seed), nodes=3, groups=2)
        await cluster.start()
        client = cluster.client("c", timeout=30.0)
        await cluster.processes["c"].spawn(client.put("before", b"x"))
        await scene(cluster)

        async def served() -> None:
            await client.put("after", b"y")
            record = await client.get("before")
            assert record is not None
            assert record.value == b"x"

        await cluster.processes["c"].spawn(served())
        assert loop.problems == []

    simulate(main)


@pytest.mark.parametrize("moving", [(3,), (1,), (1, 2), (1, 2, 3)], ids=str)
def test_moved_nodes_are_found_and_the_map_has_them(moving: tuple[int, ...]) -> None:
    """Where all have moved at once, each has to be told where one of the others is."""

    async def scene(cluster: SimCluster) -> None:
        before = places(cluster)[0]
        for node in moving:
            cluster.kill(node, power_loss=False)
        for node in moving:
            move(cluster, node)
        if len(moving) == 3:
            cluster.dial[1] = {2: "n2:7511"}
            cluster.dial[2] = {3: "n3:7511"}
            cluster.dial[3] = {1: "n1:7511"}
        for node in moving:
            cluster.restart(node)
        await noted(cluster)
        assert [node for node in before if places(cluster)[0][node] != before[node]] == list(moving)

    play(scene, f"moved {moving}")


def test_a_node_that_moves_back_is_found_again() -> None:
    async def scene(cluster: SimCluster) -> None:
        home = cluster._peers
        for away in (True, False):
            cluster.kill(3, power_loss=True)
            if away:
                move(cluster, 3)
            else:
                cluster._peers = home
            cluster.restart(3)
            await noted(cluster)

    play(scene, "back")
