"""Steps of a slot move at its target and at its source, and questions about it: see :mod:`raftkv.store.moving`."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from raftkv.commands.base import GroupCommand, GroupRead
from raftkv.commands.bounds import Count, Id, Slots
from raftkv.commands.results import Result

if TYPE_CHECKING:
    from raftkv.store.records import Store


class MoveStep(GroupCommand, frozen=True):
    """A step of ``move``: CONDITION_FAILED, and nothing changed, if it cannot be taken."""

    move: Id


class ImportBegin(MoveStep, frozen=True, tag=30):
    """Target: have hidden staging slots."""

    grows: ClassVar[bool] = True

    slots: Slots

    def apply(self, store: Store) -> Result:
        return store.moves.import_begin(self.move, self.slots, genesis=store.genesis)


class ImportChunk(MoveStep, frozen=True, tag=31):
    """Target: take the chunk ``seq``, numbered from 1 on. ``cursor``: where the next one begins."""

    seq: Id
    cursor: bytes
    chunk: bytes

    def size(self) -> int:
        return len(self.cursor) + len(self.chunk)

    def apply(self, store: Store) -> Result:
        return store.moves.import_chunk(self)


class ImportFinal(MoveStep, frozen=True, tag=32):
    """Target: what was copied is to be what the source has. A summary that differs empties the staging."""

    summary: bytes

    def size(self) -> int:
        return len(self.summary)

    def apply(self, store: Store) -> Result:
        return store.moves.import_final(self.move, self.summary)


class Activate(MoveStep, frozen=True, tag=33):
    """Target: serve the slots."""

    def apply(self, store: Store) -> Result:
        return store.moves.activate(self.move, store.time)


class ImportDrop(MoveStep, frozen=True, tag=34):
    """Target: the move is cancelled."""

    slots: Slots

    def apply(self, store: Store) -> Result:
        return store.moves.import_drop(self.move, self.slots)


class Track(MoveStep, frozen=True, tag=35):
    """Source: remember what changes."""

    slots: Slots

    def apply(self, store: Store) -> Result:
        return store.moves.track(self.move, self.slots)


class Freeze(MoveStep, frozen=True, tag=36):
    """Source: refuse everything."""

    def apply(self, store: Store) -> Result:
        return store.moves.freeze(self.move, store.time)


class Release(MoveStep, frozen=True, tag=37):
    """Source: the slots have gone."""

    def apply(self, store: Store) -> Result:
        return store.moves.release(self.move)


class Untrack(MoveStep, frozen=True, tag=38):
    """Source: the move is cancelled."""

    slots: Slots

    def apply(self, store: Store) -> Result:
        return store.moves.untrack(self.move, self.slots)


class MoveState(GroupRead, frozen=True, tag=40):
    """How far a move is here: a :class:`raftkv.commands.results.MoveReport`."""

    move: Id


class Copying(GroupRead, frozen=True):
    """Source: copy records of ``move`` to the group ``target``; nothing of it stands in the source's log.

    ``seq``, ``cursor``: of the last chunk imported there. The answer is a
    :class:`raftkv.commands.results.CopyReport`.
    """

    move: Id
    target: Id
    seq: Count
    cursor: bytes

    def size(self) -> int:
        return len(self.cursor)


class Copy(Copying, frozen=True, tag=43):
    """Until little is left, or about ``limit_bytes`` were copied."""

    limit_bytes: Id


class Complete(Copying, frozen=True, tag=44):
    """All that is left of the frozen slots; then the target compares."""
