"""Guarantee: a lock has one holder at a time, first come, first served, and who has lost it is told at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import pytest

from raftkv import AsyncClient, AsyncLock, ConditionFailed, InvalidArgument, LockLost, TooLarge, UsageError, limits
from raftkv.commands.base import Read, Write
from raftkv.commands.records import Put
from raftkv.commands.results import Result
from raftkv.testing import FakeAsyncClient, FakeClient, FakeCluster
from tests.waiting import PATIENCE

TTL = 30.0
"""Longer than a slow machine holds up a loop."""


class Slow(FakeCluster):
    """Its answers to puts take as long as one says."""

    def __init__(self) -> None:
        super().__init__()
        self.takes = 0.0

    def execute(self, command: Read | Write) -> Result:
        result = super().execute(command)
        if isinstance(command, Put):
            self.advance(self.takes)
        return result


async def queue(kv: AsyncClient[Any, Any], name: str = "x") -> list[bytes]:
    found = [record async for record in kv.scan(prefix=f"{{lock:{name}}}queue:")]
    return [record.value for record in sorted(found, key=lambda one: one.version)]


async def until(holds: Callable[[], Coroutine[Any, Any, bool]]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not await holds():
            await asyncio.sleep(0.002)


@asynccontextmanager
async def waiting(
    kv: AsyncClient[Any, Any], names: str, got: list[tuple[str, int]]
) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Tasks in the queue behind whoever holds the lock, in this order; ``got``: who got it, with the token."""

    async def want(name: str) -> None:
        async with kv.lock("x", ttl=TTL, holder=name) as lock:
            got.append((name, lock.token))

    tasks: list[asyncio.Task[None]] = []
    for name in names:
        tasks.append(asyncio.create_task(want(name)))

        async def stands(name: str = name) -> bool:
            return name.encode() in await queue(kv)

        await until(stands)
    yield tasks
    await asyncio.gather(*tasks, return_exceptions=True)


def run(main: Callable[[FakeAsyncClient[Any, Any]], Coroutine[Any, Any, None]], cluster: Any = None) -> None:
    async def inside() -> None:
        async with FakeAsyncClient[Any, Any](cluster) as kv:
            await main(kv)

    asyncio.run(inside())


def test_first_come_first_served_and_tokens_rise() -> None:
    async def main(kv: FakeAsyncClient[Any, Any]) -> None:
        got: list[tuple[str, int]] = []
        async with kv.lock("x", ttl=TTL, holder="first") as lock:
            token = lock.token
            async with waiting(kv, "abcd", got):
                assert await queue(kv) == [b"first", b"a", b"b", b"c", b"d"]
                assert got == []
                await lock.release()
                assert not lock.held
                with pytest.raises(UsageError, match="lock 'x' is not held"):
                    _ = lock.token
        assert [name for name, _ in got] == list("abcd")
        tokens = [token, *(one for _, one in got)]
        assert tokens == sorted(set(tokens))
        assert await queue(kv) == []

    run(main)


def test_who_gives_up_in_the_middle_opens_nothing() -> None:
    async def main(kv: FakeAsyncClient[Any, Any]) -> None:
        got: list[tuple[str, int]] = []
        async with kv.lock("x", ttl=TTL, holder="first"), waiting(kv, "abc", got) as tasks:
            tasks[1].cancel()

            async def left() -> bool:
                return await queue(kv) == [b"first", b"a", b"c"]

            await until(left)
            for _ in range(20):
                await asyncio.sleep(0)
            assert got == []
            await kv.delete_prefix("{lock:x}queue:")  # an operator

    with pytest.raises(LockLost, match="was removed"):
        run(main)


def test_tries_and_waits() -> None:
    async def main(kv: FakeAsyncClient[Any, Any]) -> None:
        async with kv.lock("x", ttl=TTL, holder="first") as lock:
            assert await kv.lock("x").acquire(timeout=0) is False
            assert await kv.lock("x").acquire(timeout=0.01) is False
            other = kv.lock("y", ttl=TTL)
            assert await other.acquire(timeout=0)
            for busy in (lock, other):
                with pytest.raises(UsageError, match="make another one"):
                    await busy.acquire()
            await other.release()
            assert await other.acquire(timeout=0), "it may be used again"
            async with other:
                other.check()
                with pytest.raises(UsageError, match="make another one"):
                    async with other:
                        raise AssertionError
            assert not other.held

            async def left() -> bool:
                return await queue(kv) == [b"first"]

            await until(left)

    run(main)


@pytest.mark.parametrize("steps", range(0, 60, 3))
def test_a_cancelled_acquire_leaves_nothing_behind(steps: int) -> None:
    async def main(kv: FakeAsyncClient[Any, Any]) -> None:
        lock = kv.lock("x", ttl=TTL)
        task: asyncio.Task[Any] = asyncio.create_task(lock.acquire())
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled() != lock.held
        if lock.held:
            await lock.release()

        async def left() -> bool:
            return await queue(kv) == []

        await until(left)
        assert await lock.acquire()
        task = asyncio.create_task(lock.release())
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        if lock.held:
            await lock.release()
        await until(left)

    run(main)


def test_the_block_is_cancelled_when_the_lock_is_lost() -> None:
    async def main(kv: FakeAsyncClient[Any, Any]) -> None:
        ended: list[str] = []

        async def work() -> None:
            async with kv.lock("x", ttl=TTL) as lock:
                kv.cluster.advance(TTL)
                assert (lock.lost, lock.remaining) == (True, 0.0)
                with pytest.raises(LockLost):
                    lock.check()
                try:
                    await asyncio.sleep(PATIENCE)
                except asyncio.CancelledError:
                    ended.append("cancelled")
                    raise

        with pytest.raises(LockLost, match="lock 'x' is lost: key .* was not confirmed in time"):
            await work()
        assert ended == ["cancelled"]
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        async with kv.lock("x", ttl=TTL) as lock:
            lock.check()
            assert 0 < lock.remaining <= 0.9 * TTL

    run(main)


def test_other_ends_of_a_block_whose_lock_is_lost() -> None:
    async def body(kv: FakeAsyncClient[Any, Any], how: str) -> None:
        async with kv.lock("x", ttl=TTL) as lock:
            kv.cluster.advance(TTL)
            if how == "raises":
                raise ConditionFailed("its own")
            if how == "swallows":
                try:
                    await asyncio.sleep(PATIENCE)
                except asyncio.CancelledError:
                    return
            if how == "cancelled":
                task = asyncio.current_task()
                assert task is not None
                asyncio.get_running_loop().call_soon(task.cancel)
                await asyncio.sleep(PATIENCE)
            assert lock.lost

    async def main(kv: FakeAsyncClient[Any, Any]) -> None:
        for how, error in (
            ("ends", LockLost),
            ("raises", ConditionFailed),
            ("swallows", LockLost),
            ("cancelled", asyncio.CancelledError),
        ):
            (outcome,) = await asyncio.gather(asyncio.create_task(body(kv, how)), return_exceptions=True)
            assert type(outcome) is error, how

    run(main)


def test_what_is_vouched_for_counts_from_the_call_not_from_its_answer() -> None:
    cluster = Slow()

    async def main(kv: FakeAsyncClient[Any, Any]) -> None:
        lock = kv.lock("x", ttl=TTL)
        cluster.takes = 20.0
        assert await lock.acquire()
        assert lock.remaining <= 0.9 * TTL - 20.0
        await lock.release()
        cluster.takes = 28.0
        assert await lock.acquire(timeout=1) is False, "it was there for two seconds more, which nobody vouches for"

    run(main, cluster)


def test_a_lock_is_kept_and_a_lost_one_is_not_taken_back() -> None:
    async def main(kv: FakeAsyncClient[Any, Any]) -> None:
        lock = kv.lock("x", ttl=0.5)
        assert await lock.acquire()
        first = lock.token
        loop = asyncio.get_running_loop()
        end = loop.time() + 1.0
        while loop.time() < end and not lock.lost:
            await asyncio.sleep(0.02)
        if not lock.lost:  # else the machine stood still
            assert [record.version async for record in kv.scan(prefix="{lock:x}queue:")] == [first]
        kv.cluster.advance(1)
        assert lock.lost
        await asyncio.sleep(0.2)
        assert lock.lost
        with pytest.raises(LockLost):
            await lock.release()
        other = kv.lock("x", ttl=TTL)
        assert await other.acquire()
        assert other.token > first
        await other.release()

    run(main)


def test_what_ends_a_lock_besides_time() -> None:
    async def main(kv: FakeAsyncClient[Any, Any]) -> None:
        lock = kv.lock("x", ttl=TTL)
        await lock.acquire()
        await kv.put(lock.key, "somebody else's")
        with pytest.raises(LockLost, match="removed or has expired"):
            await lock.release()
        assert (await queue(kv)) == [b"somebody else's"], "it removes only its own"
        await kv.delete_prefix("{lock:x}")
        await lock.acquire()
        await kv.close()
        assert lock.lost
        with pytest.raises(LockLost, match="the client was closed"):
            lock.check()

    run(main)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda kv: kv.lock("a}b"), "closing brace"),
        (lambda kv: kv.lock(""), "empty"),
        (lambda kv: kv.lock("x", ttl=0.01), "too short"),
        (lambda kv: kv.lock("x", ttl=-1), "TTL"),
        (lambda kv: kv.lock("x", ttl=float("nan")), "TTL"),
        (lambda kv: kv.lock("x", holder=7), "holder"),
        (lambda kv: kv.election(5), "key"),
    ],
)
def test_what_is_refused_before_anything_is_sent(make: Callable[[Any], object], text: str) -> None:
    async def main(kv: FakeAsyncClient[Any, Any]) -> None:
        with pytest.raises(InvalidArgument, match=text):
            make(kv)

    run(main)


def test_a_name_that_leaves_no_room_for_keys_is_refused() -> None:
    async def main(kv: FakeAsyncClient[Any, Any]) -> None:
        with pytest.raises(TooLarge):
            kv.lock("n" * (limits.MAX_KEY_BYTES - 20))
        with pytest.raises(InvalidArgument, match="timeout"):
            await kv.lock("x").acquire(timeout=-1)

    run(main)


def test_locks_with_similar_names_are_others() -> None:
    async def main(kv: FakeAsyncClient[Any, Any]) -> None:
        names: list[bytes | str] = ["a", "a{", "{a", "a:", b"\xff", "ab"]
        locks = [kv.lock(name, ttl=TTL) for name in names]
        assert await asyncio.gather(*(lock.acquire(timeout=0) for lock in locks)) == [True] * len(names)
        await asyncio.gather(*(lock.release() for lock in locks))

    run(main)


def test_without_await() -> None:
    with FakeClient() as kv:
        with kv.lock("x", ttl=TTL, holder="me") as lock:
            assert not lock.lost
            assert 0 < lock.remaining <= 0.9 * TTL
            assert kv.lock("x").acquire(timeout=0) is False
            assert kv.get(lock.key).value == b"me"  # type: ignore[union-attr]
        with ExitStack() as stack:
            lock = stack.enter_context(kv.lock("x", ttl=TTL))
            kv.cluster.advance(TTL)
            assert lock.lost
            with pytest.raises(LockLost):
                stack.close()

        def fail() -> None:
            with kv.lock("x", ttl=TTL):
                kv.cluster.advance(TTL)
                raise ConditionFailed("its own")

        with pytest.raises(ConditionFailed):
            fail()
        other = kv.lock("x", ttl=TTL)
        if other.acquire(timeout=PATIENCE):
            with other:
                other.check()
        assert not other.held


def test_an_interrupted_thread_leaves_no_lock_behind() -> None:
    with FakeClient() as kv:
        lock = kv.lock("x", ttl=TTL)
        usual = lock._run

        def interrupted(work: Coroutine[Any, Any, Any]) -> Any:
            assert usual(work)
            raise KeyboardInterrupt

        lock._run = interrupted
        with pytest.raises(KeyboardInterrupt):
            lock.acquire()
        lock._run = usual
        assert kv.lock("x", ttl=TTL).acquire(timeout=PATIENCE)


def test_an_object_of_one_task_is_not_anothers() -> None:
    async def main(kv: FakeAsyncClient[Any, Any]) -> None:
        lock: AsyncLock = kv.lock("x", ttl=TTL)
        assert await lock.acquire()

        async def other() -> None:
            async with lock:
                raise AssertionError

        with pytest.raises(UsageError, match="make another one"):
            await asyncio.create_task(other())
        await lock.release()

    run(main)
