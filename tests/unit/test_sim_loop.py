"""The virtual loop: its order, and processes that stand still and die."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from faults.sim.clock import SimClock
from faults.sim.loop import SimLoop, SimProcess, Stuck, current_process, simulate


def test_time_jumps_and_callbacks_keep_the_order_of_time_and_insertion() -> None:
    async def main(loop: SimLoop) -> list[tuple[float, str]]:
        seen: list[tuple[float, str]] = []
        for delay, name in ((3600.0, "late"), (1.0, "a"), (1.0, "b"), (0.0, "now")):
            loop.call_later(delay, lambda name=name: seen.append((loop.time(), name)))
        loop.call_soon(seen.append, (0.0, "soon"))
        await asyncio.sleep(3600.0)
        return seen

    seen = simulate(main)
    assert seen == [(0.0, "now"), (0.0, "soon"), (1.0, "a"), (1.0, "b"), (3600.0, "late")]


def test_a_paused_process_keeps_what_comes_due_and_runs_it_in_order() -> None:
    async def main(loop: SimLoop) -> list[Any]:
        seen: list[Any] = []
        process = SimProcess(loop, "p")

        async def work() -> None:
            for step in range(6):
                seen.append((step, round(loop.time(), 3)))
                await asyncio.sleep(1.0)

        process.spawn(work())
        await asyncio.sleep(1.5)
        process.pause()
        loop.call_later(1.0, seen.append, "others go on")
        loop.call_soon(seen.append, "first", context=process.context)
        await asyncio.sleep(2.0)
        process.resume()
        loop.call_soon(seen.append, "second", context=process.context)
        await asyncio.sleep(0.6)
        return seen

    seen = simulate(main)
    assert seen == [(0, 0.0), (1, 1.0), "others go on", "first", "second", (2, 3.5)]


def test_nothing_of_a_killed_process_runs_again_not_even_its_finally_blocks() -> None:
    seen: list[str] = []

    async def main(loop: SimLoop) -> None:
        process = SimProcess(loop, "p")

        async def inner() -> None:
            try:
                assert current_process() is process
                await asyncio.sleep(1.0)
                seen.append("lived on")
            finally:
                if not dead:
                    seen.append("acted")

        async def outer() -> None:
            await asyncio.gather(*(asyncio.create_task(inner()) for _ in range(3)))

        process.spawn(outer())
        SimClock(loop, process).call_later(2.0, lambda: seen.append("timer"))
        await asyncio.sleep(0.5)
        process.kill()
        await asyncio.sleep(10.0)

    dead = False
    simulate(main)
    assert seen == ["acted"] * 3, "they are closed when the run is over, and no earlier"

    async def again(loop: SimLoop) -> int:
        await main(loop)
        return len(seen)

    seen.clear()
    assert simulate(again) == 0


def test_a_clock_drifts_and_its_timers_with_it() -> None:
    async def main(loop: SimLoop) -> list[tuple[float, float]]:
        process = SimProcess(loop, "p")
        clock = SimClock(loop, process, offset=50.0)
        seen: list[tuple[float, float]] = []
        await asyncio.sleep(10.0)
        clock.set_rate(2.0)
        clock.call_later(4.0, lambda: seen.append((loop.time(), clock.now())))
        await asyncio.sleep(5.0)
        clock.set_rate(0.5)
        seen.append((loop.time(), clock.now()))
        await asyncio.sleep(10.0)
        seen.append((loop.time(), clock.now()))
        return seen

    assert simulate(main) == [(12.0, 64.0), (15.0, 70.0), (25.0, 75.0)]


def test_a_run_without_a_future_and_a_run_that_keeps_itself_busy_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("faults.sim.loop._LIVELOCK", 10_000)

    async def waits(loop: SimLoop) -> None:
        await loop.create_future()

    async def spins(loop: SimLoop) -> None:
        def again() -> None:
            loop.call_soon(again)

        again()
        await asyncio.sleep(1.0)

    with pytest.raises(Stuck, match="nothing is left"):
        simulate(waits)
    with pytest.raises(Stuck, match="busy"):
        simulate(spins)


def test_what_a_callback_raises_is_kept_with_the_name_of_its_process() -> None:
    async def main(loop: SimLoop) -> list[tuple[str, str]]:
        process = SimProcess(loop, "p")

        def fail() -> None:
            raise ValueError("broken")

        loop.call_soon(fail, context=process.context)
        await asyncio.sleep(0.1)
        return [(problem.process, repr(problem.exception)) for problem in loop.problems]

    assert simulate(main) == [("p", "ValueError('broken')")]


def test_threads_have_no_place() -> None:
    async def main(loop: SimLoop) -> None:
        await asyncio.to_thread(len, "")

    with pytest.raises(NotImplementedError):
        simulate(main)
