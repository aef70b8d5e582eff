"""Values of a client by its codec, checked as other arguments are. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

import msgspec

from raftkv.client.arguments import encode_value
from raftkv.codecs import BYTES, Codec
from raftkv.errors import CodecError, InvalidArgument
from raftkv.text import shown

Encode: TypeAlias = Callable[..., bytes]
"""Of a value, and its name for messages. Raises InvalidArgument or TooLarge."""
Decode: TypeAlias = Callable[[bytes, bytes], Any]
"""Of a key and the bytes of its value. Raises CodecError."""

_REFUSALS: Final = (TypeError, ValueError, OverflowError, msgspec.MsgspecError)


def encoder_of(codec: Codec[Any, Any]) -> Encode:
    """How ``codec`` makes bytes of values."""
    if not isinstance(codec, Codec):
        raise InvalidArgument(f"{shown(codec)} is not a codec: raftkv.codecs has some, as raftkv.codecs.JSON")
    if codec is BYTES:
        return encode_value

    def encode(value: Any, name: str = "value") -> bytes:
        try:
            data = codec.encode(value)
        except _REFUSALS as error:
            raise InvalidArgument(f"the {name} cannot be written as {codec.name}: {error}") from error
        return encode_value(data, name)

    return encode


def decoder_of(codec: Codec[Any, Any]) -> Decode | None:
    """How ``codec`` makes values of bytes; None: they are these bytes."""
    if codec is BYTES:
        return None

    def decode(key: bytes, data: bytes) -> Any:
        try:
            return codec.decode(data)
        except _REFUSALS as error:
            text = f"key {shown(key)}: the value cannot be read as {codec.name}: {error}"
            raise CodecError(text, key=key, data=data) from error

    return decode
