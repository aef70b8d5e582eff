"""What tests of the store share: commands of moves, whole moves, copies by way of a snapshot."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from raftkv.commands.base import Command
from raftkv.commands.group import Genesis
from raftkv.commands.moving import Freeze, ImportBegin, ImportChunk, ImportFinal, Track
from raftkv.commands.ranges import Scan
from raftkv.commands.records import Put
from raftkv.commands.registry import decode_entry, encode_entry
from raftkv.commands.results import ExportPage, MoveReport, MoveSummary, Result, ScanPage
from raftkv.errors import Code
from raftkv.store.history import Event, event_of
from raftkv.store.records import Store
from raftkv.store.slot import SlotState

DONE = Result(Code.OK)
GROUP = 1
"""In commands for a group: a store does not ask which one it is."""

SOURCE_TIME, TARGET_TIME = 1_000, 5_000_000


def one(store: Store, op: Command, now: int = 0) -> Result:
    """Apply an entry with one command."""
    (result,) = store.apply(now, [op])
    return result


def logged(now: int, ops: Sequence[Command]) -> tuple[int, Sequence[Command], memoryview]:
    """An entry of the log, as replicas apply it."""
    return now, ops, memoryview(encode_entry(now, ops))


def restored(chunks: Iterable[bytes]) -> Store:
    """A new store with the state of a snapshot."""
    store = Store()
    restore = store.begin_restore()
    for chunk in chunks:
        restore.feed(chunk)
    restore.finish()
    return store


def make(*slots: int, now: int = SOURCE_TIME) -> Store:
    store = Store()
    store.apply(now, [Genesis(tuple(slots))])
    return store


def pair() -> tuple[Store, Store]:
    """Source of slots 0 and 1 with some content, and a target that has slot 9."""
    source, target = make(0, 1, 2), make(9, now=TARGET_TIME)
    for i in range(60):
        who = (i % 4 + 1).to_bytes(16, "big")
        source.apply(
            SOURCE_TIME + i,
            [Put(i % 3, b"key%d" % i, b"v" * i, ttl=500 if i % 5 == 0 else 0, client=who, seq=i + 1)],
        )
    return source, target


def state(store: Store, move: int = 7) -> MoveReport:
    found = store.move_state(move).answer
    assert isinstance(found, MoveReport)
    return found


def roles(store: Store, move: int = 7) -> tuple[str, str]:
    found = state(store, move)
    return found.source, found.target


def refused(store: Store, op: Command) -> str:
    """The step is refused and changes nothing; returns why."""
    before = store.digest()
    result = one(store, op)
    assert result.code == Code.CONDITION_FAILED
    assert store.digest() == before
    return result.detail


def no_change(store: Store, op: Command) -> None:
    """The step is answered as done and changes nothing."""
    before = store.digest()
    assert one(store, op).code == Code.OK
    assert store.digest() == before


def page(source: Store, target: Store, limit: int = 300, move: int = 7) -> tuple[ImportChunk, bool]:
    """The command that brings the next page to the target, and whether nothing is left after it."""
    at = state(target, move)
    found = exported(source, move, at.cursor, limit)
    return ImportChunk(GROUP, move, at.seq + 1, found.cursor, found.chunk), found.done


def exported(source: Store, move: int, cursor: bytes, limit: int) -> ExportPage:
    found = source.export(move, cursor, limit).answer
    assert isinstance(found, ExportPage)
    return found


def copy(source: Store, target: Store, limit: int = 300, move: int = 7) -> int:
    """Copy until nothing is left; returns the number of pages."""
    pages, done = 0, False
    while not done:
        chunk, done = page(source, target, limit, move)
        pages += 1
        assert one(target, chunk).code == Code.OK
    return pages


def begin(source: Store, target: Store, slots: tuple[int, ...] = (0, 1), move: int = 7) -> None:
    assert one(target, ImportBegin(GROUP, move, slots)) == DONE
    assert one(source, Track(GROUP, move, slots)) == DONE


def summary_of(source: Store, move: int) -> Result:
    """All of it, however many calls it takes."""
    while (result := source.summary(move)) is None:
        pass
    return result


def summary_bytes(source: Store, move: int = 7) -> bytes:
    """The encoded summary of a move whose slots are frozen."""
    found = summary_of(source, move).answer
    assert isinstance(found, MoveSummary)
    return found.summary


def final(source: Store, move: int = 7) -> ImportFinal:
    return ImportFinal(GROUP, move, summary_bytes(source, move))


def again(ops: Sequence[Command]) -> list[Command]:
    """The commands as a follower reads them from the log."""
    return decode_entry(encode_entry(0, ops))[1]


SLOTS = 256
"""For which a store is asked when it is scanned: few, and still as many as a cluster may have."""


def bits(*slots: int) -> bytes:
    """These slots as a scan names them."""
    return sum(1 << slot for slot in slots).to_bytes(SLOTS // 8, "little")


def scan_of(slot: int, start: bytes = b"", **more: Any) -> Scan:
    """A scan of one slot, unless ``more`` names others."""
    end, slots = more.pop("end", b""), more.pop("slots", None)
    return Scan(slot, start, end, bits(slot) if slots is None else slots, **more)


def content(store: Store, slot: int) -> list[tuple[bytes, Result]]:
    """What reads of a slot's keys give."""
    found = store.slot(slot)
    return [] if found is None else [(key, store.read(slot, key)) for key in sorted(found.records)]


def events_in(store: Store, slot: int) -> list[Event]:
    """The events of a slot that are kept."""
    image = store.history.image()
    found = [
        event_of(*items[at : at + 3])
        for items, length in image.runs({slot})
        for at in range(0, length, 3)
        if items[at] == slot
    ]
    home = store.slot(slot)
    if home is not None and home.state is not SlotState.IMPORTING:
        assert [event.number for event in found] == list(range(home.forgotten + 1, home.counter + 1))
    return found


def in_order(store: Store) -> bool:
    """Whether the store knows its keys in order: those of its slots, and of slots that are still being freed."""
    slots = [*store._slots.values(), *store.moves.trash]
    return list(store._slots.order) == sorted(key for slot in slots for key in slot.records)


def scanned(store: Store, op: Scan) -> ScanPage:
    found = store.scan(op).answer
    assert isinstance(found, ScanPage)
    return found


def stage(source: Store, target: Store, slots: tuple[int, ...] = (0, 1), move: int = 7) -> None:
    begin(source, target, slots, move)
    copy(source, target, move=move)
    assert one(source, Freeze(GROUP, move)) == DONE
    copy(source, target, move=move)
    assert one(target, final(source, move)) == DONE
