"""Guarantee: a client's wrong clock costs it a refusal, and a node's breaks leases only until it is noticed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

from faults.sim.cluster import SimCluster, SimNode
from faults.sim.loop import SimLoop, simulate
from raftkv import limits
from raftkv.api.status import Problem
from raftkv.commands.base import Command
from raftkv.commands.client_ids import TAIL_BYTES, client_id, drawn_at
from raftkv.commands.records import Get, Put
from raftkv.commands.results import Result
from raftkv.errors import Code
from raftkv.node.clocks import Clocks
from shards.slots import slot_of

Scenario = Callable[[SimCluster], Coroutine[Any, Any, None]]

HOUR = 3600
KEY = b"k"


def run(scenario: Scenario, *, seed: int = 1) -> None:
    async def main(loop: SimLoop) -> None:
        cluster = SimCluster(loop, random.Random(seed), nodes=3, groups=1)
        await cluster.start()
        await scenario(cluster)
        assert loop.problems == []

    simulate(main)


def leader(cluster: SimCluster) -> SimNode:
    return cluster.nodes[cluster.leaders()[1]]


def slot(cluster: SimCluster) -> int:
    found = leader(cluster).node
    assert found is not None
    shard_map = found.cluster_map()
    assert shard_map is not None
    return slot_of(KEY, shard_map.slots)


async def ask(node: SimNode, ops: Sequence[Command], timeout: float = 5.0) -> list[Result]:
    """What the node answers to ``ops``, by place."""
    found: dict[int, Result] = {}
    over = asyncio.Event()

    def reply(index: int, result: Result) -> None:
        found[index] = result
        if len(found) == len(ops):
            over.set()

    assert node.node is not None
    node.node.submit(ops, timeout, reply)
    await over.wait()
    return [found[index] for index in range(len(ops))]


def flood(cluster: SimCluster, count: int, ahead: float) -> list[Command]:
    """Writes of so many clients whose clocks are so many seconds ahead."""
    rng = random.Random(1)
    time = int((leader(cluster).clock.wall() + ahead) * 1000)
    ids = [client_id(time + number, rng.randbytes(TAIL_BYTES)) for number in range(count)]
    number = slot(cluster)
    return [Put(number, KEY, b"x", client=one, seq=1, first=1) for one in ids]


def problems(node: SimNode) -> set[tuple[str, int | None]]:
    assert node.node is not None
    return {(problem.kind, problem.node) for problem in found(node)}


def found(node: SimNode) -> tuple[Problem, ...]:
    assert node.node is not None
    return node.node.status().problems


async def in_time(cluster: SimCluster, name: str, ahead: float, writes: int = 3) -> None:
    """A new client with a clock that is off by ``ahead`` writes at once."""
    client = cluster.client(name, timeout=1.0)
    cluster.clocks[name].step_wall(ahead)
    async with client:
        for _ in range(writes):
            await client.put(KEY, name)


def test_clients_far_ahead_of_the_time_lock_nobody_out() -> None:
    """8,500 writes, 0.7 s of work, and a slot refused all new clients for a day."""

    async def scenario(cluster: SimCluster) -> None:
        for part in range(17):
            results = await ask(leader(cluster), flood(cluster, 500, 47 * HOUR + part))
            assert {result.code for result in results} == {Code.SESSION_EXPIRED}
        now = leader(cluster).clock.wall()
        assert abs(results[0].new_id_ms / 1000 - now) < 10, "the refusal tells the cluster's time"
        await in_time(cluster, "right", 0.0)

    run(scenario)


def test_nor_do_as_many_that_are_just_taken() -> None:
    async def scenario(cluster: SimCluster) -> None:
        ahead = limits.CLIENT_AHEAD - 10
        for part in range(17):
            results = await ask(leader(cluster), flood(cluster, 500, ahead + part / 10))
            assert {result.code for result in results} == {Code.OK}
        (old,) = await ask(leader(cluster), flood(cluster, 1, 0.0))
        assert old.code == Code.SESSION_EXPIRED, "the floor is ahead of the time, by no more than the allowance"
        assert 0 < old.new_id_ms / 1000 - leader(cluster).clock.wall() < limits.CLIENT_AHEAD
        await in_time(cluster, "right", 0.0)
        await in_time(cluster, "slow", -30 * HOUR)

    run(scenario)


def test_a_floor_that_an_earlier_version_let_run_ahead_is_no_lock() -> None:
    async def scenario(cluster: SimCluster) -> None:
        one = leader(cluster)
        assert one.node is not None
        ahead = client_id(int((one.clock.wall() + 47 * HOUR) * 1000), bytes(TAIL_BYTES))
        for node in cluster.nodes.values():
            assert node.node is not None
            node.node._replicas.data[1].store._slots[slot(cluster)].floor = ahead
        await in_time(cluster, "right", 0.0)
        client = cluster.client("both", timeout=1.0)
        async with client:
            for number in range(20):
                await client.put(f"elsewhere {number % 3}", "x")
                await client.put(KEY, str(number))
        unnamed = await ask(one, [Put(slot(cluster), KEY, b"x")] * 50)
        assert {result.code for result in unnamed} == {Code.OK}
        (far,) = await ask(one, flood(cluster, 1, 49 * HOUR))
        assert (far.code, far.new_id_ms) == (Code.SESSION_EXPIRED, drawn_at(ahead) + 1)

    run(scenario)


@pytest.mark.parametrize("ahead", [30 * HOUR, -30 * HOUR, 1000 * HOUR, 90])
def test_a_client_with_a_wrong_clock_is_served_and_harms_nobody(ahead: float, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(cluster: SimCluster) -> None:
        await in_time(cluster, "wrong", ahead)
        # Its session goes, and with it older ones.
        monkeypatch.setattr(limits, "MAX_SESSIONS_PER_SLOT", 2)
        for number in range(4):
            await in_time(cluster, f"right {number}", 0.0)
        store = leader(cluster).node._replicas.data[1].store  # type: ignore[union-attr]
        assert drawn_at(store._slots[slot(cluster)].floor) / 1000 <= leader(cluster).clock.wall() + 10

    run(scenario)


@pytest.mark.parametrize("days", [-3, 3])
def test_a_node_whose_wall_clock_is_days_off_serves_and_says_so(days: int) -> None:
    async def scenario(cluster: SimCluster) -> None:
        for node in cluster.nodes.values():
            node.clock.step_wall(days * 86400.0)
            await asyncio.sleep(3.0)
            (own,) = await ask(node, [Put(slot(cluster), KEY, b"unnamed")])
            (named,) = await ask(
                node,
                flood(cluster, 1, 0.0)
                if node is not leader(cluster)
                else [Put(slot(cluster), KEY, b"x", client=client_id(int(1.7e12), bytes(TAIL_BYTES)), seq=1, first=1)],
            )
            assert (own.code, named.code) == (Code.OK, Code.OK)
            await in_time(cluster, f"client of {node.id}", 0.0)
            told = {one.id: problems(one) for one in cluster.nodes.values()}
            assert told[node.id] == {("clock_skew", None)}
            assert sum(map(len, told.values())) == 1
            node.clock.step_wall(-days * 86400.0)
            await asyncio.sleep(3.0)
            assert found(node) == ()

    run(scenario)


NOTICED = 3.0
"""Seconds after which a clock of half or double rate breaks no lease any more (docs/operations.md)."""


async def _stale_reads(cluster: SimCluster, wrong: str, rate: float) -> int:
    """Reads that show an old value, at a leader that is cut off and trusts a lease that its voters have forgotten."""
    await asyncio.sleep(10.0)  # until the preferred node leads
    old = leader(cluster)
    fast, other = (node for node in cluster.nodes.values() if node is not old)
    number = slot(cluster)
    write = [Put(number, KEY, value) for value in (b"old", b"new")]
    await ask(old, write[:1])
    cluster.set_rate({"leader": old.id, "follower": fast.id}[wrong], rate)
    await asyncio.sleep(NOTICED)
    assert leader(cluster) is old
    cluster.network.cut(old.name, other.name)
    if wrong == "follower":
        # The lease rests on the fast one alone: the other one forgets the leader.
        await asyncio.sleep(0.6)
        assert leader(cluster) is old
    cluster.network.cut(old.name, fast.name)
    writing = asyncio.ensure_future(ask(other, write[1:]))
    stale = 0
    for _ in range(400):
        written = writing.done()
        (seen,) = await ask(old, [Get(number, KEY)], 0.01)
        stale += written and seen.code == Code.OK and seen.value == b"old"
        await asyncio.sleep(0.005)
    assert [result.code for result in await writing] == [Code.OK]
    return stale


@pytest.mark.parametrize(("wrong", "rate"), [("leader", 0.3), ("follower", 3.0)])
@pytest.mark.parametrize("compared", [True, False])
def test_no_lease_is_trusted_once_a_rate_was_seen_to_be_wrong(
    wrong: str, rate: float, compared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(cluster: SimCluster) -> None:
        stale = await _stale_reads(cluster, wrong, rate)
        assert bool(stale) is not compared, f"{stale} reads were stale"

    if not compared:
        monkeypatch.setattr(Clocks, "look", lambda self: None)
    run(scenario)


def test_a_wrong_rate_is_told_by_those_who_see_it_and_over_when_it_is() -> None:
    async def scenario(cluster: SimCluster) -> None:
        cluster.set_rate(2, 0.5)
        await asyncio.sleep(NOTICED)
        assert problems(cluster.nodes[1]) == problems(cluster.nodes[3]) == {("clock_skew", 2)}
        assert problems(cluster.nodes[2]) == {("clock_skew", 1), ("clock_skew", 3)}
        cluster.set_rate(2, 1.0)
        await asyncio.sleep(50.0)
        assert [found(node) for node in cluster.nodes.values()] == [(), (), ()]

    run(scenario)


def test_clocks_within_half_of_the_allowance_keep_their_leases() -> None:
    async def scenario(cluster: SimCluster) -> None:
        for node, rate in ((1, 0.98), (2, 1.0), (3, 1.02)):
            cluster.set_rate(node, rate)
        for _ in range(20):
            await asyncio.sleep(1.0)
            assert [found(node) for node in cluster.nodes.values()] == [(), (), ()]
        group = leader(cluster).node._replicas.data[1].group  # type: ignore[union-attr]
        assert group.lease_holds()

    run(scenario)
