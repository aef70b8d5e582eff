"""What a fault is, and what all makers of faults share."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from faults.process.world import World
from shards.map import META_GROUP


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


def some_group(world: World, rng: random.Random, *, of_keys: bool = False) -> tuple[int, int] | None:
    """A group that is led, and its leader; ``of_keys``: one that clients write to."""
    led = [
        (group, leader)
        for group, (leader, _) in sorted(world.watcher.leaders.items())
        if leader in world.alive and not (of_keys and group == META_GROUP)
    ]
    return rng.choice(led) if led else None


def names(nodes: Iterable[int]) -> str:
    return ", ".join(f"n{node}" for node in nodes)
