"""Guarantee: however much some connections hold, something is left for the others."""

from __future__ import annotations

import asyncio

from raftkv.clock import SystemClock
from raftkv.frontend.shares import Shares
from tests.waiting import PATIENCE


def shares(limit: int) -> Shares:
    return Shares(limit, SystemClock())


def test_a_connection_may_hold_as_much_as_is_free() -> None:
    held = shares(1000)
    assert held.room("a") == 1000
    held.take("a", 500)
    assert held.room("a") == 0
    assert held.room("b") == 500
    held.take("b", 250)
    assert (held.room("a"), held.room("b"), held.room("c")) == (-250, 0, 250)


def test_greedy_connections_leave_something_for_a_new_one() -> None:
    held = shares(1_000_000)
    for number in range(200):
        held.take(str(number), max(0, held.room(str(number))) // 2)
    assert held.room("new") > 0


def test_what_is_given_back_leaves_no_trace() -> None:
    held = shares(10)
    held.take("a", 7)
    held.take("a", -7)
    assert (held.held, held.room("a"), held._parts) == (0, 10, {})


def test_who_waits_first_is_first_to_go_on() -> None:
    async def main() -> None:
        held = shares(10)
        held.take("a", 10)
        order: list[str] = []
        held.wait("b", 2, lambda: order.append("b"))
        held.wait("c", 1, lambda: order.append("c"))
        await asyncio.sleep(0)
        assert order == []
        held.take("a", -10)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert order == ["b", "c"]
        assert not held.waiting

    asyncio.run(main())


def test_acquiring_ends_in_time_or_when_there_is_room() -> None:
    async def main() -> None:
        held = shares(10)
        assert await held.acquire("a", 5, PATIENCE)
        assert not await held.acquire("a", 5, 0.01)
        assert held.held == 5
        waiting = asyncio.create_task(held.acquire("a", 5, PATIENCE))
        await asyncio.sleep(0)
        held.take("a", -5)
        assert await waiting
        assert held.held == 5

    asyncio.run(main())


def test_a_cancelled_wait_holds_nothing() -> None:
    async def main() -> None:
        held = shares(10)
        held.take("a", 10)
        waiting = asyncio.create_task(held.acquire("b", 5, PATIENCE))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        held.take("a", -10)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert held.held == 0

    asyncio.run(main())
