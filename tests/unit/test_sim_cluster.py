"""Whole simulated clusters: the real client and nodes work on them, and each fault takes effect."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from faults.driver import host
from faults.sim.cluster import LogCapture, SimCluster, SimNode, SimSettings
from faults.sim.disk import of_system
from faults.sim.driver import SimDriver
from faults.sim.invariants import Invariants
from faults.sim.loop import SimLoop, simulate
from raftkv import AsyncClient, limits
from raftkv.api.status import Role
from raftkv.errors import CorruptData, NoSpace, RaftKVError
from raftkv.node.node import NodeRefused
from raftkv.peer.hello import HelloRefused, Reason
from raftkv.store import history

Scenario = Callable[[SimCluster, AsyncClient], Coroutine[Any, Any, None]]


def run(scenario: Scenario, *, seed: int = 1, nodes: int = 3, settings: SimSettings | None = None) -> None:
    async def main(loop: SimLoop) -> None:
        cluster = SimCluster(loop, random.Random(seed), nodes=nodes, groups=2, settings=settings)
        await cluster.start()
        async with cluster.client("c1", timeout=5.0) as client:
            await scenario(cluster, client)
        assert [one for one in loop.problems if not of_system(one.exception)] == []

    simulate(main)


def follower(cluster: SimCluster) -> int:
    """A node that leads nothing, or else one that does not lead the meta group."""
    leading = cluster.leaders()
    return next((one for one in cluster.nodes if one not in leading.values()), 1 + leading[0] % len(cluster.nodes))


async def until(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.05)


async def fill(client: AsyncClient, count: int, size: int = 200) -> None:
    for number in range(count):
        await client.put(f"k{number % 20}", f"{number}:".ljust(size, "."))


def test_the_real_client_writes_reads_scans_and_asks_for_the_status() -> None:
    async def scenario(cluster: SimCluster, client: AsyncClient) -> None:
        assert (await client.put("a", "1")).version == 1
        assert await client.cas("a", "1", "2")
        assert not await client.cas("a", "1", "3")
        found = await client.get("a")
        assert found is not None
        assert (found.value, found.version) == (b"2", 2)
        assert [record.key async for record in client.scan()] == [b"a"]
        assert await client.delete("a")
        assert await client.get("a", consistency="quorum") is None
        statuses = await client.status()
        assert [one.status is not None and one.status.ready for one in statuses] == [True] * 3

    run(scenario)


def test_all_that_was_acknowledged_survives_the_loss_of_power_of_all_nodes() -> None:
    async def scenario(cluster: SimCluster, client: AsyncClient) -> None:
        for number in range(30):
            await client.put(f"k{number}", str(number))
        writing = [asyncio.create_task(client.put(f"u{number}", "x", timeout=0.5)) for number in range(30)]
        await asyncio.sleep(0.001)
        for node in cluster.nodes:
            cluster.kill(node, power_loss=True)
        await asyncio.gather(*writing, return_exceptions=True)
        for node in cluster.nodes:
            cluster.restart(node)
        await cluster.ready(10.0)
        for number in range(30):
            found = await client.get(f"k{number}")
            assert found is not None
            assert found.value == str(number).encode()

    run(scenario)


def test_a_write_that_was_under_way_when_the_power_went_is_not_on_the_disk() -> None:
    async def scenario(cluster: SimCluster, client: AsyncClient) -> None:
        await fill(client, 5)
        node = cluster.nodes[2].node
        assert node is not None
        cluster.slow_sync(2, 5.0)
        await asyncio.sleep(0.1)
        await fill(client, 5)
        await until(lambda: node._wal.appended > node._wal.durable)
        durable, appended = node._wal.durable, node._wal.appended
        cluster.kill(2, power_loss=True)
        for other in (1, 3):
            cluster.network.cut("n2", f"n{other}")
        cluster.restart(2)
        again = cluster.nodes[2].node
        assert again is not None
        assert durable <= again._wal.durable < appended

    run(scenario)


@pytest.mark.parametrize("power_loss", [False, True])
def test_the_group_goes_on_without_its_leader_and_takes_it_back(power_loss: bool) -> None:
    async def scenario(cluster: SimCluster, client: AsyncClient) -> None:
        await fill(client, 20)
        leader = cluster.leaders()[1]
        cluster.kill(leader, power_loss=power_loss)
        assert (cluster.nodes[leader].state, cluster.nodes[leader].node) == ("dead", None)
        await fill(client, 20)
        assert cluster.leaders()[1] != leader
        cluster.restart(leader)
        await cluster.ready(10.0)
        assert cluster.nodes[leader].state == "running"

    run(scenario)


def test_a_node_that_is_asked_to_stop_gives_its_leaderships_away_first() -> None:
    async def scenario(cluster: SimCluster, client: AsyncClient) -> None:
        leader = cluster.leaders()[1]
        stopping = cluster.stop(leader)
        start = cluster.loop.time()
        await fill(client, 20)
        assert cluster.loop.time() - start < 1.0, "no election time-out is waited for"
        await stopping
        assert (cluster.nodes[leader].state, cluster.nodes[leader].fatal) == ("dead", None)
        cluster.restart(leader)
        await cluster.ready(10.0)

    run(scenario)


def test_a_paused_leader_is_replaced_and_steps_down_when_it_goes_on() -> None:
    async def scenario(cluster: SimCluster, client: AsyncClient) -> None:
        leader = cluster.leaders()[1]
        node = cluster.nodes[leader].node
        assert node is not None
        cluster.pause(leader)
        await asyncio.sleep(3.0)
        assert cluster.leaders()[1] != leader
        assert any(one.group == 1 and one.role is Role.LEADER for one in node.status().replicas), "it does not know"
        cluster.resume(leader)
        await asyncio.sleep(1.0)
        assert not any(one.group == 1 and one.role is Role.LEADER for one in node.status().replicas)

    run(scenario)


def test_a_node_that_lost_its_disk_is_refused() -> None:
    async def scenario(cluster: SimCluster, client: AsyncClient) -> None:
        cluster.kill(2, power_loss=False)
        cluster.wipe(2)
        cluster.restart(2)
        await until(lambda: cluster.nodes[2].state == "refused")
        assert isinstance(cluster.nodes[2].fatal, NodeRefused)
        await fill(client, 5)

    run(scenario)


def test_what_a_refused_node_does_follows_from_the_reason_and_not_from_the_text() -> None:
    async def scenario(cluster: SimCluster, client: AsyncClient) -> None:
        old, new = "replaced data folder: ...", "gone"
        for number, (reason, text, state) in enumerate(
            [(Reason.NOT_A_MEMBER, old, "running"), (77, old, "running"), (Reason.REMOVED, new, "refused")], 1
        ):
            node = cluster.nodes[number].node
            assert node is not None
            node._neighbours.on_refused(1 + number % 3, HelloRefused(reason, text))
            await asyncio.sleep(1.0)
            assert cluster.nodes[number].state == state, text

    run(scenario)


def test_a_failing_sync_ends_the_node_and_it_comes_back_with_a_good_disk() -> None:
    async def scenario(cluster: SimCluster, client: AsyncClient) -> None:
        cluster.fail_sync(2)
        await fill(client, 10)
        await until(lambda: cluster.nodes[2].state == "failed")
        assert isinstance(cluster.nodes[2].fatal, OSError)
        cluster.fail_sync(2, False)
        cluster.restart(2)
        await cluster.ready(10.0)

    run(scenario)


def test_slow_disks_slow_writes_down() -> None:
    async def scenario(cluster: SimCluster, client: AsyncClient) -> None:
        async def seconds() -> float:
            start = cluster.loop.time()
            await client.put("a", "1")
            return cluster.loop.time() - start

        await seconds()
        usual = await seconds()
        for node in cluster.nodes:
            cluster.slow_sync(node, 0.05)
        await asyncio.sleep(0.2)
        slow = await seconds()
        assert usual < 0.02
        assert slow > 0.05

    run(scenario)


def test_full_disks_refuse_writes_until_there_is_room() -> None:
    async def scenario(cluster: SimCluster, client: AsyncClient) -> None:
        await fill(client, 5)
        for node in cluster.nodes:
            cluster.fill_disk(node, True, left=2 * cluster.settings.segment_bytes)
        await asyncio.sleep(2.0)
        with pytest.raises(NoSpace):
            await client.put("a", "1")
        for node in cluster.nodes:
            cluster.fill_disk(node, False)
        await asyncio.sleep(2.0)
        await client.put("a", "1")

    run(scenario)


def test_a_full_memory_of_any_voter_refuses_what_adds_data_and_nothing_else() -> None:
    async def scenario(cluster: SimCluster, client: AsyncClient) -> None:
        await fill(client, 5)
        await client.put("a", "1")
        voter = cluster.nodes[3]
        assert voter.node is not None
        voter.node._memory.configure(1000)
        voter.memory.taken = 1000
        await asyncio.sleep(2.0)
        for refused in (client.put("b", "1"), client.cas("a", "1", "2")):
            with pytest.raises(NoSpace, match=f"memory of node {voter.id} "):
                await refused
        assert await client.get("a") is not None
        assert await client.delete("a")
        voter.memory.taken = 899
        await asyncio.sleep(2.0)
        await client.put("b", "1")

    run(scenario)


def test_a_full_node_hands_over_what_it_leads_and_gets_it_back_when_it_has_room() -> None:
    """No write is refused meanwhile; the node that the map prefers stays without leaderships while it is full."""

    async def scenario(cluster: SimCluster, client: AsyncClient) -> None:
        full = preferred(cluster, 1)
        await until(lambda: cluster.leaders()[1] == full)
        cluster.fill_disk(full, True, left=2 * cluster.settings.segment_bytes)
        await until(lambda: full not in cluster.leaders().values())
        for _ in range(60):
            await fill(client, 1)
            await asyncio.sleep(0.5)
            assert full not in cluster.leaders().values()
        cluster.fill_disk(full, False)
        await until(lambda: cluster.leaders()[1] == full, 60.0)

    run(scenario)


def test_leaders_of_one_machine_gather_on_one_node_also_when_it_dies() -> None:
    async def scenario(cluster: SimCluster, client: AsyncClient) -> None:
        first = preferred(cluster, 1)
        await until(lambda: set(cluster.leaders().values()) == {first})
        cluster.kill(first, power_loss=False)
        await until(lambda: cluster.leaders().keys() == {0, 1, 2} and len({*cluster.leaders().values()}) == 1)
        assert first not in cluster.leaders().values()
        await client.put("a", "1")
        second = cluster.leaders()[1]
        await asyncio.sleep(20.0)
        assert set(cluster.leaders().values()) == {second}, "and there they stay"
        cluster.nodes[first].start()
        await until(lambda: set(cluster.leaders().values()) == {first}, 60.0)

    run(scenario, settings=SimSettings(one_machine=True))


def preferred(cluster: SimCluster, group: int) -> int:
    """The node that the map wants to lead ``group``."""
    node = cluster.nodes[1].node
    assert node is not None
    shard_map = node.cluster_map()
    assert shard_map is not None
    return shard_map.group(group).voters[0]


def test_a_follower_whose_disk_is_full_waits_and_catches_up_when_there_is_room() -> None:
    async def scenario(cluster: SimCluster, client: AsyncClient) -> None:
        full = cluster.nodes[follower(cluster)]
        cluster.fill_disk(full.id, True)
        await fill(client, 500)
        await asyncio.sleep(2.0)
        assert full.node is not None
        (problem,) = full.node.status().problems
        assert problem.kind == "disk_full"
        assert "its log waits" in problem.text
        cluster.fill_disk(full.id, False)
        await until(lambda: caught_up(cluster))
        assert (full.state, full.starts) == ("running", 1)

    run(scenario)


def caught_up(cluster: SimCluster) -> bool:
    """Whether all replicas of group 1 have applied the same."""
    nodes = [one.node for one in cluster.nodes.values() if one.node is not None]
    found = [replica for node in nodes for replica in node.status().replicas if replica.group == 1]
    return len({replica.applied_index for replica in found}) == 1


def test_a_node_needs_no_more_disk_than_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/operations.md: what the log may hold, two snapshots, three segments, and what is kept free; also for a node
    that catches up with much."""
    settings = SimSettings(segment_bytes=4096, snapshot_bytes=4096, keep_entries=10_000, sync=0.01)
    monkeypatch.setattr(limits, "MAX_ENTRY_BYTES", 512)
    monkeypatch.setattr(limits, "MAX_INFLIGHT_APPENDS", 1)
    monkeypatch.setattr(limits, "MAX_HISTORY_BYTES", 4096)
    monkeypatch.setattr(history, "_BLOCK_EVENTS", 2)

    async def scenario(cluster: SimCluster, client: AsyncClient) -> None:
        await fill(client, 20)
        data = 3 * (20 * 300 + limits.MAX_HISTORY_BYTES)
        need = 8 * settings.snapshot_bytes + 2 * data + 3 * settings.segment_bytes
        for node in cluster.nodes.values():
            node.disk.capacity = need + 8 * settings.segment_bytes
        behind = follower(cluster)
        cluster.kill(behind, power_loss=False)
        await fill(client, 800)
        cluster.restart(behind)
        most = 0
        while not caught_up(cluster):
            most = max(most, *(node.disk.used() for node in cluster.nodes.values()))
            await asyncio.sleep(0.001)
        assert most <= need
        for node in cluster.nodes.values():
            assert (node.state, node.node and node.node.status().problems) == ("running", ())

    run(scenario, settings=settings)


def test_a_flipped_bit_in_a_closed_segment_is_named_at_the_next_start() -> None:
    async def scenario(cluster: SimCluster, client: AsyncClient) -> None:
        assert not cluster.flip_bit(2, (0, 1)), "there is no closed segment yet"
        await fill(client, 60)
        cluster.kill(2, power_loss=False)
        assert cluster.flip_bit(2, (0, 1))
        cluster.restart(2)
        assert cluster.nodes[2].state == "refused"
        assert isinstance(cluster.nodes[2].fatal, CorruptData)
        await fill(client, 5)

    run(scenario, settings=SimSettings(segment_bytes=4096, snapshot_bytes=1 << 20))


def test_dropped_replies_leave_the_operation_applied_and_a_retry_applies_it_no_second_time() -> None:
    async def scenario(cluster: SimCluster, client: AsyncClient) -> None:
        other = cluster.client("c2")
        await client.put("a", "0")
        driver = SimDriver(cluster, Invariants(cluster), ["c1"], 1)
        lost = await driver.cut([(host(node), "c1") for node in cluster.nodes], "lost answers")
        writing = asyncio.create_task(client.put("a", "1"))
        await asyncio.sleep(1.0)
        assert await lost.shown()
        found = await other.get("a")
        assert found is not None
        assert (found.value, writing.done()) == (b"1", False)
        await lost.end()
        await other.put("a", "2")
        assert (await writing).version == 2
        found = await other.get("a")
        assert found is not None
        assert (found.value, found.version) == (b"2", 3)
        await other.close()

    run(scenario)


def test_short_logs_are_compacted_and_a_follower_that_was_away_gets_a_snapshot() -> None:
    async def scenario(cluster: SimCluster, client: AsyncClient) -> None:
        away = follower(cluster)
        cluster.kill(away, power_loss=False)
        await fill(client, 200)
        with LogCapture(cluster.trace):
            cluster.restart(away)
            await cluster.ready(10.0)
            await fill(client, 20)
            await asyncio.sleep(2.0)
        node = cluster.nodes[away].node
        assert node is not None
        replicas = [one for one in node.status().replicas if one.group]
        assert all(one.snapshot_index > 20 for one in replicas)
        assert any(f"n{away} " in line and "snapshot" in line for line in cluster.trace.lines)

    run(scenario)


def test_clocks_drift_and_leases_within_their_allowance_still_hold() -> None:
    async def scenario(cluster: SimCluster, client: AsyncClient) -> None:
        before = [node.clock.now() for node in cluster.nodes.values()]
        cluster.set_rate(1, 1.05)
        cluster.set_rate(2, 0.95)
        start = cluster.loop.time()
        await asyncio.sleep(10.0)
        await fill(client, 20)
        spent = cluster.loop.time() - start
        shown = [node.clock.now() - at for node, at in zip(cluster.nodes.values(), before, strict=True)]
        assert shown == pytest.approx([1.05 * spent, 0.95 * spent, spent])

    run(scenario)


def test_observers_see_every_node_after_its_turns() -> None:
    async def scenario(cluster: SimCluster, client: AsyncClient) -> None:
        seen: dict[int, int] = {}

        def observe(node: SimNode) -> None:
            assert node.node is not None
            seen[node.id] = seen.get(node.id, 0) + 1

        cluster.on_turn.append(observe)
        await fill(client, 5)
        await asyncio.sleep(1.0)
        assert sorted(seen) == [1, 2, 3]
        assert min(seen.values()) >= 50, "a tick every 20 ms and the turns besides"

    run(scenario)


def test_a_minority_behind_a_cut_serves_nothing_and_the_rest_goes_on() -> None:
    async def scenario(cluster: SimCluster, client: AsyncClient) -> None:
        leader = cluster.leaders()[1]
        for node in cluster.nodes:
            if node != leader:
                cluster.network.cut(f"n{leader}", f"n{node}")
        await fill(client, 20)
        assert cluster.leaders()[1] != leader
        for node in cluster.nodes:
            if node != leader:
                cluster.network.cut("c1", f"n{node}")
        with pytest.raises(RaftKVError):
            await client.get("k1", timeout=1.0)
        cluster.network.heal()
        await fill(client, 5)

    run(scenario, seed=3)
