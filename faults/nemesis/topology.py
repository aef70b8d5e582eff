"""Shapes of cuts between nodes, for simulated and real clusters.

A cut is a list of ways: what the first node of a way says does not reach the second. Whoever plays a special part comes
first among the nodes.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Literal, TypeVar

N = TypeVar("N")


def minority(count: int) -> int:
    """The most of so many nodes that may be missing."""
    return (count - 1) // 2


def majority(count: int) -> int:
    """The fewest of so many nodes that can decide."""
    return count // 2 + 1


def apart(ones: Iterable[N], others: Sequence[N]) -> list[tuple[N, N]]:
    """None of the ones and none of the others reach each other."""
    return [way for one in ones for other in others for way in ((one, other), (other, one))]


def halves(nodes: Sequence[N]) -> tuple[list[N], list[N]]:
    """All but the first node in two parts: apart, only it reaches both, a bridge."""
    half = minority(len(nodes))
    return [*nodes[1 : 1 + half]], [*nodes[1 + half :]]


def ring(nodes: Sequence[N]) -> list[tuple[N, N]]:
    """Each node reaches a majority, its neighbours, and no two nodes the same one. Fewer than five are all neighbours,
    or nearly so: then nothing."""
    count = len(nodes)
    reach = majority(count) // 2
    if count < 5:
        return []
    return [
        (one, other)
        for at, one in enumerate(nodes)
        for place, other in enumerate(nodes)
        if min((at - place) % count, (place - at) % count) > reach
    ]


def one_way(nodes: Sequence[N], rng: random.Random) -> tuple[list[tuple[N, N]], Literal["deaf", "dumb", "link"]]:
    """Messages pass in one direction only: the first node hears nobody, or nobody hears it, or the second does not."""
    one, others = nodes[0], nodes[1:]
    shape: Literal["deaf", "dumb", "link"] = rng.choice(("deaf", "dumb", "link"))
    if shape == "deaf":
        return [(other, one) for other in others], shape
    return [(one, other) for other in (others if shape == "dumb" else others[:1])], shape
