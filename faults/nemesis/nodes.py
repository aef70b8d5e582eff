"""Faults of nodes: who is chosen, and what is done to them."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence

from faults.driver import Driver, Effect, names
from faults.nemesis.fault import D, Fault, Hold, Maker
from shards.map import META_GROUP

Choose = Callable[[D, random.Random], tuple[list[int], int | None]]
"""Nodes, none if there are none to choose, and the group because of which they were chosen."""

Act = Callable[[D, list[int], random.Random], Awaitable[Effect | None]]


def leading(driver: Driver, rng: random.Random, *, of_keys: bool = False) -> tuple[int, int] | None:
    """A group that is led, and its leader; ``of_keys``: one that clients write to."""
    able = driver.alive
    led = [
        (group, leader)
        for group, leader in sorted(driver.leaders().items())
        if leader in able and not (of_keys and group == META_GROUP)
    ]
    return rng.choice(led) if led else None


def leader(driver: Driver, rng: random.Random) -> tuple[list[int], int | None]:
    found = leading(driver, rng)
    return ([found[1]], found[0]) if found else ([], None)


def follower(driver: Driver, rng: random.Random) -> tuple[list[int], int | None]:
    """A node that follows in a group; it leads others perhaps, if all nodes lead."""
    found = leading(driver, rng)
    if found is None:
        return [], None
    group, led_by = found
    followers = [node for node in driver.voters(group) if node != led_by and node in driver.alive]
    idle = [node for node in followers if node not in driver.leaders().values()]
    return ([rng.choice(idle or followers)], group) if followers else ([], None)


def part(size: Callable[[int], int]) -> Choose[Driver]:
    """So many, of so many members."""

    def choose(driver: Driver, rng: random.Random) -> tuple[list[int], int | None]:
        alive = driver.alive
        return sorted(rng.sample(alive, min(len(alive), size(len(driver.nodes))))), None

    return choose


def aimed(aim: float) -> Choose[Driver]:
    """Any node that runs; in that share of cases one that leads, if there is one."""

    def choose(driver: Driver, rng: random.Random) -> tuple[list[int], int | None]:
        alive, leaders = driver.alive, set(driver.leaders().values())
        able = [node for node in alive if node in leaders]
        return ([rng.choice(able if able and rng.random() < aim else alive)] if alive else []), None

    return choose


def on_nodes(what: str, choose: Choose[D], act: Act[D], hold: Hold) -> Maker[D]:
    """``what``: for people, before the names of the nodes."""

    def make(driver: D, rng: random.Random) -> Fault | None:
        nodes, group = choose(driver, rng)
        if not nodes:
            return None
        return Fault(f"{what} {names(nodes)}", tuple(nodes), group, hold(rng), lambda: act(driver, nodes, rng))

    return make


async def kill(driver: Driver, nodes: Sequence[int], _: random.Random) -> Effect | None:
    return await driver.kill(nodes)


async def stop(driver: Driver, nodes: Sequence[int], _: random.Random) -> Effect | None:
    return await driver.stop(nodes[0])


async def pause(driver: Driver, nodes: Sequence[int], _: random.Random) -> Effect | None:
    return await driver.pause(nodes)


async def fill_disk(driver: Driver, nodes: Sequence[int], _: random.Random) -> Effect | None:
    return await driver.fill_disk(nodes[0])


def slow_disk(seconds: Hold) -> Act[Driver]:
    """``seconds``: by which it becomes slower."""

    async def act(driver: Driver, nodes: Sequence[int], rng: random.Random) -> Effect | None:
        return await driver.slow_disk(nodes[0], seconds(rng))

    return act
