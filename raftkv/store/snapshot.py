"""Snapshots of a data group's state: a stream of msgpack items in chunks, and their digest.

The stream: a header, then for each slot, ascending, one SLOT item, its RECORDS items and its SESSIONS items, then END
with the numbers of slots, records and sessions. A chunk holds whole items. Damage is found by whoever stores chunks
(they carry no checksum); here only what does not fit together is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Final

from raftkv import limits
from raftkv.errors import StorageError
from raftkv.store.codec import pack, unpack_all
from raftkv.store.sessions import Session
from raftkv.store.slot import Slot, SlotImage, SlotState

FORMAT: Final = "raftkv store 1"
_SLOT: Final = 1
_RECORDS: Final = 2
_SESSIONS: Final = 3
_END: Final = 4
# Items are small beside a chunk, so that chunks come out even.
_ITEM_BYTES: Final = limits.SNAPSHOT_CHUNK_BYTES // 8
_RECORD_OVERHEAD: Final = 24
_RESULT_BYTES: Final = 12


@dataclass
class StoreState:
    """A whole state, as restored."""

    time: int = 0
    genesis: bool = False
    slots: list[Slot] = field(default_factory=list)


class StoreSnapshot:
    """The state of one moment. Holds no copies: slots that are written to meanwhile copy themselves first."""

    def __init__(self, time: int, genesis: bool, images: list[SlotImage]) -> None:
        self._header = [FORMAT, time, genesis]
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
            chunk += pack(item)
            if len(chunk) >= limits.SNAPSHOT_CHUNK_BYTES:
                yield bytes(chunk)
                chunk.clear()
        yield bytes(chunk)

    def _items(self) -> Iterator[list[Any]]:
        yield self._header
        slots = records = sessions = 0
        while self._images:
            image = self._images[-1]
            slots += 1
            records += len(image.records)
            sessions += len(image.sessions)
            yield [_SLOT, image.number, image.state, image.counter, image.floor]
            yield from _record_items(image)
            yield from _session_items(image)
            self._images.pop().release()
        yield [_END, slots, records, sessions]


def _record_items(image: SlotImage) -> Iterator[list[Any]]:
    item: list[Any] = [_RECORDS, image.number]
    size = 0
    for key, (value, version, expires) in image.records.items():
        item += (key, value, version, expires)
        size += len(key) + len(value) + _RECORD_OVERHEAD
        if size >= _ITEM_BYTES:
            yield item
            item, size = [_RECORDS, image.number], 0
    if size:
        yield item


def _session_items(image: SlotImage) -> Iterator[list[Any]]:
    item: list[Any] = [_SESSIONS, image.number]
    size = 0
    for client, session in image.sessions.items():
        row = session_row(client, session)
        item.append(row)
        size += _RESULT_BYTES * len(row)
        if size >= _ITEM_BYTES:
            yield item
            item, size = [_SESSIONS, image.number], 0
    if size:
        yield item


def session_row(client: bytes, session: Session) -> list[Any]:
    """A session as plain values: client, first, last, queued, then seq and outcome of each result."""
    row: list[Any] = [client, session.first, session.last, session.queued]
    for result in session.results():
        row += result
    return row


def session_from_row(row: list[Any]) -> tuple[bytes, Session]:
    """Raises TypeError or ValueError for what :func:`session_row` does not make."""
    client, first, last, queued, *results = row
    session = Session(_int(first), _int(last))
    session.queued = _int(queued)
    session.load([(_int(seq), _int(outcome)) for seq, outcome in zip(results[::2], results[1::2], strict=True)])
    return _bytes(client), session


class StoreRestore:
    """Builds a state beside the present one; :meth:`finish` puts it in its place."""

    def __init__(self, install: Callable[[StoreState], None]) -> None:
        self._install = install
        self._state = StoreState()
        self._started = False
        self._ended = False
        self._records = 0
        self._sessions = 0
        self._clients: dict[bytes, bytes] = {}

    def feed(self, chunk: bytes) -> None:
        """Take the next chunk. Raises StorageError if it is no part of a snapshot in this order."""
        try:
            for item in unpack_all(chunk):
                self._take(item)
        except (ValueError, TypeError, IndexError, KeyError) as problem:
            raise StorageError(f"not a snapshot of a store: {problem}") from problem

    def finish(self) -> None:
        """Replace the state. Raises StorageError, and changes nothing, if chunks are missing."""
        if not self._ended:
            raise StorageError("the snapshot of the store is incomplete")
        self._ended = False
        self._install(self._state)

    def _take(self, item: list[Any]) -> None:
        if self._ended:
            raise ValueError("something follows the end")
        if not self._started:
            name, time, genesis = item
            if name != FORMAT:
                raise ValueError("unknown format")
            self._state.time = _int(time)
            self._state.genesis = bool(genesis)
            self._started = True
        elif item[0] == _SLOT:
            self._take_slot(item)
        elif item[0] == _RECORDS:
            self._take_records(self._slot(item[1]), item)
        elif item[0] == _SESSIONS:
            self._take_sessions(self._slot(item[1]), item)
        elif item[0] == _END:
            if item[1:] != [len(self._state.slots), self._records, self._sessions]:
                raise ValueError("parts are missing")
            self._ended = True
        else:
            raise ValueError("unknown item")

    def _slot(self, number: int) -> Slot:
        slot = self._state.slots[-1]
        if slot.number != number:
            raise ValueError("slots are mixed up")
        return slot

    def _take_slot(self, item: list[Any]) -> None:
        _, number, state, counter, floor = item
        if self._state.slots and _int(number) <= self._state.slots[-1].number:
            raise ValueError("slots are not in order")
        slot = Slot(_int(number), SlotState(state))
        slot.counter = _int(counter)
        slot.floor = _bytes(floor)
        self._state.slots.append(slot)

    def _take_records(self, slot: Slot, item: list[Any]) -> None:
        fields = iter(item[2:])
        for key, value, version, expires in zip(fields, fields, fields, fields, strict=True):
            slot.records[_bytes(key)] = (_bytes(value), _int(version), _int(expires))
            slot.bytes += len(key) + len(value)
            self._records += 1

    def _take_sessions(self, slot: Slot, item: list[Any]) -> None:
        for row in item[2:]:
            client, session = session_from_row(row)
            # One object per client, not one per slot that it wrote to.
            slot.sessions[self._clients.setdefault(client, client)] = session
            self._sessions += 1


def _int(value: object) -> int:
    if type(value) is not int:
        raise ValueError("a number is missing")
    return value


def _bytes(value: object) -> bytes:
    if type(value) is not bytes:
        raise ValueError("bytes are missing")
    return value


def store_digest(time: int, genesis: bool, slots: Iterable[Slot]) -> bytes:
    """Digest of a state in a canonical order: slots by number, records by key, sessions by client."""
    digest = blake2b(pack([FORMAT, time, genesis]), digest_size=16)
    for slot in sorted(slots, key=lambda one: one.number):
        digest.update(pack([slot.number, int(slot.state), slot.counter, slot.floor, len(slot.records)]))
        for key in sorted(slot.records):
            digest.update(pack([key, *slot.records[key]]))
        for client in sorted(slot.sessions):
            digest.update(pack(session_row(client, slot.sessions[client])))
    return digest.digest()
