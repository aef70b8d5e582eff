"""Guarantee: the client's calls do what they say, together and in any order, and it follows leaders and the map."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

import raftkv
from raftkv.client.aio import AsyncClient
from raftkv.clock import SystemClock
from raftkv.commands.bounds import Mode
from raftkv.commands.records import Get, Put
from raftkv.commands.results import Result
from raftkv.errors import (
    Code,
    ConditionFailed,
    InvalidArgument,
    OutcomeUnknown,
    TooLarge,
    UsageError,
    WrongCluster,
)
from raftkv.limits import MAX_VALUE_BYTES
from tests.rpc_fakes import FakeCluster, Shared, failed, one_group_map, started
from tests.waiting import PATIENCE, becomes


def test_every_call_does_what_it_says() -> None:
    async def main() -> None:
        async with started(3) as (cluster, kv):
            assert await kv.get("k") is None
            written = await kv.put("k", "wert", ttl=1.5)
            record = await kv.get(b"k")
            assert record == raftkv.Record(b"k", b"wert", written.version, None)
            with pytest.raises(ConditionFailed) as caught:
                await kv.put("k", b"x", if_version=raftkv.ABSENT)
            assert caught.value.version == written.version
            await kv.put("k", b"x", if_version=written.version)
            assert await kv.cas("k", expected=b"x", value=b"y")
            assert not await kv.cas("k", b"x", b"z")
            assert await kv.cas("new", None, b"z")
            with pytest.raises(ConditionFailed):
                await kv.delete("k", if_version=1)
            assert await kv.delete("k")
            assert not await kv.delete("k")
            puts = [op for op in cluster.shared.applied if isinstance(op, Put)]
            assert puts[0].ttl == 1500
            assert [op.seq for op in cluster.shared.applied] == list(range(1, 10))

    asyncio.run(main())


def test_time_left_becomes_a_moment() -> None:
    async def main() -> None:
        async with started() as (cluster, kv):
            cluster.frontends[0].script = lambda op: Result(0, 4, b"v", 60_000)
            before = SystemClock().wall()
            record = await kv.get("k")
            assert record is not None
            assert record.expires_at is not None
            assert before + 60 <= record.expires_at <= SystemClock().wall() + 60

    asyncio.run(main())


def test_calls_of_one_turn_share_a_message_to_the_leader() -> None:
    async def main() -> None:
        async with started(3) as (cluster, kv):
            cluster.lead(2)
            await kv.get("warm")
            front = cluster.frontends[1]
            front.batches.clear()
            await asyncio.gather(*(kv.put(f"k{i}", b"v") for i in range(50)))
            assert [len(batch) for batch, _ in front.batches] == [50]
            assert {op.client for op in front.ops} == {front.ops[0].client}
            assert [op.first for op in front.ops] == [1] * 50
            assert not cluster.frontends[0].batches
            assert not cluster.frontends[2].batches

    asyncio.run(main())


def test_first_incomplete_follows_the_calls_that_are_waited_for() -> None:
    async def main() -> None:
        async with started() as (cluster, kv):
            front = cluster.frontends[0]
            front.script = lambda op: None if op.key == b"slow" else cluster.shared.execute(op)
            slow = asyncio.create_task(kv.put("slow", b"v"))
            await becomes(lambda: front.held)
            await kv.put("a", b"v")
            await kv.put("b", b"v")
            last = front.ops[-1]
            assert (last.client, last.seq, last.first) == (front.ops[0].client, 3, 1)
            front.release()
            await slow
            await kv.put("c", b"v")
            assert front.ops[-1].first == 4

    asyncio.run(main())


def test_a_hint_is_followed_and_remembered() -> None:
    async def main() -> None:
        async with started(3) as (cluster, kv):
            await kv.get("warm")
            cluster.frontends[0].script = lambda op: failed(Code.NOT_LEADER, hint=3)
            await kv.put("k", b"v")
            assert [op.key for op in cluster.frontends[2].ops] == [b"k"]
            asked = len(cluster.frontends[0].ops)
            await kv.get("k")
            assert len(cluster.frontends[0].ops) == asked

    asyncio.run(main())


def test_a_forwarding_nodes_hint_moves_the_next_call() -> None:
    async def main() -> None:
        async with started(2) as (cluster, kv):
            cluster.frontends[0].script = lambda op: replace(cluster.shared.execute(op), hint=2)
            await kv.put("k", b"v")
            await kv.get("k")
            assert [type(op) for op in cluster.frontends[1].ops] == [Get]

    asyncio.run(main())


def test_consistency_travels_and_stale_reads_spread() -> None:
    async def main() -> None:
        async with started(3) as (cluster, kv):
            await kv.get("k", consistency="quorum")
            assert cluster.frontends[0].ops[-1].mode == Mode.QUORUM
            for _ in range(6):
                await kv.get("k", consistency="stale")
            assert [len(front.ops) for front in cluster.frontends] == [3, 2, 2]
            assert cluster.frontends[2].ops[-1].mode == Mode.STALE

    asyncio.run(main())


def test_bad_arguments_never_leave_the_client() -> None:
    async def main() -> None:
        async with started() as (cluster, kv):
            for bad in (
                kv.put("", b"v"),
                kv.put("k", b"v", ttl=-1),
                kv.put("k", b"v", if_version=-1),
                kv.get("k", timeout=0),
                kv.get("k", consistency="strong"),  # type: ignore[arg-type]
                kv.delete(5),  # type: ignore[arg-type]
            ):
                with pytest.raises(InvalidArgument):
                    await bad
            with pytest.raises(TooLarge):
                await kv.cas("k", b"v" * (MAX_VALUE_BYTES + 1), b"v")
            assert not cluster.frontends[0].batches
            assert (await kv.put("k", b"v" * MAX_VALUE_BYTES)).version == 1
            assert len(await asyncio.gather(*(kv.get("k") for _ in range(20)))) == 20
            await asyncio.gather(*(kv.put(f"k{i}", b"v" * MAX_VALUE_BYTES) for i in range(10)))

    asyncio.run(main())


def test_a_newer_map_is_fetched_and_followed() -> None:
    async def main() -> None:
        async with started(2, seeds=1) as (cluster, kv):
            await kv.get("k")
            old = cluster.frontends[0]
            newer = one_group_map(list(reversed(cluster.addresses)), epoch=2)
            cluster.set_map(newer)  # node 1 is now the second address, and leads
            await kv.get("k")
            await becomes(lambda: kv._engine._routing.view is not None and kv._engine._routing.view.epoch == 2)
            asked = len(old.ops)
            await kv.get("k")
            assert len(old.ops) == asked
            assert cluster.frontends[1].ops[-1].key == b"k"

    asyncio.run(main())


def test_another_cluster_gets_no_operation() -> None:
    async def main() -> None:
        async with FakeCluster() as mine, FakeCluster(shared=Shared()) as other:
            other.frontends[0].cluster_id = "other"
            other.set_map(one_group_map(other.addresses, cluster="other"))
            async with AsyncClient(mine.addresses, timeout=PATIENCE) as kv:
                await kv.put("k", b"v")
                # The map now names an address at which the other cluster listens.
                mine.set_map(one_group_map(other.addresses, epoch=2))
                await kv.get("k")
                await becomes(lambda: kv._engine._routing.view is not None and kv._engine._routing.view.epoch == 2)
                with pytest.raises(WrongCluster, match="other"):
                    await kv.put("k", b"w")
            assert not other.frontends[0].ops

    asyncio.run(main())


def test_a_cluster_that_is_not_ready_yet_is_waited_for() -> None:
    async def main() -> None:
        async with started() as (cluster, kv):
            known = cluster.frontends[0].map
            cluster.frontends[0].map = None
            write = asyncio.create_task(kv.put("k", b"v"))
            await asyncio.sleep(0.05)
            assert not write.done()
            cluster.frontends[0].map = known
            assert (await write).version == 1

    asyncio.run(main())


def test_all_records_are_read_in_pages() -> None:
    async def main() -> None:
        async with started(2) as (cluster, kv):
            expected = {}
            for number in range(300):
                key, value = f"{{{number % 3}}}{number}".encode(), b"v" * 3000
                cluster.shared.records[key] = (value, number + 1)
                expected[key] = value
            found = [record async for record in kv.scan()]
            assert len(found) == 300
            assert {record.key: record.value for record in found} == expected
            assert [record.key for record in found] == sorted(expected)
            assert [one async for one in kv.scan(reverse=True)] == found[::-1]
            assert [one async for one in kv.scan(start=found[7].key, limit=250)] == found[7:257]
            assert {one.value async for one in kv.scan(keys_only=True, prefix="{1}")} == {b""}
            assert await kv.count(end=found[7].key) == 7
            async for _ in kv.scan():
                break

    asyncio.run(main())


def test_scans_are_retried_elsewhere() -> None:
    async def main() -> None:
        async with started(2) as (cluster, kv):
            cluster.shared.records[b"k"] = (b"v", 1)
            cluster.frontends[0].script = lambda op: failed(Code.NOT_LEADER, hint=2)
            assert [record.key async for record in kv.scan()] == [b"k"]

    asyncio.run(main())


def test_connections_to_addresses_that_left_the_map_are_closed() -> None:
    async def main() -> None:
        async with started(2, seeds=1) as (cluster, kv):
            cluster.lead(2)
            await kv.get("k")
            gone = cluster.addresses[1]
            assert gone in kv._engine._channels
            cluster.lead(1)
            cluster.set_map(one_group_map(cluster.addresses[:1], epoch=2))
            await kv.get("k")
            await becomes(lambda: gone not in kv._engine._channels)
            assert (await kv.put("k", b"v")).version == 1

    asyncio.run(main())


def test_status_tells_of_every_endpoint() -> None:
    async def main() -> None:
        async with started(3, seeds=1) as (cluster, kv):
            await cluster.stop(3)
            statuses = await kv.status(timeout=PATIENCE)
            assert [status.address for status in statuses] == cluster.addresses
            assert [status.status.node for status in statuses if status.status is not None] == [1, 2]
            assert statuses[2].status is None
            assert statuses[2].error
            first = statuses[0].status
            assert first == cluster.frontends[0].status()

    asyncio.run(main())


def test_misuse_gets_clear_errors() -> None:
    async def main() -> None:
        async with started() as (_, kv):
            await kv.put("k", b"v")

            def elsewhere() -> None:
                async def use() -> None:
                    with pytest.raises(UsageError, match="another event loop"):
                        await kv.get("k")

                asyncio.run(use())

            await asyncio.get_running_loop().run_in_executor(None, elsewhere)
            await kv.close()
            await kv.close()
            with pytest.raises(UsageError, match="closed"):
                await kv.get("k")

    asyncio.run(main())


def test_closing_ends_outstanding_calls_truthfully() -> None:
    async def main() -> None:
        async with started(timeout=PATIENCE) as (cluster, kv):
            front = cluster.frontends[0]
            front.script = lambda op: None
            write = asyncio.create_task(kv.put("k", b"v"))
            read = asyncio.create_task(kv.get("k"))
            await becomes(lambda: len(front.held) == 2)
            await kv.close()
            with pytest.raises(OutcomeUnknown):
                await write
            with pytest.raises(UsageError):
                await read

    asyncio.run(main())
