"""Guarantee: while a leadership is handed over, as it is some seconds after a cluster starts, clients wait for messages
only, and for no timer."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

from faults.sim.cluster import SimCluster, SimSettings
from faults.sim.loop import SimLoop, simulate
from faults.sim.network import Conditions

WORKERS = 4
MESSAGE = 0.0002
LONGEST = 0.015


def test_a_handover_costs_a_read_a_few_messages() -> None:
    """A read that came meanwhile waited for the next look, every 20 ms, or for its next attempt, for 40 ms."""
    settings = replace(SimSettings(), sync=0.0005, conditions=Conditions(base=MESSAGE, spread=0.2, slow=0.0))

    async def main(loop: SimLoop) -> None:
        cluster = SimCluster(loop, random.Random("handover"), nodes=3, groups=3, settings=settings)
        await cluster.start()
        client, longest = cluster.client("c"), 0.0

        async def ask(worker: int, end: float) -> None:
            nonlocal longest
            while loop.time() < end:
                began = loop.time()
                for number in range(3):
                    await client.get(f"k{worker}.{number}")
                longest = max(longest, loop.time() - began)
                await asyncio.sleep(0.005)

        async def ask_all(seconds: float) -> None:
            await asyncio.gather(*(ask(worker, loop.time() + seconds) for worker in range(WORKERS)))

        await cluster.processes["c"].spawn(ask_all(0.1))
        longest = 0.0
        await cluster.processes["c"].spawn(ask_all(4.5))
        assert longest < LONGEST, "those that the map prefers have taken over"
        for turn in range(6):
            asking = cluster.processes["c"].spawn(ask_all(0.1))
            await asyncio.sleep(0.05 + 0.0031 * turn)
            leaders = cluster.leaders()
            group = 1 + turn % 3
            node = cluster.nodes[leaders[group]].node
            assert node is not None
            other = sorted(cluster.nodes)[(leaders[group] + turn // 3) % 3]
            assert node._replicas.data[group].group.transfer(other)
            await asking
            assert cluster.leaders()[group] == other
        assert longest < LONGEST
        assert loop.problems == []

    simulate(main)
