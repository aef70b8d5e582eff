"""The steps of slot moves between groups, as a group's state machine takes them, at the source and at the target.

A move has an id, greater than those of all earlier moves of its slots. For each slot the group remembers the last move
that ended here and how, so a command that is repeated or late finds its move over and does nothing: at any time a slot
takes part in no move, or in one whose id is greater than that. All slots of a move take each step together.

Target: begin (hidden staging slots), chunks, final (staged, if what was copied is what the source has), activate.
Source: track (serves, and remembers what changes), freeze (refuses everything), release (has gone).
Either: drop, untrack. Only the meta group's log decides between activate with release, and drop with untrack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Final

from raftkv import limits
from raftkv.commands.base import Command
from raftkv.commands.moving import ImportChunk, ImportFinal, MoveStep
from raftkv.commands.results import DONE, MALFORMED, MoveReport, MoveSummary, Result
from raftkv.errors import Code
from raftkv.store.ageing import Ageing, due_records
from raftkv.store.copying import Summary, export, load
from raftkv.store.digest import ContentDigest, content_digest
from raftkv.store.history import events_of, number_of
from raftkv.store.packed import VALUE_AT, pack_head
from raftkv.store.slot import Slot, Slots, SlotState

_NEVER: Final = (0, 0)
_PIECES: Final = 24
"""Of a digest that are made before the loop goes on to something else: some milliseconds."""

_OWNED: Final = SlotState.OWNED
_FROZEN: Final = SlotState.FROZEN
_IMPORTING: Final = SlotState.IMPORTING


class Ending(IntEnum):
    """How a move ended for a slot. Numbers are part of snapshots."""

    RELEASED = 1
    UNTRACKED = 2
    ACTIVATED = 3
    DROPPED = 4


@dataclass
class Import:
    """A move at its target. ``slots``: ascending. ``seq``: last chunk applied; ``cursor``: where the next one begins.

    ``frozen``: group time of the source (ms) when it froze the slots, known once the import is staged. ``events``: that
    have come, as they stand in a history: only added to, or replaced.
    """

    move: int
    slots: tuple[int, ...]
    seq: int = 0
    cursor: bytes = b""
    frozen: int | None = None
    events: list[Any] = field(default_factory=list)

    def take(self, events: list[Any], slots: Mapping[int, Slot]) -> None:
        """Further events of its slots. What is missing before one had gone from the source's history."""
        for number, body in zip(events[::3], events[2::3], strict=True):
            slot, here = slots[number], number_of(body)
            if here != slot.counter + 1:
                if slot.counter:
                    self.keep(dict.fromkeys((other for other in self.slots if other != number), 0))
                slot.forgotten = here - 1
            slot.counter = here
        self.events += events

    def keep(self, forgotten: Mapping[int, int]) -> None:
        """Only events of these slots, above these numbers."""
        self.events = [part for event in events_of(self.events, forgotten) for part in event]


class Moves:
    """The moves that a group takes part in. ``slots`` and ``ageing`` are shared with the group's store.

    ``ended``: by slot, the last move that ended here and how. ``imports``: by id, the moves towards this group.
    ``trash``: slots that have gone and whose memory has not; not replicated.
    """

    def __init__(self, slots: Slots, ageing: Ageing) -> None:
        self.ended: dict[int, tuple[int, int]] = {}
        self.imports: dict[int, Import] = {}
        self.trash: list[Slot] = []
        self._slots = slots
        self._ageing = ageing
        self._summary: tuple[int, ContentDigest] | None = None
        self._staged: ContentDigest | None = None

    def install(self, ended: dict[int, tuple[int, int]], imports: Iterable[Import]) -> None:
        """Replace everything, after the slots."""
        self.ended = ended
        self.imports = {one.move: one for one in imports}
        self.trash.clear()
        self._forget_digests()

    def _forget_digests(self) -> None:
        if self._summary is not None:
            self._summary[1].close()
        if self._staged is not None:
            self._staged.close()
        self._summary = self._staged = None

    def rows(self) -> tuple[list[list[Any]], list[list[Any]], dict[int, tuple[list[Any], int]]]:
        """``ended`` and ``imports`` as plain values, in a canonical order; and the events of the imports."""
        ended = [[slot, *self.ended[slot]] for slot in sorted(self.ended)]
        imports = [self.imports[move] for move in sorted(self.imports)]
        rows = [[one.move, one.seq, one.cursor, one.frozen, list(one.slots)] for one in imports]
        return ended, rows, {one.move: (one.events, len(one.events)) for one in imports if one.events}

    def free(self) -> None:
        """Free a bounded part of the trash."""
        left, kept = limits.MAX_FREED_PER_ENTRY, []
        while self.trash and left:
            slot = self.trash.pop()
            # A snapshot may still be reading it.
            if not slot.pins:
                left -= slot.free(left, self._slots.order)
            if slot.pins or not left:
                kept.append(slot)
        self.trash += kept

    # Reads

    def state(self, move: int) -> Result:
        """See :meth:`raftkv.store.records.Store.move_state`."""
        source, target = "none", "none"
        slots, one = self._tracked(move), self.imports.get(move)
        if one is not None:
            slots = [self._slots[number] for number in one.slots]
            target = "importing" if one.frozen is None else "staged"
        elif slots:
            source = "frozen" if slots[0].state is _FROZEN else "tracked"
        elif self._has_ended(move, Ending.RELEASED):
            source = "released"
        elif self._has_ended(move, Ending.UNTRACKED):
            source = "cancelled"
        elif self._has_ended(move, Ending.ACTIVATED):
            target = "active"
        elif self._has_ended(move, Ending.DROPPED):
            target = "cancelled"
        report = MoveReport(
            source,
            target,
            seq=0 if one is None else one.seq,
            cursor=b"" if one is None else one.cursor,
            records=sum(len(slot.records) for slot in slots),
            record_bytes=sum(slot.bytes for slot in slots),
        )
        return Result(Code.OK, answer=report)

    def export(self, move: int, cursor: bytes, limit_bytes: int) -> Result:
        """See :meth:`raftkv.store.records.Store.export`."""
        slots = self._tracked(move)
        if not slots:
            return _refused("not the source of the move")
        return export(slots, self._slots.history, cursor, limit_bytes)

    def summary(self, move: int) -> Result | None:
        """See :meth:`raftkv.store.records.Store.summary`."""
        slots = self._tracked(move)
        if not slots or slots[0].state is not _FROZEN:
            return _refused("the slots are not frozen")
        if self._summary is None or self._summary[0] != move:
            if self._summary is not None:
                self._summary[1].close()
            events = self._slots.history.image().runs({slot.number for slot in slots})
            self._summary = (move, ContentDigest(slots, events, [slot.forgotten for slot in slots], slots[0].frozen))
        digest = self._summary[1]
        content = digest.advance(_PIECES)
        if content is None:
            return None
        summary = Summary.of(slots, digest.forgotten, content)
        return Result(Code.OK, answer=MoveSummary(summary.records, summary.encode()))

    def prepare(self, commands: Sequence[Command]) -> bool:
        """See :meth:`raftkv.store.records.Store.prepare`."""
        for command in commands:
            if isinstance(command, ImportFinal):
                return self._prepare_final(command)
            if isinstance(command, MoveStep):
                # It may change what would be digested.
                break
        return True

    def _prepare_final(self, command: ImportFinal) -> bool:
        try:
            one, summary = self.imports[command.move], Summary.decode(command.summary)
        except (ValueError, KeyError):
            # To be refused when it is applied.
            return True
        if one.frozen is not None or summary.numbers != one.slots:
            return True
        slots = [self._slots[number] for number in one.slots]
        if self._staged is None or not self._staged.is_of(slots, summary.forgotten, summary.frozen):
            if self._staged is not None:
                self._staged.close()
            events = [(one.events, len(one.events))]
            self._staged = ContentDigest(slots, events, summary.forgotten, summary.frozen)
        return self._staged.advance(_PIECES) is not None

    def _digest_staged(self, one: Import, slots: list[Slot], summary: Summary) -> tuple[int, bytes]:
        digest, self._staged = self._staged, None
        found = None
        if digest is not None:
            if digest.is_of(slots, summary.forgotten, summary.frozen):
                found = digest.result
            digest.close()
        if found is None:
            events = [(one.events, len(one.events))]
            found = content_digest(slots, events, summary.forgotten, summary.frozen)
        return found

    # Steps of the target

    def import_begin(self, move: int, numbers: Sequence[int], *, genesis: bool) -> Result:
        """``genesis``: whether the group has got its first slots."""
        if len(set(numbers)) != len(numbers):
            return MALFORMED
        if not genesis:
            return _refused("the group is not initialised")
        running = self.imports.get(move)
        if running is not None:
            return DONE if running.slots == tuple(sorted(numbers)) else _refused("the move has other slots")
        if self._tracked(move):
            return _refused("the group is the source of the move")
        replaced = set()
        for number in numbers:
            home = self._slots.get(number)
            if home is not None and home.state is not _IMPORTING:
                return _refused(f"the group has slot {number}")
            if move <= self._ended(number)[0]:
                return _refused(f"the move is over for slot {number}")
            if home is not None:
                if move < home.move:
                    return _refused(f"slot {number} takes part in move {home.move}")
                replaced.add(home.move)
        for older in sorted(replaced):
            self._drop(self.imports[older])
        self.imports[move] = Import(move, tuple(sorted(numbers)))
        for number in numbers:
            self._slots.add(Slot(number, _IMPORTING, move))
        return DONE

    def import_chunk(self, command: ImportChunk) -> Result:
        one, seq = self.imports.get(command.move), command.seq
        if one is None:
            return _refused("not the target of the move")
        if one.frozen is not None or seq != one.seq + 1:
            return _refused("not the next chunk", one.seq)
        try:
            start, parts, events = load(command.chunk)
        except ValueError:
            return MALFORMED
        if not {*(part.slot for part in parts), *events[::3]} <= set(one.slots):
            return MALFORMED
        if start != one.cursor:
            return _refused("the chunk does not begin where the last one ended", one.seq)
        order = self._slots.order
        for part in parts:
            slot = self._slots[part.slot]
            if slot.pins:
                slot.detach()
            for key, record in part.records:
                if slot.store(key, record):
                    order.add(key)
            for key in part.deleted:
                if slot.discard(key):
                    order.remove(key)
            slot.sessions.update(part.sessions)
        one.take(events, self._slots)
        one.seq, one.cursor = seq, command.cursor
        return Result(Code.OK, number=seq)

    def import_final(self, move: int, data: bytes) -> Result:
        one = self.imports.get(move)
        if one is None:
            return _refused("not the target of the move")
        try:
            summary = Summary.decode(data)
        except ValueError:
            return MALFORMED
        if summary.numbers != one.slots:
            return MALFORMED
        if one.frozen is not None:
            return DONE
        slots = [self._slots[number] for number in one.slots]
        if self._digest_staged(one, slots, summary) != (summary.records, summary.digest):
            for slot in slots:
                self.trash.append(slot)
                self._slots.add(Slot(slot.number, _IMPORTING, move))
            one.seq, one.cursor, one.events = 0, b"", []
            return _refused("digest differs")
        for slot, (_, counter, floor, forgotten) in zip(slots, summary.slots, strict=True):
            slot.counter, slot.floor, slot.forgotten = counter, floor, forgotten
        one.keep({slot.number: slot.forgotten for slot in slots})
        one.frozen = summary.frozen
        return DONE

    def activate(self, move: int, now: int) -> Result:
        one = self.imports.get(move)
        if one is None:
            return DONE if self._has_ended(move, Ending.ACTIVATED) else _refused("not the target of the move")
        if one.frozen is None:
            return _refused("not staged")
        self._slots.history.items += one.events
        for number in one.slots:
            self._serve(self._slots[number], now - one.frozen)
            self.ended[number] = (move, Ending.ACTIVATED)
        del self.imports[move]
        return DONE

    def _serve(self, slot: Slot, shift: int) -> None:
        """Serve a staged slot. ``shift``: this group's time less the source's time at the freeze.

        The source's time stood still from then on, so what was left of a time to live then is left now.
        """
        # What has expired has so here too, and never at 0, which is never.
        due = [(max(expires + shift, 1), number, key, version) for expires, number, key, version in due_records(slot)]
        if slot.pins and (due or slot.sessions):
            slot.detach()
        for expires, _, key, version in due:
            slot.records[key] = pack_head(version, expires) + slot.records[key][VALUE_AT:]
        for session in slot.sessions.values():
            session.shift(shift)
        slot.state, slot.move = _OWNED, 0
        self._ageing.admit(slot, due)

    def import_drop(self, move: int, numbers: Sequence[int]) -> Result:
        if len(set(numbers)) != len(numbers):
            return MALFORMED
        problem = self._may_end(move, numbers, Ending.DROPPED, lambda slot: slot.state is _IMPORTING)
        if problem is not None:
            return problem
        homes = [self._slots[number] for number in numbers if number in self._slots]
        for older in sorted({move, *(home.move for home in homes if 0 < home.move < move)}):
            one = self.imports.get(older)
            if one is not None:
                self._drop(one)
        self._end(move, numbers, Ending.DROPPED)
        return DONE

    def _drop(self, one: Import) -> None:
        self._forget_digests()
        for number in one.slots:
            self.trash.append(self._slots.take(number))
        self._end(one.move, one.slots, Ending.DROPPED)
        del self.imports[one.move]

    # Steps of the source

    def track(self, move: int, numbers: Sequence[int]) -> Result:
        if len(set(numbers)) != len(numbers):
            return MALFORMED
        running = self._tracked(move)
        if running:
            same = [slot.number for slot in running] == sorted(numbers)
            return DONE if same else _refused("the move has other slots")
        if move in self.imports:
            return _refused("the group is the target of the move")
        for number in numbers:
            home = self._slots.get(number)
            if home is None or home.state is not _OWNED:
                return _refused(f"the group does not serve slot {number}")
            if home.move:
                return _refused(f"slot {number} takes part in move {home.move}")
            if move <= self._ended(number)[0]:
                return _refused(f"the move is over for slot {number}")
        for number in numbers:
            self._slots[number].track(move)
        return DONE

    def freeze(self, move: int, now: int) -> Result:
        slots = self._tracked(move)
        if not slots:
            return _refused("not the source of the move")
        for slot in slots:
            if slot.state is _OWNED:
                slot.state, slot.frozen = _FROZEN, now
        return DONE

    def release(self, move: int) -> Result:
        slots = self._tracked(move)
        if not slots:
            return DONE if self._has_ended(move, Ending.RELEASED) else _refused("not the source of the move")
        if slots[0].state is not _FROZEN:
            return _refused("the slots are not frozen")
        self._forget_digests()
        self._slots.history.forget({slot.number for slot in slots})
        for slot in slots:
            self._ageing.retire(slot)
            self.trash.append(self._slots.take(slot.number))
            self.ended[slot.number] = (move, Ending.RELEASED)
        return DONE

    def untrack(self, move: int, numbers: Sequence[int]) -> Result:
        if len(set(numbers)) != len(numbers):
            return MALFORMED
        problem = self._may_end(
            move, numbers, Ending.UNTRACKED, lambda slot: slot.move == move and slot.state is not _IMPORTING
        )
        if problem is not None:
            return problem
        self._forget_digests()
        for slot in self._tracked(move):
            slot.untrack()
            self._ageing.resume(slot)
            self.ended[slot.number] = (move, Ending.UNTRACKED)
        self._end(move, numbers, Ending.UNTRACKED)
        return DONE

    # Both

    def _tracked(self, move: int) -> list[Slot]:
        """Slots of which the group is the source, ascending; all in the same state."""
        found = [slot for slot in self._slots.values() if slot.move == move and slot.state is not _IMPORTING]
        found.sort(key=lambda slot: slot.number)
        return found

    def _ended(self, number: int) -> tuple[int, int]:
        return self.ended.get(number, _NEVER)

    def _has_ended(self, move: int, ending: Ending) -> bool:
        return (move, ending) in self.ended.values()

    def _may_end(
        self, move: int, numbers: Sequence[int], ending: Ending, mine: Callable[[Slot], bool]
    ) -> Result | None:
        """Why a move may not be cancelled for these slots: it ended otherwise, or they are in another role or move."""
        for number in numbers:
            last, how = self._ended(number)
            if last == move and how != ending:
                return _refused(f"the move has ended otherwise for slot {number}")
            home = self._slots.get(number)
            if home is not None and 0 < home.move <= move and not mine(home):
                return _refused(f"slot {number} takes part in move {home.move}")
        return None

    def _end(self, move: int, numbers: Iterable[int], ending: Ending) -> None:
        """Remember that a move is over for these slots, but for those that a later one has taken up or ended for."""
        for number in numbers:
            home = self._slots.get(number)
            if move > self._ended(number)[0] and not (home is not None and home.move > move):
                self.ended[number] = (move, ending)


def _refused(detail: str, number: int = 0) -> Result:
    return Result(Code.CONDITION_FAILED, detail=detail, number=number)
