"""Frames on a link: 4 bytes length, 4 bytes CRC-32 (both big-endian), then a msgpack array of messages. No I/O.

The length counts the msgpack bytes alone and the CRC covers exactly them.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from struct import Struct
from typing import Any, Final

import msgpack

from raftkv import limits
from raftkv.errors import RaftKVError
from raftkv.store.codec import counting

HEADER: Final = Struct(">II")
_HOLE: Final = bytes(HEADER.size)
_ARRAY_HEADER_BYTES: Final = 5
_MAX_MESSAGE_BYTES: Final = limits.MAX_FRAME_BYTES - _ARRAY_HEADER_BYTES
# msgpack allocates an array when it reads the announced length: a short frame must not reserve gigabytes.
_MAX_ARRAY_ITEMS: Final = 1024 * 1024
# No message has a map. Their keys are costly to decode.
_MAX_MAP_ITEMS: Final = 1024


class ProtocolViolation(RaftKVError):
    """The other side sent bytes that no raftkv node sends; the message says what was wrong."""


class MessageTooLong(RaftKVError):
    """A message of this node does not fit into a frame: a bug in the sender, nothing was sent."""


class Encoder:
    """Packs messages and puts packed messages into frames."""

    def __init__(self) -> None:
        self._packer = msgpack.Packer(use_bin_type=True)

    def pack(self, message: Any) -> bytes:
        """``message`` in msgpack.

        Raises :class:`MessageTooLong`; TypeError, ValueError or OverflowError for what msgpack cannot hold.
        """
        packed: bytes = self._packer.pack(message)
        if len(packed) > _MAX_MESSAGE_BYTES:
            raise MessageTooLong(f"a message of {len(packed)} bytes does not fit into a frame")
        return packed

    def frame(self, packed: Sequence[bytes]) -> bytearray:
        """One frame of messages that :meth:`pack` made. Raises :class:`MessageTooLong`."""
        frame = bytearray().join((_HOLE, self._packer.pack_array_header(len(packed)), *packed))
        length = len(frame) - HEADER.size
        if length > limits.MAX_FRAME_BYTES:
            raise MessageTooLong(f"a frame of {length} bytes is over the limit")
        with memoryview(frame) as view:
            crc = zlib.crc32(view[HEADER.size :])
        HEADER.pack_into(frame, 0, length, crc)
        return frame

    def frame_of(self, messages: Sequence[Any]) -> bytearray:
        """One frame of ``messages``. Raises like :meth:`pack` and :meth:`frame`."""
        return self.frame([self.pack(message) for message in messages])


class Decoder:
    """Cuts a byte stream into frames, however the stream was split on its way."""

    def __init__(self, limit: int = limits.MAX_FRAME_BYTES) -> None:
        self.limit = limit
        """Longest frame accepted, in bytes without its header; may be changed between two calls of :meth:`feed`."""
        self._kept = bytearray()
        self._needed = HEADER.size

    def feed(self, data: bytes | bytearray | memoryview) -> list[list[Any]]:
        """Take the next bytes; return the frames that they complete, each a list of messages.

        Raises :class:`ProtocolViolation`; the decoder is of no use after that.
        """
        kept = self._kept
        if kept:
            kept += data
            if len(kept) < self._needed:
                return []
            data = kept
        frames: list[list[Any]] = []
        with memoryview(data) as view:
            start = 0
            size = len(view)
            needed = HEADER.size
            while size - start >= HEADER.size:
                length, crc = HEADER.unpack_from(view, start)
                if length > self.limit:
                    raise ProtocolViolation(f"a frame of {length} bytes was announced, the limit is {self.limit}")
                body = start + HEADER.size
                stop = body + length
                if stop > size:
                    needed = stop - start
                    break
                frames.append(_unpack(view[body:stop], crc))
                start = stop
            rest = bytearray(view[start:])
        self._kept = rest
        self._needed = needed
        return frames


def _unpack(body: memoryview, crc: int) -> list[Any]:
    if zlib.crc32(body) != crc:
        raise ProtocolViolation(f"a frame of {len(body)} bytes has a wrong checksum")
    try:
        # Strings, maps and binaries are bounded by the length of the frame, which msgpack takes from its buffer.
        frame = msgpack.unpackb(
            body,
            raw=False,
            strict_map_key=True,
            max_array_len=min(len(body), _MAX_ARRAY_ITEMS),
            max_map_len=min(len(body), _MAX_MAP_ITEMS),
            max_ext_len=0,
            ext_hook=_refuse_extension,
            **counting(len(body)),
        )
    except (ValueError, TypeError, OverflowError, MemoryError, msgpack.exceptions.UnpackException) as error:
        raise ProtocolViolation(f"a frame of {len(body)} bytes is not msgpack: {str(error) or repr(error)}") from error
    if type(frame) is not list:
        raise ProtocolViolation(f"a frame holds {type(frame).__name__}, not an array of messages")
    return frame


def _refuse_extension(code: int, _data: bytes) -> Any:
    raise ValueError(f"extension type {code} is not used here")
