"""Messages between nodes that are not Raft's: arrays whose first item is a word instead of a group's number.

``["op", number, timeout in ms, source, sender, user, revision, operations]`` asks the receiver to execute operations of
one origin (:class:`raftkv.frontend.port.Origin`);
``["re", results]`` brings results; ``["epoch", epoch, digest]`` says which map the sender has;
``["map", map]`` brings one; ``["leads", [group, ...]]`` says which
groups the sender leads; ``["room", disk, memory]`` which of its disk and memory are full; ``["address", address,
peer address]`` where the sender is reached, while its map says something else; ``["left"]`` reminds the receiver of
replicas that it has to drop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final

from msgspec import Meta
from msgspec.msgpack import Decoder

from raftkv import limits
from raftkv.addresses import BadAddress, parse_address
from raftkv.commands.base import Command, Sender
from raftkv.commands.bounds import MAX_COUNT
from raftkv.commands.registry import SENT, encode
from raftkv.commands.results import Result
from raftkv.frontend.port import Origin

_MAX_GROUPS: Final = 65_536
_MAX_USER: Final = 64
_MAX_OPS: Final = Meta(max_length=limits.MAX_BATCH_BYTES // limits.OP_OVERHEAD + limits.MAX_BATCH_OPS)

_operations: Final[Decoder[list[Command]]] = Decoder(Annotated[list[SENT], _MAX_OPS])
_answers: Final[Decoder[list[tuple[int, int, Result]]]] = Decoder(Annotated[list[tuple[int, int, Result]], _MAX_OPS])


class Malformed(ValueError):
    """A message that no raftkv node sends."""


def _rows(value: object) -> Any:
    """``value`` if it is an array, else one that holds nothing well-formed."""
    return value if isinstance(value, list | tuple) else (None,)


def ask(number: int, timeout: int, origin: Origin, ops: Sequence[Command]) -> list[Any]:
    """An "op" message. ``timeout``: in ms."""
    source, sender, user, revision = origin
    return ["op", number, timeout, source, int(sender), user, revision, encode(ops)]


def operations(message: list[Any]) -> tuple[int, int, Origin, list[Command]]:
    """Number, timeout in ms, origin and operations of an "op" message. Raises Malformed.

    Their bounds, and who may ask for them, are the receiver's to check: see
    :meth:`raftkv.commands.base.Command.refusal` and :attr:`raftkv.commands.base.Command.sender`.
    """
    if [type(item) for item in message[1:]] == [int, int, int, int, str, int, bytes]:
        _, number, timeout, source, sender, user, revision, ops = message
        try:
            if len(user) > _MAX_USER or not 0 <= revision <= MAX_COUNT:
                raise ValueError("no such user")
            return number, timeout, Origin(source, Sender(sender), user, revision), _operations.decode(ops)
        except ValueError as problem:
            raise Malformed(f"malformed operations: {problem}") from None
    raise Malformed("malformed operations")


def answer(results: Sequence[tuple[int, int, Result]]) -> list[Any]:
    """A "re" message."""
    return ["re", encode(results)]


def answers(message: list[Any]) -> list[tuple[int, int, Result]]:
    """Number of the question, index of the operation and result, of an "re" message. Raises Malformed."""
    if len(message) == 2 and type(message[1]) is bytes:
        try:
            return _answers.decode(message[1])
        except ValueError as problem:
            raise Malformed(f"malformed results: {problem}") from None
    raise Malformed("malformed results")


def epoch(message: list[Any]) -> tuple[int, bytes]:
    """Epoch and digest of an "epoch" message. Raises Malformed."""
    if len(message) == 3 and type(message[1]) is int and message[1] >= 0 and type(message[2]) is bytes:
        return message[1], message[2]
    raise Malformed("malformed epoch")


def room(message: list[Any]) -> tuple[bool, bool]:
    """Whether disk and memory are full, of a "room" message. Raises Malformed."""
    if len(message) == 3 and type(message[1]) is bool and type(message[2]) is bool:
        return message[1], message[2]
    raise Malformed("malformed room")


def addresses(message: list[Any]) -> tuple[str, str]:
    """Where clients and nodes reach the sender, of an "address" message. Raises Malformed."""
    if [type(item) for item in message[1:]] == [str, str]:
        try:
            for text in message[1:]:
                parse_address(text)
        except BadAddress as problem:
            raise Malformed(f"malformed address: {problem}") from None
        return message[1], message[2]
    raise Malformed("malformed address")


def groups(message: list[Any]) -> list[int]:
    """Groups of a "leads" message. Raises Malformed."""
    if len(message) == 2:
        found = _rows(message[1])
        if len(found) <= _MAX_GROUPS and all(type(one) is int for one in found):
            return list(found)
    raise Malformed("malformed groups")


def encoded_map(message: list[Any]) -> bytes:
    """The shard map of a "map" message, still encoded. Raises Malformed."""
    if len(message) == 2 and type(message[1]) is bytes and len(message[1]) <= limits.MAX_MAP_BYTES:
        return message[1]
    raise Malformed("malformed map")
