"""Frames on a link: 4 bytes length (big-endian), a seal, then a msgpack array of messages. No I/O.

The length counts the msgpack bytes alone. The seal is their CRC-32 (4 bytes, big-endian), or, once two nodes that have
no TLS between them have shaken hands, a tag with their key (16 bytes).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from hmac import compare_digest
from struct import Struct
from typing import Any, Final, Protocol

import msgpack
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from raftkv import limits
from raftkv.errors import RaftKVError
from raftkv.store.codec import counting

LENGTH: Final = Struct(">I")
TAG_BYTES: Final = 16
_CRC: Final = Struct(">I")
_NONCE_BYTES: Final = 12
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


class Seal(Protocol):
    """What proves a frame's body whole. One for each direction of a connection."""

    header_bytes: int
    """Length and seal."""

    def of(self, body: memoryview) -> bytes:
        """The seal of the next frame."""

    def matches(self, body: memoryview, seal: memoryview) -> bool:
        """Whether ``seal`` is that of the next frame."""


class Checksum:
    """CRC-32: proves that no bit was flipped on the way."""

    header_bytes: int = LENGTH.size + _CRC.size

    def of(self, body: memoryview) -> bytes:
        return _CRC.pack(zlib.crc32(body))

    def matches(self, body: memoryview, seal: memoryview) -> bool:
        return bool(_CRC.unpack(seal)[0] == zlib.crc32(body))


class Tag:
    """AES-GCM of nothing but associated data, the body, with the frame's number as nonce (GMAC): proves who sent the
    frame too, and that none is missing before it. It costs less than the CRC. ``key`` is for this connection and
    direction alone.
    """

    header_bytes: int = LENGTH.size + TAG_BYTES

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)
        self._number = 0

    def of(self, body: memoryview) -> bytes:
        tag = self._cipher.encrypt(self._number.to_bytes(_NONCE_BYTES, "big"), b"", body)
        self._number += 1
        return tag

    def matches(self, body: memoryview, seal: memoryview) -> bool:
        return compare_digest(self.of(body), seal)


CHECKSUM: Final = Checksum()


def framed(body: bytes, seal: Seal = CHECKSUM) -> bytes:
    """A frame of any ``body``, which :class:`Encoder` need not have packed."""
    with memoryview(body) as view:
        return LENGTH.pack(len(body)) + seal.of(view) + body


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

    def frame(self, packed: Sequence[bytes], seal: Seal = CHECKSUM) -> bytearray:
        """One frame of messages that :meth:`pack` made. Raises :class:`MessageTooLong`."""
        header = seal.header_bytes
        frame = bytearray().join((bytes(header), self._packer.pack_array_header(len(packed)), *packed))
        length = len(frame) - header
        if length > limits.MAX_FRAME_BYTES:
            raise MessageTooLong(f"a frame of {length} bytes is over the limit")
        with memoryview(frame) as view:
            view[LENGTH.size : header] = seal.of(view[header:])
        LENGTH.pack_into(frame, 0, length)
        return frame

    def frame_of(self, messages: Sequence[Any], seal: Seal = CHECKSUM) -> bytearray:
        """One frame of ``messages``. Raises like :meth:`pack` and :meth:`frame`."""
        return self.frame([self.pack(message) for message in messages], seal)


class Decoder:
    """Cuts a byte stream into frames, however the stream was split on its way.

    ``limit``: longest frame accepted, in bytes without its header. It and ``seal`` may be changed between two calls of
    :meth:`feed`.
    """

    def __init__(self, limit: int = limits.MAX_FRAME_BYTES, seal: Seal = CHECKSUM) -> None:
        self.limit = limit
        self.seal = seal
        self._kept = bytearray()
        self._needed = LENGTH.size

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
        seal = self.seal
        header = seal.header_bytes
        with memoryview(data) as view:
            start = 0
            size = len(view)
            needed = header
            while size - start >= LENGTH.size:
                (length,) = LENGTH.unpack_from(view, start)
                if length > self.limit:
                    raise ProtocolViolation(f"a frame of {length} bytes was announced, the limit is {self.limit}")
                body = start + header
                stop = body + length
                if stop > size:
                    needed = stop - start
                    break
                if not seal.matches(view[body:stop], view[start + LENGTH.size : body]):
                    raise ProtocolViolation(f"a frame of {length} bytes has a wrong {_name(seal)}")
                frames.append(_unpack(view[body:stop]))
                start = stop
            rest = bytearray(view[start:])
        self._kept = rest
        self._needed = needed
        return frames


def _name(seal: Seal) -> str:
    return "checksum" if seal is CHECKSUM else "tag"


def _unpack(body: memoryview) -> list[Any]:
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
