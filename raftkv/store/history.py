"""The last events of a data group's slots: what watches read.

They stand in the order in which they were applied, so a write only adds to the end of a list. What is too much or too
old goes from the front, in blocks; a slot remembers the number of its last event that went (``Slot.forgotten``). Each
number above it is there once, as every change of a record takes the next number of its slot. All of it is replicated,
and events move with their slots.

An event is a slot, a key and a body: 16 bytes as of a record, then the value of a PUT. So the body of a PUT is the
record itself, and takes no memory while the record stays as it is. Where a record says when it expires, other bodies
have a negative number: what happened.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from enum import IntEnum
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from raftkv import limits
from raftkv.store.codec import binary, whole
from raftkv.store.packed import VALUE_AT, head, pack_head

if TYPE_CHECKING:
    from raftkv.store.slot import Slot


class Change(IntEnum):
    """What happened to a record. Negative, it stands in bodies of events: numbers are part of snapshots."""

    PUT = 1
    DELETE = 2
    EXPIRE = 3
    TOUCH = 4
    """It lives for another time, which watches do not tell."""


_MORE: Final = 16
"""Added to the number of a change if the next event is of the same command."""

_CHANGES: Final = frozenset(int(change) for change in Change)
_FIELDS: Final = 3
NOBODY: Final = -1
"""In place of the slot of an event that has gone from the middle, with its slot."""

_GONE: Final = pack_head(0, 0)

_BLOCK: Final = 1024 * _FIELDS
"""Items from which on a block is closed. The more, the fewer slots have to be told what went with one."""
_BLOCK_BYTES: Final = limits.MAX_HISTORY_BYTES // 64
_BLOCK_MS: Final = limits.HISTORY_AGE * 1000 // 8
_PLACE: Final = attrgetter("place")


class Event(NamedTuple):
    """A record changed. ``number``: the slot's counter at the change. ``value``: written, of a PUT.

    ``more``: the next event of the slot is of the same command.
    """

    slot: int
    number: int
    key: bytes
    change: Change
    value: bytes | None
    more: bool


def event_of(slot: int, key: bytes, body: bytes) -> Event:
    """The event that stands in a history so."""
    number, code = head(body)
    if code >= 0:
        return Event(slot, number, key, Change.PUT, body[VALUE_AT:], False)
    change = Change(-code & (_MORE - 1))
    return Event(slot, number, key, change, body[VALUE_AT:] if change is Change.PUT else None, -code >= _MORE)


def number_of(body: bytes) -> int:
    """The number of an event, by its body."""
    return head(body)[0]


def checked(items: list[Any]) -> list[Any]:
    """``items`` if they are events. Raises ValueError otherwise."""
    if len(items) % _FIELDS:
        raise ValueError("half an event")
    for slot, key, body in zip(items[::3], items[1::3], items[2::3], strict=True):
        if whole(slot) < NOBODY or len(binary(body)) < VALUE_AT:
            raise ValueError("not an event")
        number, code = head(body)
        binary(key)
        if number < 0 or (code < 0 and -code & (_MORE - 1) not in _CHANGES):
            raise ValueError("not an event")
    return items


class Block(NamedTuple):
    """Events that go together. ``place``: of the first one. ``items``: slot, key, body, ...; never changed.

    ``bytes``: what they count for. ``until``: group time (ms) by which all of them had happened.
    """

    place: int
    items: list[Any]
    bytes: int
    until: int


class HistoryImage(NamedTuple):
    """A history as of one moment: its blocks, and the first ``length`` of the ``items`` of the one that is open."""

    place: int
    blocks: tuple[Block, ...]
    since: int
    items: list[Any]
    length: int

    @property
    def first(self) -> int:
        """Place of the oldest event."""
        return self.blocks[0].place if self.blocks else self.place

    @property
    def total(self) -> int:
        """How many events there are."""
        return self.place - self.first + self.length // _FIELDS

    def runs(self) -> Iterator[tuple[list[Any], int]]:
        """All events, oldest first: lists, and how much of each."""
        yield from ((block.items, len(block.items)) for block in self.blocks)
        yield self.items, self.length


class History:
    """Events of a group, oldest first, each at its place, which is the same on all replicas.

    ``items``: those of the open block, from ``place`` on, which began at ``since`` (group time in ms). A block is
    closed only between two entries, so commands stay whole.
    """

    def __init__(self, place: int = 0) -> None:
        self.blocks: deque[Block] = deque()
        self.place = place
        self.items: list[Any] = []
        self.since = 0
        self.bytes = 0
        # What the first of ``items`` count for; these are counted in ``bytes``.
        self._counted = self._open = 0

    @property
    def first(self) -> int:
        """Place of the oldest event that is kept."""
        return self.blocks[0].place if self.blocks else self.place

    @property
    def end(self) -> int:
        """Place of the next event."""
        return self.place + len(self.items) // _FIELDS

    def add(self, slot: int, key: bytes, number: int, change: Change) -> None:
        """Another event than a PUT, for which its record is added to ``items`` in line."""
        self.items += (slot, key, pack_head(number, -change))

    def join(self, count: int) -> None:
        """The last ``count`` events are of one command. Call it within the entry that they are of."""
        items = self.items
        for at in range(len(items) - _FIELDS * count + 2, len(items) - _FIELDS, _FIELDS):
            number, code = head(items[at])
            code = -code if code < 0 else int(Change.PUT)
            items[at] = pack_head(number, -(code | _MORE)) + items[at][VALUE_AT:]

    def settle(self, now: int, slots: Mapping[int, Slot]) -> None:
        """An entry ends at ``now``, group time in ms: leave out what is too much or too old."""
        items = self.items
        if len(items) > self._counted:
            self._count()
        if items and (len(items) >= _BLOCK or self._open >= _BLOCK_BYTES or now >= self.since + _BLOCK_MS):
            self.close(now)
        while self.blocks and (
            self.bytes > limits.MAX_HISTORY_BYTES or self.blocks[0].until + limits.HISTORY_AGE * 1000 <= now
        ):
            gone = self.blocks.popleft()
            self.bytes -= gone.bytes
            # Of each slot the last one.
            for number, body in dict(zip(gone.items[::_FIELDS], gone.items[2::_FIELDS], strict=True)).items():
                slot = slots.get(number)
                if slot is not None:
                    slot.forgotten = head(body)[0]
        if not self.items:
            self.since = now

    def _count(self) -> None:
        """What the open block has more than it had."""
        added = _size(self.items[self._counted :])
        self.bytes += added
        self._open += added
        self._counted = len(self.items)

    def close(self, until: int) -> None:
        """End the open block, at ``until``, group time in ms."""
        self._count()
        self.blocks.append(Block(self.place, self.items, self._open, until))
        self.place, self.items, self.since = self.end, [], until
        self._counted = self._open = 0

    def read(self, place: int, most: int) -> tuple[list[Any], int]:
        """Items from ``place`` on, of at most ``most`` events or to the end of a block; and the place behind them.

        None before ``first`` can be read.
        """
        items, start = self.items, self.place
        if place < start:
            block = self.blocks[bisect_right(self.blocks, place, key=_PLACE) - 1]
            items, start = block.items, block.place
        at = _FIELDS * (place - start)
        found = items[at : at + _FIELDS * most]
        return found, place + len(found) // _FIELDS

    # Slots come and go

    def forget(self, numbers: AbstractSet[int]) -> None:
        """The events of these slots go, as the slots have gone. Others keep their places."""
        for index, block in enumerate(self.blocks):
            if not numbers.isdisjoint(block.items[::_FIELDS]):
                items = _without(block.items, numbers)
                self.blocks[index] = Block(block.place, items, _size(items), block.until)
                self.bytes += self.blocks[index].bytes - block.bytes
        self.items = _without(self.items, numbers)
        # Counted anew.
        self.bytes -= self._open
        self._counted = self._open = 0

    # All of it

    def image(self) -> HistoryImage:
        return HistoryImage(self.place, tuple(self.blocks), self.since, self.items, len(self.items))


def parts(items: list[Any], length: int, most: int) -> Iterator[list[Any]]:
    """The first ``length`` of ``items`` in runs of events, of about ``most`` bytes each unless one alone has more."""
    start = size = 0
    for at in range(0, length, _FIELDS):
        size += len(items[at + 1]) + len(items[at + 2])
        if size >= most:
            yield items[start : at + _FIELDS]
            start, size = at + _FIELDS, 0
    if start < length:
        yield items[start:length]


def _without(items: list[Any], numbers: AbstractSet[int]) -> list[Any]:
    kept = list(items)
    for at in range(0, len(kept), _FIELDS):
        if kept[at] in numbers:
            kept[at : at + _FIELDS] = (NOBODY, b"", _GONE)
    return kept


def events_of(items: list[Any], forgotten: Mapping[int, int]) -> Iterator[tuple[int, bytes, bytes]]:
    """The events among ``items`` whose slots are in ``forgotten``, with numbers above what it says of them."""
    for at in range(0, len(items), _FIELDS):
        after = forgotten.get(items[at])
        if after is not None and number_of(items[at + 2]) > after:
            yield items[at], items[at + 1], items[at + 2]


def _size(items: list[Any]) -> int:
    """What events count for."""
    size = sum(map(len, items[1::_FIELDS])) + sum(map(len, items[2::_FIELDS]))
    return size + len(items) // _FIELDS * limits.EVENT_OVERHEAD
