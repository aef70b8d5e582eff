"""Pages of a scan: records of several slots of a group in the order of their keys."""

from __future__ import annotations

from typing import Final

from raftkv import limits
from raftkv.commands.ranges import Content, Scan
from raftkv.commands.results import ScanPage
from raftkv.store.packed import VALUE_AT, Record, head
from raftkv.store.slot import Slots, SlotState
from shards.slots import slot_of

_OWNED: Final = SlotState.OWNED
_ONE: Final = ord("1")
_OVERHEAD: Final = 24
"""Bytes for which a record counts besides key and value: framing, version, TTL."""


def scan_page(slots: Slots, op: Scan, now: int) -> ScanPage:
    """What ``op`` asks for, at group time ``now`` (ms). Bounded by its size, and by the keys that are looked at."""
    here, covered = served(slots, op.slots)
    count, values, counts = len(op.slots) * 8, op.content == Content.RECORDS, op.content == Content.COUNT
    budget = min(op.limit_bytes or limits.SCAN_PAGE_BYTES, limits.MAX_SCAN_PAGE_BYTES)
    rows: list[tuple[bytes, bytes, int, int]] = []
    counted = 0
    left = limits.MAX_SCAN_KEYS
    passed: bytes | None = None
    for key in slots.order.irange(op.start or None, op.end or None, (True, False), op.reverse):
        if not left:
            break
        left -= 1
        records = here.get(slot_of(key, count))
        # One that comes twice is also in a slot that has gone, and its memory not yet.
        record = None if records is None or key == passed else records.get(key)
        if record is not None:
            version, expires = head(record)
            if not 0 < expires <= now:
                if counts:
                    counted += 1
                else:
                    value = record[VALUE_AT:] if values else b""
                    budget -= len(key) + len(value) + _OVERHEAD
                    if budget < 0 and rows:
                        break
                    rows.append((key, value, version, expires - now if expires else -1))
                    if len(rows) == op.limit:
                        passed = key
                        break
        passed = key
    else:
        return ScanPage(tuple(rows), covered, None, counted)
    assert passed is not None
    return ScanPage(tuple(rows), covered, passed if op.reverse else passed + b"\0", counted)


def served(slots: Slots, wanted: bytes) -> tuple[dict[int, dict[bytes, Record]], bytes]:
    """The records of the ``wanted`` slots that the group serves now, by slot; and which slots these are, as Scan."""
    count = 8 * len(wanted)
    found = {number: slot.records for number, slot in slots.items() if slot.state is _OWNED and number < count}
    digits = bytearray(b"0" * count)
    for number in found:
        digits[~number] = _ONE
    mine = int(digits, 2)
    both = mine & int.from_bytes(wanted, "little")
    if both != mine:
        digits = bytearray(f"{both:0{count}b}", "ascii")
        found = {number: records for number, records in found.items() if digits[~number] == _ONE}
    return found, both.to_bytes(len(wanted), "little")
