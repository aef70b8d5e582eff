"""The faults: what each does to a real cluster, how it is seen that it took effect, and how it is undone.

A maker looks at the cluster as it is and returns one fault, or None if there is nothing to do it to now.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Final

from faults.process.abusers import flood, idle_sockets, large_answers
from faults.process.cuts import (
    BANDWIDTH,
    LATENCY,
    SLICER,
    bridge,
    cut_client,
    flapping,
    isolate_leader,
    isolate_with_client,
    lose_answers,
    one_way,
    ring,
    slow_close,
    split,
)
from faults.process.fault import Fault, Maker, names, some_group
from faults.process.world import SPARES, World
from faults.topology import majority, minority

# -- processes


def _kill(
    kind: str, choose: Callable[[World, random.Random], tuple[list[int], int | None]], low: float, high: float
) -> Maker:
    """``low`` and ``high``: bounds in seconds for the time until they start again."""

    def make(world: World, rng: random.Random) -> Fault | None:
        nodes, group = choose(world, rng)
        if not nodes:
            return None
        led = {node: [one for one, (leader, _) in world.watcher.leaders.items() if leader == node] for node in nodes}

        async def proof() -> str:
            if any(world.cluster.pid(node) is not None for node in nodes):
                return ""
            return "; ".join(
                f"n{node} is gone" + (f", which led groups {groups}" if groups else "") for node, groups in led.items()
            )

        return Fault(
            kind,
            f"kill -9 of {names(nodes)}",
            tuple(nodes),
            group,
            inject=lambda: world.kill(nodes),
            heal=lambda: world.restart(nodes),
            proof=proof,
            hold=rng.uniform(low, high),
        )

    return make


def _leader(world: World, rng: random.Random) -> tuple[list[int], int | None]:
    found = some_group(world, rng)
    return ([found[1]], found[0]) if found else ([], None)


def _follower(world: World, rng: random.Random) -> tuple[list[int], int | None]:
    """A node that follows in a group; it leads others perhaps, if all nodes lead."""
    found = some_group(world, rng)
    if found is None:
        return [], None
    group, leader = found
    followers = [node for node in world.voters(group) if node != leader and node in world.alive]
    leading = {node for node, _ in world.watcher.leaders.values()}
    idle = [node for node in followers if node not in leading]
    return ([rng.choice(idle or followers)], group) if followers else ([], None)


def _part(size: Callable[[int], int]) -> Callable[[World, random.Random], tuple[list[int], int | None]]:
    def choose(world: World, rng: random.Random) -> tuple[list[int], int | None]:
        return sorted(rng.sample(world.alive, min(len(world.alive), size(len(world.nodes))))), None

    return choose


def _pause(kind: str, choose: Callable[[World, random.Random], tuple[list[int], int | None]], high: float) -> Maker:
    def make(world: World, rng: random.Random) -> Fault | None:
        nodes, group = choose(world, rng)
        if not nodes:
            return None

        async def inject() -> None:
            world.pause(nodes)

        async def heal() -> None:
            world.resume(nodes)

        async def proof() -> str:
            silent = [node for node in nodes if world.watcher.statuses.get(node, 0) is None]
            running = [node for node in nodes if world.cluster.pid(node) is not None]
            if silent == nodes and running == nodes:
                return f"{names(nodes)} runs as a process and answers nothing"
            return ""

        hold = 1.0 * (high / 1.0) ** rng.random()
        how = f"SIGSTOP of {names(nodes)} for {hold:.1f} s"
        return Fault(kind, how, tuple(nodes), group, inject, heal, proof, hold)

    return make


def _stop_leader(world: World, rng: random.Random) -> Fault | None:
    nodes, group = _leader(world, rng)
    if not nodes:
        return None
    (node,) = nodes
    ended: list[bool] = []

    async def inject() -> None:
        ended.append(await world.stop(node))

    async def proof() -> str:
        return f"n{node} handed over and ended by itself" if ended == [True] else ""

    how = f"SIGTERM to n{node}"
    return Fault("stop leader", how, (node,), group, inject, lambda: world.restart(nodes), proof, rng.uniform(0.5, 2.0))


# -- disks


def slow_disk(world: World, rng: random.Random) -> Fault | None:
    """Every sync of a leader's disk takes longer."""
    found = some_group(world, rng)
    if found is None or found[1] not in world.disks:
        return None
    group, leader = found
    disk, delay = world.disks[leader], rng.choice((0.02, 0.1, 0.4))

    async def inject() -> None:
        disk.tell(delay=delay)

    async def heal() -> None:
        disk.tell()
        await world.restart(world.dead())

    async def proof() -> str:
        return f"{disk.delayed} syncs took {delay} s longer" if disk.delayed else ""

    how = f"each sync of n{leader} takes {delay} s longer"
    return Fault("slow disk", how, (leader,), group, inject, heal, proof, rng.uniform(3.0, 6.0))


def full_disk(world: World, rng: random.Random) -> Fault | None:
    """A leader's disk has no room: it leads nothing, waits where it must have some, and goes on when there is room."""
    found = some_group(world, rng)
    if found is None or found[1] not in world.disks:
        return None
    group, leader = found
    disk = world.disks[leader]

    async def inject() -> None:
        disk.tell(full=True)

    async def heal() -> None:
        disk.tell()
        await world.restart(world.dead())

    async def proof() -> str:
        return f"n{leader} was told {disk.refused} times that there is no room" if disk.refused else ""

    how = f"the disk of n{leader} is full"
    return Fault("full disk", how, (leader,), group, inject, heal, proof, rng.uniform(3.0, 8.0))


# -- nodes that never come back


def replace_node(world: World, rng: random.Random) -> Fault | None:
    """A node is lost for good with its disk, and an operator puts a new one in its place."""
    if len(world.gone) >= SPARES or world.down or world.paused:
        return None
    old = rng.choice(world.nodes)
    said: list[str] = []

    async def inject() -> None:
        await world.lose(old)
        new = await world.add_node()
        done = await asyncio.to_thread(world.admin, "node", "replace", str(old), str(new))
        if done.returncode == 0:
            said.append(f"n{new} is in the place of n{old}")

    async def heal() -> None:
        return

    async def proof() -> str:
        return "; ".join(said)

    return Fault("replace node", f"n{old} is lost for good and replaced", (old,), None, inject, heal, proof, 0.0)


COMBINED: Final = "two at once"


def together(one: Fault, other: Fault) -> Fault:
    """Both at once: the second begins when the first is in place."""

    async def inject() -> None:
        await one.inject()
        await other.inject()

    async def heal() -> None:
        await other.heal()
        await one.heal()

    proofs: dict[int, str] = {}

    async def proof() -> str:
        for number, fault in enumerate((one, other)):
            if number not in proofs and (found := await fault.proof()):
                proofs[number] = found
        return "; ".join(proofs[number] for number in sorted(proofs)) if len(proofs) == 2 else ""

    return Fault(
        COMBINED,
        f"{one.how}; {other.how}",
        tuple(sorted({*one.targets, *other.targets})),
        one.group,
        inject,
        heal,
        proof,
        max(one.hold, other.hold),
    )


_SHORT: Final = (0.5, 3.0)

FAULTS: Final[dict[str, Maker]] = {
    "kill leader": _kill("kill leader", _leader, *_SHORT),
    "kill follower": _kill("kill follower", _follower, *_SHORT),
    "kill minority": _kill("kill minority", _part(minority), 1.0, 4.0),
    "kill majority": _kill("kill majority", _part(majority), *_SHORT),
    "kill all": _kill("kill all", _part(lambda count: count), 0.0, 1.0),
    "stop leader": _stop_leader,
    "pause leader": _pause("pause leader", _leader, 10.0),
    "pause follower": _pause("pause follower", _follower, 10.0),
    "pause majority": _pause("pause majority", _part(majority), 5.0),
    "long pause": _pause("long pause", _leader, 30.0),
    "isolate leader": isolate_leader,
    "split": split,
    "one way": one_way,
    "bridge": bridge,
    "majorities ring": ring,
    "flapping": flapping,
    "latency": LATENCY,
    "bandwidth": BANDWIDTH,
    "slicer": SLICER,
    "slow close": slow_close,
    "isolate with client": isolate_with_client,
    "cut client": cut_client,
    "lose answers": lose_answers,
    "slow disk": slow_disk,
    "full disk": full_disk,
    "replace node": replace_node,
    "flood": flood,
    "idle sockets": idle_sockets,
    "large answers": large_answers,
}
"""Every kind by its name."""

SICK_DISKS: Final = ("slow disk", "full disk")
"""Kinds that not every machine allows."""
