"""Codecs: what a client's values are in Python, for ``codec=`` of both clients.

    with raftkv.Client("127.0.0.1:7401", codec=codecs.JSON) as kv:
        kv.put("user:1", {"name": "Ada"})

``BYTES`` (the default) takes bytes, or str as UTF-8, and gives bytes. ``STR`` is text in both directions. ``JSON`` and
``MSGPACK`` take and give what these can hold; :func:`json_of` and :func:`msgpack_of` do so for one type, such as a
dataclass or a msgspec.Struct, and check what they read. Equal values have equal bytes, however a dict came about.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic

import msgspec

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    W = TypeVar("W", default=bytes | str)
    """What is written."""
    V = TypeVar("V", default=bytes)
    """What is read."""
else:
    from typing import TypeVar

    W = TypeVar("W")
    V = TypeVar("V")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Codec(Generic[W, V]):
    """Makes bytes of values, and values of bytes. ``name``: for messages.

    ``encode`` and ``decode`` raise TypeError or ValueError for what they cannot take. They are called in the client's
    event loop, and must be quick.

    >>> shout = raftkv.codecs.Codec("shout", lambda text: text.upper().encode(), bytes.decode)
    >>> async with raftkv.testing.FakeAsyncClient(codec=shout) as kv:
    ...     await kv.put("greeting", "hello")
    ...     await kv.get("greeting")
    WriteResult(version=1)
    Record(key=b'greeting', value='HELLO', version=1, expires_at=None)
    """

    name: str
    encode: Callable[[W], bytes]
    decode: Callable[[bytes], V]


def _plain(value: bytes | str) -> bytes:
    return value.encode() if isinstance(value, str) else bytes(value)


def _text(value: str) -> bytes:
    if not isinstance(value, str):
        raise TypeError(f"expected str, got {type(value).__name__}")
    return value.encode()


BYTES: Final[Codec[bytes | str, bytes]] = Codec("bytes", _plain, bytes)
STR: Final[Codec[str, str]] = Codec("str", _text, bytes.decode)


def json_of(kind: type[T]) -> Codec[T, T]:
    """JSON of one type.

    >>> async with raftkv.testing.FakeAsyncClient(codec=raftkv.codecs.json_of(list[int])) as kv:
    ...     await kv.put("primes", [2, 3, 5])
    ...     (await kv.get("primes")).value
    WriteResult(version=1)
    [2, 3, 5]
    """
    encoder = msgspec.json.Encoder(order="deterministic")
    return Codec("json", encoder.encode, msgspec.json.Decoder(kind).decode)


def msgpack_of(kind: type[T]) -> Codec[T, T]:
    """msgpack of one type.

    >>> async with raftkv.testing.FakeAsyncClient(codec=raftkv.codecs.msgpack_of(dict[str, float])) as kv:
    ...     await kv.put("place", {"north": 52.5, "east": 13.4})
    ...     (await kv.get("place")).value["north"]
    WriteResult(version=1)
    52.5
    """
    encoder = msgspec.msgpack.Encoder(order="deterministic")
    return Codec("msgpack", encoder.encode, msgspec.msgpack.Decoder(kind).decode)


JSON: Final[Codec[Any, Any]] = json_of(Any)
MSGPACK: Final[Codec[Any, Any]] = msgpack_of(Any)
