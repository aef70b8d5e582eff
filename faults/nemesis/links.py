"""Faults of links: which ways are cut, between nodes and between clients and nodes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from faults.driver import CUTS, Driver, Effect, How, Way, host, names
from faults.nemesis import topology
from faults.nemesis.fault import Fault, Hold, Maker, length
from faults.nemesis.nodes import leading
from faults.nemesis.topology import apart, majority, minority


class CutShape(NamedTuple):
    """Ways to cut. ``what``: for people. ``targets`` and ``group``: see :class:`Fault`."""

    ways: list[Way]
    what: str
    targets: Sequence[int]
    group: int | None = None


Draw = Callable[[Driver, random.Random], CutShape | None]


def on_links(draw: Draw, hold: Hold, hows: Sequence[How] = CUTS) -> Maker[Driver]:
    """The ways of a shape are cut, in one of these manners."""

    def make(driver: Driver, rng: random.Random) -> Fault | None:
        shape = draw(driver, rng)
        if shape is None:
            return None
        how = rng.choice(hows)
        targets = tuple(sorted(shape.targets))
        return Fault(f"{shape.what}, {how}", targets, shape.group, hold(rng), lambda: driver.cut(shape.ways, how))

    return make


def flapping(draw: Draw, hold: Hold, how: How) -> Maker[Driver]:
    """The ways break and heal again and again, for moments or nearly a second."""

    def make(driver: Driver, rng: random.Random) -> Fault | None:
        shape = draw(driver, rng)
        if shape is None:
            return None
        times, seen, wanted = 0, "", rng.randint(3, 12)

        async def flap() -> str:
            # Each look for a proof flaps: the looks are the flapping.
            nonlocal times, seen
            effect = await driver.cut(shape.ways, how)
            if effect is None:
                return ""
            await asyncio.sleep(length(rng, 0.01, 0.8))
            seen = seen or await effect.shown()
            await effect.end()
            await asyncio.sleep(length(rng, 0.01, 0.5))
            times += 1
            return f"{times} times; {seen}" if seen and times >= wanted else ""

        async def inject() -> Effect:
            return Effect(flap)

        return Fault(f"{shape.what}, on and off", tuple(shape.targets), shape.group, hold(rng), inject)

    return make


# -- between nodes


def in_order(driver: Driver, rng: random.Random, aim: float) -> tuple[list[int], int | None]:
    """All nodes in some order; in that share of cases a leader comes first, and the group that it leads is told."""
    nodes = list(driver.nodes)
    rng.shuffle(nodes)
    found = leading(driver, rng) if rng.random() < aim else None
    if found is None:
        return nodes, None
    return sorted(nodes, key=lambda node: node != found[1]), found[0]


def isolated(driver: Driver, rng: random.Random) -> CutShape | None:
    """A leader hears and reaches no other node; clients still reach it."""
    nodes, group = in_order(driver, rng, 1.0)
    return None if group is None else _around(nodes, len(nodes), group)


def loose(aim: float) -> Draw:
    """A node and some others; a leader in that share of cases."""

    def draw(driver: Driver, rng: random.Random) -> CutShape | None:
        nodes, group = in_order(driver, rng, aim)
        return _around(nodes, rng.randint(2, len(nodes)), group) if len(nodes) > 1 else None

    return draw


def _around(nodes: Sequence[int], count: int, group: int | None) -> CutShape:
    """All links between the first of so many nodes and the others of them, both ways."""
    one, *others = nodes[:count]
    return CutShape(apart([host(one)], [*map(host, others)]), f"{host(one)} from {names(sorted(others))}", [one], group)


def split(aim: float, *, clients: bool = False) -> Draw:
    """A majority of the nodes from the others, with a leader among the few in that share of cases, so that somebody may
    still take it for one. ``clients``: some of them are on one side only."""

    def draw(driver: Driver, rng: random.Random) -> CutShape | None:
        nodes, _ = in_order(driver, rng, aim)
        if len(nodes) < 2:
            return None
        size = rng.randint(1, max(1, minority(len(nodes))))
        few, many = sorted(nodes[:size]), sorted(nodes[size:])
        sides = [[*map(host, few)], [*map(host, many)]]
        for client in driver.clients if clients else ():
            if (where := rng.randrange(4)) < 2:
                sides[where].append(client)
        return CutShape(apart(*sides), f"{', '.join(sides[0])} from {', '.join(sides[1])}", few)

    return draw


def one_way(aim: float) -> Draw:
    """Messages pass in one direction only."""

    def draw(driver: Driver, rng: random.Random) -> CutShape | None:
        nodes, group = in_order(driver, rng, aim)
        if len(nodes) < 2:
            return None
        ways, shape = topology.one_way([*map(host, nodes)], rng)
        one, other = map(host, nodes[:2])
        told = {"deaf": f"{one} hears nobody", "dumb": f"nobody hears {one}", "link": f"{other} does not hear {one}"}
        return CutShape(ways, told[shape], nodes[:1], group)

    return draw


def bridge(driver: Driver, rng: random.Random) -> CutShape | None:
    """Two halves that only one node reaches both of."""
    nodes, _ = in_order(driver, rng, 0.0)
    if len(nodes) < 3:
        return None
    left, right = map(sorted, topology.halves(nodes))
    what = f"{names(left)} from {names(right)}, {host(nodes[0])} reaches all"
    return CutShape(apart([*map(host, left)], [*map(host, right)]), what, nodes[:1])


def ring(driver: Driver, rng: random.Random) -> CutShape | None:
    """Each node reaches a majority, and no two nodes the same one; needs five nodes."""
    nodes, _ = in_order(driver, rng, 0.0)
    ways = topology.ring([*map(host, nodes)])
    return CutShape(ways, f"all but neighbours in {names(nodes)}", nodes) if ways else None


# -- clients


def client_cut_off(driver: Driver, rng: random.Random) -> CutShape | None:
    """A client does not reach a leader, a majority of the nodes, or any of them."""
    nodes, group = in_order(driver, rng, 1.0)
    if group is None or not driver.clients:
        return None
    client = rng.choice(driver.clients)
    who, size = rng.choice((("the leader", 1), ("a majority", majority(len(nodes))), ("all", len(nodes))))
    if size > 1:
        rng.shuffle(nodes)
    chosen = sorted(nodes[:size])
    what = f"{client} from {who}: {names(chosen)}"
    return CutShape(apart([client], [*map(host, chosen)]), what, chosen, group if size == 1 else None)


def isolated_with_client(driver: Driver, rng: random.Random) -> CutShape | None:
    """A leader and a client reach each other, and nobody else. The client has something to ask of that leader."""
    found = leading(driver, rng, of_keys=True)
    if found is None or not driver.clients:
        return None
    group, one = found
    client = rng.choice(driver.clients)
    others = [host(node) for node in driver.nodes if node != one]
    return CutShape(apart([host(one), client], others), f"{host(one)} and {client} from all others", [one], group)


def answers(share: float) -> Draw:
    """A client's calls reach the nodes and are executed; it hears nothing. ``share``: of cases in which only leaders
    cannot answer."""

    def draw(driver: Driver, rng: random.Random) -> CutShape | None:
        leaders = sorted(set(driver.leaders().values()) & {*driver.nodes})
        nodes = leaders if leaders and rng.random() < share else driver.nodes
        if not nodes or not driver.clients:
            return None
        client = rng.choice(driver.clients)
        return CutShape([(host(node), client) for node in nodes], f"{client} hears nothing of {names(nodes)}", ())

    return draw
