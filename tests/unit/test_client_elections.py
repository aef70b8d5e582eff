"""Guarantee: one candidate leads at a time, and observers hear who leads, last of all who leads now."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import pytest

from raftkv import InvalidArgument, LockLost, Record, codecs
from raftkv.client.cursors import Cursor
from raftkv.client.election import leaders_of
from raftkv.client.types import EventType, WatchEvent
from raftkv.testing import FakeAsyncClient, FakeClient, FakeCluster
from tests.waiting import PATIENCE

TTL = 30.0


def test_leaders_follow_each_other_and_observers_hear_of_them() -> None:
    async def main() -> None:
        async with FakeAsyncClient(codec=codecs.STR) as kv, asyncio.timeout(PATIENCE):
            assert await kv.election("e").leader() is None
            async with aclosing(kv.election("e").observe()) as leaders:
                assert await anext(leaders) is None
                first, second = (kv.election("e", name, ttl=TTL) for name in ("one", "two"))
                assert await first.campaign()
                told = await anext(leaders)
                assert told is not None
                assert (told.value, told.version) == ("one", first.token)
                assert await second.campaign(timeout=0) is False
                campaign = asyncio.create_task(second.campaign())
                while await kv.count(prefix="{election:e}queue:") < 2:
                    await asyncio.sleep(0.002)
                await first.resign()
                assert await campaign
                assert second.token > told.version
                heard = [await anext(leaders)]
                while heard[-1] is None or heard[-1].value != "two":
                    heard.append(await anext(leaders))
                leader = await first.leader()
                assert leader is not None
                assert (leader.value, leader.version) == ("two", second.token)
                second.check()
                await second.resign()
                assert await anext(leaders) is None

    asyncio.run(main())


def test_a_lost_election_ends_the_block() -> None:
    async def main() -> None:
        async with FakeAsyncClient() as kv:

            async def lead() -> None:
                async with kv.election("e", "me", ttl=TTL):
                    kv.cluster.advance(TTL)
                    await asyncio.sleep(PATIENCE)

            with pytest.raises(LockLost, match="election 'e' is lost"):
                await lead()
            with pytest.raises(InvalidArgument, match="a candidate has a value"):
                await kv.election("e").campaign()
            assert await kv.election("e").leader() is None

    asyncio.run(main())


def test_without_await() -> None:
    cluster = FakeCluster()
    with FakeClient[Any, Any](cluster) as kv, FakeClient[Any, Any](cluster) as other:
        leaders = other.election("e").observe()
        assert next(leaders) is None
        with kv.election("e", "me", ttl=TTL) as election:
            told = next(leaders)
            assert isinstance(told, Record)
            assert (told.value, told.version) == (b"me", election.token)
            leader = election.leader()
            assert leader is not None
            assert leader[:3] == told[:3]
            assert not election.lost
            assert election.remaining > 0
            election.check()
        assert next(leaders) is None
        leaders.close()  # type: ignore[attr-defined]
        again = kv.election("e", "me", ttl=TTL)
        assert again.campaign(timeout=0)
        again.resign()
        assert not again.held


def test_an_image_that_begins_anew_leaves_no_leader_who_has_gone() -> None:
    cursor = Cursor("", 256)
    told: list[tuple[EventType, bytes, int]] = [
        ("image", b"", 1),
        ("initial", b"gone", 1),
        ("image", b"", 5),
        ("initial", b"first", 4),
        ("initial", b"second", 5),
        ("whole", b"", 5),
        ("image", b"", 7),
        ("initial", b"second", 5),
        ("whole", b"", 7),
    ]

    async def events() -> AsyncGenerator[WatchEvent[bytes], None]:
        for kind, key, version in told:
            yield WatchEvent(kind, key, key if kind == "initial" else None, version, 0, False, cursor)

    async def main() -> list[bytes | None]:
        return [None if leader is None else leader.key async for leader in leaders_of(events())]

    assert asyncio.run(main()) == [b"first", b"second"]
