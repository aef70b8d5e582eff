"""Guarantee: cuts have the shapes that their names promise."""

from __future__ import annotations

import random

import pytest

from faults.nemesis.topology import apart, halves, majority, minority, one_way, ring

NODES = [range(1, count + 1) for count in (3, 4, 5, 7)]


def reached(nodes: range, ways: list[tuple[int, int]]) -> dict[int, set[int]]:
    """Node -> the nodes that it reaches, itself included."""
    return {one: {other for other in nodes if (one, other) not in ways} for one in nodes}


def test_a_minority_may_be_missing_and_a_majority_can_decide() -> None:
    assert [(minority(count), majority(count)) for count in range(1, 8)] == [
        (0, 1),
        (0, 2),
        (1, 2),
        (1, 3),
        (2, 3),
        (2, 4),
        (3, 4),
    ]


@pytest.mark.parametrize("nodes", NODES, ids=len)
def test_only_the_bridge_reaches_both_halves(nodes: range) -> None:
    left, right = halves(nodes)
    assert sorted([1, *left, *right]) == [*nodes]
    reach = reached(nodes, apart(left, right))
    assert reach[1] == {*nodes}
    assert all(reach[node] == {1, *left} for node in left)
    assert all(reach[node] == {1, *right} for node in right)


def test_each_node_of_a_ring_reaches_a_majority_of_its_own() -> None:
    for nodes in NODES:
        ways = ring(nodes)
        assert bool(ways) is (len(nodes) >= 5)
        if ways:
            found = [frozenset(reach) for reach in reached(nodes, ways).values()]
            assert all(majority(len(nodes)) <= len(reach) < len(nodes) for reach in found)
            assert len(set(found)) == len(nodes)


def test_one_way_cuts_leave_the_other_way_open() -> None:
    shapes = {}
    for seed in range(30):
        ways, shape = one_way(range(1, 4), random.Random(seed))
        shapes[shape] = ways
        assert not {(other, one) for one, other in ways} & {*ways}
    assert shapes == {"deaf": [(2, 1), (3, 1)], "dumb": [(1, 2), (1, 3)], "link": [(1, 2)]}
