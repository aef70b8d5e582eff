"""Guarantee: a client takes each event of a watch once and in order whatever its streams do; tokens say where it is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, cast

import pytest

from raftkv.client.arguments import key_range
from raftkv.client.cursors import Cursor
from raftkv.client.engine import Engine
from raftkv.client.transport import TransportError
from raftkv.client.types import WatchEvent
from raftkv.client.watch import AsyncWatch
from raftkv.clock import SystemClock
from raftkv.commands.results import Result
from raftkv.errors import Code, Compacted, InvalidArgument, SlowConsumer, Unavailable, UsageError
from raftkv.limits import WATCH_HEARTBEAT
from raftkv.v1 import kv_pb2

SLOTS = 256
CLUSTER = "4d4f7c52-9a3e-4a8e-8c0f-0a3a1b2c3d4e"
BROKEN = TransportError(Result(int(Code.UNKNOWN), detail="lost"))


class Stream:
    """A stream of a fake node: what is put into it is read from it."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[Any] = asyncio.Queue()
        self.cancelled = False

    async def read(self) -> kv_pb2.WatchResponse | None:
        message = await self.messages.get()
        if isinstance(message, Exception):
            raise message
        return cast("kv_pb2.WatchResponse | None", message)

    def cancel(self) -> None:
        self.cancelled = True


class Groups:
    """Stands for an engine. ``answer``: the first message for a request."""

    cluster_id = CLUSTER

    def __init__(self, answer: Callable[[kv_pb2.WatchRequest], Any] | None = None) -> None:
        self.of = [slot % 2 for slot in range(SLOTS)]
        self.asked: list[kv_pb2.WatchRequest] = []
        self.streams: list[Stream] = []
        self.refreshed = 0
        self.numbers = 5
        self._answer = answer or self.opened

    async def slots(self, timeout: float) -> int:
        return SLOTS

    def by_group(self, slots: Iterable[int]) -> dict[int, list[int]]:
        return {group: found for group in (0, 1) if (found := [one for one in sorted(slots) if self.of[one] == group])}

    def refresh(self) -> None:
        self.refreshed += 1

    def check_usable(self) -> None:
        pass

    def opened(self, request: kv_pb2.WatchRequest) -> kv_pb2.WatchResponse:
        first = kv_pb2.WatchResponse()
        for place in request.places:
            after = place.after if place.HasField("after") else self.numbers
            first.opened.add(slot=place.slot, after=after, number=self.numbers)
        return first

    async def watch(self, request: kv_pb2.WatchRequest, timeout: float) -> tuple[Stream, Any]:
        self.asked.append(request)
        self.streams.append(Stream())
        first = self._answer(request)
        if isinstance(first, Exception):
            raise first
        return self.streams[-1], first

    async def cursor(self, request: kv_pb2.CursorRequest, timeout: float) -> kv_pb2.CursorResponse:
        count = int.from_bytes(request.slots, "little").bit_count()
        return kv_pb2.CursorResponse(slots=request.slots, numbers=[self.numbers] * count)


def span(slot: int, after: int, upto: int, *numbers: int) -> kv_pb2.WatchResponse:
    message = kv_pb2.WatchResponse()
    one = message.spans.add(slot=slot, after=after, upto=upto)
    for number in numbers:
        one.events.add(number=number, change=kv_pb2.CHANGE_PUT, key=b"k", value=b"%d" % number)
    return message


def watch_of(groups: Groups, *, prefix: str = "", start: str | None = None, **more: Any) -> AsyncWatch:
    timeout = more.pop("timeout", 60.0)
    initial = more.pop("initial", False)
    clock = more.pop("clock", None) or SystemClock()
    return AsyncWatch(cast(Engine, groups), clock, key_range(prefix, None, None), None, start, initial, timeout)


def token(**numbers: int) -> str:
    cursor = Cursor(CLUSTER, SLOTS)
    for name, number in numbers.items():
        cursor = cursor.at(int(name[1:]), number)
    return cursor.token()


async def some(watch: AsyncWatch, count: int) -> list[WatchEvent]:
    return [await anext(watch) for _ in range(count)]


def test_tokens_say_what_the_cursor_says() -> None:
    cursor = Cursor(CLUSTER, SLOTS).at(3, 7).at(4, 0).at(255, 2**60)
    again = Cursor.of(cursor.token())
    assert [again.number(slot) for slot in (2, 3, 4, 5, 255)] == [None, 7, 0, None, 2**60]
    assert again.cluster_id == CLUSTER
    assert cursor.at(3, 8).number(3) == 8
    assert cursor.number(3) == 7, "a cursor never changes"
    assert cursor.only([4, 5]).number(3) is None
    assert len(Cursor(CLUSTER, SLOTS).at(3, 7).token()) < 80
    assert [cursor.reaches(numbers) for numbers in ({3: 7, 4: 0}, {3: 8}, {5: 0})] == [True, False, False]
    for bad in ("", "x", "!", cursor.token()[:-3], "a" * 1000, cursor.token() + "AAAA", None, 5):
        with pytest.raises(InvalidArgument, match="start is"):
            Cursor.of(bad)  # type: ignore[arg-type]


def test_all_groups_are_followed_and_live_is_told_once() -> None:
    async def main() -> None:
        groups = Groups()
        async with watch_of(groups) as watch:
            with pytest.raises(UsageError, match="has not begun"):
                _ = watch.token
            assert (await anext(watch)).type == "live"
            assert [len(one.places) for one in groups.asked] == [SLOTS // 2] * 2
            groups.streams[0].messages.put_nowait(span(0, 5, 7, 6, 7))
            first, second = await some(watch, 2)
            assert [(one.version, one.value, one.slot) for one in (first, second)] == [(6, b"6", 0), (7, b"7", 0)]
            assert Cursor.of(first.token).number(0) == 6
            assert Cursor.of(watch.token).number(0) == 7
            groups.streams[1].messages.put_nowait(span(1, 5, 9))
            groups.streams[1].messages.put_nowait(span(1, 9, 10, 10))
            assert (await anext(watch)).version == 10
        assert all(stream.cancelled for stream in groups.streams)
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())


def test_events_of_one_message_say_where_each_of_them_is() -> None:
    async def main() -> None:
        groups = Groups()
        async with watch_of(groups) as watch:
            await anext(watch)
            message = span(0, 5, 7, 6, 7)
            for more in (span(4, 5, 9, 8), span(2, 5, 6), span(6, 5, 6, 6)):
                message.spans.extend(more.spans)
            groups.streams[0].messages.put_nowait(message)
            places = [Cursor.of(event.token) for event in await some(watch, 4)]
            assert [[place.number(slot) for slot in (0, 4, 2, 6)] for place in places] == [
                [6, 5, 5, 5],
                [7, 5, 5, 5],
                [7, 8, 5, 5],
                [7, 9, 6, 6],
            ]
            groups.streams[0].messages.put_nowait(span(6, 6, 7, 7))
            last = Cursor.of((await anext(watch)).token)
            assert [last.number(slot) for slot in (0, 4, 2, 6)] == [7, 9, 6, 7]

    asyncio.run(main())


def test_what_does_not_follow_is_not_taken_and_asked_for_anew() -> None:
    async def main() -> None:
        groups = Groups()
        async with watch_of(groups, prefix="{q}") as watch:
            await anext(watch)
            slot = groups.asked[0].places[0].slot
            groups.streams[0].messages.put_nowait(span(slot, 5, 6, 6))
            assert (await anext(watch)).version == 6
            for wrong in (span(slot, 5, 7, 6, 7), span(slot, 50, 51, 51), BROKEN, None):
                groups.streams[-1].messages.put_nowait(wrong)
                reading = asyncio.create_task(some(watch, 1))
                count = len(groups.streams)
                while len(groups.streams) == count:
                    await asyncio.sleep(0)
                assert groups.asked[-1].places[0].after == 6 + count - 1
                groups.streams[-1].messages.put_nowait(span(slot, 6 + count - 1, 6 + count, 6 + count))
                assert (await reading)[0].version == 6 + count

    asyncio.run(main())


def test_a_released_slot_goes_on_at_its_present_group_in_one_stream_with_its_others() -> None:
    async def main() -> None:
        groups = Groups()
        async with watch_of(groups) as watch:
            await anext(watch)
            groups.streams[0].messages.put_nowait(span(4, 5, 6, 6))
            await anext(watch)
            groups.of[4] = 1
            groups.streams[0].messages.put_nowait(kv_pb2.WatchResponse(released=[4]))
            reading = asyncio.create_task(some(watch, 1))
            while len(groups.streams) < 3:
                await asyncio.sleep(0.001)
            assert groups.refreshed
            assert groups.streams[1].cancelled
            assert not groups.streams[0].cancelled
            asked = {place.slot: place.after for place in groups.asked[2].places}
            assert len(asked) == SLOTS // 2 + 1
            assert asked[4] == 6
            groups.streams[2].messages.put_nowait(span(4, 6, 7, 7))
            assert (await reading)[0].version == 7

    asyncio.run(main())


def test_slots_that_nobody_serves_end_it_in_time() -> None:
    def nothing(request: kv_pb2.WatchRequest) -> kv_pb2.WatchResponse:
        return kv_pb2.WatchResponse(released=[place.slot for place in request.places])

    async def main() -> None:
        groups = Groups(nothing)
        async with watch_of(groups, prefix="{q}", timeout=0.2) as watch:
            with pytest.raises(Unavailable, match="no group has served slot"):
                await anext(watch)
        assert len(groups.asked) > 1

    asyncio.run(main())


def test_what_is_kept_no_more_is_told_with_a_token() -> None:
    def gone(request: kv_pb2.WatchRequest) -> kv_pb2.WatchResponse:
        response = kv_pb2.WatchResponse()
        response.compacted.add(slot=request.places[0].slot, floor=9)
        return response

    async def main() -> None:
        slot = 1
        async with watch_of(Groups(gone), start=token(s1=4)) as watch:
            with pytest.raises(Compacted, match="slot 0 up to number 9") as caught:
                await anext(watch)
        assert Cursor.of(caught.value.token).number(slot) == 4
        groups = Groups()
        async with watch_of(groups, start=token(s1=4)) as watch:
            reading = asyncio.create_task(some(watch, 1))
            while len(groups.streams) < 2:
                await asyncio.sleep(0)
            groups.streams[1].messages.put_nowait(gone(groups.asked[1]))
            with pytest.raises(SlowConsumer) as slow:
                await reading
        assert slow.value.floors == {1: 9}
        assert Cursor.of(slow.value.token).number(slot) == 4
        with pytest.raises(InvalidArgument, match="another cluster"):
            await anext(watch_of(Groups(), start=Cursor("other", SLOTS).token()))

    asyncio.run(main())


def test_images_come_before_events_and_their_mark() -> None:
    def image(request: kv_pb2.WatchRequest) -> kv_pb2.WatchResponse:
        first = kv_pb2.WatchResponse()
        first.opened.add(slot=request.places[0].slot, number=5)
        return first

    async def main() -> None:
        groups = Groups(image)
        async with watch_of(groups, prefix="{q}", initial=True) as watch:
            reading = asyncio.create_task(some(watch, 7))
            while not groups.streams:
                await asyncio.sleep(0)
            assert groups.asked[0].initial
            slot = groups.asked[0].places[0].slot
            message = kv_pb2.WatchResponse()
            message.images.add(slot=slot, number=4, begins=True).records.add(key=b"gone", value=b"1", version=2)
            groups.streams[0].messages.put_nowait(message)
            message = kv_pb2.WatchResponse()
            message.images.add(slot=slot, number=5, begins=True).records.add(key=b"a", value=b"1", version=3)
            message.images.add(slot=slot, number=5, whole=True).records.add(key=b"b", value=b"2", version=5)
            groups.streams[0].messages.put_nowait(message)
            found = await reading
            assert [(one.type, one.key, one.version) for one in found] == [
                ("image", b"", 4),
                ("initial", b"gone", 2),
                ("image", b"", 5),
                ("initial", b"a", 3),
                ("initial", b"b", 5),
                ("whole", b"", 5),
                ("live", b"", 0),
            ]
            assert Cursor.of(found[4].token).number(slot) is None, "an image in part is read anew"
            assert Cursor.of(found[5].token).number(slot) == 5

    asyncio.run(main())


def test_giving_up_loses_nothing_and_only_one_task_reads() -> None:
    async def main() -> None:
        groups = Groups()
        async with watch_of(groups, prefix="{q}") as watch:
            await anext(watch)
            slot = groups.asked[0].places[0].slot
            for _ in range(3):
                waiting = asyncio.create_task(some(watch, 1))
                await asyncio.sleep(0)
                with pytest.raises(UsageError, match="another task"):
                    await anext(watch)
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)
            groups.streams[0].messages.put_nowait(span(slot, 5, 7, 6, 7))
            assert [one.version for one in await some(watch, 2)] == [6, 7]
        with pytest.raises(StopAsyncIteration):
            await anext(watch)
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())


def test_sync_waits_until_the_reader_has_come_back_for_more() -> None:
    async def main() -> None:
        groups = Groups()
        async with watch_of(groups, prefix="{q}") as watch:
            await anext(watch)
            slot = groups.asked[0].places[0].slot
            groups.numbers = 6
            syncing = asyncio.create_task(watch.sync())
            reading = asyncio.create_task(some(watch, 1))
            await asyncio.sleep(0.01)
            assert not syncing.done()
            groups.streams[0].messages.put_nowait(span(slot, 5, 6, 6))
            await reading
            await asyncio.sleep(0.01)
            assert not syncing.done(), "whoever reads may still be at work on it"
            reading = asyncio.create_task(some(watch, 1))
            await syncing
            groups.numbers = 7
            with pytest.raises(Unavailable, match="does a task read it"):
                await watch.sync(timeout=0.05)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    asyncio.run(main())


def test_an_error_comes_behind_the_events_that_came_with_it_and_its_token_misses_none() -> None:
    async def main() -> None:
        groups = Groups()
        async with watch_of(groups) as watch:
            await anext(watch)
            gone = kv_pb2.WatchResponse()
            gone.compacted.add(slot=1, floor=9)
            groups.streams[0].messages.put_nowait(span(0, 5, 7, 6, 7))
            groups.streams[1].messages.put_nowait(gone)
            assert [one.version for one in await some(watch, 2)] == [6, 7]
            with pytest.raises(SlowConsumer) as slow:
                await anext(watch)
            assert [Cursor.of(slow.value.token).number(slot) for slot in (0, 1)] == [7, 5]
            with pytest.raises(StopAsyncIteration):
                await anext(watch)
        assert all(stream.cancelled for stream in groups.streams)
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())


class Hands:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.time = 0.0
        self._timers: dict[object, tuple[float, Callable[[], None]]] = {}

    def now(self) -> float:
        return self.time

    def wall(self) -> float:
        return self.time

    def call_later(self, delay: float, callback: Callable[[], None]) -> Any:
        timers = self._timers

        class Timer:
            def cancel(self) -> None:
                timers.pop(self, None)

        timer = Timer()
        timers[timer] = (self.time + delay, callback)
        return timer

    def set(self, time: float) -> None:
        self.time = time
        for timer, (due, callback) in list(self._timers.items()):
            if due <= time:
                del self._timers[timer]
                callback()


def test_a_stream_that_brings_nothing_is_opened_anew_and_a_reader_that_was_away_for_long_harms_nothing() -> None:
    async def main() -> None:
        groups, clock = Groups(), Hands()
        async with watch_of(groups, prefix="{q}", clock=clock, timeout=5.0) as watch:
            await anext(watch)
            slot = groups.asked[0].places[0].slot
            reading = asyncio.create_task(some(watch, 1))
            clock.set(9 * WATCH_HEARTBEAT)
            groups.streams[0].messages.put_nowait(span(slot, 5, 5))
            await asyncio.sleep(0.01)
            clock.set(15 * WATCH_HEARTBEAT)
            await asyncio.sleep(0.01)
            assert len(groups.streams) == 1
            clock.set(19 * WATCH_HEARTBEAT)
            while len(groups.streams) == 1:
                await asyncio.sleep(0)
            groups.streams[1].messages.put_nowait(span(slot, 5, 6, 6))
            assert (await reading)[0].version == 6
            # Nobody reads for longer than the watch may be without a group; its stream breaks meanwhile.
            clock.set(1000.0)
            groups.streams[1].messages.put_nowait(BROKEN)
            await asyncio.sleep(0.01)
            reading = asyncio.create_task(some(watch, 1))
            while len(groups.streams) == 2:
                await asyncio.sleep(0)
            groups.streams[2].messages.put_nowait(span(slot, 6, 7, 7))
            assert (await reading)[0].version == 7

    asyncio.run(main())


def test_one_who_waits_hears_that_the_watch_was_closed() -> None:
    async def main() -> None:
        groups = Groups()
        watch = watch_of(groups)
        await anext(watch)
        waiting = asyncio.create_task(some(watch, 1))
        await asyncio.sleep(0)
        await watch.aclose()
        with pytest.raises(StopAsyncIteration):
            await waiting
        assert len(groups.streams) == 2, "no stream is opened in place of those that were ended"
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())
