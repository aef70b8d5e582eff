"""Guarantee: what pongs tell of a peer's clocks holds however slow links are and however long nodes stand still."""

from __future__ import annotations

import random

import pytest

from raftkv.peer.clocks import PeerClock, Reading
from tests.peer_world import ENCODER, World, rest, run


def measured(rng: random.Random, rate: float, seconds: float, slowest_way: float) -> PeerClock:
    """A peer of that rate, pinged every 0.5 s over a link whose ways take up to ``slowest_way`` seconds each."""
    clock, now, offset = PeerClock(), 100.0, rng.uniform(0, 1e5)
    for _ in range(int(seconds / 0.5)):
        there, back = rng.uniform(0, slowest_way), rng.uniform(0, slowest_way)
        shown = offset + (now + there) * rate
        clock.add(Reading(now, now + there + back, shown, 1.7e9 + shown))
        now += max(0.5, there + back)
        if rng.random() < 0.1:
            now += rng.uniform(0, 5)
    return clock


@pytest.mark.parametrize("seed", range(50))
def test_the_true_rate_is_always_within_its_bounds(seed: int) -> None:
    rng = random.Random(seed)
    rate = rng.choice([1.0, rng.uniform(0.5, 2.0)])
    clock = measured(rng, rate, 30.0, rng.choice([0.001, 0.3, 2.0]))
    assert clock.slowest <= rate <= clock.fastest


@pytest.mark.parametrize(
    ("rate", "way", "seconds"), [(0.5, 0.001, 1.5), (2.0, 0.001, 1.5), (0.9, 0.1, 12), (1.1, 0.1, 12)]
)
def test_a_wrong_rate_is_certain_soon(rate: float, way: float, seconds: float) -> None:
    for seed in range(20):
        clock = measured(random.Random(seed), rate, seconds, way)
        assert (clock.slowest > 1.05) == (rate > 1)
        assert (clock.fastest < 0.95) == (rate < 1)


def test_the_wall_clock_is_known_to_half_a_round_trip() -> None:
    clock = PeerClock()
    assert clock.wall(5.0) is None
    clock.add(Reading(10.0, 10.5, 77.0, 5000.0))
    shown = clock.wall(20.0)
    assert shown is not None
    assert abs(shown - 5009.75) < 1e-9


def test_links_compare_clocks_and_begin_anew_with_each_connection() -> None:
    async def scenario(world: World) -> None:
        _, one = await world.node(2, []), await world.node(1, [2])
        assert one.links.clocks()[2].wall(world.clock.now()) is None
        await world.clock.advance(3.0)
        clock = one.links.clocks()[2]
        shown = clock.wall(world.clock.now())
        assert shown is not None
        assert abs(shown - world.clock.wall()) < 0.01
        assert 0.9 < clock.slowest <= 1.0 <= clock.fastest < 1.1
        one.transports[0].abort()
        await rest()
        assert one.links.clocks() == {}
        await world.clock.advance(1.0)
        assert one.links.clocks()[2] is not clock

    run(scenario)


@pytest.mark.parametrize(
    "pong", [7, [7], [7, 1.0], [7, 1, 2.0], [7, 1.0, float("nan")], [True, 1.0, 2.0], ["a", 1.0, 2.0]]
)
def test_what_is_no_pong_costs_the_link(pong: object) -> None:
    async def scenario(world: World) -> None:
        two, one = await world.node(2, []), await world.node(1, [2])
        assert one.links.up(2)
        (connection,) = two.links._acceptor._peers.values()
        assert connection._transport is not None
        connection._transport.write(ENCODER.frame_of([pong]))
        await rest()
        assert one.events == [(2, 1, True), (2, 1, False)]

    run(scenario)


def test_a_ping_whose_node_stood_still_measures_nothing() -> None:
    """Its time was moved, so that it is not taken for unanswered: it says no more when the ping was sent."""

    async def scenario(world: World) -> None:
        _, one = await world.node(2, []), await world.node(1, [2])
        await world.clock.advance(3.0)
        for _ in range(3):
            world.clock.jump(4.0)
            await world.clock.advance(1.0)
            clock = one.links.clocks()[2]
            assert clock.slowest <= 1.0 <= clock.fastest

    run(scenario)
