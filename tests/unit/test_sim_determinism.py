"""The same seed gives the same run, whatever the hash seed and whatever ran before."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from pathlib import Path

from faults.sim.cluster import SimCluster
from faults.sim.loop import SimLoop, simulate
from raftkv.errors import RaftKVError


def story(seed: int) -> str:
    """A digest of all that happens while a cluster has a bad day."""

    async def main(loop: SimLoop) -> str:
        rng = random.Random(seed)
        cluster = SimCluster(loop, rng, nodes=3, groups=2)
        await cluster.start()
        names = ["c1", "c2"]

        async def work(name: str) -> None:
            client = cluster.client(name, timeout=2.0)
            async with client:
                for step in range(60):
                    key = f"k{rng.randrange(8)}"
                    try:
                        if step % 3:
                            found = await client.get(key)
                            cluster.trace.note(f"{name} {key} {found and found.version}")
                        else:
                            await client.put(key, f"{name}-{step}" * 10)
                    except RaftKVError as error:
                        cluster.trace.note(f"{name} {error!r}")
                    await asyncio.sleep(rng.uniform(0.0, 0.1))

        tasks = [asyncio.create_task(work(name)) for name in names]
        cluster.network.conditions.loss = 0.02  # type: ignore[union-attr]
        for node, power_loss in ((1, False), (2, True)):
            cluster.set_rate(node, 1.03)
            cluster.kill(node, power_loss=power_loss)
            await asyncio.sleep(1.0)
            cluster.restart(node)
            cluster.network.cut("n3", "c1", one_way=True)
            cluster.pause(3)
            await asyncio.sleep(0.5)
            cluster.resume(3)
            cluster.network.heal()
            cluster.network.reset("n1", "n3")
        await asyncio.gather(*tasks)
        return f"{cluster.trace.digest()} {loop.callbacks} {loop.time()}"

    return simulate(main)


def elsewhere(seed: int, hash_seed: int) -> str:
    """The story told by another interpreter."""
    command = [sys.executable, "-c", f"from tests.unit.test_sim_determinism import story; print(story({seed}))"]
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed)}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    ).stdout.strip()


def test_the_same_seed_gives_the_same_trace_under_other_hash_seeds() -> None:
    assert elsewhere(1, 1) == elsewhere(1, 2) == story(1)


def test_what_ran_before_in_the_process_makes_no_difference() -> None:
    first = story(2)
    assert story(3) != first, "another seed is another run"
    assert story(2) == first
