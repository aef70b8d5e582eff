"""Keys to slots: CRC16/XMODEM of the key's hash tag modulo the number of slots, as in Redis Cluster."""

from __future__ import annotations

from binascii import crc_hqx
from typing import Final

DEFAULT_SLOTS: Final = 1024
MIN_SLOTS: Final = 256
MAX_SLOTS: Final = 16384


def is_slot_count(slots: int) -> bool:
    """Whether a cluster may have that many slots: a power of two from MIN_SLOTS to MAX_SLOTS."""
    return MIN_SLOTS <= slots <= MAX_SLOTS and slots & (slots - 1) == 0


def hash_tag(key: bytes) -> bytes:
    """The part of ``key`` that places it.

    The bytes between the first ``{`` and the next ``}`` if there are any, else the whole key: keys that share a tag
    share a slot.
    """
    start = key.find(b"{")
    if start < 0:
        return key
    end = key.find(b"}", start + 1)
    if end <= start + 1:
        return key
    return key[start + 1 : end]


def slot_of(key: bytes, slots: int = DEFAULT_SLOTS) -> int:
    """Slot of ``key`` in a cluster of ``slots`` slots (a power of two)."""
    if b"{" in key:
        key = hash_tag(key)
    return crc_hqx(key, 0) & (slots - 1)
