"""Guarantee: the cluster in memory is for any number of clients and threads, and its time passes as one says."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from typing import Any

import pytest

from raftkv import (
    CodecError,
    ConditionFailed,
    CrossSlot,
    InvalidArgument,
    NotANumber,
    TooLarge,
    UsageError,
    Watch,
    WatchEvent,
    codecs,
)
from raftkv.testing import FakeAsyncClient, FakeClient, FakeCluster
from tests.waiting import PATIENCE


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


def test_watches_hear_of_writes_in_any_thread_and_of_what_expires() -> None:
    cluster = FakeCluster()
    with cluster.client() as kv, cluster.client() as writer, kv.watch(prefix="{w}") as watch:
        assert next(watch).type == "live"
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(lambda: [next(watch) for _ in range(3)])
            writer.put("other", "0")
            writer.txn().put("{w}a", "1").put("{w}b", "2").commit()
            writer.put("{w}c", "3", ttl=60)
            assert [(event.key, event.value, event.more) for event in reading.result(PATIENCE)] == [
                (b"{w}a", b"1", True),
                (b"{w}b", b"2", False),
                (b"{w}c", b"3", False),
            ]
            reading = pool.submit(lambda: [next(watch)])
            watch.sync()
            cluster.advance(60)
            assert [(event.type, event.key) for event in reading.result(PATIENCE)] == [("expire", b"{w}c")]
        token = watch.token
        kv.close()
        with pytest.raises(UsageError, match="closed"):
            next(watch)
    with cluster.client() as kv:
        kv.delete("{w}a")
        with kv.watch(prefix="{w}", start=token) as watch:
            assert [next(watch).type for _ in range(2)] == ["delete", "live"]


def test_a_watch_with_a_codec_goes_on_behind_what_it_cannot_read() -> None:
    cluster = FakeCluster()
    with cluster.client() as plain, cluster.client(codec=codecs.JSON) as kv, kv.watch(key="k") as watch:
        assert next(watch).type == "live"
        plain.put("k", "not JSON")
        kv.put("k", {"n": [1]})
        kv.delete("k")
        with pytest.raises(CodecError) as caught:
            next(watch)
        assert (caught.value.key, caught.value.data) == (b"k", b"not JSON")
        assert [next(watch).value for _ in range(2)] == [{"n": [1]}, None]
    with cluster.client(codec=codecs.JSON) as kv:
        kv.put("k", 7)
        with kv.watch(prefix="k", initial=True) as watch:
            assert [event.value for event in _until_live(watch) if event.type == "initial"] == [7]


def _until_live(watch: Watch[Any]) -> list[WatchEvent[Any]]:
    return list(takewhile(lambda event: event.type != "live", watch))
