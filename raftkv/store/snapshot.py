"""Snapshots of a data group's state: a stream of msgpack items in chunks, and their digest.

The stream: a header, ENDED items (slots and the moves that ended last for them), an IMPORT item for each move towards
this group, and its STAGED events; then for each slot, ascending, one SLOT item, its RECORDS, SESSIONS and DIRTY items;
then the HISTORY, for each of its blocks a BLOCK item behind its DATA, and the EVENTS that are in none; then END with
the numbers of slots, records, sessions, dirty keys and events. A chunk holds whole items. Damage is found by whoever
stores chunks (they carry no checksum); here only what does not fit together is refused.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from raftkv import limits
from raftkv.commands.bounds import MAX_COUNT, MAX_GROUP_TIME
from raftkv.errors import StorageError
from raftkv.store.codec import binary, pack, unpack_all, whole
from raftkv.store.digest import DIGEST_BYTES, digest_events, finish
from raftkv.store.history import Block, History, HistoryImage, checked, parts
from raftkv.store.index import KeyIndex, new_index
from raftkv.store.moving import Ending, Import
from raftkv.store.packed import head, value_bytes
from raftkv.store.sessions import row_bytes, session_from_row, session_row
from raftkv.store.slot import Slot, SlotImage, SlotState

FORMAT: Final = "raftkv store 6"
"""The first item's, which backups begin with too."""

_FORMER: Final = "raftkv store 3"
"""That of backups of version 0.1, which is read too: all outcomes of writes are numbers in it, and it has no events."""

_SLOT: Final = 1
_RECORDS: Final = 2
_SESSIONS: Final = 3
_END: Final = 4
_DIRTY: Final = 5
_ENDED: Final = 6
_IMPORT: Final = 7
_STAGED: Final = 8
_HISTORY: Final = 9
_EVENTS: Final = 10
_BLOCK: Final = 11
_DATA: Final = 12
_OF_EVENTS: Final = (_STAGED, _HISTORY, _EVENTS, _BLOCK, _DATA)
# Items are small beside a chunk, so that chunks come out even.
_ITEM_BYTES: Final = limits.SNAPSHOT_CHUNK_BYTES // 8
_RECORD_OVERHEAD: Final = 8
_CHANGE_OVERHEAD: Final = 24
_RESULT_OVERHEAD: Final = 3


class Rest(NamedTuple):
    """All that is replicated beside the slots, as plain values in a canonical order.

    ``ended``: [slot, move, how] of the last move that ended for a slot. ``imports``: [move, seq, cursor, source's time
    at the freeze or None, slots] of each move towards this group. ``staged``: by such a move, the events that have
    come, as they stand in a history, and how many items these are.
    """

    time: int
    genesis: bool
    ended: list[list[Any]]
    imports: list[list[Any]]
    staged: dict[int, tuple[list[Any], int]]

    @property
    def values(self) -> list[Any]:
        """All but the events."""
        return [self.time, self.genesis, self.ended, self.imports]


@dataclass
class StoreState:
    """A whole state, as restored. ``order``: the keys of all slots."""

    time: int = 0
    genesis: bool = False
    ended: dict[int, tuple[int, int]] = field(default_factory=dict)
    imports: list[Import] = field(default_factory=list)
    slots: list[Slot] = field(default_factory=list)
    order: KeyIndex = field(default_factory=new_index)
    history: History = field(default_factory=History)


class StoreSnapshot:
    """The state of one moment. Holds no copies: slots that are written to meanwhile copy themselves first."""

    def __init__(self, rest: Rest, images: list[SlotImage], history: HistoryImage) -> None:
        self._rest = rest
        self._history = history
        self._images = images
        self._images.reverse()
        self._chunks = self._produce()

    def chunks(self) -> Iterator[bytes]:
        """The chunks in order. One pass: what was produced is let go of. Ends early once the snapshot is closed."""
        return self._chunks

    def close(self) -> None:
        """Ends copy-on-write. May be called at any time, and again."""
        while self._images:
            self._images.pop().release()
        self._chunks.close()

    def _produce(self) -> Generator[bytes, None, None]:
        chunk = bytearray()
        for item in self._items():
            packed = pack(item)
            if len(packed) >= limits.SNAPSHOT_CHUNK_BYTES and not chunk:
                yield packed  # a large value is not copied twice more
                continue
            chunk += packed
            if len(chunk) >= limits.SNAPSHOT_CHUNK_BYTES:
                yield bytes(chunk)
                chunk.clear()
        yield bytes(chunk)

    def _items(self) -> Iterator[list[Any]]:
        yield [FORMAT, self._rest.time, self._rest.genesis]
        yield from _items([_ENDED], ((row, _CHANGE_OVERHEAD) for row in self._rest.ended))
        for row in self._rest.imports:
            yield [_IMPORT, *row]
            events, length = self._rest.staged.get(row[0], ([], 0))
            yield from ([_STAGED, row[0], *part] for part in parts(events, length, _ITEM_BYTES))
        slots = records = sessions = dirty = 0
        while self._images:
            image = self._images[-1]
            slots += 1
            records += len(image.records)
            sessions += len(image.sessions)
            dirty += len(image.dirty or ())
            yield [
                _SLOT,
                image.number,
                image.state,
                image.counter,
                image.floor,
                image.move,
                image.frozen,
                image.forgotten,
            ]
            yield from _record_items(image)
            yield from _items([_SESSIONS, image.number], _session_parts(image))
            yield from _items([_DIRTY, image.number], _dirty_parts(image))
            self._images.pop().release()
        history = self._history
        yield [_HISTORY, history.first, history.since]
        for block in history.blocks:
            # As it is: to look at what is inside would cost more than all the rest.
            for at in range(0, len(block.data), _ITEM_BYTES):
                yield [_DATA, block.data[at : at + _ITEM_BYTES]]
            yield [_BLOCK, *block.to_wire()]
        yield from ([_EVENTS, *part] for part in parts(history.items, history.length, _ITEM_BYTES))
        yield [_END, slots, records, sessions, dirty, history.total]


def _record_items(image: SlotImage) -> Iterator[list[Any]]:
    item: list[Any] = [_RECORDS, image.number]
    size = 0
    for stored in image.records.items():
        item += stored
        size += len(stored[0]) + len(stored[1]) + _RECORD_OVERHEAD
        if size >= _ITEM_BYTES:
            yield item
            item, size = [_RECORDS, image.number], 0
    if size:
        yield item


def _items(head: list[Any], parts: Iterable[tuple[list[Any], int]]) -> Iterator[list[Any]]:
    """Items that begin with ``head`` and hold fields of about their size (bytes) each."""
    item, size = [*head], 0
    for part, cost in parts:
        item += part
        size += cost
        if size >= _ITEM_BYTES:
            yield item
            item, size = [*head], 0
    if size:
        yield item


def _session_parts(image: SlotImage) -> Iterator[tuple[list[Any], int]]:
    for client, session in image.sessions.items():
        row = session_row(client, session)
        yield [row], row_bytes(row) + _RESULT_OVERHEAD * len(row)


def _dirty_parts(image: SlotImage) -> Iterator[tuple[list[Any], int]]:
    for key, counter in (image.dirty or {}).items():
        yield [key, counter], len(key) + _CHANGE_OVERHEAD


class StoreRestore:
    """Builds a state beside the present one; :meth:`finish` puts it in its place."""

    def __init__(self, install: Callable[[StoreState], None]) -> None:
        self._install = install
        self._state = StoreState()
        self._started = False
        self._ended = False
        self._records = 0
        self._sessions = 0
        self._dirty = 0
        self._events = 0
        self._former = False
        self._since = 0
        self._data: list[bytes] = []
        self._clients: dict[bytes, bytes] = {}

    def feed(self, chunk: bytes) -> None:
        """Take the next chunk. Raises StorageError if it is no part of a snapshot in this order."""
        try:
            for item in unpack_all(chunk):
                self._take(item)
        except (ValueError, TypeError, IndexError, KeyError, OverflowError, struct.error) as problem:
            raise StorageError(f"not a snapshot of a store: {problem}") from problem

    def finish(self) -> None:
        """Replace the state. Raises StorageError, and changes nothing, if chunks are missing."""
        if not self._ended:
            raise StorageError("the snapshot of the store is incomplete")
        self._ended = False
        self._install(self._state)

    def _take(self, item: Any) -> None:
        if type(item) is not list or not item:
            raise ValueError("not an item")
        if self._ended:
            raise ValueError("something follows the end")
        if not self._started:
            name, time, genesis = item
            if name not in (FORMAT, _FORMER):
                raise ValueError("unknown format")
            self._former = name == _FORMER
            if not 0 <= whole(time) <= MAX_GROUP_TIME or type(genesis) is not bool:
                raise ValueError("time or genesis out of range")
            self._state.time, self._state.genesis = time, genesis
            self._started = True
        elif item[0] == _SLOT:
            self._take_slot(item)
        elif item[0] == _RECORDS:
            self._take_records(self._slot(item[1]), item)
        elif item[0] == _SESSIONS:
            self._take_sessions(self._slot(item[1]), item)
        elif item[0] == _DIRTY:
            self._take_dirty(self._slot(item[1]), item)
        elif item[0] == _ENDED and not self._state.slots:
            self._take_ended(item)
        elif item[0] == _IMPORT and not self._state.slots:
            self._take_import(item)
        elif item[0] in _OF_EVENTS:
            self._take_events(item)
        elif item[0] == _END:
            counts = [len(self._state.slots), self._records, self._sessions, self._dirty, self._events]
            if self._data or item[1:] != (counts[:-1] if self._former else counts):
                raise ValueError("parts are missing")
            self._check_moves()
            self._state.history.begin(self._since)
            self._ended = True
        else:
            raise ValueError("unknown item")

    def _take_events(self, item: list[Any]) -> None:
        kind, *fields = item
        state = self._state
        if kind == _STAGED:
            move, *events = fields
            if state.slots or state.imports[-1].move != move:
                raise ValueError("events of another move")
            state.imports[-1].events += checked(events)
        elif kind == _HISTORY:
            place, since = fields
            state.history = History(whole(place))
            self._since = whole(since)
        elif kind == _DATA:
            (data,) = fields
            self._data.append(binary(data))
        elif kind == _EVENTS:
            state.history.items += checked(fields)
            self._events += len(fields) // 3
        else:
            if state.history.items:
                raise ValueError("a block behind events that are in none")
            block = Block.from_wire(state.history.place, b"".join(self._data), fields)
            self._data.clear()
            state.history.append(block)
            self._events += len(block.slots)

    def _check_moves(self) -> None:
        """Imports and the slots that are imported must be each other's."""
        importing = [(slot.move, slot.number) for slot in self._state.slots if slot.state is SlotState.IMPORTING]
        if sorted(importing) != sorted((one.move, number) for one in self._state.imports for number in one.slots):
            raise ValueError("imports and slots do not fit together")

    def _slot(self, number: int) -> Slot:
        slot = self._state.slots[-1]
        if slot.number != number:
            raise ValueError("slots are mixed up")
        return slot

    def _take_ended(self, item: list[Any]) -> None:
        each = iter(item[1:])
        for number, move, how in zip(each, each, each, strict=True):
            self._state.ended[whole(number)] = (whole(move), Ending(how))

    def _take_import(self, item: list[Any]) -> None:
        _, move, seq, cursor, frozen, numbers = item
        slots = tuple(whole(number) for number in numbers)
        frozen = None if frozen is None else whole(frozen)
        self._state.imports.append(Import(whole(move), slots, whole(seq), binary(cursor), frozen))

    def _take_slot(self, item: list[Any]) -> None:
        # Before there were events, all of them are forgotten.
        _, number, state, counter, floor, move, frozen, forgotten = [*item, item[3]] if self._former else item
        if self._state.slots and whole(number) <= self._state.slots[-1].number:
            raise ValueError("slots are not in order")
        slot = Slot(whole(number), SlotState(state), whole(move))
        if not 0 <= whole(counter) < 2 * MAX_COUNT:
            raise ValueError("counter out of range")
        slot.counter = counter
        if not 0 <= whole(forgotten) <= counter:
            raise ValueError("events out of range")
        slot.forgotten = forgotten
        slot.floor = binary(floor)
        slot.frozen = whole(frozen)
        if move:
            if move <= self._state.ended.get(number, (0, 0))[0]:
                raise ValueError("a move goes on that has ended")
            if slot.state is not SlotState.IMPORTING:
                slot.track(move)
        elif slot.state is not SlotState.OWNED:
            raise ValueError("a slot moves without a move")
        self._state.slots.append(slot)

    def _take_records(self, slot: Slot, item: list[Any]) -> None:
        each = iter(item[2:])
        add = self._state.order.add
        for key, record in zip(each, each, strict=True):
            slot.records[binary(key)] = binary(record)
            slot.bytes += len(key) + value_bytes(record)
            slot.expiring += head(record)[1] != 0
            self._records += 1
            add(key)

    def _take_dirty(self, slot: Slot, item: list[Any]) -> None:
        if slot.dirty is None:
            raise ValueError("changes of a slot that is not tracked")
        each = iter(item[2:])
        for key, counter in zip(each, each, strict=True):
            if whole(counter) <= next(reversed(slot.dirty.values()), 0) or counter > slot.counter:
                raise ValueError("changes are not in order")
            slot.dirty[binary(key)] = counter
            self._dirty += 1

    def _take_sessions(self, slot: Slot, item: list[Any]) -> None:
        for row in item[2:]:
            client, session = session_from_row(row)
            # One object per client, not one per slot that it wrote to.
            slot.sessions[self._clients.setdefault(client, client)] = session
            self._sessions += 1


def store_digest(rest: Rest, slots: Iterable[Slot], history: HistoryImage) -> bytes:
    """Digest of a whole state, packed at once: for tests, whose states are small."""
    state: list[object] = [FORMAT, *rest.values]
    for slot in sorted(slots, key=lambda one: one.number):
        state += (slot.number, slot.state, slot.counter, slot.floor, slot.move, slot.frozen, slot.forgotten)
        # Most slots of a test are empty.
        state.append(sorted(slot.records.items()) if slot.records else ())
        state.append([session_row(one, slot.sessions[one]) for one in sorted(slot.sessions)] if slot.sessions else ())
        state.append(None if slot.dirty is None else list(slot.dirty.items()))
    digest = blake2b(pack(state), digest_size=DIGEST_BYTES)
    finish(digest_events(digest, rest.staged, history))
    return digest.digest()
