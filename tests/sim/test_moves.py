"""Guarantee: whoever dies at whatever step of a move, and whenever it is cancelled, each slot has one owner in the end
and nothing is lost."""

from __future__ import annotations

import asyncio
import random

import pytest

from faults.sim.admin import SimAdmin
from faults.sim.cluster import SimCluster, SimNode
from faults.sim.loop import SimLoop, simulate
from faults.sim.moving import MoveStage, Trouble, run_move
from raftkv.commands.base import GroupCommand
from raftkv.commands.moving import Freeze
from raftkv.commands.results import Result
from shards.map import ShardMap
from shards.slots import slot_of


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("trouble", list(Trouble))
@pytest.mark.parametrize("step", list(MoveStage))
def test_trouble_at_every_step(step: MoveStage, trouble: Trouble, after: bool) -> None:
    course = run_move(step, trouble, after=after)
    assert course.struck
    assert course.problems == [], "\n".join([*course.problems, *course.trace[-200:]])
    if trouble is not Trouble.CANCEL:
        assert course.moved == 24


def test_a_cancelled_move_serves_again_although_its_target_has_lost_its_majority() -> None:
    """The driver asked the target how far it was before it let the source go on."""

    async def main(loop: SimLoop) -> None:
        cluster = SimCluster(loop, random.Random("cancel"), nodes=5, groups=2)
        admin = SimAdmin(cluster, random.Random("operator"))
        await cluster.start()
        shard_map = await map_of(admin)
        source, target = (set(shard_map.group(group).voters) for group in (1, 2))
        gone = sorted(target - source)
        assert len(gone) == 2, "the target's majority is not needed by the source"
        slots = shard_map.slots_of(1)[:4]
        key = next(name for n in range(9999) if slot_of((name := f"k{n}").encode(), shard_map.slots) in slots)
        client = cluster.client("c1")
        await cluster.processes["c1"].spawn(client.put(key, b"before"))
        frozen = asyncio.Event()
        for node in cluster.nodes.values():
            watch_freezes(node, frozen)
        assert (await admin.tell("plan", shard_map.epoch, [[list(slots), 1, 2]], 1, 0)).outcome == "done"
        await asyncio.wait_for(frozen.wait(), 10.0)
        for number in gone:
            cluster.kill(number, power_loss=False)
        assert (await admin.tell("cancel")).outcome == "done"
        await cluster.processes["c1"].spawn(client.put(key, b"after", timeout=10.0))
        state = await admin.look()
        assert state is not None
        assert state.map is not None
        assert state.map.owners[slots[0]] == 1
        await cluster.processes["c1"].spawn(client.close())

    simulate(main)


def watch_freezes(node: SimNode, frozen: asyncio.Event) -> None:
    """Tell of the first freeze that any driver has had acknowledged, before it goes on."""
    assert node.node is not None
    mover = node.node._mover
    ask = mover._ask

    async def heard(op: GroupCommand) -> Result:
        result = await ask(op)
        if isinstance(op, Freeze):
            frozen.set()
            await asyncio.sleep(0)
        return result

    mover._ask = heard


async def map_of(admin: SimAdmin) -> ShardMap:
    state = await admin.look()
    assert state is not None
    assert state.map is not None
    return state.map
