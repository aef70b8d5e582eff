"""Bytes of the write-ahead log: segment headers, batches and records.

A segment is one header and then batches, followed by zeros to its preallocated size. A batch is what one write and one
sync carry; its CRC covers all of it but the salt. The salt belongs to one segment of one node, so bytes of another
file never parse as a batch. The first batch of every segment ends with an OPENING record: the state of all groups,
which makes older segments unnecessary except for their entries.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final
from zlib import crc32

import msgpack

from raftkv.errors import CorruptData
from raftkv.storage.format import FORMAT, other_format

MAGIC: Final = b"RAFTKVWL"

# Kinds of records, the first element of each. Numbers are part of the format and never reused.
GROUP: Final = 1  # group, its founders: the voters with which its log began
HARD_STATE: Final = 2  # group, term, vote (0 = none)
ENTRY: Final = 3  # group, index, term, command
TRUNCATE: Final = 4  # group, first index removed
SNAPSHOT: Final = 5  # group, index, term: a durable snapshot covers the log up to index
OPENING: Final = 6  # list of (group, founders, term, vote, snapshot index, snapshot term, last index), see below
DROP: Final = 7  # group, term and index of its last entry: its log is gone, term and vote are not
LOST: Final = 8  # group, term and index of an entry that it had acknowledged and has lost

# A group that was ever dropped has two more items in an OPENING: term and index of the end of what was dropped. While
# it is not hosted its founders are empty. One that has lost entries has two more after these: what LOST said.

_SEGMENT: Final = struct.Struct("<8sIQQQ")  # magic, format, number, salt, size
_CRC: Final = struct.Struct("<I")
SEGMENT_HEADER_BYTES: Final = _SEGMENT.size + _CRC.size

_BATCH: Final = struct.Struct("<QI")  # salt, CRC of the rest
_COVERED: Final = struct.Struct("<IQIQ")  # payload length, first LSN, number of records, durable LSN when written
BATCH_HEADER_BYTES: Final = _BATCH.size + _COVERED.size

TEMPORARY: Final = "segment.tmp"
"""Name of a segment that is being made."""

ADVICE: Final = (
    "nothing was changed; this node must not start with it, because it may have acknowledged what is lost: "
    "replace the node (remove it and add a new node with an empty data folder), its peers have the data"
)


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch as read. ``first`` is the LSN of its first record, ``durable`` the LSN known durable at writing."""

    offset: int
    end: int
    first: int
    count: int
    durable: int


def segment_name(number: int) -> str:
    return f"wal-{number:012d}.log"


def spare_name(number: int) -> str:
    """Name of a file prepared to become segment ``number`` or a later one."""
    return f"wal-{number:012d}.spare"


def segment_salt(identity: bytes, number: int) -> int:
    digest = blake2b(identity + number.to_bytes(8, "little"), digest_size=8, person=b"raftkv-wal").digest()
    return int.from_bytes(digest, "little")


def pack_segment_header(number: int, salt: int, size: int) -> bytes:
    head = _SEGMENT.pack(MAGIC, FORMAT, number, salt, size)
    return head + _CRC.pack(crc32(head))


def check_segment_header(path: str, data: bytes, number: int, salt: int) -> int:
    """Return the segment's size in bytes. Raises CorruptData, or StorageError for a format of another version."""
    head = data[: _SEGMENT.size]
    if len(data) < SEGMENT_HEADER_BYTES or _CRC.unpack_from(data, _SEGMENT.size)[0] != crc32(head):
        raise CorruptData(path, 0, f"the segment's header is not valid; {ADVICE}")
    magic, version, found, salted, size = _SEGMENT.unpack(head)
    if magic != MAGIC:
        raise CorruptData(path, 0, f"this is not a segment of a write-ahead log; {ADVICE}")
    if version != FORMAT:
        raise other_format(path, version)
    if found != number or salted != salt:
        raise CorruptData(path, 0, f"this is segment {found} of another place or node; {ADVICE}")
    return int(size)


def pack_batch(salt: int, first: int, count: int, durable: int, parts: Sequence[bytes]) -> bytes:
    """One batch. ``parts``, joined, are its packed records."""
    payload = b"".join(parts)
    covered = _COVERED.pack(len(payload), first, count, durable)
    return b"".join((_BATCH.pack(salt, crc32(payload, crc32(covered))), covered, payload))


def read_batch(data: bytes, offset: int, salt: int) -> Batch | None:
    """The batch at ``offset``, None if there is no whole one."""
    start = offset + BATCH_HEADER_BYTES
    if start > len(data):
        return None
    salted, crc = _BATCH.unpack_from(data, offset)
    if salted != salt:
        return None
    length, first, count, durable = _COVERED.unpack_from(data, offset + _BATCH.size)
    end = start + length
    if end > len(data) or crc32(memoryview(data)[offset + _BATCH.size : end]) != crc:
        return None
    return Batch(offset, end, first, count, durable)


def find_batch(data: bytes, offset: int, salt: int, durable: int) -> Batch | None:
    """The next whole batch at or after ``offset`` that proves LSN ``durable`` to have been durable."""
    mark = salt.to_bytes(8, "little")
    while (offset := data.find(mark, offset)) >= 0:
        batch = read_batch(data, offset, salt)
        if batch is not None and batch.durable >= durable:
            return batch
        offset += 1
    return None


def unpack_records(path: str, data: bytes, batch: Batch) -> list[Any]:
    """Records of a verified batch. Raises CorruptData if they are not what its header says."""
    unpacker = msgpack.Unpacker(use_list=False, max_buffer_size=0)
    unpacker.feed(memoryview(data)[batch.offset + BATCH_HEADER_BYTES : batch.end])
    try:
        records = list(unpacker)
    except ValueError as error:
        raise CorruptData(path, batch.offset, f"records cannot be decoded ({error}); {ADVICE}") from error
    if unpacker.tell() != batch.end - batch.offset - BATCH_HEADER_BYTES:
        raise CorruptData(path, batch.offset, f"the last record is incomplete; {ADVICE}")
    return records
