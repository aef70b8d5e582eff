"""An open loop counts from the intended start, so that a stall is seen by all who came meanwhile."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from itertools import pairwise
from time import perf_counter

import pytest

from bench import load
from bench.arrivals import Alarm, Arrivals
from bench.load import LoadPlan, Measured, measure
from bench.report import as_text, summarize
from faults.sim.loop import SimLoop, simulate
from tests.waiting import becomes


class Stalling:
    """Answers after ``service`` seconds, but from ``after`` seconds on nobody gets an answer for ``stall`` seconds."""

    def __init__(self, clock: Callable[[], float], after: float, stall: float, service: float) -> None:
        self._clock, self._service = clock, service
        self._begins = clock() + after
        self._ends = self._begins + stall
        self.busy = self.most = 0

    async def get(self, key: bytes) -> None:
        await self.set(key, b"")

    async def set(self, key: bytes, value: bytes) -> None:
        self.busy += 1
        self.most = max(self.most, self.busy)
        now = self._clock()
        await asyncio.sleep(self._ends - now if self._begins <= now < self._ends else self._service)
        self.busy -= 1

    async def close(self) -> None:
        pass


def run(
    plan: LoadPlan, monkeypatch: pytest.MonkeyPatch, after: float, stall: float, service: float = 0.0
) -> tuple[Measured, Stalling]:
    """The measurement on virtual time."""

    async def main(loop: SimLoop) -> tuple[Measured, Stalling]:
        target = Stalling(loop.time, after, stall, service)

        async def connect(*_: object) -> Stalling:
            return target

        monkeypatch.setattr(load, "connect", connect)
        return await measure(plan, loop.time), target

    return simulate(main)


def test_a_stall_counts_for_every_operation_that_came_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = LoadPlan("x", "set", workers=4, rate=500.0, spacing="even", seconds=0.8, warmup=0.0)
    measured, target = run(plan, monkeypatch, 0.2, 0.3)
    summary = summarize(plan, measured)
    assert measured.errors == {}
    assert summary["operations"] == pytest.approx(400, abs=1)
    assert summary["per_second"] == pytest.approx(500, rel=0.01)
    # 150 of 400 came during 300 ms: half of them waited longer than 150 ms, the first ones for all of it.
    assert summary["latency_ms"]["p99"] == pytest.approx(294, abs=3)
    assert summary["latency_ms"]["max"] == pytest.approx(300, abs=2)
    assert sum(one > 0.15 for one in measured.latencies) == pytest.approx(75, abs=1)
    assert sum(one > 0.001 for one in measured.latencies) == pytest.approx(150, abs=1)
    # Four were under way, the others waited for a worker.
    assert target.most == 4
    assert measured.waited == pytest.approx(146, abs=1)
    assert f"{measured.waited} found all workers busy" in as_text(summary)


def test_a_closed_loop_hides_the_same_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = LoadPlan("x", "set", workers=4, seconds=0.5, warmup=0.0)
    measured, _ = run(plan, monkeypatch, 0.1, 0.3, service=0.001)
    assert len(measured.latencies) == pytest.approx(4 * 200, abs=8)
    assert sum(one > 0.002 for one in measured.latencies) == 4


def test_operations_that_nobody_could_begin_are_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "_GRACE", 0.1)
    plan = LoadPlan("x", "set", workers=1, rate=200.0, spacing="even", seconds=0.3, warmup=0.0)
    measured, _ = run(plan, monkeypatch, 0.0, 0.8)
    # The only worker was busy until all was over.
    assert len(measured.latencies) == 1
    assert measured.errors["NotBegun"] == pytest.approx(59, abs=1)


def test_what_arrives_while_warming_up_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = LoadPlan("x", "set", workers=4, rate=500.0, spacing="even", seconds=0.2, warmup=0.2)
    measured, _ = run(plan, monkeypatch, 9.0, 0.0)
    assert len(measured.latencies) == pytest.approx(100, abs=1)


@pytest.mark.parametrize(("spacing", "spread"), [("even", 0.0), ("poisson", 1.0)])
def test_arrivals_have_the_rate_and_the_spacing_asked_for(spacing: str, spread: float) -> None:
    async def starts(loop: SimLoop) -> list[float]:
        arrivals = Arrivals(1000.0, spacing, 0.0, 0.0, 9.0, random.Random(1), loop.time)  # type: ignore[arg-type]
        found = []
        while (intended := await arrivals.take()) is not None:
            assert 0 <= loop.time() - intended < 0.001
            found.append(intended)
        arrivals.close()
        return found

    found = simulate(starts)
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
        alarm.set(0.01)
        alarm.set(0.05)
        await becomes(lambda: rang)
        await asyncio.sleep(0.05)
        alarm.close()
        return rang, began

    if not files:
        monkeypatch.setattr("bench.arrivals.ctypes.CDLL", lambda *_, **__: object())
    rang, began = asyncio.run(wait())
    assert len(rang) == 1
    assert rang[0] - began >= 0.049
