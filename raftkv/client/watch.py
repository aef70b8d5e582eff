"""Watches: iterators of what happens to records."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self

from msgspec.structs import replace

from raftkv.client.cursors import Cursor
from raftkv.client.following import AGAIN, Following, Step, place_of
from raftkv.client.types import WatchEvent
from raftkv.clock import Clock, sleep, wait
from raftkv.codecs import V
from raftkv.errors import InvalidArgument, Unavailable, UsageError
from raftkv.v1 import kv_pb2
from shards.slots import slot_bits, slot_of, slots_in

if TYPE_CHECKING:
    from raftkv.client.arguments import KeyRange
    from raftkv.client.engine import Engine
    from raftkv.client.values import Decode


class AsyncWatch(Generic[V]):
    """An asynchronous iterator of events: made by :meth:`raftkv.AsyncClient.watch`, read by one task at a time.

    To give up waiting for the next event, as ``asyncio.wait_for`` does, is safe: the watch goes on with the one that
    comes next. So it does after a CodecError. Close it, or use it in ``async with``.
    """

    def __init__(
        self,
        engine: Engine,
        clock: Clock,
        span: KeyRange,
        key: bytes | None,
        start: str | None,
        initial: bool,
        timeout: float,
        decode: Decode | None = None,
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._span = span
        self._key = key
        self._start = None if start is None else Cursor.of(start)
        self._initial = initial
        self._timeout = timeout
        self._decode = decode
        self._slots: list[int] = []
        self._step: Step | None = self._start
        self._seen: Step | None = None
        self._waiting: set[asyncio.Future[None]] = set()
        self._steps: deque[Step] = deque()
        self._following: Following | None = None
        self._busy = False
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> WatchEvent[V]:
        if self._busy and not self._closed:
            raise UsageError("another task waits for the next event of this watch")
        self._busy = True
        try:
            self._see()
            while not self._closed:
                while self._steps:
                    step = self._step = self._steps.popleft()
                    if isinstance(step, WatchEvent):
                        event: WatchEvent[Any] = step
                        return event if self._decode is None else _decoded(event, self._decode)
                    if not self._steps:
                        self._see()
                await self._fetch()
            raise StopAsyncIteration
        finally:
            self._busy = False

    async def _fetch(self) -> None:
        """The next steps."""
        if self._following is None:
            self._following = await self._begin()
        try:
            self._steps.extend(await self._following.steps())
        except Exception:
            await self.aclose()
            raise

    async def _begin(self) -> Following:
        count = await self._engine.slots(self._timeout)
        cursor = Cursor(self._engine.cluster_id, count)
        tagged = self._span.tagged if self._key is None else self._key
        self._slots = [slot_of(tagged, count)] if tagged else list(range(count))
        if self._start is not None:
            if (self._start.cluster_id, self._start.slots) != (cursor.cluster_id, count):
                raise InvalidArgument("start is a token of another cluster")
            cursor = self._start.only(self._slots)
        self._step = self._seen = cursor
        return Following(
            self._engine,
            self._clock,
            cursor,
            self._slots,
            key=self._key,
            prefix=self._span.start if self._key is None else b"",
            initial=self._initial,
            timeout=self._timeout,
        )

    def _see(self) -> None:
        """Whoever reads the events is done with those that it has."""
        self._seen = self._step
        while self._waiting:
            one = self._waiting.pop()
            if not one.done():
                one.set_result(None)

    @property
    def token(self) -> str:
        """Where it is: ``watch(start=token)`` goes on behind the event that came last.

        Raises UsageError before there is anything to go on from.
        """
        if self._step is None:
            raise UsageError("the watch has not begun: read its first event")
        return place_of(self._step).token()

    async def sync(self, *, timeout: float | None = None) -> None:
        """Return when all that was acknowledged before this call has been read here, and the task that reads has come
        back for more: so a cache that it keeps is up to date.

        Another task has to read. Raises Unavailable if it takes longer than ``timeout`` seconds.
        """
        deadline = self._clock.now() + (self._timeout if timeout is None else timeout)
        numbers = await self._numbers(deadline)
        while self._seen is None or not place_of(self._seen).reaches(numbers):
            reached: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.add(reached)
            if not await wait(self._clock, reached, deadline - self._clock.now()):
                self._waiting.discard(reached)
                raise Unavailable("the watch has not come that far in time: does a task read it?")

    async def _numbers(self, deadline: float) -> dict[int, int]:
        """Of all slots, by linearizable reads."""
        if not self._slots:
            raise UsageError("the watch has not begun: read its first event")
        found: dict[int, int] = {}
        count = await self._engine.slots(self._timeout)
        while left := [slot for slot in self._slots if slot not in found]:
            budget = deadline - self._clock.now()
            if budget <= 0:
                raise Unavailable("not all slots were served in time")
            asked = self._engine.by_group(left).values()
            answers = await asyncio.gather(*(self._cursor_of(slots, count, budget) for slots in asked))
            for answer in answers:
                found.update(zip(slots_in(answer.slots), answer.numbers, strict=True))
            if any(slot not in found for slot in left):
                self._engine.refresh()
                await sleep(self._clock, AGAIN)
        return found

    async def _cursor_of(self, slots: list[int], count: int, timeout: float) -> kv_pb2.CursorResponse:
        """Of ``slots`` of one group, of ``count`` in the cluster, by a read that a majority confirms."""
        request = kv_pb2.CursorRequest(
            slot=slots[0],
            slots=slot_bits(slots, count),
            consistency=kv_pb2.CONSISTENCY_QUORUM,
            prefix=self._span.start if self._key is None else self._key,
        )
        return await self._engine.cursor(request, timeout)

    async def aclose(self) -> None:
        """End it. May be called again."""
        self._closed = True
        if self._following is not None:
            await self._following.close()

    def __del__(self) -> None:
        following = self.__dict__.get("_following")
        if following is not None:
            with suppress(RuntimeError):  # the loop has ended
                following.loop.call_soon_threadsafe(following.end)


def _decoded(event: WatchEvent[Any], decode: Decode) -> WatchEvent[Any]:
    return event if event.value is None else replace(event, value=decode(event.key, event.value))


class Watch(Generic[V]):
    """As :class:`AsyncWatch`, without await; made by :meth:`raftkv.Client.watch`. Close it, or use it in ``with``."""

    def __init__(
        self,
        watch: AsyncWatch[V],
        run: Callable[[Coroutine[Any, Any, Any]], Any],
        start: Callable[[Callable[[], Coroutine[Any, Any, object]]], None],
    ) -> None:
        self._watch = watch
        self._run = run
        self._start = start

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> WatchEvent[V]:
        event: WatchEvent[V] | None = self._run(_next(self._watch))
        if event is None:
            raise StopIteration
        return event

    @property
    def token(self) -> str:
        """See AsyncWatch.token."""
        return self._watch.token

    def sync(self, *, timeout: float | None = None) -> None:
        """See AsyncWatch.sync; another thread has to read."""
        self._run(self._watch.sync(timeout=timeout))

    def close(self) -> None:
        """End it. May be called again."""
        self._start(self._watch.aclose)


async def _next(watch: AsyncWatch[V]) -> WatchEvent[V] | None:
    return await anext(watch, None)
