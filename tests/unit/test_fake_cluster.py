"""Guarantee: the cluster in memory is for any number of clients and threads, and its time passes as one says."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

from raftkv import ConditionFailed, CrossSlot, InvalidArgument, NotANumber, TooLarge
from raftkv.testing import FakeAsyncClient, FakeClient, FakeCluster


def test_clients_of_several_threads_share_it() -> None:
    cluster = FakeCluster()

    def count(_: int) -> None:
        with cluster.client() as kv:
            for _ in range(25):
                kv.incr("n")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(count, range(4)))
    with cluster.client() as kv:
        assert kv.incr("n", 0) == 100
    with FakeClient() as other:
        assert other.get("n") is None


def test_many_calls_at_once() -> None:
    async def main() -> None:
        async with FakeAsyncClient() as kv:
            assert len(set(await asyncio.gather(*(kv.incr("n") for _ in range(200))))) == 200
            await kv.put_many({f"k{number:04}": b"v" * 5000 for number in range(1000)})
            assert [record.key async for record in kv.scan(prefix="k")] == [b"k%04d" % number for number in range(1000)]

    asyncio.run(main())


@pytest.mark.parametrize("slots", [256, 2048])
def test_it_has_the_slots_that_one_wants(slots: int) -> None:
    with FakeCluster(slots=slots).client() as kv:
        assert kv.slots() == slots
        kv.put("k", "v")
        assert kv.count() == 1
        (status,) = kv.status()
        assert status.status is not None
        assert status.status.ready


def test_it_refuses_what_a_cluster_refuses() -> None:
    with FakeClient() as kv:
        kv.put("k", "text")
        with pytest.raises(ConditionFailed, match="expected version 7, found version 1"):
            kv.update("k", "x", version=7)
        with pytest.raises(NotANumber):
            kv.incr("k")
        with pytest.raises(CrossSlot):
            kv.txn().put("a", "1").put("b", "2").commit()
        with pytest.raises(TooLarge):
            kv.put("k", b"x" * (1 << 20) + b"x")
        with pytest.raises(InvalidArgument):
            kv.cluster.advance(-1)


def test_what_was_left_expires_as_time_passes() -> None:
    with FakeClient() as kv:
        kv.put("k", "v", ttl=100)
        kv.put("l", "v", ttl=300)
        kv.cluster.advance(200)
        assert [record.key for record in kv.scan()] == [b"l"]
        record = kv.get("l")
        assert record is not None
        assert record.expires_at is not None
        assert kv.count() == 1
