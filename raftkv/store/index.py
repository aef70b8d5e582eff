"""The keys of a data group in order, whatever their slots."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, cast

from sortedcontainers import SortedList


class KeyIndex(Protocol):
    """Keys in order. A key is in it once for each slot that holds it, those included that have gone and are still
    being freed: so a slot that comes back meanwhile has its keys here whatever becomes of the old ones."""

    def add(self, key: bytes, /) -> None: ...

    def remove(self, key: bytes, /) -> None:
        """Take it out once. Raises ValueError if it is not there."""

    def irange(
        self, least: bytes | None, most: bytes | None, inclusive: tuple[bool, bool], reverse: bool, /
    ) -> Iterator[bytes]:
        """Keys from ``least`` to ``most``, None = no bound. Nothing may be added or removed while it is read."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[bytes]: ...


def new_index() -> KeyIndex:
    """An empty index."""
    return cast(KeyIndex, SortedList())
