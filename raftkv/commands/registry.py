"""All commands, by number, and their encoding."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from operator import or_
from typing import Any, Final, TypeAlias, cast, get_args

from msgspec.msgpack import Decoder, Encoder

from raftkv.commands import group, members, meta, moving, ranges, records, transactions, updates, users, watching
from raftkv.commands.base import Command, GroupCommand, SlotCommand, Write
from raftkv.errors import InvalidArgument

FAMILIES: Final = (records, updates, transactions, ranges, watching, group, meta, moving, members, users)


def _types(family: type[Command]) -> Iterator[type[Command]]:
    if family.__struct_config__.tag is not None:
        yield family
    for kind in family.__subclasses__():
        yield from _types(kind)


COMMANDS: Final[dict[int, type[Command]]] = {cast("int", kind.__struct_config__.tag): kind for kind in _types(Command)}
for _number, _kind in COMMANDS.items():
    _kind.number = _number
    _kind.name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", _kind.__name__).lower()

CLIENT_COMMANDS: Final = {number: kind for number, kind in sorted(COMMANDS.items()) if issubclass(kind, SlotCommand)}
"""What clients may ask for."""

Piped: TypeAlias = (
    records.Get
    | records.Put
    | records.Delete
    | records.Cas
    | updates.Increment
    | updates.Append
    | updates.Touch
    | updates.GetAndDelete
    | updates.CompareAndDelete
    | transactions.Transact
)
"""What a Pipeline carries."""

PIPED: Final = {kind.number: kind for kind in get_args(Piped)}

CLIENT_READS: Final = frozenset(number for number, kind in CLIENT_COMMANDS.items() if kind.reads)

TELLING_WRITES: Final = frozenset(
    number for number, kind in CLIENT_COMMANDS.items() if issubclass(kind, Write) and kind.tells
)
"""Writes whose results are more than a version."""

_encoder: Final = Encoder()
encode = _encoder.encode
"""A command, or an array with some, as bytes."""


def _union(kinds: Iterable[type[Command]]) -> Any:
    return reduce(or_, kinds)


LOGGED: Final = _union(kind for kind in COMMANDS.values() if not kind.reads)
SENT: Final = _union(kind for kind in COMMANDS.values() if issubclass(kind, SlotCommand | GroupCommand))
"""What nodes ask each other for."""

_entries: Final[Decoder[tuple[int, list[Command]]]] = Decoder(tuple[int, list[LOGGED]])  # type: ignore[valid-type]

_any: Final[Decoder[Command]] = Decoder(_union(COMMANDS.values()))


def check(command: Command) -> None:
    """Raises InvalidArgument for a command that others could not decode: it was made of what a client has sent."""
    try:
        _any.decode(encode(command))
    except ValueError as problem:
        raise InvalidArgument(f"{command.name}: {problem}") from None


def encode_entry(time: int, commands: Sequence[Command]) -> bytes:
    """An entry of the log: the group's time in ms, and what is proposed."""
    return _encoder.encode((time, commands))


def decode_entry(data: bytes | memoryview) -> tuple[int, list[Command]]:
    """Raises ValueError for anything that is no entry."""
    return _entries.decode(data)
