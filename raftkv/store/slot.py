"""One slot of a data group: its records, its sessions, what changes while it moves, and the copy-on-write of it all."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from enum import IntEnum
from operator import itemgetter
from typing import Final, NamedTuple

from raftkv.store.expiry import Due
from raftkv.store.history import History
from raftkv.store.index import KeyIndex, new_index
from raftkv.store.packed import Record, head, value_bytes
from raftkv.store.sessions import Keeps, Session

_COUNTER: Final = itemgetter(1)


class SlotState(IntEnum):
    """What a group may do with a slot; a slot that is in no state is not the group's. Numbers are part of snapshots."""

    OWNED = 1
    FROZEN = 2
    IMPORTING = 3


class SlotImage(NamedTuple):
    """A slot as it was when a snapshot was taken."""

    slot: Slot
    number: int
    state: int
    counter: int
    floor: bytes
    move: int
    frozen: int
    forgotten: int
    records: dict[bytes, Record]
    sessions: dict[bytes, Session]
    dirty: dict[bytes, int] | None

    def release(self) -> None:
        """End the copy-on-write of this image. The image must not be read any more."""
        # A slot that was written to meanwhile has left these dicts to the image.
        if self.slot.records is self.records:
            self.slot.pins -= 1


class Slot:
    """Mutable state of a slot.

    ``counter``: mutations so far; while it is being imported, the number of its last event that has come.
    ``forgotten``: up to which number its events are kept no more. ``floor``: largest client id whose session was
    removed. ``bytes``: keys and values.
    ``expiring``: how many records expire. ``move``: the move that the slot takes part in, 0 = none. ``dirty``: at the
    source of a move, the counter at the last change of each key that changed since it is tracked, in order of change.
    ``frozen``: group time (ms) at which it was frozen.

    Not replicated: ``pins``: images that share ``records``, ``sessions`` and ``dirty``; while there are any, call
    :meth:`detach` before changing one of them. ``walk``: sorted keys as of some counter since the slot is tracked.
    ``keeps``: results kept in sessions, None = there were none. ``held``, ``held_idle``, ``held_kept``: items of the
    queues of expiry, of idle sessions and of kept results that came due while it was frozen. ``hits``: operations
    served.
    """

    __slots__ = (
        "_changes",
        "bytes",
        "counter",
        "dirty",
        "expiring",
        "floor",
        "forgotten",
        "frozen",
        "held",
        "held_idle",
        "held_kept",
        "hits",
        "keeps",
        "move",
        "number",
        "pins",
        "records",
        "sessions",
        "state",
        "walk",
    )

    def __init__(self, number: int, state: SlotState = SlotState.OWNED, move: int = 0) -> None:
        self.number = number
        self.state = state
        self.counter = 0
        self.forgotten = 0
        self.floor = b""
        self.records: dict[bytes, Record] = {}
        self.sessions: dict[bytes, Session] = {}
        self.bytes = 0
        self.expiring = 0
        self.move = move
        self.dirty: dict[bytes, int] | None = None
        self.frozen = 0
        self.pins = 0
        self.walk: tuple[int, list[bytes]] | None = None
        self._changes: tuple[int, list[tuple[bytes, int]]] = (0, [])
        self.held: list[Due] = []
        self.held_idle: list[tuple[int, int, bytes]] = []
        self.held_kept: list[Due] = []
        self.keeps: Keeps | None = None
        self.hits = 0

    def image(self) -> SlotImage:
        """Freeze the slot as it is now, until the image is released."""
        self.pins += 1
        return SlotImage(
            self,
            self.number,
            int(self.state),
            self.counter,
            self.floor,
            self.move,
            self.frozen,
            self.forgotten,
            self.records,
            self.sessions,
            self.dirty,
        )

    def detach(self) -> None:
        """Leave the present dicts to the images that share them and go on with copies."""
        self.records = dict(self.records)
        self.sessions = {client: session.copy() for client, session in self.sessions.items()}
        if self.dirty is not None:
            self.dirty = dict(self.dirty)
        self.pins = 0

    # Content. Writes of clients do the same in line: see Store.put. Whoever calls these keeps the order of the keys.

    def store(self, key: bytes, record: Record) -> bool:
        """Put a record in, as it is. Whether its key is new."""
        old = self.records.get(key)
        if old is None:
            self.bytes += len(key)
        else:
            self._uncount(old)
        # A key that is there stays the object that it is.
        self.records[key] = record
        self.bytes += value_bytes(record)
        if head(record)[1]:
            self.expiring += 1
        return old is None

    def discard(self, key: bytes) -> bool:
        """Take a record out. Whether there was one."""
        record = self.records.pop(key, None)
        if record is None:
            return False
        self.bytes -= len(key)
        self._uncount(record)
        return True

    def _uncount(self, record: Record) -> None:
        self.bytes -= value_bytes(record)
        if head(record)[1]:
            self.expiring -= 1

    def close_session(self, client: bytes) -> None:
        """Forget a client and refuse it, and all older ones that are not remembered, from now on."""
        session = self.sessions.pop(client)
        if session.keeps is not None:
            for _, kept in session.kept():
                session.keeps.drop(kept)
        self.floor = max(self.floor, client)

    # What a move copies

    def track(self, move: int) -> None:
        """Remember from now on what changes."""
        self.move = move
        self.dirty = {}

    def untrack(self) -> None:
        """Serve as if there had been no move."""
        self.state = SlotState.OWNED
        self.move = self.frozen = 0
        self.dirty = self.walk = None
        self._changes = (0, [])

    def begin_walk(self) -> int:
        """Start to walk over all keys. What changes after the counter that it returns may be missed by the walk."""
        if self.walk is None:
            self.walk = (self.counter, sorted(self.records))
        return self.walk[0]

    def walk_after(self, mark: int, key: bytes) -> Iterator[bytes]:
        """Keys greater than ``key`` of a walk that began at ``mark``, ascending; some may be gone meanwhile."""
        # A list made before ``mark``, for another walk, may lack keys that nobody will name as changed after it.
        if self.walk is None or self.walk[0] < mark:
            self.walk = None
            self.begin_walk()
        assert self.walk is not None
        order = self.walk[1]
        # Not a slice: a page of a large slot must not cost its length.
        return map(order.__getitem__, range(bisect_right(order, key) if key else 0, len(order)))

    def changes_after(self, mark: int) -> Iterator[tuple[bytes, int]]:
        """(key, counter) of keys changed after ``mark``, in the order of their last changes."""
        dirty = self.dirty
        if dirty is None:
            return
        while True:
            base, changes = self._changes
            if not (base <= mark and changes and mark < changes[-1][1]):
                # Copied from the end, so that reading on costs only what is new.
                changes = []
                for change in reversed(dirty.items()):
                    if change[1] <= mark:
                        break
                    changes.append(change)
                changes.reverse()
                self._changes = (mark, changes)
                if not changes:
                    return
            for at in range(bisect_right(changes, mark, key=_COUNTER), len(changes)):
                key, counter = changes[at]
                # Else it changed again, and comes later.
                if dirty[key] == counter:
                    yield key, counter
            mark = changes[-1][1]

    def free(self, most: int, order: KeyIndex) -> int:
        """Let go of at most ``most`` records, sessions and changes; returns how many. For a slot that is not used.

        ``order``: has its keys.
        """
        self.walk = None
        left = most
        while self.records and left:
            order.remove(self.records.popitem()[0])
            left -= 1
        for items in (self.sessions, self.dirty or {}):
            while items and left:
                items.popitem()
                left -= 1
        return most - left


class Slots(dict[int, Slot]):
    """The slots of a group, by number; they come and go by the methods here.

    ``order``: the keys of all of them; whoever adds or removes one tells it. ``history``: their last events; whoever
    changes a record adds one. ``changes``: how often a slot has come or gone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.order = new_index()
        self.history = History()
        self.changes = 0

    def add(self, slot: Slot) -> None:
        """It comes, in place of the one that has its number, if there is one."""
        self[slot.number] = slot
        self.changes += 1

    def take(self, number: int) -> Slot:
        """It goes."""
        self.changes += 1
        return self.pop(number)

    def replace(self, slots: Iterable[Slot], order: KeyIndex, history: History) -> None:
        """These come in place of all that is here."""
        self.clear()
        self.update((slot.number, slot) for slot in slots)
        self.order, self.history = order, history
        self.changes += 1
