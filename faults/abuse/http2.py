"""As much of HTTP/2 as it takes to misuse it: frames that no gRPC library sends, from a plain socket. No I/O."""

from __future__ import annotations

from collections.abc import Iterable
from struct import pack
from typing import Final

_DATA: Final = 0
_HEADERS: Final = 1
_RST_STREAM: Final = 3
_SETTINGS: Final = 4
_WINDOW_UPDATE: Final = 8
_END_STREAM: Final = 1
_END_HEADERS: Final = 4
_CANCEL: Final = 8
_WIDEST: Final = 2**31 - 1
_WINDOW: Final = 65_535
_INITIAL_WINDOW_SIZE: Final = 4


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return pack(">I", len(payload))[1:] + pack(">BBI", kind, flags, stream) + payload


def _literals(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """HPACK without tables and without Huffman; names and values under 127 bytes."""
    return b"".join(b"\0" + pack("B", len(name)) + name + pack("B", len(value)) + value for name, value in headers)


def opening() -> bytes:
    """The first bytes of a connection; its windows are as wide as can be, so that the server may send all it has."""
    settings = _frame(_SETTINGS, 0, 0, pack(">HI", _INITIAL_WINDOW_SIZE, _WIDEST))
    window = _frame(_WINDOW_UPDATE, 0, 0, pack(">I", _WIDEST - _WINDOW))
    return b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings + window


def call(stream: int, path: bytes, message: bytes | None) -> bytes:
    """A unary gRPC call on the odd ``stream``; without a message, its headers alone."""
    headers = _literals(
        (
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", path),
            (b":authority", b"localhost"),
            (b"content-type", b"application/grpc"),
            (b"te", b"trailers"),
        )
    )
    begun = _frame(_HEADERS, _END_HEADERS, stream, headers)
    if message is None:
        return begun
    return begun + _frame(_DATA, _END_STREAM, stream, b"\0" + pack(">I", len(message)) + message)


def reset(stream: int) -> bytes:
    """The client does not want the answer of ``stream`` any more."""
    return _frame(_RST_STREAM, 0, stream, pack(">I", _CANCEL))
