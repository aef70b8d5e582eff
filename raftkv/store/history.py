"""The last events of a data group's slots: what watches read.

They stand in the order in which they were applied, so a write only adds to the end of a list. At the end of an entry
the list becomes a block, which is made into events again for who reads it. An entry of nothing but puts, as under load,
is its own block: it is in memory anyway, as the log's. Others are packed. Records that live on for seconds would cost
each write memory that no cache has. What is too much or too old goes from the front, by whole blocks; a slot remembers
the number of its last event that went (``Slot.forgotten``). Each number above it is there once, as every change of a
record takes the next number of its slot. All of it is replicated, and events move with their slots.

An event is a slot, a key and a body: 16 bytes as of a record, then the value of a PUT. So the body of a PUT is the
record itself. Where a record says when it expires, other bodies have a negative number: what happened.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from enum import IntEnum
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from msgspec import MsgspecError
from msgspec.msgpack import Decoder, Encoder

from raftkv import limits
from raftkv.commands.base import Command
from raftkv.commands.records import Put
from raftkv.commands.registry import decode_entry
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

_BLOCK_EVENTS: Final = 32
_BLOCK_BYTES: Final = 16 * 1024
"""From so many events, or bytes of bodies, on a block is closed."""
_PUTS: Final = {Put}
_READ: Final = 4
"""Blocks that are kept as events, for watches that read the same one after the other."""
_RUN_BYTES: Final = 128 * 1024
_SHARE: Final = 16
"""Once there is too much, a part of what may be kept goes at a time: slots are told of it rarely."""
_AGE_MS: Final = limits.HISTORY_AGE * 1000
_BLOCK_MS: Final = _AGE_MS // 8
_PLACE: Final = attrgetter("place")

_pack: Final = Encoder().encode
_unpack: Final = cast(Callable[[bytes | memoryview], list[Any]], Decoder().decode)


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
    """Events that go together. ``place``: of the first one. ``slots``: of each.

    ``data``: all of them, packed; with ``numbers``, of each, an entry of the log, encoded, whose commands they are.
    ``size``: what they count for, in bytes. ``until``: group time (ms) by which all of them had happened.
    """

    place: int
    slots: array[int]
    numbers: array[int] | None
    data: bytes | memoryview
    size: int
    until: int

    @classmethod
    def packed(cls, place: int, items: list[Any], until: int) -> Block:
        """Of events as they stand in ``items``: slot, key, body, ..."""
        data = _pack(items)
        size = _size(data, len(items) // _FIELDS)
        return cls(place, array("i", items[::_FIELDS]), None, data, size, until)

    @classmethod
    def from_wire(cls, place: int, data: bytes, wire: Sequence[Any]) -> Block:
        """That with this ``data`` whose :meth:`to_wire` this is.

        Raises ValueError, TypeError or OverflowError if there is none.
        """
        numbers, size, until = wire
        numbers = None if numbers is None else array("q", map(whole, numbers))
        block = cls(place, array("i"), numbers, data, whole(size), whole(until))
        try:
            items = checked(block.items())
        except MsgspecError as problem:
            raise ValueError(str(problem)) from problem
        return block._replace(slots=array("i", items[::_FIELDS]))

    def to_wire(self) -> tuple[list[int] | None, int, int]:
        """Plain values that make the block, with its place and its data."""
        return None if self.numbers is None else self.numbers.tolist(), self.size, self.until

    def items(self) -> list[Any]:
        """The events."""
        if self.numbers is None:
            return _unpack(self.data)
        items: list[Any] = []
        for put, number in zip(decode_entry(self.data)[1], self.numbers, strict=True):
            if not isinstance(put, Put):
                raise TypeError("not an entry of puts")
            items += (put.slot, put.key, pack_head(number, put.ttl and self.until + put.ttl) + put.value)
        return items

    def pack(self) -> bytes | memoryview:
        """The events, packed."""
        return self.data if self.numbers is None else _pack(self.items())


class HistoryImage(NamedTuple):
    """A history as of one moment: its blocks, and the first ``length`` of the ``items`` that are in none yet."""

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

    def runs(self, numbers: AbstractSet[int]) -> Iterator[tuple[list[Any], int]]:
        """All events of these slots, among others, oldest first: lists, and how much of each."""
        items: list[Any] = []
        size = 0
        for block in self.blocks:
            if not numbers.isdisjoint(block.slots):
                items += block.items()
                size += block.size
                if size >= _RUN_BYTES:
                    yield items, len(items)
                    items, size = [], 0
        yield items, len(items)
        yield self.items, self.length


class History:
    """Events of a group, oldest first, each at its place, which is the same on all replicas.

    ``items``: those that are in no block yet, from ``place`` on: slot, key, body, ... They began at ``since`` (group
    time in ms) at the earliest. ``bytes``: what the blocks count for. A block is closed only between two entries, so
    commands stay whole.
    """

    def __init__(self, place: int = 0) -> None:
        self.blocks: deque[Block] = deque()
        self.place = place
        self.items: list[Any] = []
        self.since = 0
        self.bytes = 0
        # When time has something closed, or go: no later.
        self._due = 0
        # Of the present entry: how many items there were before it, and whether all it added are PUTs.
        self._before = 0
        self._only_puts = True
        # By place, the items of blocks that were read.
        self._read: dict[int, list[Any]] = {}

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
        self._only_puts = False

    def join(self, count: int) -> None:
        """The last ``count`` events are of one command. Call it within the entry that they are of."""
        items = self.items
        for at in range(len(items) - _FIELDS * count + 2, len(items) - _FIELDS, _FIELDS):
            number, code = head(items[at])
            code = -code if code < 0 else int(Change.PUT)
            items[at] = pack_head(number, -(code | _MORE)) + items[at][VALUE_AT:]

    def is_block(self, commands: Sequence[Command], size: int) -> bool:
        """Whether the events of the present entry are those of its commands, one of each, and enough for a block.

        ``size``: of the entry, in bytes.
        """
        return (
            self._only_puts
            and len(self.items) - self._before == _FIELDS * len(commands)
            and (len(commands) >= _BLOCK_EVENTS or size >= _BLOCK_BYTES)
            and {*map(type, commands)} == _PUTS
        )

    def close_entry(self, entry: memoryview, numbers: list[int], until: int) -> None:
        """The events of the present entry become a block. ``numbers``: of each."""
        items = self.items[self._before :]
        del self.items[self._before :]
        if self.items:
            self.close(until)
        size = _size(entry, len(numbers))
        self.append(Block(self.place, array("i", items[::_FIELDS]), array("q", numbers), entry, size, until))

    def settle(self, now: int, slots: Mapping[int, Slot]) -> None:
        """An entry ends at ``now``, group time in ms: leave out what is too much or too old."""
        self._settle(now, slots)
        self._before, self._only_puts = len(self.items), True

    def _settle(self, now: int, slots: Mapping[int, Slot]) -> None:
        items = self.items
        full = len(items) >= _FIELDS * _BLOCK_EVENTS or sum(map(len, items[2::_FIELDS])) >= _BLOCK_BYTES
        if not full and now < self._due and self.bytes <= limits.MAX_HISTORY_BYTES:
            return
        if full or (items and now >= self.since + _BLOCK_MS):
            self.close(now)
        elif now >= self.since + _BLOCK_MS:
            self.since = now
        most = limits.MAX_HISTORY_BYTES
        if self.bytes > most:
            most -= most // _SHARE
        told: Counter[int] = Counter()
        while self.blocks and (self.bytes > most or self.blocks[0].until + _AGE_MS <= now):
            gone = self.blocks.popleft()
            self.bytes -= gone.size
            told.update(gone.slots)
        for number, count in told.items():
            slot = slots.get(number)
            if slot is not None:
                slot.forgotten += count
        self._due = self.since + _BLOCK_MS
        if self.blocks:
            self._due = min(self._due, self.blocks[0].until + _AGE_MS)

    def close(self, until: int) -> None:
        """Pack what is in no block into one, at ``until``, group time in ms."""
        self.append(Block.packed(self.place, self.items, until))
        self.items = []

    def append(self, block: Block) -> None:
        """Its events are the next ones."""
        self.blocks.append(block)
        self.bytes += block.size
        self.place += len(block.slots)
        self.since = block.until

    def read(self, place: int, most: int) -> tuple[list[Any], int]:
        """Items from ``place`` on, of at most ``most`` events or to the end of a block; and the place behind them.

        None before ``first`` can be read.
        """
        items, start = self.items, self.place
        if place < start:
            block = self.blocks[bisect_right(self.blocks, place, key=_PLACE) - 1]
            start, items = block.place, self._items(block)
        at = _FIELDS * (place - start)
        found = items[at : at + _FIELDS * most]
        return found, place + len(found) // _FIELDS

    def _items(self, block: Block) -> list[Any]:
        items = self._read.get(block.place)
        if items is None:
            if len(self._read) == _READ:
                del self._read[next(iter(self._read))]
            items = self._read[block.place] = block.items()
        return items

    # Slots come and go

    def forget(self, numbers: AbstractSet[int]) -> None:
        """The events of these slots go, as the slots have gone. Others keep their places."""
        for index, block in enumerate(self.blocks):
            if not numbers.isdisjoint(block.slots):
                self.blocks[index] = Block.packed(block.place, _without(block.items(), numbers), block.until)
                self.bytes += self.blocks[index].size - block.size
        self.items = _without(self.items, numbers)
        self._before = len(self.items)
        self._read.clear()

    # All of it

    def begin(self, since: int) -> None:
        """All events of a snapshot have come: go on as whoever took it. ``since``: as there."""
        self.since = since
        self._before = len(self.items)

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


def _size(data: bytes | memoryview, events: int) -> int:
    """What so many events count for."""
    return len(data) + events * limits.EVENT_OVERHEAD
