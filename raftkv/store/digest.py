"""Digests in a canonical order: of what is in a slot, of a slot, of all that a data group replicates.

They are compared between replicas, and between groups, that may run different versions: what is digested never changes.
A large slot takes half a second, so all of it is made in small pieces of work, which a caller may spread over turns of
its loop. Then it must be made of images, which later writes do not change.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from hashlib import blake2b
from heapq import merge
from itertools import islice
from typing import Any, Final, TypeVar

from raftkv.store.codec import array_header, pack, pack_each
from raftkv.store.packed import VALUE_AT, fields, head
from raftkv.store.sessions import session_row
from raftkv.store.slot import Slot, SlotImage

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


def content_digest(slots: Iterable[Slot | SlotImage], gone_by: int = 0) -> tuple[int, bytes]:
    """How many records, and the digest of all records and sessions, of slots in the order given.

    ``gone_by``: records that expire by this time (ms) count as gone; 0: none do.
    """
    return finish(_content(slots, gone_by))


def slot_digest(slot: Slot | SlotImage) -> bytes:
    """Digest of everything of one slot that is replicated."""
    return finish(_slot(slot))


def _content(slots: Iterable[Slot | SlotImage], gone_by: int) -> Work[tuple[int, bytes]]:
    digest = blake2b(digest_size=DIGEST_BYTES)
    total = 0
    for slot in slots:
        records, count = slot.records, 0
        batch: list[bytes] = []
        for key in (yield from _ordered(records)):
            if gone_by and 0 < head(records[key])[1] <= gone_by:
                continue
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
    return total, digest.digest()


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
    """Of msgpack of [number, state, counter, floor, move, frozen, content, [key, counter, ...] of changes or nil]."""
    _, content = yield from _content([slot], 0)
    fixed = (slot.number, int(slot.state), slot.counter, slot.floor, slot.move, slot.frozen, content)
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


class ContentDigest:
    """:func:`content_digest` of slots as of now, made in pieces. Holds copy-on-write images until it is closed.

    ``result``: None until it is done.
    """

    def __init__(self, slots: Sequence[Slot], gone_by: int) -> None:
        self.gone_by = gone_by
        self.result: tuple[int, bytes] | None = None
        self._images = [slot.image() for slot in slots]
        self._work = self._run()

    def _run(self) -> Work[None]:
        self.result = yield from _content(self._images, self.gone_by)

    def advance(self, pieces: int) -> tuple[int, bytes] | None:
        """Do at most so many pieces. Returns the result, None if there is more to do."""
        for _ in islice(self._work, pieces):
            pass
        return self.result

    def is_of(self, slots: Sequence[Slot]) -> bool:
        """Whether it is of these slots, and nothing in them has changed since."""
        return [id(slot.records) for slot in slots] == [id(image.records) for image in self._images]

    def close(self) -> None:
        """Let go of the images. May be called again."""
        self._work.close()
        while self._images:
            self._images.pop().release()


class CheckDigest:
    """Digests of the state of one moment, made in pieces. Holds copy-on-write images until it is done or closed."""

    def __init__(self, rest: Sequence[Any], images: list[SlotImage]) -> None:
        self._rest = blake2b(pack(rest), digest_size=DIGEST_BYTES).digest()
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

    def step(self) -> bool:
        """Do one piece. Returns whether all are done."""
        next(self._work, None)
        return not self._images

    def result(self) -> tuple[dict[int, bytes], bytes] | None:
        """Digest by slot, and that of the rest; None before all are done, or if it was closed before."""
        return None if self._images or self._closed else (self._digests, self._rest)

    def ended(self) -> bool:
        """Whether nothing is left to be done."""
        return not self._images

    def close(self) -> None:
        """Let go of the images. May be called again."""
        self._closed = self._closed or bool(self._images)
        self._work.close()
        while self._images:
            self._images.pop().release()
