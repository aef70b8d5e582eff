"""Faults of links: between nodes, and between clients and nodes, all by Toxiproxy."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Final

from faults import topology
from faults.process.fault import Fault, Maker, names, some_group
from faults.process.toxiproxy import STREAMS
from faults.process.world import CUTS, Pair, Toxic, World
from faults.topology import apart, majority, minority
from raftkv.peer.frames import Encoder

_DEAF: Final = 0.7
"""Seconds without a word after which a direction counts as cut: nodes ping each other twice a second."""

_SLOWED: Final = 0.8
"""Part of a delay that a ping must show."""

_PING_BYTES: Final = len(Encoder().frame_of([1]))
"""What a ping and its answer have at least."""


# -- cuts between nodes


def _around(world: World, node: int) -> list[Pair]:
    """All links of a node, both ways."""
    return apart([node], [other for other in world.alive if other != node])


def _deaf(world: World, pairs: Sequence[Pair]) -> str:
    """Says so if whoever should not hear hears nothing."""
    silences = [silence for a, b in pairs if (silence := world.watcher.silence(b, a)) is not None]
    if not silences or min(silences) < _DEAF:
        return ""
    return f"none of the {len(silences)} directions that are cut was heard for {_DEAF} s"


def _some_cut(rng: random.Random) -> tuple[str, Toxic]:
    way = rng.choice(sorted(CUTS))
    return way, CUTS[way]


def _cut(
    kind: str, world: World, rng: random.Random, pairs: list[Pair], targets: Sequence[int], what: str, group: int | None
) -> Fault:
    way, toxic = _some_cut(rng)
    return _laid(kind, world, pairs, targets, f"{what}, {way}", group, toxic, rng.uniform(2.0, 5.0))


def _laid(
    kind: str,
    world: World,
    pairs: list[Pair],
    targets: Sequence[int],
    how: str,
    group: int | None,
    toxic: Toxic,
    hold: float,
    seen: Callable[[World, Sequence[Pair]], str] = _deaf,
) -> Fault:
    """``seen``: says so if the links show that the toxic lies on them."""

    async def proof() -> str:
        return seen(world, pairs)

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
    found = some_group(world, rng)
    if found is None:
        return None
    group, leader = found
    what = f"n{leader} from all other nodes"
    return _cut("isolate leader", world, rng, _around(world, leader), [leader], what, group)


def split(world: World, rng: random.Random) -> Fault | None:
    """A majority of the nodes from the others, with a leader among the few if possible."""
    nodes = world.alive
    rng.shuffle(nodes)
    found = some_group(world, rng)
    if found is not None:
        nodes.sort(key=lambda node: node != found[1])
    few, many = nodes[: minority(len(nodes))], nodes[minority(len(nodes)) :]
    if not few:
        return None
    pairs = apart(few, many)
    return _cut("split", world, rng, pairs, few, f"{names(sorted(few))} from {names(sorted(many))}", None)


def one_way(world: World, rng: random.Random) -> Fault | None:
    """Messages pass in one direction only."""
    nodes = world.alive
    rng.shuffle(nodes)
    found = some_group(world, rng)
    if found is not None and rng.random() < 0.6:
        nodes.sort(key=lambda node: node != found[1])
    if len(nodes) < 2:
        return None
    one, other, *_ = nodes
    pairs, shape = topology.one_way(nodes, rng)
    told = {"deaf": f"n{one} hears nobody", "dumb": f"nobody hears n{one}", "link": f"n{other} does not hear n{one}"}
    what = told[shape]
    # A reset tells both ends, which is no cut of one way.
    return _laid("one way", world, pairs, [one], f"{what}, black hole", None, CUTS["black hole"], rng.uniform(2.0, 5.0))


def bridge(world: World, rng: random.Random) -> Fault | None:
    """Two halves that only one node reaches both of."""
    nodes = world.alive
    rng.shuffle(nodes)
    if len(nodes) < 3:
        return None
    left, right = topology.halves(nodes)
    pairs = apart(left, right)
    what = f"{names(sorted(left))} from {names(sorted(right))}, n{nodes[0]} reaches all"
    return _cut("bridge", world, rng, pairs, nodes[:1], what, None)


def ring(world: World, rng: random.Random) -> Fault | None:
    """Each node reaches a majority, and no two nodes the same one; needs five nodes."""
    nodes = world.alive
    rng.shuffle(nodes)
    pairs = topology.ring(nodes)
    if not pairs:
        return None
    return _cut("majorities ring", world, rng, pairs, nodes, f"all but neighbours in {names(nodes)}", None)


def flapping(world: World, rng: random.Random) -> Fault | None:
    """A node's links break and heal several times a second to several seconds."""
    found = some_group(world, rng)
    if found is None:
        return None
    group, leader = found
    others = [node for node in world.alive if node != leader]
    pairs = apart([leader], rng.sample(others, rng.randint(1, len(others))))
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

    what = f"n{leader} from {names(sorted({b for a, b in pairs if a == leader}))}, on and off"
    return Fault("flapping", what, (leader,), group, flip, heal, proof, rng.uniform(4.0, 7.0))


# -- sick links


def _sick(kind: str, sickness: Callable[[random.Random], tuple[Toxic, str, float]]) -> Maker:
    """``sickness``: what to lay on every link of one node, in words, and how long a ping must take then, in seconds."""

    def make(world: World, rng: random.Random) -> Fault | None:
        found = some_group(world, rng)
        if found is None:
            return None
        group, leader = found
        toxic, what, slow = sickness(rng)

        def slowed(world: World, pairs: Sequence[Pair]) -> str:
            worst = max(world.watcher.round_trip(a, b) for a, b in pairs)
            return f"a ping takes {worst:.3f} s" if worst >= slow else ""

        how = f"{what} on all links of n{leader}"
        hold = rng.uniform(3.0, 6.0)
        return _laid(kind, world, _around(world, leader), [leader], how, group, toxic, hold, slowed)

    return make


def _latency(rng: random.Random) -> tuple[Toxic, str, float]:
    delay = rng.choice((30, 80, 150))
    jitter = delay // 2
    toxic = Toxic("latency", (("latency", delay), ("jitter", jitter)))
    # Two directions, each delayed by delay - jitter at least.
    return toxic, f"{delay} ms latency with {jitter} ms jitter", _SLOWED * 2 * (delay - jitter) / 1000


def _bandwidth(rng: random.Random) -> tuple[Toxic, str, float]:
    # So little that a ping alone takes a while: what else the links carry is up to the clients.
    rate = rng.choice((1, 2, 4))
    return Toxic("bandwidth", (("rate", rate),)), f"{rate} KB/s", 2 * _PING_BYTES / (rate * 1000)


def _slicer(rng: random.Random) -> tuple[Toxic, str, float]:
    size, delay = rng.choice((16, 64)), rng.choice((1_000, 5_000))
    toxic = Toxic("slicer", (("average_size", size), ("size_variation", size // 2), ("delay", delay)))
    return toxic, f"slices of about {size} bytes, {delay} us apart", 2 * delay / 1e6


LATENCY: Final = _sick("latency", _latency)
BANDWIDTH: Final = _sick("bandwidth", _bandwidth)
SLICER: Final = _sick("slicer", _slicer)


def slow_close(world: World, rng: random.Random) -> Fault | None:
    """A leader is killed, and the others' connections from it stay open as if it lived."""
    found = some_group(world, rng)
    if found is None:
        return None
    group, leader = found
    others = [node for node in world.alive if node != leader]
    pairs = _around(world, leader)
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
        return f"n{leader} is gone, {names(open_still)} still holds its connection"

    what = f"kill -9 of n{leader}, its connections close 4 s later"
    return Fault("slow close", what, (leader,), group, inject, heal, proof, rng.uniform(2.0, 4.0))


# -- clients


async def _shut(world: World, client: str, nodes: Sequence[int]) -> str:
    """Says so if no call of the client is answered by any of the nodes."""
    if any([await world.door_open(client, node) for node in nodes]):
        return ""
    return f"no call of {client} is answered by {names(sorted(nodes))}"


def cut_client(world: World, rng: random.Random) -> Fault | None:
    """A client does not reach a leader, a majority of the nodes, or any of them."""
    found = some_group(world, rng)
    if found is None or not world.shape.clients:
        return None
    group, leader = found
    client = rng.choice(world.shape.clients)
    nodes = world.alive
    rng.shuffle(nodes)
    shape = rng.choice(("the leader", "a majority", "all"))
    chosen = {"the leader": [leader], "a majority": nodes[: majority(len(nodes))], "all": nodes}[shape]
    way, toxic = _some_cut(rng)

    async def proof() -> str:
        return await _shut(world, client, chosen)

    return Fault(
        "cut client",
        f"{client} from {shape}: {names(sorted(chosen))}, {way}",
        tuple(sorted(chosen)),
        group if shape == "the leader" else None,
        inject=lambda: world.shut(client, chosen, toxic),
        heal=lambda: world.open(client, chosen, toxic),
        proof=proof,
        hold=rng.uniform(2.0, 5.0),
    )


def lose_answers(world: World, rng: random.Random) -> Fault | None:
    """A client's calls reach the nodes and are executed; it hears nothing, and its connections end."""
    if not world.alive or not world.shape.clients:
        return None
    client = rng.choice(world.shape.clients)
    nodes = world.alive
    _, answers = STREAMS
    toxic = Toxic("timeout", (("timeout", rng.choice((200, 600))),))

    async def inject() -> None:
        await world.shut(client, nodes, toxic, (answers,))

    async def heal() -> None:
        await world.open(client, nodes, toxic, (answers,))

    async def proof() -> str:
        return await _shut(world, client, nodes)

    how = f"{client} hears no answers, its connections end"
    return Fault("lose answers", how, (), None, inject, heal, proof, rng.uniform(0.8, 2.0))


def isolate_with_client(world: World, rng: random.Random) -> Fault | None:
    """A leader and a client reach each other, and nobody else. The client has something to ask of that leader."""
    found = some_group(world, rng, of_keys=True)
    if found is None or not world.shape.clients:
        return None
    group, leader = found
    client = rng.choice(world.shape.clients)
    others = [node for node in world.alive if node != leader]
    pairs = _around(world, leader)
    way, toxic = _some_cut(rng)

    async def inject() -> None:
        await asyncio.gather(world.cut(pairs, toxic), world.shut(client, others, toxic))

    async def heal() -> None:
        await asyncio.gather(world.mend(pairs, toxic), world.open(client, others, toxic))

    async def proof() -> str:
        deaf = _deaf(world, pairs)
        if not deaf or not await world.door_open(client, leader):
            return ""
        shut = await _shut(world, client, others)
        return f"{deaf}; {shut}" if shut else ""

    how = f"n{leader} and {client} from all others, {way}"
    return Fault("isolate with client", how, (leader,), group, inject, heal, proof, rng.uniform(2.0, 5.0))
