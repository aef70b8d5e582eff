"""The state machine of a data group: records with versions and expiry, owned slots, exactly-once writes.

Everything here follows from the log alone. The group's time stands still between entries; the leader puts its time into
each, so a record expires on all replicas at the same entry.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import nsmallest
from typing import Any, Final, NamedTuple

from raftkv import limits
from raftkv.errors import Code
from raftkv.store.ageing import Ageing
from raftkv.store.codec import pack, unpack
from raftkv.store.copying import MALFORMED
from raftkv.store.digest import CheckDigest
from raftkv.store.moving import MAX_SLOT, Moves
from raftkv.store.operations import ANY_VERSION, MAX_COUNT, MAX_GROUP_TIME, MAX_TTL_MS, Kind, Op, Result
from raftkv.store.packed import VALUE_AT, fields, head, pack_head
from raftkv.store.sessions import CLIENT_BYTES, Session, code_and_version, drawn_at, failed
from raftkv.store.slot import Slot, SlotImage, SlotState
from raftkv.store.snapshot import Rest, StoreRestore, StoreSnapshot, StoreState, store_digest

_EVICTED_AT_ONCE: Final = limits.MAX_SESSIONS_PER_SLOT // 16
# Not counted against a page of a scan by the records themselves: framing, version, TTL.
_SCAN_OVERHEAD: Final = 24

_PUT: Final = int(Kind.PUT)
_DELETE: Final = int(Kind.DELETE)
_CAS: Final = int(Kind.CAS)
_OWNED: Final = SlotState.OWNED
_OP_FIELDS: Final = len(Op._fields)
_OP_DEFAULTS: Final = tuple(Op._field_defaults.values())

_TOO_LARGE: Final = Result(Code.TOO_LARGE, detail="key or value too large")
_GONE: Final = "the request's dedupe record has gone"
_EXPIRED_SESSION: Final = Result(Code.SESSION_EXPIRED, detail=_GONE)
_MOVED: Final = Result(Code.MOVED, detail="the slot is not this group's")
_MOVING: Final = Result(Code.SLOT_MOVING, detail="the slot is moving")
_NO_RECORD: Final = Result(Code.OK)
_DONE: Final = Result(Code.OK)


class Stats(NamedTuple):
    """Size of a store: physical records, bytes of their keys and values, sessions, slots."""

    records: int
    bytes: int
    sessions: int
    slots: int


class Store:
    """One data group's replicated state. Not thread-safe.

    ``time``: group time of the last entry, in milliseconds; only :meth:`apply` and a restore change it. ``checks``: by
    check id, the digests as of the last two CHECK entries, to be made in steps; not replicated, and gone by a restore.
    """

    def __init__(self) -> None:
        self.time = 0
        self.checks: dict[int, CheckDigest] = {}
        self._genesis = False
        # Shared with ``_ageing`` and ``_moves``: never replaced.
        self._slots: dict[int, Slot] = {}
        self._ageing = Ageing(self._slots)
        self._expiry = self._ageing.expiry
        self._moves = Moves(self._slots, self._ageing)

    @property
    def genesis(self) -> bool:
        """Whether the group has got its first slots."""
        return self._genesis

    def slot_state(self, slot: int) -> SlotState | None:
        """State of a slot, None if the group does not have it."""
        found = self._slots.get(slot)
        return None if found is None else found.state

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
            return tuple.__new__(Result, (0, version, record[VALUE_AT:], -1, 0, ""))
        left = expires - self.time
        return Result(Code.OK, version, record[VALUE_AT:], left) if left > 0 else _NO_RECORD

    def scan(self, slot: int, after: bytes, limit_bytes: int) -> Result:
        """Records of ``slot`` with keys greater than ``after`` in key order, as much as fits into ``limit_bytes``.

        At least one record, if there is any. ``value`` is msgpack of [[key, value, version, ttl_ms or -1], ...];
        ``version`` is 1 if more records follow, else 0. Limit 0 means SCAN_PAGE_BYTES; MAX_SCAN_PAGE_BYTES caps it.
        """
        home = self._slots.get(slot)
        if home is None or home.state is not _OWNED:
            return _not_served(home)
        home.hits += 1
        budget = min(limit_bytes, limits.MAX_SCAN_PAGE_BYTES) if limit_bytes > 0 else limits.SCAN_PAGE_BYTES
        now, records = self.time, home.records
        page: list[tuple[bytes, bytes, int, int]] = []
        for key in home.keys_after(after):
            value, version, expires = fields(records[key])
            if 0 < expires <= now:
                continue
            budget -= len(key) + len(value) + _SCAN_OVERHEAD
            if budget < 0 and page:
                return Result(Code.OK, 1, pack(page))
            page.append((key, value, version, expires - now if expires else -1))
        return Result(Code.OK, 0, pack(page))

    def move_state(self, move: int) -> Result:
        """How far a slot move is here. ``value`` is msgpack of a map.

        "source": "none", "tracked", "frozen", "released" or "cancelled". "target": "none", "importing", "staged",
        "active" or "cancelled". "seq", "cursor": of the last chunk imported. "bytes", "records": of the slots that this
        group has of the move, staged or tracked. A move is forgotten once later moves of all its slots have ended.
        """
        return self._moves.state(move)

    def export(self, move: int, cursor: bytes, limit_bytes: int) -> Result:
        """The next page of what is to be copied of a move's slots, at the source, about ``limit_bytes`` (as of a scan).

        ``value`` is msgpack of [next cursor, blob for IMPORT_CHUNK, records left, bytes left, done]; what is left is an
        estimate. ``cursor``: b"" at first, then what the last page that was imported gave; also one of another replica.
        ``done``: nothing was left at this moment. Slots that still serve can change again; of frozen ones, sessions are
        included and ``done`` is the end. CONDITION_FAILED if this group is not the source or this replica is behind the
        cursor.
        """
        return self._moves.export(move, cursor, limit_bytes, self.time)

    def summary(self, move: int) -> Result | None:
        """``value``: the summary of the frozen slots of a move, for IMPORT_FINAL. CONDITION_FAILED if not frozen here.

        None: call again; each call reads a bounded part of what is in the slots.
        """
        return self._moves.summary(move)

    # Writes

    @property
    def prepares(self) -> bool:
        """Whether the next entry may need :meth:`prepare`."""
        return bool(self._moves.imports)

    def prepare(self, commands: Sequence[Sequence[Any]]) -> bool:
        """Do a bounded part of the work that the next entry, with these commands, needs; True if it can be applied.

        Optional, and changes nothing: :meth:`apply` does the rest, however long it takes.
        """
        return self._moves.prepare(commands)

    def apply(self, now: int, commands: Sequence[Sequence[Any]]) -> list[Result]:
        """Apply one log entry: its time in ms and its commands. Call it once for each entry, with all its commands.

        Total: never raises for what msgpack can decode. A malformed command gives INVALID_ARGUMENT and changes nothing.
        """
        if type(now) is int and self.time < now <= MAX_GROUP_TIME:
            self.time = now
        results = [self._execute(command) for command in commands] if isinstance(commands, list | tuple) else []
        self._ageing.run(self.time)
        if self._moves.trash:
            self._moves.free()
        return results

    def _execute(self, command: Sequence[Any]) -> Result:
        try:
            kind, number, key, value, expect, expected, ttl, client, seq, first, _ = command
        except (TypeError, ValueError):
            return self._execute_short(command)
        if not (
            type(number) is int
            and type(key) is bytes
            and type(ttl) is int
            and type(expect) is int
            and type(client) is bytes
            and key
            and 0 <= ttl <= MAX_TTL_MS
            and expect >= ANY_VERSION
            and (
                not client
                or (
                    len(client) == CLIENT_BYTES
                    and type(seq) is int
                    and type(first) is int
                    and 0 < seq <= MAX_COUNT
                    and 0 <= first <= seq
                )
            )
            and (
                (kind == _PUT and type(value) is bytes)
                or kind == _DELETE
                or (kind == _CAS and type(value) is bytes and (expected is None or type(expected) is bytes))
            )
        ):
            return self._housekeeping(kind, value)
        if len(key) > limits.MAX_KEY_BYTES or (kind != _DELETE and len(value) > limits.MAX_VALUE_BYTES):
            return _TOO_LARGE
        slot = self._slots.get(number)
        if slot is None or slot.state is not _OWNED:
            return _not_served(slot)
        slot.hits += 1
        if slot.pins:
            slot.detach()
        if not client:
            return _replay(self._write(slot, kind, key, value, expect, expected, ttl))
        session = slot.sessions.get(client)
        if session is None:
            if client <= slot.floor:
                return Result(Code.SESSION_EXPIRED, drawn_at(slot.floor) + 1, detail=_GONE)
            session = self._open_session(slot, client, first)
        else:
            if first > session.first:
                session.raise_first(first)
            if seq < session.first:
                return _EXPIRED_SESSION
            session.last = self.time
            done = session.find(seq)
            if done is not None:
                return _replay(done)
        outcome = self._write(slot, kind, key, value, expect, expected, ttl)
        session.record(seq, outcome)
        return _replay(outcome)

    def _write(
        self, slot: Slot, kind: int, key: bytes, value: bytes, expect: int, expected: bytes | None, ttl: int
    ) -> int:
        """Execute a write and return its outcome."""
        now = self.time
        old = slot.records.get(key)
        current, until = (0, 0) if old is None else head(old)
        if 0 < until <= now:
            current = 0
        if kind == _CAS:
            if (old is None or old[VALUE_AT:] != expected) if current else expected is not None:
                return failed(current)
        elif expect != ANY_VERSION and expect != current:
            return failed(current)
        if kind == _DELETE:
            if old is not None and current:
                slot.counter += 1
                self._ageing.remove(slot, key, old)
                if slot.dirty is not None:
                    slot.dirty.pop(key, None)
                    slot.dirty[key] = slot.counter
            return current
        version = slot.counter = slot.counter + 1
        if old is None:
            slot.order = None
            slot.bytes += len(key) + len(value)
        else:
            slot.bytes += len(value) + VALUE_AT - len(old)
            if until:
                slot.expiring -= 1
                self._expiry.live -= 1
        if ttl:
            slot.records[key] = pack_head(version, now + ttl) + value
            slot.expiring += 1
            self._expiry.push((now + ttl, slot.number, key, version))
        else:
            slot.records[key] = pack_head(version, 0) + value
        if slot.dirty is not None:
            slot.dirty.pop(key, None)
            slot.dirty[key] = version
        return version

    def _execute_short(self, command: object) -> Result:
        """Fields at the end of a command that have their defaults may be left out."""
        if isinstance(command, list | tuple):
            missing = _OP_FIELDS - len(command)
            if 0 < missing <= len(_OP_DEFAULTS):
                return self._execute((*command, *_OP_DEFAULTS[-missing:]))
        return MALFORMED

    def _housekeeping(self, kind: object, value: object) -> Result:
        if kind == Kind.TICK:
            return _DONE
        if kind == Kind.GENESIS and isinstance(value, bytes):
            return self._begin(value)
        if kind == Kind.CHECK and isinstance(value, bytes):
            return self._check(value)
        return self._moves.execute(kind, value, self.time, self._genesis)

    def _begin(self, value: bytes) -> Result:
        try:
            numbers = unpack(value)
        except ValueError:
            return MALFORMED
        if not isinstance(numbers, list) or not all(type(n) is int and 0 <= n <= MAX_SLOT for n in numbers):
            return MALFORMED
        if not self._genesis:
            self._genesis = True
            self._slots.update((number, Slot(number)) for number in sorted(set(numbers)))
        return _DONE

    def _check(self, value: bytes) -> Result:
        try:
            (check,) = unpack(value)
        except (ValueError, TypeError):
            return MALFORMED
        if type(check) is not int:
            return MALFORMED
        earlier = [one for one in self.checks if one != check][-1:]
        for one in list(self.checks):
            if one not in earlier:
                self.checks.pop(one).close()
        self.checks[check] = CheckDigest(self._rest(), self._images())
        return _DONE

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
        return StoreSnapshot(self._rest(), self._images())

    def begin_restore(self) -> StoreRestore:
        """Collects a snapshot's chunks; ``finish`` replaces the whole state by it."""
        return StoreRestore(self._install)

    def digest(self) -> bytes:
        """16 bytes; equal for equal states, however they came about."""
        return store_digest(self._rest(), self._slots.values())

    def _rest(self) -> Rest:
        return Rest(self.time, self._genesis, *self._moves.rows())

    def _images(self) -> list[SlotImage]:
        return [self._slots[number].image() for number in sorted(self._slots)]

    def _install(self, state: StoreState) -> None:
        self.time = state.time
        self._genesis = state.genesis
        self._slots.clear()
        self._slots.update((slot.number, slot) for slot in state.slots)
        self._ageing.restart()
        self._moves.install(state.ended, state.imports)
        for check in self.checks.values():
            check.close()
        self.checks.clear()


def _not_served(slot: Slot | None) -> Result:
    return _MOVING if slot is not None and slot.state is SlotState.FROZEN else _MOVED


def _replay(outcome: int) -> Result:
    """The result that an outcome stands for: of an execution and of each of its retries."""
    if outcome >= 0:
        return tuple.__new__(Result, (0, outcome, None, -1, 0, ""))
    code, version = code_and_version(outcome)
    return Result(code, version)
