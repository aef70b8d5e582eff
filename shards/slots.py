"""Keys to slots: each slot of a cluster is one contiguous range of the 16,384 slots of Redis Cluster."""

from __future__ import annotations

from binascii import crc_hqx
from collections.abc import Iterable
from typing import Final

SLOT_RULE: Final = 2
"""Number of the rule by which keys get their slots. 1 was CRC16 modulo the number of slots, until version 0.1.

It stands in the shard map, in what nodes and clients say to each other first, and in each data folder.
"""

REDIS_SLOTS: Final = 16384
DEFAULT_SLOTS: Final = 1024
MIN_SLOTS: Final = 256
MAX_SLOTS: Final = REDIS_SLOTS

_TAG_OPENS: Final = ord("{")
"""Looking for a number in bytes takes half as long as looking for bytes."""


def rule_refusal(rule: object) -> str:
    """Why another party that places keys by ``rule`` cannot be understood; "" if it can.

    ``rule``: 0 = it does not say so, as those of version 0.1 do not.
    """
    if type(rule) is int and rule == SLOT_RULE:
        return ""
    other = "none is given, as by raftkv 0.1" if rule == 0 else f"not rule {str(rule)[:20]}"
    return f"keys get their slots by rule {SLOT_RULE} here, {other}: use the same version of raftkv on both sides"


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


def redis_slot_of(key: bytes) -> int:
    """Slot of ``key`` in Redis Cluster: CRC16/XMODEM of its hash tag, modulo 16,384."""
    if _TAG_OPENS in key:
        key = hash_tag(key)
    return crc_hqx(key, 0) & (REDIS_SLOTS - 1)


def slot_of(key: bytes, slots: int = DEFAULT_SLOTS) -> int:
    """Slot of ``key`` in a cluster of ``slots`` slots (a power of two from MIN_SLOTS to MAX_SLOTS)."""
    if _TAG_OPENS in key:
        key = hash_tag(key)
    return (crc_hqx(key, 0) & (REDIS_SLOTS - 1)) * slots // REDIS_SLOTS


def slot_bits(slots: Iterable[int], count: int) -> bytes:
    """Some of ``count`` slots, as they travel: a bit for each, that of slot s being bit s % 8 of byte s // 8."""
    bits = bytearray(count // 8)
    for slot in slots:
        bits[slot >> 3] |= 1 << (slot & 7)
    return bytes(bits)


def slots_in(bits: bytes) -> list[int]:
    """The slots that :func:`slot_bits` was given, ascending."""
    return [8 * at + bit for at, byte in enumerate(bits) if byte for bit in range(8) if byte >> bit & 1]


def redis_range(slot: int, slots: int) -> tuple[int, int]:
    """First and last slot of Redis Cluster that ``slot`` of a cluster of ``slots`` slots stands for."""
    width = REDIS_SLOTS // slots
    return slot * width, (slot + 1) * width - 1
