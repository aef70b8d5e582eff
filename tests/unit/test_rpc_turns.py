"""Guarantee: those who ask for much do not keep the loop from those who ask for little."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from raftkv.clock import SystemClock, Timer
from raftkv.frontend.turns import QUANTUM, Turns


class Stopped:
    """A clock on which the work of these tests takes no time."""

    def now(self) -> float:
        return 0.0

    def wall(self) -> float:
        return 0.0

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        return SystemClock().call_later(delay, callback)


class Job:
    """So many units, done in parts."""

    def __init__(self, peer: str, units: int, done: list[tuple[str, int]]) -> None:
        self.peer = peer
        self.left = units
        self.done = done

    @property
    def wants(self) -> int:
        return self.left

    def step(self, most: int) -> tuple[int, bool]:
        part = min(most, self.left)
        self.left -= part
        self.done.append((self.peer, part))
        return part, self.left > 0


def test_work_that_nobody_waits_before_is_done_at_once() -> None:
    async def main() -> None:
        done: list[tuple[str, int]] = []
        turns = Turns(Stopped())
        turns.enter(Job("a", QUANTUM, done))
        assert done == [("a", QUANTUM)]
        turns.enter(Job("b", 1, done))
        assert len(done) == 1, "the quantum of this turn of the loop is used up"
        await asyncio.sleep(0)
        assert done[1:] == [("b", 1)]

    asyncio.run(main())


def test_a_turn_of_the_loop_does_no_more_than_its_quantum() -> None:
    async def main() -> None:
        done: list[tuple[str, int]] = []
        turns = Turns(Stopped())
        for number in range(50):
            turns.enter(Job(str(number), 4096, done))
        for turn in range(1, 20):
            assert sum(units for _, units in done) <= QUANTUM * turn
            await asyncio.sleep(0)
        assert turns.waiting == 50

    asyncio.run(main())


def test_a_small_client_does_not_wait_behind_many_large_ones() -> None:
    async def main() -> None:
        done: list[tuple[str, int]] = []
        turns = Turns(Stopped())
        jobs = [Job(str(number), 100_000, done) for number in range(500)]
        for job in jobs:
            turns.enter(job)
        for _ in range(20):
            await asyncio.sleep(0)
        before = len(done)
        turns.enter(Job("small", 3, done))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert ("small", 3) in done[before:]

    asyncio.run(main())


def test_connections_share_alike_however_many_streams_each_has() -> None:
    async def main() -> None:
        done: list[tuple[str, int]] = []
        turns = Turns(Stopped())
        for _ in range(9):
            turns.enter(Job("many", 100_000, done))
        turns.enter(Job("one", 100_000, done))
        for _ in range(400):
            await asyncio.sleep(0)
        units = {peer: sum(part for name, part in done if name == peer) for peer in ("many", "one")}
        assert abs(units["many"] - units["one"]) < units["one"] / 5

    asyncio.run(main())


def test_what_takes_long_ends_the_turn() -> None:
    class Slow(Stopped):
        time = 0.0

        def now(self) -> float:
            Slow.time += 0.01
            return Slow.time

    async def main() -> None:
        done: list[tuple[str, int]] = []
        turns = Turns(Slow())
        for name in "abc":
            turns.enter(Job(name, 10, done))
        assert len(done) == 1
        await asyncio.sleep(0)
        assert len(done) == 2

    asyncio.run(main())
