"""The state machine of a data group: records with versions and expiry, owned slots, exactly-once writes.

Everything here follows from the log alone. The group's time stands still between entries; the leader puts its time into
each, so a record expires on all replicas at the same entry.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import nsmallest
from typing import Final, NamedTuple

from raftkv import limits
from raftkv.commands.base import Command, Write
from raftkv.commands.bounds import MAX_GROUP_TIME
from raftkv.commands.client_ids import drawn_at
from raftkv.commands.ranges import Scan
from raftkv.commands.results import DONE, CursorAnswer, Result
from raftkv.commands.watching import Cursor
from raftkv.errors import Code
from raftkv.store.ageing import Ageing
from raftkv.store.digest import CheckDigest
from raftkv.store.history import Change, History
from raftkv.store.moving import Moves
from raftkv.store.packed import VALUE_AT, Record, fields, head, pack_head
from raftkv.store.scanning import scan_page, served
from raftkv.store.sessions import Kept, Session, plain_result, result_of
from raftkv.store.slot import Slot, SlotImage, Slots, SlotState
from raftkv.store.snapshot import Rest, StoreRestore, StoreSnapshot, StoreState, store_digest

_EVICTED_AT_ONCE: Final = limits.MAX_SESSIONS_PER_SLOT // 16

_OWNED: Final = SlotState.OWNED

_GONE: Final = "the request's dedupe record has gone"
_EXPIRED_SESSION: Final = Result(Code.SESSION_EXPIRED, detail=_GONE)
_MOVED: Final = Result(Code.MOVED, detail="the slot is not this group's")
_MOVING: Final = Result(Code.SLOT_MOVING, detail="the slot is moving")
_NO_RECORD: Final = DONE


class Stats(NamedTuple):
    """Size of a store: physical records, bytes of their keys and values, sessions, slots."""

    records: int
    bytes: int
    sessions: int
    slots: int


class Store:
    """One data group's replicated state. Not thread-safe.

    ``time``: group time of the last entry, in milliseconds; only :meth:`apply` and a restore change it. ``checks``: by
    check id, the digests as of the last two Check entries, to be made in steps; not replicated, and gone by a restore.
    ``moves``: the slot moves that the group takes part in.
    """

    def __init__(self) -> None:
        self.time = 0
        self.checks: dict[int, CheckDigest] = {}
        self._genesis = False
        # Shared with ``_ageing`` and ``moves``: never replaced.
        self._slots = Slots()
        self._ageing = Ageing(self._slots)
        self._expiry = self._ageing.expiry
        self.moves = Moves(self._slots, self._ageing)

    @property
    def genesis(self) -> bool:
        """Whether the group has got its first slots."""
        return self._genesis

    def slot_state(self, slot: int) -> SlotState | None:
        """State of a slot, None if the group does not have it."""
        found = self._slots.get(slot)
        return None if found is None else found.state

    @property
    def history(self) -> History:
        """The last events of the group's slots; another object after a restore."""
        return self._slots.history

    @property
    def slot_changes(self) -> int:
        """How often a slot has come to this replica, or gone."""
        return self._slots.changes

    def slot(self, number: int) -> Slot | None:
        """A slot itself, to look at; None if the group does not have it."""
        return self._slots.get(number)

    def owned_slots(self) -> list[int]:
        """Slots that the group serves, ascending."""
        return sorted(slot.number for slot in self._slots.values() if slot.state is _OWNED)

    def next_expiry(self) -> int | None:
        """Group time (ms) when the next record expires. If it has come, a TICK removes records."""
        return self._expiry.first()

    def stats(self) -> Stats:
        slots = self._slots.values()
        return Stats(
            records=sum(len(slot.records) for slot in slots),
            bytes=sum(slot.bytes for slot in slots),
            sessions=sum(len(slot.sessions) for slot in slots),
            slots=len(slots),
        )

    def slot_stats(self) -> list[tuple[int, int, int, int]]:
        """(slot, records, bytes of keys and values, operations) of the slots served, ascending.

        Operations are reads and writes that this replica served since it started or got the slot: not replicated.
        """
        slots = (self._slots[number] for number in self.owned_slots())
        return [(slot.number, len(slot.records), slot.bytes, slot.hits) for slot in slots]

    # Reads

    def read(self, slot: int, key: bytes) -> Result:
        """The record of ``key``; version 0 and no value if there is none. MOVED or SLOT_MOVING if not served here."""
        home = self._slots.get(slot)
        if home is None or home.state is not _OWNED:
            return _not_served(home)
        home.hits += 1
        record = home.records.get(key)
        if record is None:
            return _NO_RECORD
        version, expires = head(record)
        if not expires:
            return Result(0, version, record[VALUE_AT:])
        left = expires - self.time
        return Result(Code.OK, version, record[VALUE_AT:], left) if left > 0 else _NO_RECORD

    def scan(self, op: Scan) -> Result:
        """A page of records of several slots: a ScanPage."""
        home = self._slots.get(op.slot)
        if home is None or home.state is not _OWNED:
            return _not_served(home)
        home.hits += 1
        return Result(Code.OK, answer=scan_page(self._slots, op, self.time))

    def cursor(self, op: Cursor) -> Result:
        """The numbers of several slots: a CursorAnswer."""
        home = self._slots.get(op.slot)
        if home is None or home.state is not _OWNED:
            return _not_served(home)
        found, covered = served(self._slots, op.slots)
        numbers = tuple(self._slots[number].counter for number in sorted(found))
        return Result(Code.OK, answer=CursorAnswer(covered, numbers))

    def move_state(self, move: int) -> Result:
        """How far a slot move is here: a MoveReport.

        A move is forgotten once later moves of all its slots have ended.
        """
        return self.moves.state(move)

    def export(self, move: int, cursor: bytes, limit_bytes: int) -> Result:
        """The next page of what is to be copied of a move's slots, at the source, about ``limit_bytes`` (as of a scan).

        The answer is an ExportPage. ``cursor``: b"" at first, then what the last page that was imported gave; also one
        of another replica. Slots that still serve can change again; of frozen ones, sessions are included and ``done``
        is the end. CONDITION_FAILED if this group is not the source or this replica is behind the cursor.
        """
        return self.moves.export(move, cursor, limit_bytes)

    def summary(self, move: int) -> Result | None:
        """A MoveSummary of the frozen slots of a move. CONDITION_FAILED if they are not frozen here.

        None: call again; each call reads a bounded part of what is in the slots.
        """
        return self.moves.summary(move)

    # Writes

    @property
    def prepares(self) -> bool:
        """Whether the next entry may need :meth:`prepare`."""
        return bool(self.moves.imports)

    def prepare(self, commands: Sequence[Command]) -> bool:
        """Do a bounded part of the work that the next entry, with these commands, needs; True if it can be applied.

        Optional, and changes nothing: :meth:`apply` does the rest, however long it takes.
        """
        return self.moves.prepare(commands)

    def apply(self, now: int, commands: Sequence[Command], entry: memoryview | None = None) -> list[Result]:
        """Apply one log entry: its time in ms and its commands. Call it once for each entry, with all its commands.

        ``entry``: the same, encoded, which all replicas have or none. Never raises.
        """
        if self.time < now <= MAX_GROUP_TIME:
            self.time = now
        results = [command.apply(self) for command in commands]
        self._ageing.run(self.time)
        if self.moves.trash:
            self.moves.free()
        history = self._slots.history
        if entry is not None and history.is_block(commands, len(entry)):
            history.close_entry(entry, [result.version for result in results], self.time)
        history.settle(self.time, self._slots)
        return results

    def write(self, command: Write) -> Result:
        """Execute a write, once for each request id, if its slot is served here."""
        slot = self._slots.get(command.slot)
        if slot is None or slot.state is not _OWNED:
            return _not_served(slot)
        slot.hits += 1
        if slot.pins:
            slot.detach()
        client = command.client
        if not client:
            done = command.execute(self, slot)
            return plain_result(done) if isinstance(done, int) else done
        seq, first = command.seq, command.first
        session = slot.sessions.get(client)
        if session is None:
            if client <= slot.floor:
                return Result(Code.SESSION_EXPIRED, detail=_GONE, new_id_ms=drawn_at(slot.floor) + 1)
            session = self._open_session(slot, client, first)
        else:
            # In line, here and below, what the methods of an ordinary session do: of one outcome, and no kept one.
            more = session.more
            if first > session.first:
                if more is None:
                    session.first = first
                else:
                    session.raise_first(first)
            if seq < session.first:
                return _EXPIRED_SESSION
            session.last = self.time
            recorded = session.find(seq)
            if recorded is not None:
                return result_of(recorded)
        outcome = command.execute(self, slot)
        if isinstance(outcome, int):
            if session.seq < session.first and session.keeps is None:
                session.seq = seq
                session.outcome = outcome
            else:
                session.record(seq, outcome)
            return plain_result(outcome)
        self._ageing.keep(slot, client, session, seq, Kept.of(self.time, outcome))
        return outcome

    # What writes are made of: ``old`` is the record that the slot holds for the key, None = none

    def live_version(self, old: Record | None) -> int:
        """The version of ``old``, 0 if there is none or it has expired."""
        if old is None:
            return 0
        version, until = head(old)
        return 0 if 0 < until <= self.time else version

    @staticmethod
    def value_of(old: Record) -> bytes:
        return old[VALUE_AT:]

    def found(self, slot: Slot, key: bytes) -> tuple[bytes | None, int, int]:
        """(value, version, expires) of ``key``, (None, 0, 0) if there is no record or it has expired."""
        old = slot.records.get(key)
        return (None, 0, 0) if old is None or not self.live_version(old) else fields(old)

    def expires(self, ttl: int) -> int:
        """Group time in ms that is ``ttl`` ms away, 0 = never."""
        return self.time + ttl if ttl else 0

    def put(self, slot: Slot, key: bytes, old: Record | None, value: bytes, expires: int) -> int:
        """Write a record that expires at ``expires`` (group time in ms), 0 = never. Returns its version.

        One that has expired goes first, under a number of its own.
        """
        if old is not None:
            until = head(old)[1]
            if not until:
                slot.bytes += len(value) + VALUE_AT - len(old)
            elif until > self.time:
                slot.bytes += len(value) + VALUE_AT - len(old)
                slot.expiring -= 1
                self._expiry.live -= 1
            else:
                self._ageing.remove(slot, key, old, Change.EXPIRE)
                old = None
        version = slot.counter = slot.counter + 1
        if old is None:
            self._slots.order.add(key)
            slot.bytes += len(key) + len(value)
        record = slot.records[key] = pack_head(version, expires) + value
        if expires:
            slot.expiring += 1
            self._expiry.push((expires, slot.number, key, version))
        if slot.dirty is not None:
            slot.dirty.pop(key, None)
            slot.dirty[key] = version
        self._slots.history.items += (slot.number, key, record)
        return version

    def touch(self, slot: Slot, key: bytes, old: Record, expires: int) -> None:
        """Let a record expire at ``expires`` instead, 0 = never. It takes a number and keeps its version."""
        slot.counter += 1
        version, before = head(old)
        slot.records[key] = pack_head(version, expires) + old[VALUE_AT:]
        if before:
            slot.expiring -= 1
            self._expiry.live -= 1
        if expires:
            slot.expiring += 1
            self._expiry.push((expires, slot.number, key, version))
        if slot.dirty is not None:
            slot.dirty.pop(key, None)
            slot.dirty[key] = slot.counter
        self._slots.history.add(slot.number, key, slot.counter, Change.TOUCH)

    def remove(self, slot: Slot, key: bytes, old: Record) -> None:
        """Remove a record."""
        self._ageing.remove(slot, key, old, Change.DELETE)

    def bury(self, slot: Slot, key: bytes) -> None:
        """Remove the record of ``key`` if it has expired: before a command that counts what it will change."""
        old = slot.records.get(key)
        if old is not None and 0 < head(old)[1] <= self.time:
            self._ageing.remove(slot, key, old, Change.EXPIRE)

    # Housekeeping

    def begin(self, numbers: Sequence[int]) -> Result:
        """Give the group its first slots."""
        if not self._genesis:
            self._genesis = True
            for number in sorted(set(numbers)):
                self._slots.add(Slot(number))
        return DONE

    def check(self, check: int) -> Result:
        """Begin a digest of the state, as of now."""
        earlier = [one for one in self.checks if one != check][-1:]
        for one in list(self.checks):
            if one not in earlier:
                self.checks.pop(one).close()
        self.checks[check] = CheckDigest(self._rest(), self._images(), self._slots.history.image())
        return DONE

    # Sessions

    def newcomer_floor(self, slot: int, client: bytes) -> int | None:
        """When the floor of ``slot`` was drawn (ms of Unix time, 0 = there is none), if ``client`` is new there.

        None for a client that the slot knows, and if the slot is not served here.
        """
        home = self._slots.get(slot)
        if home is None or home.state is not _OWNED or client in home.sessions:
            return None
        return drawn_at(home.floor)

    def _open_session(self, slot: Slot, client: bytes, first: int) -> Session:
        if len(slot.sessions) >= limits.MAX_SESSIONS_PER_SLOT:
            # Several at once, so that many short-lived clients on one slot do not pay for a search each.
            ages = ((session.last, name) for name, session in slot.sessions.items())
            for _, oldest in nsmallest(_EVICTED_AT_ONCE, ages):
                slot.close_session(oldest)
        session = slot.sessions[client] = Session(first, self.time)
        self._ageing.add_session(slot, client, session)
        return session

    # The whole state

    def snapshot(self) -> StoreSnapshot:
        """The state as of this call, for as long as the snapshot is open; writes go on meanwhile."""
        return StoreSnapshot(self._rest(), self._images(), self._slots.history.image())

    def begin_restore(self) -> StoreRestore:
        """Collects a snapshot's chunks; ``finish`` replaces the whole state by it."""
        return StoreRestore(self._install)

    def digest(self) -> bytes:
        """16 bytes; equal for equal states, however they came about."""
        return store_digest(self._rest(), self._slots.values(), self._slots.history.image())

    def _rest(self) -> Rest:
        return Rest(self.time, self._genesis, *self.moves.rows())

    def _images(self) -> list[SlotImage]:
        return [self._slots[number].image() for number in sorted(self._slots)]

    def _install(self, state: StoreState) -> None:
        self.time = state.time
        self._genesis = state.genesis
        self._slots.replace(state.slots, state.order, state.history)
        self._ageing.restart()
        self.moves.install(state.ended, state.imports)
        for check in self.checks.values():
            check.close()
        self.checks.clear()


def _not_served(slot: Slot | None) -> Result:
    return _MOVING if slot is not None and slot.state is SlotState.FROZEN else _MOVED
