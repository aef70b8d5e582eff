"""Guarantee: the cluster's time is that of most nodes, and a node whose clock is wrong says so."""

from __future__ import annotations

import pytest

from raftkv.node.clocks import Clocks
from raftkv.peer.clocks import PeerClock, Reading
from tests.peer_world import ManualClock


class World:
    """A node at ManualClock's time, and its peers' clocks."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.peers: dict[int, PeerClock] = {}
        self.seen = Clocks(self, self.clock, 0.9)

    def clocks(self) -> dict[int, PeerClock]:
        return self.peers

    def pong(self, peer: int, ahead: float, rate: float = 1.0) -> None:
        now = self.clock.now()
        self.peers.setdefault(peer, PeerClock()).add(Reading(now, now, now * rate, self.clock.wall() + ahead))

    def texts(self) -> list[str]:
        self.seen.look()
        return [problem.text for problem in self.seen.problems()]


@pytest.mark.parametrize(
    ("peers", "off"),
    [
        ([], 0),
        ([0, 0], 0),
        ([259200, 259200], 259200),
        ([-259200, -259200], -259200),
        ([0, 259200], 0),
        ([0, -259200], 0),
        ([259200], 259200),
        ([-259200], 0),
        ([-3, 0, 3, 259200], 0),
    ],
)
def test_the_clusters_time_is_the_median_of_those_in_contact(peers: list[int], off: int) -> None:
    world = World()
    for number, ahead in enumerate(peers, start=2):
        world.pong(number, ahead)
    assert abs(world.seen.time() - world.clock.wall() - off) < 1e-6
    assert bool(world.texts()) == bool(off)


def test_a_wrong_wall_clock_is_told_with_its_size() -> None:
    world = World()
    for peer in (2, 3):
        world.pong(peer, 3 * 86400.0)
    assert world.texts() == ["its wall clock is 259,200 s behind the cluster's time"]
    for peer in (2, 3):
        world.pong(peer, -11.0)
    assert world.texts() == ["its wall clock is 11 s ahead of the cluster's time"]
    for peer in (2, 3):
        world.pong(peer, -9.0)
    assert world.texts() == []


def _two_pongs(world: World, rate: float) -> None:
    world.pong(2, 0.0, rate)
    world.clock.jump(1.0)
    world.pong(2, 0.0, rate)


@pytest.mark.parametrize(("rate", "fast"), [(1.0, []), (1.04, []), (1.06, [2]), (2.0, [2]), (0.96, []), (0.5, [])])
def test_leases_are_doubted_for_peers_that_run_faster(rate: float, fast: list[int]) -> None:
    world = World()
    _two_pongs(world, rate)
    assert bool(world.texts()) == (abs(rate - 1) > 0.05)
    assert world.seen.fast_peers() == frozenset(fast)


def test_the_doubt_outlives_the_connection_and_ends() -> None:
    world = World()
    _two_pongs(world, 2.0)
    assert world.texts() == [
        "the clock of node 2 runs at 2.00 times the rate of its own; no lease is trusted in groups with that node"
    ]
    world.peers.clear()
    world.clock.jump(29.0)
    assert len(world.texts()) == 1
    world.clock.jump(2.0)
    assert world.texts() == []
    assert world.seen.fast_peers() == frozenset()
