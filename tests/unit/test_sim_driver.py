"""Guarantee: what is done to a simulated cluster happens, is seen, is undone, and bears what others do meanwhile."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest

from faults.driver import Effect
from faults.sim import profiles
from faults.sim.cluster import SimCluster
from faults.sim.driver import SimDriver
from faults.sim.invariants import Invariants
from faults.sim.loop import SimLoop, simulate
from faults.sim.run import run
from faults.sim.storm import Storm

Scenario = Callable[[SimDriver], Coroutine[Any, Any, None]]


def drive(scenario: Scenario) -> None:
    async def main(loop: SimLoop) -> None:
        cluster = SimCluster(loop, random.Random(1), nodes=3, groups=1)
        invariants = Invariants(cluster)
        driver = SimDriver(cluster, invariants, ["c1"], 1)
        await cluster.start()
        await scenario(driver)
        await driver.heal()
        await cluster.ready(10.0)
        assert invariants.problems == []
        assert driver.alive == driver.nodes == [1, 2, 3]

    simulate(main)


async def begun(effect: Coroutine[Any, Any, Effect | None]) -> Effect:
    found = await effect
    assert found is not None
    return found


def test_a_killed_leader_counts_and_comes_back() -> None:
    async def scenario(driver: SimDriver) -> None:
        leader = driver.leaders()[1]
        killed = await begun(driver.kill([leader]))
        assert leader not in driver.alive
        assert await killed.shown()
        assert await driver.kill([leader]) is None, "it is dead"
        assert await driver.pause([leader]) is None
        assert await driver.stop(leader) is None
        assert "is dead" in await driver.unsettled()
        await killed.end()
        assert leader in driver.alive

    drive(scenario)


def test_a_paused_node_that_dies_meanwhile_is_not_resumed() -> None:
    async def scenario(driver: SimDriver) -> None:
        paused = await begun(driver.pause([1]))
        await asyncio.sleep(1.0)
        assert await paused.shown() == "it had something to do meanwhile"
        killed = await begun(driver.kill([1], power_loss=True))
        await killed.end()
        await paused.end()
        assert driver.cluster.nodes[1].state == "running"

    drive(scenario)


def test_a_way_that_two_faults_cut_opens_when_both_are_over() -> None:
    async def scenario(driver: SimDriver) -> None:
        network = driver.cluster.network
        ways = [("n1", "n2"), ("n2", "n1")]
        one, other = await driver.cut(ways, "black hole"), await driver.cut(ways[:1], "reset")
        await asyncio.sleep(1.0)
        assert await one.shown() == await other.shown() == "bytes or dials were held"
        await one.end()
        assert (network.is_cut("n1", "n2"), network.is_cut("n2", "n1")) == (True, False)
        await other.end()
        assert not network.is_cut("n1", "n2")
        assert not network.held(ways), "what was held is on its way, and will arrive"

    drive(scenario)


def test_sick_disks_count_when_a_node_has_felt_it() -> None:
    async def scenario(driver: SimDriver) -> None:
        leader = driver.leaders()[1]
        client = driver.client("c1", 5.0)
        slow = await driver.slow_disk(leader, 0.3)
        assert await slow.shown() == ""
        await client.put("a", "1")
        assert "took longer" in await slow.shown()
        await slow.end()
        full = await driver.fill_disk(leader)
        await asyncio.sleep(1.0)
        assert await full.shown()
        await full.end()
        await asyncio.sleep(1.0)
        assert await full.shown() == ""

    drive(scenario)


def test_a_storm_that_leaves_no_node_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async def black_out(driver: SimDriver) -> Effect:
        for node in driver.alive:
            driver.end(driver.cluster.nodes[node], power_loss=True)
        return Effect(lambda: "")

    monkeypatch.setattr(SimDriver, "black_out", black_out)
    report = run(replace(profiles.quick(Storm.draw(1), seconds=1.0), faults={}))
    kinds = [problem.partition(":")[0] for problem in report.problems]
    assert kinds == ["convergence", "liveness"], report.problems
    assert "no node says who has which slots" in report.problems[1]
