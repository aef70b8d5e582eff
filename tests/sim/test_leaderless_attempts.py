"""Guarantee: a group that was without a leader for a while leaves no long attempts behind."""

from __future__ import annotations

import asyncio
import random

import pytest

from faults.sim.cluster import SimCluster
from faults.sim.loop import SimLoop, simulate
from raftkv.client.call import Call
from raftkv.client.channel import Channel
from raftkv.client.retry import ATTEMPT_TIMEOUT
from raftkv.commands.results import Result


@pytest.mark.parametrize("what", ["write", "read"])
def test_waiting_for_a_leader_makes_no_attempt_longer(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """A node without a leader to ask answered when the attempt's time was up, so the next one got twice as much, up to
    8 s at a node that was cut off, while the group had a leader again; and later calls got as much for half a minute.
    """
    budgets: list[float] = []
    send = Channel.send

    def noted(self: Channel, call: Call, budget: float, now: float, patience: float) -> asyncio.Future[Result]:
        budgets.append(budget)
        return send(self, call, budget, now, patience)

    async def main(loop: SimLoop) -> None:
        cluster = SimCluster(loop, random.Random("leaderless"), nodes=3, groups=1)
        await cluster.start()
        client = cluster.client("c")

        async def ask(timeout: float) -> None:
            if what == "write":
                await client.put("k", b"v", timeout=timeout)
            else:
                await client.get("k", timeout=timeout)

        async def put() -> None:
            await client.put("k", b"v")

        await cluster.processes["c"].spawn(put())
        left = next(number for number in cluster.nodes if number != cluster.leaders()[1])
        stopped = [number for number in cluster.nodes if number != left]
        for number in stopped:
            cluster.kill(number, power_loss=False)
        await asyncio.sleep(2.0)
        monkeypatch.setattr(Channel, "send", noted)
        waiting = cluster.processes["c"].spawn(ask(30.0))
        await asyncio.sleep(2.5)
        assert len(budgets) > 2
        for number in stopped:
            cluster.restart(number)
        await waiting
        await cluster.processes["c"].spawn(ask(5.0))
        assert max(budgets) <= ATTEMPT_TIMEOUT
        assert loop.problems == []

    simulate(main)
