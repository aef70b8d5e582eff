"""Guarantee: a watch on real processes gives each change once and in order, over a failover and a slot move."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator

import pytest

import raftkv
from raftkv import AsyncClient, Client
from raftkv.cli.admin.main import run as admin
from raftkv.cli.main import run
from raftkv.errors import Compacted, InvalidArgument
from raftkv.testing import LocalCluster
from tests.waiting import PATIENCE


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(nodes=3, groups=2) as cluster:
        yield cluster


async def until_live(watch: raftkv.AsyncWatch) -> list[raftkv.WatchEvent]:
    found = []
    async for event in watch:
        if event.type == "live":
            break
        found.append(event)
    return found


def test_changes_come_in_order_with_images_tokens_and_sync(cluster: LocalCluster) -> None:
    async def main() -> None:
        async with AsyncClient(cluster.endpoints, timeout=PATIENCE) as kv:
            await kv.put("{w}a", "1")
            async with kv.watch(prefix="{w}", initial=True) as watch:
                found = await until_live(watch)
                assert [(one.type, one.key, one.value) for one in found] == [
                    ("image", b"", None),
                    ("initial", b"{w}a", b"1"),
                    ("whole", b"", None),
                ]
                written = await kv.txn().put("{w}a", "2").put("{w}b", "3").delete("{w}none").commit()
                await kv.delete("{w}a")
                await kv.put("{w}c", "4", ttl=0.05)
                await kv.touch("{w}b", 60)
                changes = [await anext(watch) for _ in range(5)]
                assert [(one.type, one.key, one.value, one.more) for one in changes] == [
                    ("put", b"{w}a", b"2", True),
                    ("put", b"{w}b", b"3", False),
                    ("delete", b"{w}a", None, False),
                    ("put", b"{w}c", b"4", False),
                    ("expire", b"{w}c", None, False),
                ]
                assert changes[1].version == written.number
                assert [one.version for one in changes] == sorted(one.version for one in changes)
                # Giving up is safe: what comes next is not lost.
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(anext(watch), 0.01)
                await kv.put("{w}d", "5")
                assert (await anext(watch)).key == b"{w}d"
                reading = asyncio.create_task(collect(watch, 1))
                await kv.put("{w}e", "6")
                await watch.sync()
                assert reading.done()
            async with kv.watch(prefix="{w}", start=changes[2].token) as again:
                assert [one.key for one in [await anext(again) for _ in range(2)]] == [b"{w}c", b"{w}c"]
            with pytest.raises(InvalidArgument, match="not a token"):
                kv.watch(prefix="", start="nonsense")
            with pytest.raises(InvalidArgument, match="of a key or of a prefix"):
                kv.watch()
            assert await kv.get("{w}d") is not None

    asyncio.run(main())


async def collect(watch: raftkv.AsyncWatch, count: int) -> list[raftkv.WatchEvent]:
    found = [await anext(watch) for _ in range(count)]
    waiting = asyncio.create_task(anext(watch))
    await asyncio.sleep(0)
    waiting.cancel()
    return found


def test_nothing_is_lost_or_repeated_over_a_failover_and_a_move(cluster: LocalCluster) -> None:
    async def main() -> None:
        async with AsyncClient(cluster.endpoints, timeout=PATIENCE) as kv:
            slot = await kv.slot_of("{f}k")
            written: list[int] = []
            stop = asyncio.Event()

            async def write() -> None:
                while not stop.is_set():
                    written.append((await kv.put("{f}k", str(len(written)))).version)

            async with kv.watch(prefix="{f}") as watch:
                await until_live(watch)
                writing = asyncio.create_task(write())
                found = [await anext(watch) for _ in range(20)]
                group = kv._engine.owners()[slot]
                await asyncio.to_thread(fail_over, cluster, group)
                found += [await anext(watch) for _ in range(20)]
                await asyncio.to_thread(move, cluster, slot, 3 - group)
                found += [await anext(watch) for _ in range(20)]
                stop.set()
                await writing
                while len(found) < len(written):
                    found.append(await anext(watch))
            assert [event.version for event in found] == written
            assert [event.value for event in found] == [b"%d" % number for number in range(len(written))]

    asyncio.run(main())


def fail_over(cluster: LocalCluster, group: int) -> None:
    node = cluster.leader(group)
    cluster.kill(node)
    cluster.restart(node, wait=False)


def move(cluster: LocalCluster, slot: int, target: int) -> None:
    assert admin(["slot", "move", str(slot), "--to", str(target), "--wait", "--endpoints", cluster.endpoints]) == 0


def test_the_synchronous_client_and_the_command(
    cluster: LocalCluster, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    with Client(cluster.endpoints, timeout=PATIENCE) as kv, kv.watch(key="s") as watch:
        assert next(watch).type == "live"
        found: list[raftkv.WatchEvent] = []
        reader = threading.Thread(target=lambda: found.extend(event for _, event in zip(range(2), watch, strict=False)))
        reader.start()
        kv.put("s", "1")
        kv.delete("s")
        reader.join(PATIENCE)
        assert [(one.type, one.value) for one in found] == [("put", b"1"), ("delete", None)]
        token = found[0].token
    words = ["watch", "s", "--start", token, "--count", "1", "--endpoints", cluster.endpoints]
    assert run(words) == 0
    assert capsysbinary.readouterr().out == b"delete\ts\n"
    assert run([*words, "-o", "json"]) == 0
    lines = [json.loads(line) for line in capsysbinary.readouterr().out.splitlines()]
    assert [(one["type"], one.get("key")) for one in lines if one["type"] != "live"] == [("delete", "s")]
    assert run(["watch", "--endpoints", cluster.endpoints]) == 2


def test_what_has_gone_is_told_with_a_way_to_go_on(cluster: LocalCluster) -> None:
    async def main() -> None:
        async with AsyncClient(cluster.endpoints, timeout=PATIENCE) as kv:
            async with kv.watch(prefix="{big}") as watch:
                token = (await anext(watch)).token
            value = b"v" * 1024 * 1024
            for number in range(20):
                await kv.put(f"{{big}}{number % 2}", value)
            async with kv.watch(prefix="{big}", start=token) as watch:
                with pytest.raises(Compacted) as caught:
                    await anext(watch)
            assert list(caught.value.floors) == [await kv.slot_of("{big}0")]
            async with kv.watch(prefix="{big}", start=caught.value.token, initial=True) as watch:
                found = await until_live(watch)
            assert [one.type for one in found] == ["image", "initial", "initial", "whole"]
            assert {one.key for one in found[1:3]} == {b"{big}0", b"{big}1"}

    asyncio.run(main())
