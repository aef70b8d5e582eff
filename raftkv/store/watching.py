"""A watch at a group's replica: its place in the history, and what is told from there on. Pure.

Nothing is queued for a watch. It reads the history when it is asked, so a slow reader finds later that what it has not
seen has gone, and nobody else notices.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

from raftkv import limits
from raftkv.store.history import Change, Event, event_of
from raftkv.store.packed import VALUE_AT, Record, head
from raftkv.store.slot import Slot, SlotImage, SlotState

if TYPE_CHECKING:
    from raftkv.store.records import Store

_LOOKED_AT: Final = 2048
"""Events or records that one message looks at: a millisecond of the loop."""

_OVERHEAD: Final = 32


@dataclass(frozen=True, slots=True)
class WatchAsk:
    """What a client wants to follow. ``places``: by slot, the number after which, None = from now on.

    ``key``: only its events; None: those of all keys that begin with ``prefix``. ``initial``: where no number is given,
    or events after it are kept no more, an image of the slot comes before its events.
    """

    places: Mapping[int, int | None]
    key: bytes | None
    prefix: bytes
    initial: bool


class Span(NamedTuple):
    """All events of a slot that the watch wants, with numbers above ``after`` and up to ``upto``."""

    slot: int
    after: int
    upto: int
    events: list[Event]


class Image(NamedTuple):
    """Records of a slot as of ``number``: (key, value, version, milliseconds left or -1). Several make up the whole;
    ``begins`` and ``whole``: the first and the last of them."""

    slot: int
    number: int
    records: list[tuple[bytes, bytes, int, int]]
    begins: bool
    whole: bool


@dataclass(slots=True)
class Part:
    """What a message of a watch tells. ``opened``: (slot, number after which events come, None = an image comes; number
    when the watch was opened). ``released``: slots that the group serves no more. ``compacted``: (slot, floor), as
    events above the watch's number and up to the floor are kept no more: the end. ``size``: bytes, about. ``message``:
    what a front end has made of it, for all watches that are told the same.
    """

    opened: list[tuple[int, int | None, int]] = field(default_factory=list)
    released: list[int] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    images: list[Image] = field(default_factory=list)
    compacted: list[tuple[int, int]] = field(default_factory=list)
    size: int = 0
    message: bytes | None = None

    def __bool__(self) -> bool:
        return bool(self.opened or self.released or self.spans or self.images or self.compacted)


class Stand(NamedTuple):
    """Where a watch is: its place in the history; by slot, the number up to which it was looked at, -1 = it is not
    followed; and up to which it was told, of slots where that is less."""

    place: int
    after: array[int]
    told: dict[int, int]


class Watch:
    """Follows ``slots`` of ``store``. ``place``: in its history, from which on it has not looked."""

    def __init__(self, store: Store, ask: WatchAsk, numbers: Mapping[int, int]) -> None:
        """``numbers``: those of the slots at a linearizable read; :meth:`ready` says when they are here."""
        self._store = store
        self._ask = ask
        self._numbers = dict(numbers)
        self.slots: set[int] = set()
        self._changes = -1
        # By slot: the number up to which it was looked at, -1 = the slot is not followed.
        self._after = array("q", [-1]) * (max(ask.places) + 1)
        # Of slots that were looked at further than was told: up to where it was told.
        self._told: dict[int, int] = {}
        self._images: list[int] = []
        self._image: Iterator[Image] | None = None
        self._imaged = -1
        self._pinned: SlotImage | None = None
        self.place = store.history.end

    @property
    def behind(self) -> bool:
        """Whether there is more to look at."""
        return bool(self._images or self._image) or self.place < self._store.history.end

    @property
    def stand(self) -> Stand:
        return Stand(self.place, self._after, self._told)

    @stand.setter
    def stand(self, stand: Stand) -> None:
        self.place, self._after, self._told = stand

    @property
    def plain(self) -> bool:
        """Whether what it is told next follows from where it stands, and the history: no slot has come or gone, and no
        image is to be told."""
        unchanged = self._changes == self._store.slot_changes and self.place >= self._store.history.first
        return unchanged and not self._images and self._image is None

    def ready(self) -> bool:
        """Whether all slots are here as they were at the read."""
        return all(self._here(slot, number) is not None for slot, number in self._numbers.items())

    def _here(self, number: int, counter: int) -> Slot | None:
        slot = self._store.slot(number)
        return slot if slot is not None and slot.state is not SlotState.IMPORTING and slot.counter >= counter else None

    def open(self) -> Part:
        """Begin, with the slots that are ready; others are told as released."""
        part = Part()
        missing = 0
        for slot, asked in self._ask.places.items():
            number = self._numbers.get(slot)
            home = None if number is None else self._here(slot, number)
            if home is None or number is None:
                part.released.append(slot)
                continue
            after = asked
            if after is None and not self._ask.initial:
                after = number
            if after is not None and after < home.forgotten:
                if not self._ask.initial:
                    part.compacted.append((slot, home.forgotten))
                after = None
            part.opened.append((slot, after, number))
            if after is None:
                self._images.append(slot)
            else:
                self._follow(slot, after)
                missing += home.counter - after
        self.place = self._place_of(missing)
        return part

    def _place_of(self, missing: int) -> int:
        """A place behind which the history has all that is wanted: so many events of the slots that are followed."""
        history = self._store.history
        place = history.end
        while missing and place > history.first:
            start = max(history.first, place - _LOOKED_AT)
            at = start
            while at < place:
                items, at = history.read(at, place - at)
                for slot in items[::3]:
                    missing -= 0 <= slot < len(self._after) and self._after[slot] >= 0
            place = start
            missing = max(missing, 0)
        return place

    def skip(self, before: int, end: int) -> None:
        """Nothing for this watch stands in the history from ``before`` to ``end``."""
        if self.place == before:
            self.place = end

    def take(self) -> Part:
        """What is to be told next; empty: nothing, or see :attr:`behind`."""
        part = Part()
        self._look_at_slots(part)
        if part.compacted:
            return part
        if self._images or self._image is not None:
            self._take_images(part)
        else:
            self._take_events(part)
        return part

    def heartbeat(self) -> Part:
        """How far slots were looked at whose events the watch does not want."""
        told, self._told = self._told, {}
        return Part(spans=[Span(slot, after, self._after[slot], []) for slot, after in told.items()])

    def close(self) -> None:
        """Let go of what is held. May be called again."""
        self._image, self._imaged = None, -1
        if self._pinned is not None:
            self._pinned.release()
            self._pinned = None

    def _look_at_slots(self, part: Part) -> None:
        """What is followed may have gone, and a slot that went and came back may have lost events on its way."""
        history, changes = self._store.history, self._store.slot_changes
        if changes == self._changes and self.place >= history.first:
            return
        self._changes = changes
        for number in sorted(self.slots):
            slot = self._store.slot(number)
            if slot is None or slot.state is SlotState.IMPORTING:
                part.released.append(number)
                self._let_go(number)
            elif slot.forgotten > self._after[number]:
                if self._ask.initial:
                    self._let_go(number)
                    self._images.append(number)
                else:
                    part.compacted.append((number, slot.forgotten))
        self.place = max(self.place, history.first)

    def _follow(self, number: int, after: int) -> None:
        self._after[number] = after
        self.slots.add(number)

    def _let_go(self, number: int) -> None:
        self._after[number] = -1
        self.slots.discard(number)
        self._told.pop(number, None)
        if number == self._imaged:
            self.close()

    def _take_events(self, part: Part) -> None:
        history, followed, told = self._store.history, self._after, self._told
        key, prefix, count = self._ask.key, self._ask.prefix, len(followed)
        found: dict[int, list[Event]] = {}
        left, more = _LOOKED_AT, False
        while (left > 0 or more) and self.place < history.end:
            items, after = history.read(self.place, max(left, 1))
            for at in range(0, len(items), 3):
                slot = items[at]
                if not 0 <= slot < count or followed[slot] < 0:
                    continue
                event = event_of(slot, items[at + 1], items[at + 2])
                if event.number <= followed[slot]:
                    continue
                told.setdefault(slot, followed[slot])
                followed[slot] = event.number
                more = event.more
                if (event.key == key if key is not None else event.key.startswith(prefix)) and (
                    event.change is not Change.TOUCH
                ):
                    found.setdefault(slot, []).append(event)
                    part.size += len(event.key) + len(event.value or b"") + _OVERHEAD
                    if part.size >= limits.WATCH_BYTES and not more:
                        after = self.place + at // 3 + 1
                        break
            left -= after - self.place
            self.place = after
            if part.size >= limits.WATCH_BYTES and not more:
                break
        part.spans = [Span(slot, told.pop(slot), followed[slot], events) for slot, events in found.items()]

    def _take_images(self, part: Part) -> None:
        looked_at = 0
        while part.size < limits.WATCH_BYTES and looked_at < _LOOKED_AT:
            if self._image is None:
                if not self._images:
                    return
                number = self._images.pop()
                slot = self._store.slot(number)
                if slot is None or slot.state is SlotState.IMPORTING:
                    part.released.append(number)
                    continue
                self._follow(number, slot.counter)
                self._image, self._imaged = self._records(slot), number
            image = next(self._image)
            looked_at += _PIECE
            part.images.append(image)
            part.size += sum(len(row[0]) + len(row[1]) + _OVERHEAD for row in image.records)
            if image.whole:
                self.close()

    def _records(self, slot: Slot) -> Iterator[Image]:
        """The image of a slot as of now, in pieces."""
        key, prefix, now = self._ask.key, self._ask.prefix, self._store.time
        number, counter = slot.number, slot.counter
        if key is not None:
            record = slot.records.get(key)
            yield Image(number, counter, _rows(key, record, now), True, True)
            return
        self._pinned = slot.image()
        records = iter(self._pinned.records.items())
        begins = True
        while piece := list(islice(records, _PIECE)):
            rows = [row for name, record in piece if name.startswith(prefix) for row in _rows(name, record, now)]
            if rows:
                yield Image(number, counter, rows, begins, False)
                begins = False
        yield Image(number, counter, [], begins, True)


_PIECE: Final = 64


def _rows(key: bytes, record: Record | None, now: int) -> list[tuple[bytes, bytes, int, int]]:
    if record is None:
        return []
    version, expires = head(record)
    if 0 < expires <= now:
        return []
    return [(key, record[VALUE_AT:], version, expires - now if expires else -1)]
