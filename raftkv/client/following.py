"""What a watch does with its messages: from streams of several groups to events, whatever fails and moves.

Each slot is followed on one stream at a time, from the cursor's number on. A message counts only where the cursor is;
so whatever becomes of streams, groups and slots, no event is missed and none comes twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Coroutine
from typing import TYPE_CHECKING, Any, Final

from raftkv.client.transport import TransportError
from raftkv.client.types import EventType, WatchEvent
from raftkv.clock import Clock, sleep, wait
from raftkv.commands.results import Result
from raftkv.errors import Code, Compacted, SlowConsumer, Unavailable
from raftkv.limits import WATCH_HEARTBEAT
from raftkv.v1 import kv_pb2

if TYPE_CHECKING:
    from raftkv.client.cursors import Cursor
    from raftkv.client.engine import Engine
    from raftkv.client.transport import WatchStream

_SILENCE: Final = 10 * WATCH_HEARTBEAT
"""Seconds without a message after which a stream is taken for broken."""
_AGAIN: Final = 0.05
"""Seconds before slots that a group did not serve are asked for again."""
_TYPES: Final[dict[int, EventType]] = {
    kv_pb2.CHANGE_PUT: "put",
    kv_pb2.CHANGE_DELETE: "delete",
    kv_pb2.CHANGE_EXPIRE: "expire",
}

Step = tuple["Cursor", WatchEvent[bytes] | None]
"""Where the watch is, and the event that led there."""


def fits(cursor: Cursor, slot: int, after: int) -> bool:
    """Whether what follows ``after`` is what the watch has not had yet."""
    return cursor.number(slot) == after


def heard(task: asyncio.Future[Any]) -> None:
    """Whoever gives up waiting for ``task`` need not hear how it ends."""
    if not task.cancelled():
        task.exception()


class _Source:
    """The stream of one group, and the slots that are followed on it. ``fresh``: nothing has come since it opened."""

    def __init__(self, slots: set[int]) -> None:
        self.slots = slots
        self.stream: WatchStream | None = None
        self.fresh = True

    def end(self) -> None:
        if self.stream is not None:
            self.stream.cancel()


class Following:
    """One watch's work. ``cursor``: how far it is. ``key``: only this one, or None and ``prefix``."""

    def __init__(
        self,
        engine: Engine,
        clock: Clock,
        cursor: Cursor,
        slots: Collection[int],
        *,
        key: bytes | None,
        prefix: bytes,
        initial: bool,
        timeout: float,
    ) -> None:
        self.cursor = cursor
        self._engine = engine
        self._clock = clock
        self._key = key
        self._prefix = prefix
        self._initial = initial
        self._timeout = timeout
        self._pending = set(slots)
        """Slots that are on no stream."""
        self._since = clock.now()
        """When there were none of them last."""
        self.opened: dict[int, int] = {}
        """Numbers of the slots when they were opened first."""
        self._slots = len(self._pending)
        self._live = False
        self._sources: dict[int, _Source] = {}
        self._tasks: dict[asyncio.Task[kv_pb2.WatchResponse | None], tuple[int, _Source]] = {}
        self._pause: asyncio.Task[None] | None = None

    async def batches(self) -> AsyncGenerator[list[Step], None]:
        """Steps, as messages bring them. Raises Compacted, SlowConsumer, Unavailable, and what the client raises."""
        try:
            while True:
                self._plan()
                waiting = [*self._tasks, *([self._pause] if self._pause is not None else [])]
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if self._pause is not None and self._pause.done():
                    self._pause = None
                steps: list[Step] = []
                for task in [task for task in self._tasks if task.done()]:
                    group, source = self._tasks.pop(task)
                    if self._sources.get(group) is source:
                        self._hear(group, source, task, steps)
                if len(self.opened) == self._slots:
                    self._read_on()
                if not self._pending:
                    self._since = self._clock.now()
                if steps:
                    yield steps
        finally:
            tasks = [*self._tasks, *([self._pause] if self._pause is not None else [])]
            for one in tasks:
                one.cancel()
            for source in self._sources.values():
                source.end()
            await asyncio.gather(*tasks, return_exceptions=True)

    # -- streams

    def _plan(self) -> None:
        """Follow what is followed nowhere, with what its group's stream has already: one stream for each group."""
        if not self._pending or self._pause is not None:
            return
        if self._clock.now() > self._since + self._timeout:
            raise Unavailable(f"no group has served slot {min(self._pending)} for {self._timeout:g} s")
        owners = self._engine.owners()
        for group in sorted({owners[slot] for slot in self._pending}):
            slots = {slot for slot in self._pending if owners[slot] == group}
            former = self._sources.pop(group, None)
            if former is not None:
                former.end()
                slots |= former.slots
            source = self._sources[group] = _Source(slots)
            self._start(self.open(source), group, source)
        self._pending.clear()

    def _read_on(self) -> None:
        """Read the next messages, once all slots were opened: so each token says where every slot is."""
        busy = {id(source) for _, source in self._tasks.values()}
        for group, source in self._sources.items():
            if id(source) not in busy:
                self._start(self._read(source), group, source)

    def _start(self, work: Coroutine[Any, Any, kv_pb2.WatchResponse | None], group: int, source: _Source) -> None:
        task = asyncio.create_task(work)
        task.add_done_callback(heard)
        self._tasks[task] = (group, source)

    async def open(self, source: _Source) -> kv_pb2.WatchResponse | None:
        """Begin the stream, from where the watch is; its first message."""
        request = kv_pb2.WatchRequest(key=self._key, prefix=self._prefix, initial=self._initial)
        for slot in sorted(source.slots):
            request.places.add(slot=slot, after=self.cursor.number(slot))
        source.stream, first = await self._engine.watch(request, self._timeout)
        return first

    async def _read(self, source: _Source) -> kv_pb2.WatchResponse | None:
        stream = source.stream
        assert stream is not None
        reading = asyncio.ensure_future(stream.read())
        reading.add_done_callback(heard)
        try:
            if not await wait(self._clock, reading, _SILENCE):
                raise TransportError(Result(int(Code.UNKNOWN), detail="the node is silent"))
            return reading.result()
        finally:
            reading.cancel()

    def _hear(
        self, group: int, source: _Source, task: asyncio.Task[kv_pb2.WatchResponse | None], steps: list[Step]
    ) -> None:
        """The stream has brought a message, or it has ended."""
        try:
            message = task.result()
            taken = message is not None and self._take(source, message, steps)
        except TransportError:
            self._engine.check_usable()
            taken = False
        if taken and source.slots:
            return
        source.end()
        del self._sources[group]
        self._follow_again(source.slots, at_once=source.fresh is False)

    def _follow_again(self, slots: Collection[int], *, at_once: bool) -> None:
        """These slots are on no stream any more."""
        self._pending.update(slots)
        if slots and not at_once and self._pause is None:
            self._engine.refresh()
            self._pause = asyncio.ensure_future(sleep(self._clock, _AGAIN))

    # -- messages

    def _take(self, source: _Source, message: kv_pb2.WatchResponse, steps: list[Step]) -> bool:
        """False: it does not fit to where the watch is."""
        if message.compacted:
            raise self._lost(message, opening=bool(message.opened or message.released) or source.fresh)
        fresh, source.fresh = source.fresh, False
        for place in message.opened:
            self.opened.setdefault(place.slot, place.number)
            if place.HasField("after"):
                if self.cursor.number(place.slot) is None:
                    self.cursor = self.cursor.at(place.slot, place.after)
                elif not fits(self.cursor, place.slot, place.after):
                    return False
            else:
                self.cursor = self.cursor.at(place.slot, None)
        for image in message.images:
            self._take_image(image, steps)
        for span in message.spans:
            if not fits(self.cursor, span.slot, span.after):
                return False
            self._take_span(span, steps)
        if message.released:
            gone = source.slots.intersection(message.released)
            source.slots -= gone
            self._follow_again(gone, at_once=False)
        if fresh or message.spans or message.images:
            self._tell_live(steps)
        return True

    def _take_image(self, image: kv_pb2.Image, steps: list[Step]) -> None:
        slot = image.slot
        if image.begins:
            self.cursor = self.cursor.at(slot, None)
        for row in image.records:
            steps.append(
                (self.cursor, WatchEvent("initial", row.key, row.value, row.version, slot, False, self.cursor))
            )
        if image.whole:
            self.cursor = cursor = self.cursor.at(slot, image.number)
            steps.append((cursor, WatchEvent("whole", b"", None, image.number, slot, False, cursor)))

    def _take_span(self, span: kv_pb2.Span, steps: list[Step]) -> None:
        slot, cursor = span.slot, self.cursor
        for event in span.events:
            cursor = cursor.at(slot, event.number)
            kind = _TYPES[event.change]
            value = event.value if kind == "put" else None
            told = WatchEvent(kind, event.key, value, event.number, slot, event.more, cursor)
            steps.append((cursor, told))
        if not span.events or span.events[-1].number != span.upto:
            cursor = cursor.at(slot, span.upto)
            steps.append((cursor, None))
        self.cursor = cursor

    def _tell_live(self, steps: list[Step]) -> None:
        if self._live or len(self.opened) < self._slots or not self.cursor.reaches(self.opened):
            return
        self._live = True
        steps.append((self.cursor, WatchEvent("live", b"", None, 0, -1, False, self.cursor)))

    def _lost(self, message: kv_pb2.WatchResponse, *, opening: bool) -> Compacted | SlowConsumer:
        floors = {one.slot: one.floor for one in message.compacted}
        named = ", ".join(f"slot {slot} up to number {floor}" for slot, floor in sorted(floors.items())[:4])
        more = f" and {len(floors) - 4} more" if len(floors) > 4 else ""
        text = f"events are kept no more: {named}{more}; watch(start=error.token, initial=True) reads these slots anew"
        if opening:
            return Compacted(text, token=self.cursor.token(), floors=floors)
        return SlowConsumer(f"the watch was read too slowly: {text}", token=self.cursor.token(), floors=floors)
