"""Who votes, as a group's log tells it.

A change of the voters is an entry. It takes effect when the entry is appended, long before it is committed, and ends if
the entry is truncated. In effect is the latest such entry in the log, or, if there is none, the voters at the log's
base. Applying the entry changes nothing (Ongaro, dissertation, 4.1).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgpack

CONFIG: Final = b"\x04"
"""First byte of the command of an entry that names the voters; the library's own kinds are 1 to 3."""

Voters = tuple[int, ...]
"""Ids of the nodes that vote, ascending."""


def pack_voters(voters: Iterable[int]) -> bytes:
    """The command of an entry that makes ``voters`` the voters of its group."""
    return CONFIG + bytes(msgpack.packb(sorted(voters)))


def unpack_voters(command: bytes) -> Voters:
    """Raises ValueError if ``command`` is not one of :func:`pack_voters`."""
    try:
        voters = msgpack.unpackb(command[1:])
    except (msgpack.UnpackException, ValueError) as problem:
        raise ValueError(f"a change of the voters cannot be decoded: {problem}") from None
    if not isinstance(voters, list) or not voters or any(type(node) is not int or node < 1 for node in voters):
        raise ValueError(f"not a list of voters: {voters!r:.80}")
    if voters != sorted(set(voters)):
        raise ValueError(f"voters out of order: {voters!r:.80}")
    return tuple(voters)


def differ_by_one(before: Iterable[int], after: Iterable[int]) -> bool:
    """Whether these lists of voters differ by one server: then every majority of one meets each of the other."""
    return len(set(before) ^ set(after)) == 1


class Configurations:
    """The voters at the base of a log, and every change behind it."""

    def __init__(self, base: Iterable[int]) -> None:
        self._base: Voters = tuple(sorted(base))
        self._changes: list[tuple[int, Voters]] = []
        self.voters = self._base
        """Those in effect."""

    @property
    def index(self) -> int:
        """Index of the entry that named the voters in effect, 0 if it is not in the log any more."""
        return self._changes[-1][0] if self._changes else 0

    def at(self, index: int) -> Voters:
        """The voters as of entry ``index``, which is not below the base."""
        return next((voters for at, voters in reversed(self._changes) if at <= index), self._base)

    def add(self, index: int, voters: Voters) -> None:
        self._changes.append((index, voters))
        self.voters = voters

    def truncate(self, first: int) -> None:
        """The entries from ``first`` on are gone."""
        while self._changes and self._changes[-1][0] >= first:
            self._changes.pop()
        self.voters = self._changes[-1][1] if self._changes else self._base

    def compact(self, base: int) -> None:
        """The log now begins at ``base``."""
        self._base = self.at(base)
        self._changes = [change for change in self._changes if change[0] > base]
