"""Guarantee: a lease keeps its own records alive and nobody else's, and does not vouch for more than it knows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from typing import Any

import pytest

from raftkv import (
    ABSENT,
    ConditionFailed,
    InvalidArgument,
    LeaseLost,
    NotApplied,
    Unavailable,
    UsageError,
    codecs,
)
from raftkv.client.lease import Guard, Hold
from raftkv.commands.base import Read, Write
from raftkv.commands.results import Result
from raftkv.commands.updates import Touch
from raftkv.errors import Code
from raftkv.testing import FakeAsyncClient, FakeClient, FakeCluster
from tests.waiting import PATIENCE

TTL = 30.0


class Watched(FakeCluster):
    """``touched``: keys, in order. ``refuses``: touches, with this code."""

    def __init__(self) -> None:
        super().__init__()
        self.touched: list[bytes] = []
        self.refuses = Code.OK

    def execute(self, command: Read | Write) -> Result:
        if isinstance(command, Touch):
            self.touched.append(command.key)
            if self.refuses:
                return Result(int(self.refuses))
        return super().execute(command)


def run(main: Callable[[FakeAsyncClient[Any, Any]], Coroutine[Any, Any, None]], cluster: Any = None) -> None:
    async def inside() -> None:
        async with FakeAsyncClient[Any, Any](cluster) as kv:
            await main(kv)

    asyncio.run(inside())


def test_its_records_live_and_go_with_it() -> None:
    cluster = Watched()

    async def main(kv: FakeAsyncClient[Any, Any]) -> None:
        async with kv.lease(2.0) as lease:
            assert lease.remaining == float("inf")
            await asyncio.gather(*(lease.put(f"k{number}", "v") for number in range(50)))
            assert sorted(lease.keys) == sorted(b"k%d" % number for number in range(50))
            assert 0 < lease.remaining <= 1.8
            async with asyncio.timeout(PATIENCE):
                while not cluster.touched:
                    await asyncio.sleep(0.01)
            assert sorted(cluster.touched) == sorted(lease.keys), "all of them at once"
            assert await kv.count() == 50
            assert await lease.delete("k0")
            assert not await lease.delete("k0")
        assert await kv.count() == 0
        await lease.close()
        with pytest.raises(UsageError, match="closed"):
            await lease.put("k", "v")
        assert not lease.lost

    run(main, cluster)


def test_it_does_not_prolong_what_others_wrote() -> None:
    async def main(kv: FakeAsyncClient[Any, Any]) -> None:
        async def keep() -> None:
            async with kv.lease(2.0) as lease:
                await lease.put("k", "mine")
                await kv.put("k", "theirs", ttl=100)
                await asyncio.sleep(PATIENCE)

        with pytest.raises(LeaseLost, match="key 'k' of the lease was removed, replaced or has expired"):
            await keep()
        record = await kv.get("k")
        assert record is not None
        assert record.value == b"theirs"

    run(main)


def test_a_lost_record_may_be_written_again() -> None:
    async def main(kv: FakeAsyncClient[Any, Any]) -> None:
        lease = kv.lease(TTL)
        await lease.put("k", "1")
        await lease.put("l", "1")
        kv.cluster.advance(TTL)
        assert lease.lost
        with pytest.raises(LeaseLost):
            lease.check()
        await lease.put("k", "2", if_version=ABSENT)
        assert lease.lost, "there is the other one"
        await lease.put("l", "2")
        assert not lease.lost
        lease.check()
        await lease.close()
        assert await kv.count() == 0

    run(main)


def test_a_write_that_is_refused_leaves_what_was_there() -> None:
    async def main(kv: FakeAsyncClient[Any, Any]) -> None:
        async with kv.lease(TTL) as lease:
            written = await lease.put("k", "1")
            with pytest.raises(ConditionFailed):
                await lease.put("k", "2", if_version=written.version + 1)
            assert lease.keys == [b"k"]
            again = await lease.put("k", "2", if_version=written.version)
            assert again.version > written.version
            assert lease.keys == [b"k"]
            assert not lease.lost
        assert await kv.get("k") is None

    run(main)


def test_it_is_lost_when_nobody_confirms_it() -> None:
    cluster = Watched()

    async def main(kv: FakeAsyncClient[Any, Any]) -> None:
        async def keep() -> None:
            async with kv.lease(0.5) as lease:
                await lease.put("k", "v")
                cluster.refuses = Code.UNAVAILABLE
                await asyncio.sleep(PATIENCE)

        with pytest.raises(LeaseLost, match="was not confirmed in time: "):
            await keep()
        assert len(cluster.touched) > 1

    run(main, cluster)


def test_values_are_the_codecs() -> None:
    async def main() -> None:
        async with FakeAsyncClient(codec=codecs.JSON) as kv, kv.lease(TTL) as lease:
            await lease.put("k", {"a": 1})
            record = await kv.get("k")
            assert record is not None
            assert record.value == {"a": 1}

    asyncio.run(main())


def test_the_end_of_its_client_is_the_end_of_it() -> None:
    async def main(kv: FakeAsyncClient[Any, Any]) -> None:
        lease = kv.lease(TTL)
        await lease.put("k", "v")
        await kv.close()
        assert lease.lost
        with pytest.raises(LeaseLost, match="the client was closed"):
            lease.check()
        await lease.close()

    run(main)


@pytest.mark.parametrize("steps", range(0, 30, 2))
def test_cancelling_any_call_leaves_it_usable(steps: int) -> None:
    async def main(kv: FakeAsyncClient[Any, Any]) -> None:
        lease = kv.lease(TTL)
        for call in (lambda: lease.put("k", "v"), lambda: lease.delete("k"), lambda: lease.put("l", "v")):
            task: asyncio.Task[Any] = asyncio.create_task(call())
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await lease.put("m", "v")
        assert b"m" in lease.keys
        assert not lease.lost
        task = asyncio.create_task(lease.close())
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await lease.close()
        async with asyncio.timeout(PATIENCE):
            while await kv.get("m") is not None:
                await asyncio.sleep(0.002)

    run(main)


def test_what_is_refused() -> None:
    async def main(kv: FakeAsyncClient[Any, Any]) -> None:
        for ttl in (0.05, 0, -1, float("inf"), True, None):
            with pytest.raises(InvalidArgument):
                kv.lease(ttl)  # type: ignore[arg-type]
        async with kv.lease(TTL) as lease:
            with pytest.raises(InvalidArgument):
                await lease.put("", "v")
            with pytest.raises(UsageError, match="another block"):
                async with lease:
                    raise AssertionError
        assert issubclass(Unavailable, NotApplied)

    run(main)


def test_it_vouches_for_nine_tenths_of_the_time_to_live() -> None:
    class Still:
        def now(self) -> float:
            return 100.0

        wall = now

        def call_later(self, delay: float, callback: Callable[[], None]) -> Any:
            raise AssertionError

    hold = Hold(Still(), b"k", 1)
    assert hold.left < 0
    hold.confirm(96.0, 10.0)
    assert hold.left == pytest.approx(5.0)


def test_a_guard_is_no_other_cancellation() -> None:
    async def guarded(*, cancel: bool) -> bool:
        guard = Guard()
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()
        loop.call_soon(guard.fire)
        loop.call_soon(guard.fire)
        if cancel:
            loop.call_soon(task.cancel)
        try:
            await asyncio.sleep(PATIENCE)
        except asyncio.CancelledError as error:
            return guard.leave(type(error))
        raise AssertionError

    assert asyncio.run(guarded(cancel=False))

    async def both() -> bool:
        return await asyncio.create_task(guarded(cancel=True))

    assert not asyncio.run(both())


def test_without_await() -> None:
    with FakeClient() as kv:
        with kv.lease(TTL) as lease:
            lease.put("k", "v")
            assert lease.keys == [b"k"]
            assert 0 < lease.remaining <= 0.9 * TTL
            assert lease.delete("k")
            lease.put("k", "v")
            lease.check()
        assert kv.get("k") is None
        with ExitStack() as stack:
            lease = stack.enter_context(kv.lease(TTL))
            lease.put("k", "v")
            kv.cluster.advance(TTL)
            assert lease.lost
            with pytest.raises(LeaseLost):
                stack.close()
