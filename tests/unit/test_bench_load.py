"""The load generator counts what succeeded and what failed, and its percentiles are those of the latencies."""

from __future__ import annotations

import asyncio
from array import array
from collections import Counter

import pytest

from bench import load
from bench.load import LoadPlan, Measured, make_keys, measure
from bench.processors import Computed, per_operation
from bench.report import as_text, summarize
from faults.sim.loop import simulate
from raftkv.errors import Unavailable


class Target:
    """Answers at once; every tenth get fails."""

    def __init__(self) -> None:
        self.sets: set[bytes] = set()
        self.gets = 0
        self.closed = False

    async def get(self, key: bytes) -> None:
        await asyncio.sleep(0.001)
        assert key in self.sets
        self.gets += 1
        if self.gets % 10 == 0:
            raise Unavailable("now and then")

    async def set(self, key: bytes, value: bytes) -> None:
        await asyncio.sleep(0.001)
        assert len(value) == 128
        self.sets.add(key)

    async def close(self) -> None:
        self.closed = True


def test_percentiles_and_rate() -> None:
    latencies = array("d", [i / 1000 for i in range(1, 101)])
    plan = LoadPlan("x", "get")
    summary = summarize(plan, Measured(latencies, 2.0, Counter(Unavailable=3)))
    assert summary["operations"] == 100
    assert summary["per_second"] == 50.0
    assert summary["errors"] == {"Unavailable": 3}
    for name, expected in {"p50": 50, "p95": 95, "p99": 99, "max": 100}.items():
        assert summary["latency_ms"][name] == pytest.approx(expected, rel=0.01)
    assert "50/s" in as_text(summary)
    assert "3 Unavailable" in as_text(summary)


def test_processor_time_is_told_for_each_operation() -> None:
    cost = per_operation(Computed((0.002, 0.004, 0.001), others=9.0), 0.003, 100)
    assert cost == {"nodes_us": 70.0, "busiest_us": 40.0, "client_us": 30.0}
    assert per_operation(Computed((), others=0.0), 0.0, 0) == {"nodes_us": 0.0, "busiest_us": 0.0, "client_us": 0.0}
    summary = summarize(LoadPlan("x", "get"), Measured(array("d", [0.01]), 1.0, Counter()))
    assert "processor time" not in as_text(summary)
    assert as_text({**summary, **cost}).endswith(
        "\nprocessor time of an operation: client 30.0 us, nodes 70.0 us, the busiest 40.0 us"
    )


def test_no_percentile_exceeds_the_longest_latency() -> None:
    latency_ms = summarize(LoadPlan("x", "set"), Measured(array("d", [0.01, 0.07295]), 1.0, Counter()))["latency_ms"]
    assert latency_ms["p50"] < latency_ms["p99"] == latency_ms["max"] == pytest.approx(72.95)


def test_nothing_measured_is_no_division_by_zero() -> None:
    summary = summarize(LoadPlan("x", "set"), Measured(array("d"), 1.0, Counter()))
    assert summary["latency_ms"] == {"p50": None, "p95": None, "p99": None, "max": None}
    assert "0/s" in as_text(summary)


def test_keys_are_different_and_of_the_size_asked_for() -> None:
    keys = make_keys(1000, 16)
    assert len(set(keys)) == 1000
    assert {len(key) for key in keys} == {16}
    with pytest.raises(ValueError, match="no 1000 decimal keys of 2 bytes"):
        make_keys(1000, 2)


def test_gets_read_what_was_filled_in_and_failures_are_counted_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    targets: list[Target] = []

    async def connect(*_: object) -> Target:
        targets.append(Target())
        targets[-1].sets = targets[0].sets
        return targets[-1]

    monkeypatch.setattr(load, "connect", connect)
    plan = LoadPlan("x", "get", workers=4, clients=2, keys=100, seconds=0.2, warmup=0.0)
    measured = simulate(lambda loop: measure(plan, loop.time))
    assert len(targets) == 2
    assert all(target.closed for target in targets)
    assert len(targets[0].sets) == 100
    total = sum(target.gets for target in targets)
    assert len(measured.latencies) + measured.errors["Unavailable"] == total
    assert measured.errors["Unavailable"] == sum(target.gets // 10 for target in targets)
