"""The faults of real clusters by name: those of :mod:`faults.nemesis`, and what only Toxiproxy or an operator does."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from faults.driver import Effect, Way, host, names, node_at
from faults.nemesis.fault import Fault, Maker, between, spread
from faults.nemesis.links import (
    answers,
    bridge,
    client_cut_off,
    flapping,
    isolated,
    isolated_with_client,
    loose,
    on_links,
    one_way,
    ring,
    split,
)
from faults.nemesis.nodes import Choose, fill_disk, follower, kill, leader, on_nodes, part, pause, slow_disk, stop
from faults.nemesis.topology import majority, minority
from faults.process.abusers import flood, idle_sockets, large_answers
from faults.process.world import DEAF, SPARES, Toxic, World
from raftkv.peer.frames import Encoder

_SLOWED: Final = 0.8
"""Part of a delay that a ping must show."""

_PING_BYTES: Final = len(Encoder().frame_of([1]))
"""What a ping and its answer have at least."""

_SHORT: Final = between(0.5, 3.0)
_CUT: Final = between(2.0, 5.0)
_SICK: Final = between(3.0, 6.0)

# -- sick links


def _sick(sickness: Callable[[random.Random], tuple[Toxic, str, float]]) -> Maker[World]:
    """``sickness``: what to lay on every link of one node, in words, and how long a ping must take then, in seconds."""

    def make(world: World, rng: random.Random) -> Fault | None:
        shape = isolated(world, rng)
        if shape is None:
            return None
        toxic, what, slow = sickness(rng)

        def slowed() -> str:
            worst = max(world.watcher.round_trip(node_at(one), node_at(other)) for one, other in shape.ways)
            return f"a ping takes {worst:.3f} s" if worst >= slow else ""

        how = f"{what} on all links of {names(shape.targets)}"
        return Fault(how, tuple(shape.targets), shape.group, _SICK(rng), lambda: world.lay(shape.ways, toxic, slowed))

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


async def _die_slowly(world: World, nodes: list[int], _: random.Random) -> Effect:
    """A node is killed, and the others' connections from it stay open as if it lived."""
    (node,) = nodes
    others = [one for one in world.alive if one != node]
    ways: list[Way] = [way for one in others for way in ((host(node), host(one)), (host(one), host(node)))]

    async def proof() -> str:
        silences = {one: world.watcher.silence(one, node) for one in others}
        held = [one for one, silence in silences.items() if silence is not None and DEAF <= silence < 1e9]
        return f"{names(held)} still holds its connection" if held and await killed.shown() else ""

    laid = await world.lay(ways, Toxic("slow_close", (("delay", 4_000),)), proof)
    killed = await world.kill(nodes)

    async def undo() -> None:
        await laid.end()
        await killed.end()

    return replace(laid, undo=undo)


# -- nodes


def _with_disk(choose: Choose[World]) -> Choose[World]:
    """Nothing if the disk of who is chosen cannot be made sick, as that of a node that has joined."""

    def chosen(world: World, rng: random.Random) -> tuple[list[int], int | None]:
        nodes, group = choose(world, rng)
        return [node for node in nodes if node in world.disks], group

    return chosen


def _replaceable(world: World, rng: random.Random) -> tuple[list[int], int | None]:
    lacking = len(world.gone) >= SPARES or world.down or world.paused
    return ([] if lacking else [rng.choice(world.nodes)]), None


async def _replace(world: World, nodes: list[int], _: random.Random) -> Effect:
    """A node is lost for good with its disk, and an operator puts a new one in its place."""
    (old,) = nodes
    await world.wipe(old)
    new = await world.add_node()
    done = await asyncio.to_thread(world.admin, "node", "replace", str(old), str(new))
    return Effect(lambda: "" if done.returncode else f"n{new} is in the place of n{old}")


FAULTS: Final[dict[str, Maker[World]]] = {
    "kill leader": on_nodes("kill -9 of", leader, kill, _SHORT),
    "kill follower": on_nodes("kill -9 of", follower, kill, _SHORT),
    "kill minority": on_nodes("kill -9 of", part(minority), kill, between(1.0, 4.0)),
    "kill majority": on_nodes("kill -9 of", part(majority), kill, _SHORT),
    "kill all": on_nodes("kill -9 of", part(lambda count: count), kill, between(0.0, 1.0)),
    "stop leader": on_nodes("SIGTERM to", leader, stop, between(0.5, 2.0)),
    "pause leader": on_nodes("SIGSTOP of", leader, pause, spread(1.0, 10.0)),
    "pause follower": on_nodes("SIGSTOP of", follower, pause, spread(1.0, 10.0)),
    "pause majority": on_nodes("SIGSTOP of", part(majority), pause, spread(1.0, 5.0)),
    "long pause": on_nodes("SIGSTOP of", leader, pause, spread(1.0, 30.0)),
    "isolate leader": on_links(isolated, _CUT),
    "split": on_links(split(1.0), _CUT),
    # A reset tells both ends, which is no cut of one way.
    "one way": on_links(one_way(0.6), _CUT, ("black hole",)),
    "bridge": on_links(bridge, _CUT),
    "majorities ring": on_links(ring, _CUT),
    "flapping": flapping(loose(1.0), between(4.0, 7.0), "reset"),
    "latency": _sick(_latency),
    "bandwidth": _sick(_bandwidth),
    "slicer": _sick(_slicer),
    "slow close": on_nodes("connections close 4 s after a kill -9 of", leader, _die_slowly, between(2.0, 4.0)),
    "isolate with client": on_links(isolated_with_client, _CUT),
    "cut client": on_links(client_cut_off, _CUT),
    "lose answers": on_links(answers(0.0), between(0.8, 2.0), ("lost answers",)),
    "slow disk": on_nodes("slow disk of", _with_disk(leader), slow_disk(spread(0.02, 0.4)), _SICK),
    "full disk": on_nodes("full disk of", _with_disk(leader), fill_disk, between(3.0, 8.0)),
    "replace node": on_nodes("lost for good and replaced:", _replaceable, _replace, between(0.0, 0.0)),
    "flood": flood,
    "idle sockets": idle_sockets,
    "large answers": large_answers,
}
"""Every kind by its name."""

SICK_DISKS: Final = ("slow disk", "full disk")
"""Kinds that not every machine allows."""
