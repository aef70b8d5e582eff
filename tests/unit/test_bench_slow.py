"""`bench slow-follower`: its parts, without a cluster."""

from __future__ import annotations

import threading
from dataclasses import asdict
from typing import Any, cast

import pytest

from bench import slow
from bench.slow import SlowPhase, as_text, lag, measure
from raftkv.api.status import NodeStatus, ReplicaStatus, Role
from raftkv.local.node import LocalError
from raftkv.testing import LocalCluster
from tests.waiting import PATIENCE


class FakeCluster:
    """Notes who is paused when."""

    nodes = (1, 2, 3)
    endpoints = "x"

    def __init__(self, leaders: dict[int, int]) -> None:
        self.leaders = leaders
        self.paused: set[int] = set()
        self.pauses = 0
        self.stopped = threading.Event()

    def leader(self, group: int) -> int:
        return self.leaders[group]

    def address(self, node: int) -> str:
        return str(node)

    def pid(self, _: int) -> int | None:
        return None

    def pause(self, node: int) -> None:
        self.paused.add(node)
        self.pauses += 1
        self.stopped.set()

    def resume(self, node: int) -> None:
        self.paused.discard(node)


def fake(leaders: dict[int, int]) -> tuple[FakeCluster, LocalCluster]:
    made = FakeCluster(leaders)
    return made, cast(LocalCluster, made)


def _leader(commit: int, match: dict[int, int]) -> ReplicaStatus:
    return ReplicaStatus(1, Role.LEADER, 1, 1, commit, commit, commit, 0, 0, (1, 2, 3), match)


def test_entries_that_a_follower_lacks() -> None:
    status = _leader(100, {2: 100, 3: 40})
    assert lag(status, 2) == 0
    assert lag(status, 3) == 60
    assert lag(status, 4) == 100


def test_one_that_leads_nothing_is_slowed_paused_and_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, typed = fake({0: 1, 1: 2})
    seen: list[tuple[str, set[int]]] = []

    def load(_: object, op: str) -> dict[str, Any]:
        if len(seen) in (2, 3):
            # Slow, not still: it stops, and goes on again.
            cluster.stopped.clear()
            assert cluster.stopped.wait(PATIENCE)
        seen.append((op, set(cluster.paused)))
        return {"per_second": 10.0, "latency_ms": {"p50": 1.0, "p99": 2.0}, "errors": {}}

    status = NodeStatus(1, "c", "v", 1, True, 1.0, (_leader(7, {3: 5}),))
    monkeypatch.setattr(slow._Run, "_load", load)
    monkeypatch.setattr(slow, "probe", lambda _: status)
    said: list[str] = []
    phases, caught_up = measure(typed, 1.0, said.append)
    assert [one.name for one in phases] == said == ["all well", "one slow", "one stands still", "it catches up"]
    assert [op for op, _ in seen] == ["set", "get"] * 4
    assert [paused for _, paused in (*seen[:2], *seen[6:])] == [set()] * 4
    assert [paused for _, paused in seen[4:6]] == [{3}, {3}]
    assert cluster.pauses >= 3
    assert cluster.paused == set()
    assert caught_up >= 0
    assert {one.behind for one in phases} == {2}


def test_a_follower_that_stays_behind_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    _, typed = fake({0: 1, 1: 1})
    status = NodeStatus(1, "c", "v", 1, True, 1.0, (_leader(1000, {2: 5}),))
    monkeypatch.setattr(slow, "_PATIENCE", 0.0)
    monkeypatch.setattr(slow, "probe", lambda _: status)
    with pytest.raises(LocalError, match="node 2 does not catch up"):
        slow._Run(typed, 2, 1.0).catch_up()


def test_nobody_to_slow() -> None:
    made, typed = fake({0: 1, 1: 2})
    made.nodes = (1, 2)  # type: ignore[assignment]
    with pytest.raises(LocalError, match="every node leads"):
        measure(typed, 1.0, print)


def test_a_line_for_each_phase() -> None:
    one = SlowPhase("all well", 20_000.0, 2.0, 4.0, 50_000.0, 1.0, 2.0, 60_000_000, 3)
    text = as_text([one, one], 0.5)
    assert len(text.splitlines()) == 4
    assert len({len(line) for line in text.splitlines()[:3]}) == 1
    assert asdict(one)["behind"] == 3
