"""Expiry in a data group: expired records, idle sessions and results kept for retries that can no longer come are
removed at the same entry on all replicas.

An entry removes a bounded number of each, always those due first. So only removals may count towards the bound: which
stale items a replica's queues hold depends on when it was restored. A frozen slot must not change; what comes due in
one is held back until it is served again. A slot that is being imported keeps its source's times and is in no queue.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from heapq import heapify, heappop, heappush
from typing import Final

from raftkv import limits
from raftkv.store.expiry import Due, ExpiryQueue
from raftkv.store.history import Change
from raftkv.store.packed import Record, head, value_bytes
from raftkv.store.sessions import IDLE_MS, Keeps, Kept, Session
from raftkv.store.slot import Slot, Slots, SlotState

_RETRIED_MS: Final = limits.MAX_TIMEOUT * 1000


class Ageing:
    """The queues of the slots in ``slots``, which the owner fills. Not replicated: they follow from the slots."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self.expiry = ExpiryQueue(self._is_live)
        # (session.queued, slot, client), one for each session; items of removed sessions are stale.
        self._idle: list[tuple[int, int, bytes]] = []
        # (when it goes, slot, client, seq)
        self.kept = ExpiryQueue(self._is_kept)

    def run(self, now: int) -> None:
        """Remove what is due at ``now`` (group time in ms)."""
        if self.expiry.live:
            self._remove_expired(now)
        if self._idle and self._idle[0][0] <= now - IDLE_MS:
            self._remove_idle(now)
        if self.kept.live:
            self._remove_kept(now)

    def remove(self, slot: Slot, key: bytes, record: Record, change: Change) -> None:
        """Take a record out of a slot that is served, under the slot's next number; ``change`` is why."""
        slot.counter += 1
        del slot.records[key]
        self._slots.order.remove(key)
        slot.bytes -= len(key) + value_bytes(record)
        if head(record)[1]:
            slot.expiring -= 1
            self.expiry.live -= 1
        if slot.dirty is not None:
            slot.dirty.pop(key, None)
            slot.dirty[key] = slot.counter
        self._slots.history.add(slot.number, key, slot.counter, change)

    def add_session(self, slot: Slot, client: bytes, session: Session) -> None:
        heappush(self._idle, (session.queued, slot.number, client))

    def keep(self, slot: Slot, client: bytes, session: Session, seq: int, kept: Kept) -> None:
        """Record a result that is more than a version. If the slot keeps too much, the oldest go."""
        keeps = self._keeps(slot)
        if keeps.bytes + kept.size > limits.MAX_KEPT_BYTES:
            # Many at once, so that few writes pay for the search.
            ages = sorted(
                (one.time, name, number)
                for name, other in slot.sessions.items()
                if other.keeps is not None
                for number, one in other.kept()
            )
            for _, name, number in ages:
                if keeps.bytes <= limits.MAX_KEPT_BYTES // 2:
                    break
                other = slot.sessions[name]
                # Else another one took it along.
                if not isinstance(other.find(number) or 0, int):
                    other.forget(number)
        session.keeps = keeps
        keeps.add(kept)
        session.record(seq, kept)
        self.kept.push(_goes(slot, client, seq, kept))

    def _keeps(self, slot: Slot) -> Keeps:
        if slot.keeps is None:
            slot.keeps = Keeps(self.kept)
        return slot.keeps

    def _kept_in(self, slot: Slot) -> Iterator[Due]:
        """What a slot keeps that is new here: counted from now on."""
        slot.keeps = None
        for client, session in slot.sessions.items():
            for seq, kept in session.kept():
                session.keeps = self._keeps(slot)
                session.keeps.add(kept)
                yield _goes(slot, client, seq, kept)

    # Slots come, go, freeze

    def admit(self, slot: Slot, due: list[Due]) -> None:
        """A slot is served from now on; ``due``: its records that expire."""
        self.expiry.extend(due)
        self.kept.extend(list(self._kept_in(slot)))
        for client, session in slot.sessions.items():
            self.add_session(slot, client, session)

    def retire(self, slot: Slot) -> None:
        """A slot that was served or frozen has gone."""
        self.expiry.live -= slot.expiring
        if slot.keeps is not None:
            self.kept.live -= slot.keeps.count
        slot.held.clear()
        slot.held_idle.clear()
        slot.held_kept.clear()

    def resume(self, slot: Slot) -> None:
        """A slot was frozen and is served again."""
        self.expiry.give_back(slot.held)
        self.kept.give_back(slot.held_kept)
        for item in slot.held_idle:
            heappush(self._idle, item)
        slot.held, slot.held_idle, slot.held_kept = [], [], []

    def restart(self) -> None:
        """All slots are new."""
        slots = [slot for slot in self._slots.values() if slot.state is not SlotState.IMPORTING]
        self.expiry.restart(due for slot in slots for due in due_records(slot))
        self._idle[:] = [
            (session.queued, slot.number, client) for slot in slots for client, session in slot.sessions.items()
        ]
        heapify(self._idle)
        self.kept.restart(due for slot in slots for due in self._kept_in(slot))

    # Removal

    def _is_live(self, due: Due) -> bool:
        expires, number, key, version = due
        slot = self._slots.get(number)
        if slot is None or slot.state is SlotState.IMPORTING:
            return False
        record = slot.records.get(key)
        # A slot that came back has records of the same versions that expire at other times.
        return record is not None and head(record) == (version, expires)

    def _remove_expired(self, now: int) -> None:
        removed = 0
        while removed < limits.MAX_EXPIRED_PER_ENTRY:
            due = self.expiry.pop_due(now)
            if due is None:
                return
            slot = self._slots[due[1]]
            if slot.state is SlotState.FROZEN:
                slot.held.append(due)
                continue
            removed += 1
            if slot.pins:
                slot.detach()
            self.remove(slot, due[2], slot.records[due[2]], Change.EXPIRE)

    def _is_kept(self, due: Due) -> bool:
        goes, number, client, seq = due
        slot = self._slots.get(number)
        if slot is None or slot.state is SlotState.IMPORTING:
            return False
        session = slot.sessions.get(client)
        found = None if session is None else session.find(seq)
        return found is not None and not isinstance(found, int) and goes == found.time + _RETRIED_MS

    def _remove_kept(self, now: int) -> None:
        removed = 0
        while removed < limits.MAX_EXPIRED_PER_ENTRY and (due := self.kept.pop_due(now)) is not None:
            slot = self._slots[due[1]]
            if slot.state is SlotState.FROZEN:
                slot.held_kept.append(due)
                continue
            removed += 1
            if slot.pins:
                slot.detach()
            slot.sessions[due[2]].forget(due[3])

    def _remove_idle(self, now: int) -> None:
        """Close idle sessions, the longest idle first; look at a bounded number of them."""
        horizon = now - IDLE_MS
        looked_at = 0
        while self._idle and self._idle[0][0] <= horizon and looked_at < limits.MAX_EXPIRED_PER_ENTRY:
            item = queued, number, client = heappop(self._idle)
            slot = self._slots.get(number)
            if slot is None or slot.state is SlotState.IMPORTING:
                continue
            session = slot.sessions.get(client)
            if session is None or session.queued != queued:
                continue
            if slot.state is SlotState.FROZEN:
                slot.held_idle.append(item)
                continue
            looked_at += 1
            if slot.pins:
                slot.detach()
                session = slot.sessions[client]
            if session.last > horizon:
                # Used since it was queued: writes only note the time, which is what keeps them cheap.
                session.queued = session.last
                self.add_session(slot, client, session)
            else:
                slot.close_session(client)


def _goes(slot: Slot, client: bytes, seq: int, kept: Kept) -> Due:
    return kept.time + _RETRIED_MS, slot.number, client, seq


def due_records(slot: Slot) -> Iterable[Due]:
    """The records of a slot that expire."""
    if slot.expiring:
        for key, record in slot.records.items():
            version, expires = head(record)
            if expires:
                yield expires, slot.number, key, version
