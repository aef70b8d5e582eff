"""The faults: what each does to a real cluster, how it is seen that it took effect, and how it is undone.

A maker looks at the cluster as it is and returns one fault, or None if there is nothing to do it to now.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from faults.process.world import CUTS, SPARES, Pair, Toxic, World

_DEAF: Final = 0.7
"""Seconds without a word after which a direction counts as cut: nodes ping each other twice a second."""

_SLOWED: Final = 0.8
"""Part of a delay that a ping must show."""


@dataclass(slots=True)
class Fault:
    """One fault. ``how``: for people. ``targets``: nodes. ``group``: the one that it aims at.

    ``proof``: what shows that it took effect, nothing as long as nothing does; it is asked while the fault lasts.
    ``hold``: seconds that it lasts at least.
    """

    kind: str
    how: str
    targets: tuple[int, ...]
    group: int | None
    inject: Callable[[], Awaitable[None]]
    heal: Callable[[], Awaitable[None]]
    proof: Callable[[], Awaitable[str]]
    hold: float


Maker = Callable[[World, random.Random], Fault | None]


def _some_group(world: World, rng: random.Random) -> tuple[int, int] | None:
    """A group that is led, and its leader."""
    led = [(group, leader) for group, (leader, _) in sorted(world.watcher.leaders.items()) if leader in world.alive]
    return rng.choice(led) if led else None


def _names(nodes: Iterable[int]) -> str:
    return ", ".join(f"n{node}" for node in nodes)


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
            f"kill -9 of {_names(nodes)}",
            tuple(nodes),
            group,
            inject=lambda: world.kill(nodes),
            heal=lambda: world.restart(nodes),
            proof=proof,
            hold=rng.uniform(low, high),
        )

    return make


def _leader(world: World, rng: random.Random) -> tuple[list[int], int | None]:
    found = _some_group(world, rng)
    return ([found[1]], found[0]) if found else ([], None)


def _follower(world: World, rng: random.Random) -> tuple[list[int], int | None]:
    """A node that follows in a group; it leads others perhaps, if all nodes lead."""
    found = _some_group(world, rng)
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


def _minority(count: int) -> int:
    return (count - 1) // 2


def _majority(count: int) -> int:
    return count // 2 + 1


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
                return f"{_names(nodes)} runs as a process and answers nothing"
            return ""

        hold = 1.0 * (high / 1.0) ** rng.random()
        how = f"SIGSTOP of {_names(nodes)} for {hold:.1f} s"
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


# -- cuts between nodes


def both_ways(pairs: Iterable[Pair]) -> list[Pair]:
    """Each pair and its reverse."""
    return [way for a, b in pairs for way in ((a, b), (b, a))]


def _deaf(world: World, pairs: Sequence[Pair]) -> str:
    """Says so if whoever should not hear hears nothing."""
    silences = [silence for a, b in pairs if (silence := world.watcher.silence(b, a)) is not None]
    if not silences or min(silences) < _DEAF:
        return ""
    return f"none of the {len(silences)} directions that are cut was heard for {_DEAF} s"


def _cut(
    kind: str, world: World, rng: random.Random, pairs: list[Pair], targets: Sequence[int], what: str, group: int | None
) -> Fault:
    way = rng.choice(sorted(CUTS))
    return _laid(kind, world, pairs, targets, f"{what}, {way}", group, CUTS[way], rng.uniform(2.0, 5.0))


def _laid(
    kind: str,
    world: World,
    pairs: list[Pair],
    targets: Sequence[int],
    how: str,
    group: int | None,
    toxic: Toxic,
    hold: float,
) -> Fault:
    async def proof() -> str:
        return _deaf(world, pairs)

    return Fault(
        kind,
        how,
        tuple(targets),
        group,
        inject=lambda: world.cut(pairs, toxic),
        heal=lambda: world.mend(pairs, toxic),
        proof=proof,
        hold=hold,
    )


def isolate_leader(world: World, rng: random.Random) -> Fault | None:
    """A leader hears and reaches no other node; clients still reach it."""
    found = _some_group(world, rng)
    if found is None:
        return None
    group, leader = found
    pairs = both_ways((leader, node) for node in world.alive if node != leader)
    return _cut("isolate leader", world, rng, pairs, [leader], f"n{leader} from all other nodes", group)


def split(world: World, rng: random.Random) -> Fault | None:
    """A majority of the nodes from the others, with a leader among the few if possible."""
    nodes = world.alive
    rng.shuffle(nodes)
    found = _some_group(world, rng)
    if found is not None:
        nodes.sort(key=lambda node: node != found[1])
    few, many = nodes[: _minority(len(nodes))], nodes[_minority(len(nodes)) :]
    if not few:
        return None
    pairs = both_ways((a, b) for a in few for b in many)
    return _cut("split", world, rng, pairs, few, f"{_names(sorted(few))} from {_names(sorted(many))}", None)


def one_way(world: World, rng: random.Random) -> Fault | None:
    """Messages pass in one direction only."""
    nodes = world.alive
    rng.shuffle(nodes)
    found = _some_group(world, rng)
    if found is not None and rng.random() < 0.6:
        nodes.sort(key=lambda node: node != found[1])
    one, others = nodes[0], nodes[1:]
    if not others:
        return None
    shape = rng.choice(("deaf", "dumb", "to one"))
    if shape == "deaf":
        pairs, what = [(other, one) for other in others], f"n{one} hears nobody"
    elif shape == "dumb":
        pairs, what = [(one, other) for other in others], f"nobody hears n{one}"
    else:
        pairs, what = [(one, others[0])], f"n{others[0]} does not hear n{one}"
    # A reset tells both ends, which is no cut of one way.
    return _laid("one way", world, pairs, [one], f"{what}, black hole", None, CUTS["black hole"], rng.uniform(2.0, 5.0))


def bridge(world: World, rng: random.Random) -> Fault | None:
    """Two halves that only one node reaches both of."""
    nodes = world.alive
    rng.shuffle(nodes)
    if len(nodes) < 3:
        return None
    half = (len(nodes) - 1) // 2
    left, right = nodes[1 : 1 + half], nodes[1 + half :]
    pairs = both_ways((a, b) for a in left for b in right)
    what = f"{_names(sorted(left))} from {_names(sorted(right))}, n{nodes[0]} reaches all"
    return _cut("bridge", world, rng, pairs, nodes[:1], what, None)


def ring(world: World, rng: random.Random) -> Fault | None:
    """Each node reaches a majority, and no two nodes the same one; needs five nodes."""
    nodes = world.alive
    rng.shuffle(nodes)
    count = len(nodes)
    if count < 5:
        return None
    reach = _majority(count) // 2
    pairs = [
        (a, b)
        for at, a in enumerate(nodes)
        for place, b in enumerate(nodes)
        if min((at - place) % count, (place - at) % count) > reach
    ]
    return _cut("majorities ring", world, rng, pairs, nodes, f"all but neighbours in {_names(nodes)}", None)


def flapping(world: World, rng: random.Random) -> Fault | None:
    """A node's links break and heal several times a second to several seconds."""
    found = _some_group(world, rng)
    if found is None:
        return None
    group, leader = found
    others = [node for node in world.alive if node != leader]
    pairs = both_ways((leader, node) for node in rng.sample(others, rng.randint(1, len(others))))
    toxic = CUTS["reset"]
    seen: list[int] = []

    async def flip() -> None:
        if len(seen) % 2:
            await world.mend(pairs, toxic)
        else:
            await world.cut(pairs, toxic)
        seen.append(len(seen))

    async def heal() -> None:
        if len(seen) % 2:
            await flip()

    heard = 0

    async def proof() -> str:
        # Each look flips: the looks are the flapping.
        nonlocal heard
        if rng.random() < 0.15:
            await flip()
        heard += any((world.watcher.silence(b, a) or 0.0) >= _DEAF for a, b in pairs)
        return f"flipped {len(seen)} times, connections were lost" if len(seen) >= 4 and heard else ""

    what = f"n{leader} from {_names(sorted({b for a, b in pairs if a == leader}))}, on and off"
    return Fault("flapping", what, (leader,), group, flip, heal, proof, rng.uniform(4.0, 7.0))


# -- sick links


def _sick(kind: str, toxics: Callable[[random.Random], tuple[list[Toxic], str, float]]) -> Maker:
    """``toxics``: what to lay on every link of one node, in words, and how long a ping must take then, in seconds."""

    def make(world: World, rng: random.Random) -> Fault | None:
        found = _some_group(world, rng)
        if found is None:
            return None
        group, leader = found
        laid, what, slow = toxics(rng)
        pairs = both_ways((leader, node) for node in world.alive if node != leader)

        async def inject() -> None:
            for toxic in laid:
                await world.cut(pairs, toxic)

        async def heal() -> None:
            for toxic in laid:
                await world.mend(pairs, toxic)

        async def proof() -> str:
            worst = max(world.watcher.round_trip(a, b) for a, b in pairs)
            return f"a ping takes {worst:.3f} s" if worst >= slow else ""

        how = f"{what} on all links of n{leader}"
        return Fault(kind, how, (leader,), group, inject, heal, proof, rng.uniform(3.0, 6.0))

    return make


def _latency(rng: random.Random) -> tuple[list[Toxic], str, float]:
    delay = rng.choice((30, 80, 150))
    jitter = delay // 2
    toxic = Toxic("latency", (("latency", delay), ("jitter", jitter)))
    # Two directions, each delayed by delay - jitter at least.
    return [toxic], f"{delay} ms latency with {jitter} ms jitter", _SLOWED * 2 * (delay - jitter) / 1000


def _bandwidth(rng: random.Random) -> tuple[list[Toxic], str, float]:
    rate = rng.choice((8, 20, 50))
    return [Toxic("bandwidth", (("rate", rate),))], f"{rate} KB/s", 0.01


def _slicer(rng: random.Random) -> tuple[list[Toxic], str, float]:
    size, delay = rng.choice((16, 64)), rng.choice((1_000, 5_000))
    toxic = Toxic("slicer", (("average_size", size), ("size_variation", size // 2), ("delay", delay)))
    return [toxic], f"slices of about {size} bytes, {delay} us apart", 2 * delay / 1e6


def slow_close(world: World, rng: random.Random) -> Fault | None:
    """A leader is killed, and the others' connections from it stay open as if it lived."""
    found = _some_group(world, rng)
    if found is None:
        return None
    group, leader = found
    others = [node for node in world.alive if node != leader]
    pairs = both_ways((leader, node) for node in others)
    toxic = Toxic("slow_close", (("delay", 4_000),))

    async def inject() -> None:
        await world.cut(pairs, toxic)
        await world.kill([leader])

    async def heal() -> None:
        await world.mend(pairs, toxic)
        await world.restart([leader])

    async def proof() -> str:
        open_still = [
            node for node in others if (silence := world.watcher.silence(node, leader)) and _DEAF <= silence < 1e9
        ]
        if world.cluster.pid(leader) is not None or not open_still:
            return ""
        return f"n{leader} is gone, {_names(open_still)} still holds its connection"

    what = f"kill -9 of n{leader}, its connections close 4 s later"
    return Fault("slow close", what, (leader,), group, inject, heal, proof, rng.uniform(2.0, 4.0))


# -- clients


def cut_client(world: World, rng: random.Random) -> Fault | None:
    """A client does not reach a leader, a majority of the nodes, or any of them."""
    found = _some_group(world, rng)
    if found is None or not world.shape.clients:
        return None
    group, leader = found
    client = rng.choice(world.shape.clients)
    nodes = world.alive
    rng.shuffle(nodes)
    shape = rng.choice(("the leader", "a majority", "all"))
    chosen = {"the leader": [leader], "a majority": nodes[: _majority(len(nodes))], "all": nodes}[shape]
    way = rng.choice(sorted(CUTS))
    toxic = CUTS[way]

    async def proof() -> str:
        if any([await world.door_open(client, node) for node in chosen]):
            return ""
        return f"no call of {client} reaches {_names(sorted(chosen))}"

    return Fault(
        "cut client",
        f"{client} from {shape}: {_names(sorted(chosen))}, {way}",
        tuple(sorted(chosen)),
        group if shape == "the leader" else None,
        inject=lambda: world.shut(client, chosen, toxic),
        heal=lambda: world.open(client, chosen, toxic),
        proof=proof,
        hold=rng.uniform(2.0, 5.0),
    )


# -- disks


def slow_disk(world: World, rng: random.Random) -> Fault | None:
    """Every sync of a leader's disk takes longer."""
    found = _some_group(world, rng)
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
    """A leader's disk has no room; the node may end where it must have some, and comes back when there is room."""
    found = _some_group(world, rng)
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
    "kill minority": _kill("kill minority", _part(_minority), 1.0, 4.0),
    "kill majority": _kill("kill majority", _part(_majority), *_SHORT),
    "kill all": _kill("kill all", _part(lambda count: count), 0.0, 1.0),
    "stop leader": _stop_leader,
    "pause leader": _pause("pause leader", _leader, 10.0),
    "pause follower": _pause("pause follower", _follower, 10.0),
    "pause majority": _pause("pause majority", _part(_majority), 5.0),
    "long pause": _pause("long pause", _leader, 30.0),
    "isolate leader": isolate_leader,
    "split": split,
    "one way": one_way,
    "bridge": bridge,
    "majorities ring": ring,
    "flapping": flapping,
    "latency": _sick("latency", _latency),
    "bandwidth": _sick("bandwidth", _bandwidth),
    "slicer": _sick("slicer", _slicer),
    "slow close": slow_close,
    "cut client": cut_client,
    "slow disk": slow_disk,
    "full disk": full_disk,
    "replace node": replace_node,
}
"""Every kind by its name."""

SICK_DISKS: Final = ("slow disk", "full disk")
"""Kinds that not every machine allows."""
