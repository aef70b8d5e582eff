"""Bytes of a snapshot file: a header, numbered frames with a chunk each, and a footer that counts them."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final
from zlib import crc32

import msgpack

from raftkv.errors import CorruptData
from raftkv.storage.format import FORMAT, other_format
from raftkv.storage.fs import FileSystem
from raftkv.store.codec import unpack, whole

MAGIC: Final = b"RAFTKVSN"

NAME: Final = re.compile(r"snap-(\d+)-(\d+)-(\d+)\.snap")

_HEADER: Final = struct.Struct("<8sIII")  # magic, format, length of the description, CRC of the description and these
_FRAME: Final = struct.Struct("<II")  # length (0 = the footer), CRC of the frame's number and its payload
_FOOTER: Final = struct.Struct("<QI")  # number of frames, CRC of all payloads
_NUMBER: Final = struct.Struct("<QI")  # frame number, length
_MAX_DESCRIPTION: Final = 64 * 1024
FOOTER_BYTES: Final = _FRAME.size + _FOOTER.size

_REPLACE: Final = (
    "a node that started without it could forget what it acknowledged: "
    "replace the node (remove it and add a new node with an empty data folder), its peers have the data"
)
ADVICE_MISSING: Final = f"put it back, if you have it; {_REPLACE}"
ADVICE: Final = f"the file was left as it is; {_REPLACE}"


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """A durable snapshot: the state of ``group`` after its log entry (``index``, ``term``). ``size`` is in bytes."""

    group: int
    index: int
    term: int
    voters: tuple[int, ...]
    path: str
    size: int


def snapshot_name(group: int, index: int, term: int | str) -> str:
    """Name of its file. ``term`` may be "*" where it is not known."""
    return f"snap-{group}-{index}-{term}.snap"


def pack_header(group: int, index: int, term: int, voters: tuple[int, ...]) -> bytes:
    description: bytes = msgpack.packb((group, index, term, voters))
    crc = crc32(description, crc32(_HEADER.pack(MAGIC, FORMAT, len(description), 0)))
    return _HEADER.pack(MAGIC, FORMAT, len(description), crc) + description


def pack_frame(number: int, payload: bytes) -> bytes:
    crc = crc32(payload, crc32(_NUMBER.pack(number, len(payload))))
    return _FRAME.pack(len(payload), crc) + payload


def pack_footer(frames: int, payloads_crc: int) -> bytes:
    footer = _FOOTER.pack(frames, payloads_crc)
    return _FRAME.pack(0, crc32(footer)) + footer


def read_info(fs: FileSystem, path: str, group: int, index: int, term: int) -> SnapshotInfo:
    """Check the header against what the file should be, and that the footer is there. Raises CorruptData."""
    size = fs.size(path)
    voters, _ = _read_header(fs, path, group, index, term)
    footer = fs.read(path, max(0, size - FOOTER_BYTES), FOOTER_BYTES)
    if len(footer) < FOOTER_BYTES or _FRAME.unpack_from(footer) != (0, crc32(footer[_FRAME.size :])):
        raise CorruptData(path, max(0, size - FOOTER_BYTES), f"the snapshot's footer is not valid; {ADVICE}")
    return SnapshotInfo(group, index, term, voters, path, size)


def _read_header(fs: FileSystem, path: str, group: int, index: int, term: int) -> tuple[tuple[int, ...], int]:
    """(voters, offset of the first frame)"""
    data = fs.read(path, 0, _HEADER.size)
    if len(data) < _HEADER.size:
        raise CorruptData(path, 0, f"the snapshot's header is incomplete; {ADVICE}")
    magic, version, length, crc = _HEADER.unpack(data)
    description = fs.read(path, _HEADER.size, length) if length <= _MAX_DESCRIPTION else b""
    if magic != MAGIC or crc != crc32(description, crc32(_HEADER.pack(magic, version, length, 0))):
        raise CorruptData(path, 0, f"the snapshot's header is not valid; {ADVICE}")
    if version != FORMAT:
        raise other_format(path, version)
    try:
        of_group, of_index, of_term, voters = unpack(description)
        voters = tuple(whole(node) for node in voters)
    except (ValueError, TypeError) as error:
        raise CorruptData(path, _HEADER.size, f"the snapshot's description is not valid: {error}; {ADVICE}") from None
    if (of_group, of_index, of_term) != (group, index, term):
        problem = f"this is a snapshot of group {of_group} at index {of_index} and term {of_term}"
        raise CorruptData(path, _HEADER.size, f"{problem}, not of {group}, {index}, {term}; {ADVICE}")
    return voters, _HEADER.size + length


def chunk_offset(fs: FileSystem, info: SnapshotInfo, number: int) -> int:
    """Where chunk ``number``, from 0 on, of a verified snapshot begins in its file. Raises CorruptData, OSError."""
    _, offset = _read_header(fs, info.path, info.group, info.index, info.term)
    for _ in range(number):
        offset += _FRAME.size + int(_FRAME.unpack(fs.read(info.path, offset, _FRAME.size))[0])
    return offset + _FRAME.size


def read_chunks(fs: FileSystem, info: SnapshotInfo) -> Iterator[bytes]:
    """The chunks in order, each verified when it is reached, the whole when the iterator ends. Raises CorruptData."""
    path = info.path
    _, offset = _read_header(fs, path, info.group, info.index, info.term)
    number = total = 0
    head = fs.read(path, offset, _FRAME.size)
    while True:
        if len(head) < _FRAME.size:
            raise CorruptData(path, offset, f"the snapshot ends without its footer; {ADVICE}")
        length, crc = _FRAME.unpack(head)
        if length == 0:
            break
        start = offset + _FRAME.size
        if start + length + FOOTER_BYTES > info.size:
            raise CorruptData(path, offset, f"a frame reaches beyond the snapshot's end; {ADVICE}")
        data = fs.read(path, start, length + _FRAME.size)
        payload, head = data[:length], data[length:]
        if crc != crc32(payload, crc32(_NUMBER.pack(number, length))):
            raise CorruptData(path, offset, f"frame {number} is not valid; {ADVICE}")
        total = crc32(payload, total)
        number += 1
        offset = start + length
        yield payload
    footer = fs.read(path, offset + _FRAME.size, _FOOTER.size + 1)
    if crc != crc32(footer) or _FOOTER.unpack(footer) != (number, total) or offset + FOOTER_BYTES != info.size:
        raise CorruptData(path, offset, f"the snapshot's footer is not valid; {ADVICE}")
