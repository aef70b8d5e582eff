"""What a watch does with its messages: from streams of several groups to events, whatever fails and moves.

Each slot is followed on one stream at a time, from the cursor's number on. A message counts only where the cursor is;
so whatever becomes of streams, groups and slots, no event is missed and none comes twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, Final

from raftkv.client.cursors import Cursor, Trail
from raftkv.client.transport import TransportError
from raftkv.client.types import EventType, WatchEvent
from raftkv.clock import heard
from raftkv.errors import Compacted, RaftKVError, SlowConsumer, Unavailable
from raftkv.limits import WATCH_HEARTBEAT
from raftkv.v1 import kv_pb2

if TYPE_CHECKING:
    from raftkv.client.engine import Engine
    from raftkv.client.transport import WatchStream
    from raftkv.clock import Clock, Timer

_SILENCE: Final = 10 * WATCH_HEARTBEAT
"""Seconds without a message after which a stream is taken for broken."""
AGAIN: Final = 0.05
"""Seconds before slots that a group did not serve are asked for again."""
_TYPES: Final[dict[int, EventType]] = {
    kv_pb2.CHANGE_PUT: "put",
    kv_pb2.CHANGE_DELETE: "delete",
    kv_pb2.CHANGE_EXPIRE: "expire",
}

Step = WatchEvent[bytes] | Cursor
"""An event, or where the watch is after some that it does not want."""


def place_of(step: Step) -> Cursor:
    """Where the watch is after it."""
    return step if isinstance(step, Cursor) else step.place


def fits(cursor: Cursor, slot: int, after: int) -> bool:
    """Whether what follows ``after`` is what the watch has not had yet."""
    return cursor.number(slot) == after


class _Source:
    """The stream of one group, and the slots that are followed on it. ``fresh``: nothing has come since it opened.

    ``since``: when its next message was first waited for.
    """

    def __init__(self, slots: set[int]) -> None:
        self.slots = slots
        self.stream: WatchStream | None = None
        self.fresh = True
        self.since = float("inf")

    def end(self) -> None:
        if self.stream is not None:
            self.stream.cancel()


class Following:
    """One watch's work, in ``loop``. ``cursor``: how far it is. ``key``: only this one, or None and ``prefix``.

    Close it.
    """

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
        """When all of them were on streams that had begun, last."""
        self.opened: dict[int, int] = {}
        """Numbers of the slots when they were opened first."""
        self._slots = len(self._pending)
        self._live = False
        self._sources: dict[int, _Source] = {}
        self._tasks: dict[asyncio.Task[kv_pb2.WatchResponse | None], tuple[int, _Source]] = {}
        self._done: list[asyncio.Task[kv_pb2.WatchResponse | None]] = []
        self._wake: asyncio.Future[None] | None = None
        self._pause: Timer | None = None
        self._silence: Timer | None = None
        self._failure: RaftKVError | None = None
        self._over = False
        self.loop = asyncio.get_running_loop()

    async def steps(self) -> list[Step]:
        """The next ones, as messages bring them; whoever gives up waiting misses none.

        Nothing: it has ended. Raises Compacted, SlowConsumer, Unavailable, and what the client raises, once all steps
        before were returned.
        """
        steps: list[Step] = []
        while not (steps or self._over):
            if self._failure is not None:
                raise self._failure
            try:
                self._plan()
                if not self._done:
                    self._wake = self.loop.create_future()
                    await self._wake
                if not self._over:
                    self._hear_all(steps)
            except RaftKVError as error:
                self._failure = error
        return steps

    def end(self) -> None:
        """Break all streams: there are no further steps."""
        self._over = True
        for timer in (self._pause, self._silence):
            if timer is not None:
                timer.cancel()
        for task in self._tasks:
            task.cancel()
        for source in self._sources.values():
            source.end()

    async def close(self) -> None:
        """Break all streams, and wait until they are."""
        self.end()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _notify(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    # -- streams

    def _plan(self) -> None:
        """Follow what is followed nowhere, with what its group's stream has already: one stream for each group."""
        if not self._pending or self._pause is not None:
            return
        if self._clock.now() > self._since + self._timeout:
            raise Unavailable(f"no group has served slot {min(self._pending)} for {self._timeout:g} s")
        for group, pending in self._engine.by_group(self._pending).items():
            slots = set(pending)
            former = self._sources.pop(group, None)
            if former is not None:
                former.end()
                slots |= former.slots
            source = self._sources[group] = _Source(slots)
            self._start(self.open(source), group, source)
        self._pending.clear()

    def _hear_all(self, steps: list[Step]) -> None:
        """What streams have brought. Then read on, once all slots were opened: so each token says where every slot
        is."""
        self._note_service()
        done, self._done = self._done, []
        for task in done:
            group, source = self._tasks.pop(task)
            if self._sources.get(group) is source:
                self._hear(group, source, task, steps)
        self._note_service()
        if len(self.opened) == self._slots:
            self._read_on()

    def _note_service(self) -> None:
        if not self._pending and not any(source.fresh for source in self._sources.values()):
            self._since = self._clock.now()

    def _read_on(self) -> None:
        busy = {source for _, source in self._tasks.values()}
        for group, source in self._sources.items():
            if source not in busy:
                assert source.stream is not None
                source.since = self._clock.now()
                self._start(source.stream.read(), group, source)
        if self._silence is None:
            self._look_for_silence()

    def _start(self, work: Coroutine[Any, Any, kv_pb2.WatchResponse | None], group: int, source: _Source) -> None:
        task = asyncio.create_task(work)
        task.add_done_callback(self._on_done)
        self._tasks[task] = (group, source)

    def _on_done(self, task: asyncio.Task[kv_pb2.WatchResponse | None]) -> None:
        heard(task)
        self._done.append(task)
        self._notify()

    def _look_for_silence(self) -> None:
        """Give up streams that bring nothing, and look again when the next one may have to be."""
        now = oldest = self._clock.now()
        for task, (_, source) in self._tasks.items():
            if now >= source.since + _SILENCE:
                task.cancel()
            elif not task.done():
                oldest = min(oldest, source.since)
        self._silence = self._clock.call_later(oldest + _SILENCE - now, self._look_for_silence)

    async def open(self, source: _Source) -> kv_pb2.WatchResponse | None:
        """Begin the stream, from where the watch is; its first message."""
        request = kv_pb2.WatchRequest(key=self._key, prefix=self._prefix, initial=self._initial)
        for slot in sorted(source.slots):
            request.places.add(slot=slot, after=self.cursor.number(slot))
        source.stream, first = await self._engine.watch(request, self._timeout)
        return first

    def _hear(
        self, group: int, source: _Source, task: asyncio.Task[kv_pb2.WatchResponse | None], steps: list[Step]
    ) -> None:
        """The stream has brought a message, or it has ended."""
        try:
            message = task.result()
            taken = message is not None and self._take(source, message, steps)
        except (TransportError, asyncio.CancelledError):
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
            self._pause = self._clock.call_later(AGAIN, self._go_on)

    def _go_on(self) -> None:
        self._pause = None
        self._notify()

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
        if message.spans and not self._take_spans(message.spans, steps):
            return False
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
            steps.append(WatchEvent("image", b"", None, image.number, slot, False, self.cursor))
        for row in image.records:
            steps.append(WatchEvent("initial", row.key, row.value, row.version, slot, False, self.cursor))
        if image.whole:
            steps.append(WatchEvent("whole", b"", None, image.number, slot, False, self.cursor))
            self.cursor = self.cursor.at(slot, image.number)

    def _take_spans(self, spans: Iterable[kv_pb2.Span], steps: list[Step]) -> bool:
        cursor, trail = self.cursor, Trail(self.cursor)
        fitting, silent = True, False
        for span in spans:
            slot, upto, number = span.slot, span.upto, -1
            fitting = fits(cursor, slot, span.after)
            if not fitting:
                break
            for event in span.events:
                kind, number = _TYPES[event.change], event.number
                value = event.value if kind == "put" else None
                steps.append(WatchEvent(kind, event.key, value, number, slot, event.more, trail))
            trail.move(slot, upto)
            silent = silent or number != upto
        self.cursor = trail.end()
        if silent:
            steps.append(self.cursor)
        return fitting

    def _tell_live(self, steps: list[Step]) -> None:
        if self._live or len(self.opened) < self._slots or not self.cursor.reaches(self.opened):
            return
        self._live = True
        steps.append(WatchEvent("live", b"", None, 0, -1, False, self.cursor))

    def _lost(self, message: kv_pb2.WatchResponse, *, opening: bool) -> Compacted | SlowConsumer:
        floors = {one.slot: one.floor for one in message.compacted}
        named = ", ".join(f"slot {slot} up to number {floor}" for slot, floor in sorted(floors.items())[:4])
        more = f" and {len(floors) - 4} more" if len(floors) > 4 else ""
        text = f"events are kept no more: {named}{more}; watch(start=error.token, initial=True) reads these slots anew"
        if opening:
            return Compacted(text, token=self.cursor.token(), floors=floors)
        return SlowConsumer(f"the watch was read too slowly: {text}", token=self.cursor.token(), floors=floors)
