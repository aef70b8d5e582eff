"""Digests in a canonical order: of what is in a slot, of a slot, of all that a data group replicates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Any, Final

from raftkv.store.codec import pack
from raftkv.store.packed import fields
from raftkv.store.sessions import session_row
from raftkv.store.slot import Slot, SlotImage

DIGEST_BYTES: Final = 16
# Large enough that packing costs little, small enough that the largest values take little memory.
_BATCH: Final = 4 * 32


def content_digest(slots: Iterable[Slot | SlotImage], gone_by: int = 0) -> tuple[int, bytes]:
    """How many records, and the digest of all records and sessions, of slots in the order given.

    ``gone_by``: records that expire by this time (ms) count as gone; 0: none do.
    """
    digest = blake2b(digest_size=DIGEST_BYTES)
    total = 0
    for slot in slots:
        records, count = slot.records, 0
        batch: list[Any] = []
        for key in sorted(records):
            record = records[key]
            value, version, expires = fields(record)
            if 0 < expires <= gone_by:
                continue
            count += 1
            batch += (key, value, version, expires)
            if len(batch) == _BATCH:
                digest.update(pack(batch))
                batch = []
        digest.update(pack(batch))
        for client in sorted(slot.sessions):
            digest.update(pack(session_row(client, slot.sessions[client])))
        digest.update(pack([slot.number, count, len(slot.sessions)]))
        total += count
    return total, digest.digest()


def slot_digest(slot: Slot | SlotImage) -> bytes:
    """Digest of everything of one slot that is replicated."""
    _, content = content_digest([slot])
    dirty = None if slot.dirty is None else [part for change in slot.dirty.items() for part in change]
    head = [slot.number, int(slot.state), slot.counter, slot.floor, slot.move, slot.frozen, content, dirty]
    return blake2b(pack(head), digest_size=DIGEST_BYTES).digest()


class CheckDigest:
    """Digests of the state of one moment, made slot by slot. Holds copy-on-write images until it is done or closed."""

    def __init__(self, rest: Sequence[Any], images: list[SlotImage]) -> None:
        self._rest = blake2b(pack(rest), digest_size=DIGEST_BYTES).digest()
        self._images = images
        self._images.reverse()
        self._digests: dict[int, bytes] = {}
        self._closed = False

    def step(self) -> bool:
        """Do one slot. Returns whether all are done."""
        if self._images:
            image = self._images.pop()
            self._digests[image.number] = slot_digest(image)
            image.release()
        return not self._images

    def result(self) -> tuple[dict[int, bytes], bytes] | None:
        """Digest by slot, and that of the rest; None before all are done, or if it was closed before."""
        return None if self._images or self._closed else (self._digests, self._rest)

    def close(self) -> None:
        """Let go of the images. May be called again."""
        self._closed = self._closed or bool(self._images)
        while self._images:
            self._images.pop().release()
