"""An open loop counts from the intended start, so that a stall is seen by all who came meanwhile."""

from __future__ import annotations

import asyncio
import random
from itertools import pairwise
from time import perf_counter

import pytest

from bench import load
from bench.arrivals import Alarm, Arrivals
from bench.load import Measured, Plan, measure
from bench.report import as_text, summarize


class Stalling:
    """Answers at once, but for ``stall`` seconds from ``after`` seconds on nobody gets an answer."""

    def __init__(self, after: float, stall: float) -> None:
        self._begins = perf_counter() + after
        self._ends = self._begins + stall
        self.busy = self.most = 0

    async def get(self, key: bytes) -> None:
        await self.set(key, b"")

    async def set(self, key: bytes, value: bytes) -> None:
        self.busy += 1
        self.most = max(self.most, self.busy)
        now = perf_counter()
        await asyncio.sleep(self._ends - now if self._begins <= now < self._ends else 0)
        self.busy -= 1

    async def close(self) -> None:
        pass


async def run(plan: Plan, monkeypatch: pytest.MonkeyPatch, after: float, stall: float) -> tuple[Measured, Stalling]:
    target = Stalling(after, stall)

    async def connect(*_: object) -> Stalling:
        return target

    monkeypatch.setattr(load, "connect", connect)
    return await measure(plan), target


def test_a_stall_counts_for_every_operation_that_came_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan("x", "set", workers=4, rate=500.0, spacing="even", seconds=0.8, warmup=0.0)
    measured, target = asyncio.run(run(plan, monkeypatch, 0.2, 0.3))
    summary = summarize(plan, measured)
    assert measured.errors == {}
    assert summary["operations"] == pytest.approx(400, abs=1)
    assert summary["per_second"] == pytest.approx(500, rel=0.2)
    # 150 of 400 came during 300 ms: half of them waited longer than 150 ms, the first ones for all of it.
    # A busy machine adds stalls of its own, so these are bounds from below.
    assert summary["latency_ms"]["p99"] > 240
    assert sum(one > 0.15 for one in measured.latencies) > 60
    # Four were under way, the others waited for a worker.
    assert target.most == 4
    assert measured.waited > 110
    assert f"{measured.waited} found all workers busy" in as_text(summary)


def test_a_closed_loop_hides_the_same_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan("x", "set", workers=4, seconds=0.5, warmup=0.0)
    measured, _ = asyncio.run(run(plan, monkeypatch, 0.1, 0.3))
    assert sum(one > 0.15 for one in measured.latencies) == 4


def test_operations_that_nobody_could_begin_are_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "_GRACE", 0.1)
    plan = Plan("x", "set", workers=1, rate=200.0, spacing="even", seconds=0.3, warmup=0.0)
    measured, _ = asyncio.run(run(plan, monkeypatch, 0.0, 0.8))
    assert len(measured.latencies) + measured.errors["NotBegun"] == pytest.approx(60, abs=1)
    assert measured.errors["NotBegun"] > 50


def test_what_arrives_while_warming_up_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan("x", "set", workers=4, rate=500.0, spacing="even", seconds=0.2, warmup=0.2)
    measured, _ = asyncio.run(run(plan, monkeypatch, 9.0, 0.0))
    assert len(measured.latencies) == pytest.approx(100, abs=2)


@pytest.mark.parametrize(("spacing", "spread"), [("even", 0.0), ("poisson", 1.0)])
def test_arrivals_have_the_rate_and_the_spacing_asked_for(spacing: str, spread: float) -> None:
    async def starts() -> list[float]:
        # All of it lies in the past: nothing has to be waited for.
        now = perf_counter()
        arrivals = Arrivals(1000.0, spacing, now - 10, now - 10, now - 1, random.Random(1))  # type: ignore[arg-type]
        found = []
        while (intended := await arrivals.take()) is not None:
            found.append(intended)
        arrivals.close()
        return found

    found = asyncio.run(starts())
    gaps = [later - earlier for earlier, later in pairwise(found)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert len(found) == pytest.approx(9000, rel=0.05)
    # An exponential distribution has a deviation as large as its mean.
    assert deviation / mean == pytest.approx(spread, abs=0.05)


@pytest.mark.parametrize("files", [True, False], ids=["timer files", "timers of the loop"])
def test_the_alarm_rings_once_and_not_too_early(files: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    async def wait() -> tuple[list[float], float]:
        rang: list[float] = []
        alarm = Alarm(lambda: rang.append(perf_counter()))
        began = perf_counter()
        alarm.set(9.0)
        alarm.set(0.02)
        await asyncio.sleep(0.1)
        alarm.close()
        return rang, began

    if not files:
        monkeypatch.setattr("bench.arrivals.ctypes.CDLL", lambda *_, **__: object())
    rang, began = asyncio.run(wait())
    assert len(rang) == 1
    assert rang[0] - began >= 0.019
