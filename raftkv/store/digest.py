"""Digests in a canonical order: of what is in a slot, of a slot, of all that a data group replicates.

They are compared between replicas, and between groups, that may run different versions: what is digested never changes.
A large slot takes half a second, so all of it is made in small pieces of work, which a caller may spread over turns of
its loop. Then it must be made of images, which later writes do not change.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from heapq import merge
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, TypeVar

from raftkv.store.codec import array_header, pack, pack_each
from raftkv.store.history import HistoryImage, events_of, parts
from raftkv.store.packed import VALUE_AT, fields, head
from raftkv.store.sessions import session_row
from raftkv.store.slot import Slot, SlotImage

if TYPE_CHECKING:
    from raftkv.store.snapshot import Rest

T = TypeVar("T")
Work = Generator[None, None, T]
"""Work in pieces: some tenths of a millisecond each at most, or what a record of the largest size takes."""

DIGEST_BYTES: Final = 16
# Part of what is digested: large enough that packing costs little.
_BATCH: Final = 32
_FIELDS: Final = 4
_PIECE_BYTES: Final = 128 * 1024
_RUN: Final = 2048


def finish(work: Work[T]) -> T:
    """Do all of it now."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


Events = Iterable[tuple[list[Any], int]]
"""Lists of items of a history, and how much of each; read once."""


def content_digest(
    slots: Sequence[Slot | SlotImage], events: Events, forgotten: Sequence[int], frozen: int
) -> tuple[int, bytes]:
    """How many records, and the digest of all records, sessions and events, of slots in the order given.

    ``forgotten``: for each slot, up to which number events do not count. ``frozen``: when they were, in ms.
    """
    return finish(_moved(slots, events, forgotten, frozen))


def slot_digest(slot: Slot | SlotImage) -> bytes:
    """Digest of everything of one slot that is replicated."""
    return finish(_slot(slot))


def _moved(
    slots: Sequence[Slot | SlotImage], events: Events, forgotten: Sequence[int], frozen: int
) -> Work[tuple[int, bytes]]:
    digest = blake2b(digest_size=DIGEST_BYTES)
    total = yield from _content(digest, slots)
    known = {slot.number: after for slot, after in zip(slots, forgotten, strict=True)}
    count = 0
    for items, length in events:
        for part in parts(items, length, _PIECE_BYTES):
            for event in events_of(part, known):
                count += 1
                digest.update(pack(event))
            yield
    digest.update(pack([frozen, count, list(forgotten)]))
    return total, digest.digest()


def _content(digest: blake2b, slots: Iterable[Slot | SlotImage]) -> Work[int]:
    total = 0
    for slot in slots:
        records, count = slot.records, 0
        batch: list[bytes] = []
        for key in (yield from _ordered(records)):
            count += 1
            batch.append(key)
            if len(batch) == _BATCH:
                yield from _digest_batch(digest, records, batch)
                batch = []
        yield from _digest_batch(digest, records, batch)
        for client in sorted(slot.sessions):
            digest.update(pack(session_row(client, slot.sessions[client])))
            yield
        digest.update(pack([slot.number, count, len(slot.sessions)]))
        total += count
    return total


def _ordered(records: dict[bytes, bytes]) -> Work[Iterator[bytes]]:
    """The keys, ascending."""
    keys, runs = iter(records), []
    while run := sorted(islice(keys, _RUN)):
        runs.append(run)
        yield
    return merge(*runs)


def _digest_batch(digest: blake2b, records: dict[bytes, bytes], keys: list[bytes]) -> Work[None]:
    """As msgpack of [key, value, version, expires, ...]."""
    if sum(len(records[key]) for key in keys) <= _PIECE_BYTES:
        row: list[Any] = []
        for key in keys:
            record = records[key]
            version, expires = head(record)
            row += (key, record[VALUE_AT:], version, expires)
        digest.update(pack(row))
        yield
        return
    digest.update(array_header(_FIELDS * len(keys)))
    for key in keys:
        digest.update(pack_each((key, *fields(records[key]))))
        yield


def _slot(slot: Slot | SlotImage) -> Work[bytes]:
    """Of msgpack of [number, state, counter, floor, move, frozen, forgotten, content, [key, counter, ...] of changes or
    nil]."""
    content = blake2b(digest_size=DIGEST_BYTES)
    yield from _content(content, [slot])
    state = (slot.number, int(slot.state), slot.counter, slot.floor, slot.move, slot.frozen, slot.forgotten)
    fixed = (*state, content.digest())
    digest = blake2b(array_header(len(fixed) + 1) + pack_each(fixed), digest_size=DIGEST_BYTES)
    if slot.dirty is None:
        digest.update(pack(None))
        return digest.digest()
    digest.update(array_header(2 * len(slot.dirty)))
    changes = iter(slot.dirty.items())
    while some := list(islice(changes, _RUN)):
        digest.update(pack_each(part for change in some for part in change))
        yield
    return digest.digest()


def digest_events(digest: blake2b, staged: Mapping[int, tuple[list[Any], int]], history: HistoryImage) -> Work[None]:
    """Of what is staged by moves, by their ids, and of a history."""
    for move, (items, length) in sorted(staged.items()):
        digest.update(pack([move, length]))
        yield from _digest_items(digest, items, length)
    digest.update(
        pack([history.place, history.since, *((block.place, block.until, block.size) for block in history.blocks)])
    )
    size = 0
    for block in history.blocks:
        digest.update(block.pack())
        size += block.size
        if size >= _PIECE_BYTES:
            yield
            size = 0
    yield from _digest_items(digest, history.items, history.length)


def _digest_items(digest: blake2b, items: list[Any], length: int) -> Work[None]:
    for part in parts(items, length, _PIECE_BYTES):
        digest.update(pack(part))
        yield


class ContentDigest:
    """:func:`content_digest` of slots as of now, made in pieces. Holds copy-on-write images until it is closed.

    ``result``: None until it is done.
    """

    def __init__(self, slots: Sequence[Slot], events: Events, forgotten: Sequence[int], frozen: int) -> None:
        self.result: tuple[int, bytes] | None = None
        self.forgotten = tuple(forgotten)
        self._frozen = frozen
        self._images = [slot.image() for slot in slots]
        self._events = events
        self._work = self._run()

    def _run(self) -> Work[None]:
        self.result = yield from _moved(self._images, self._events, self.forgotten, self._frozen)

    def advance(self, pieces: int) -> tuple[int, bytes] | None:
        """Do at most so many pieces. Returns the result, None if there is more to do."""
        for _ in islice(self._work, pieces):
            pass
        return self.result

    def is_of(self, slots: Sequence[Slot], forgotten: Sequence[int], frozen: int) -> bool:
        """Whether it is of these slots, with what is ``forgotten``, and nothing in them has changed since."""
        now = [(id(slot.records), slot.counter) for slot in slots]
        then = [(id(image.records), image.counter) for image in self._images]
        return (self.forgotten, self._frozen, then) == (tuple(forgotten), frozen, now)

    def close(self) -> None:
        """Let go of the images. May be called again."""
        self._work.close()
        while self._images:
            self._images.pop().release()


class CheckDigest:
    """Digests of the state of one moment, made in pieces. Holds copy-on-write images until it is done or closed."""

    def __init__(self, rest: Rest, images: list[SlotImage], history: HistoryImage) -> None:
        self._rest = blake2b(pack(rest.values), digest_size=DIGEST_BYTES)
        self._events = (rest.staged, history)
        self._done = False
        self._images = images
        self._images.reverse()
        self._digests: dict[int, bytes] = {}
        self._closed = False
        self._work = self._run()

    def _run(self) -> Work[None]:
        while self._images:
            image = self._images[-1]
            self._digests[image.number] = yield from _slot(image)
            self._images.pop().release()
        yield from digest_events(self._rest, *self._events)
        self._done = True

    def step(self) -> bool:
        """Do one piece. Returns whether all are done."""
        next(self._work, None)
        return self.ended()

    def result(self) -> tuple[dict[int, bytes], bytes] | None:
        """Digest by slot, and that of the rest; None before all are done, or if it was closed before."""
        return (self._digests, self._rest.digest()) if self._done and not self._closed else None

    def ended(self) -> bool:
        """Whether nothing is left to be done."""
        return self._done or self._closed

    def close(self) -> None:
        """Let go of the images. May be called again."""
        self._closed = self._closed or not self._done
        self._work.close()
        while self._images:
            self._images.pop().release()
