"""Guarantee: slots that move between two groups, back and forth, with steps that are lost, repeated, late, cancelled,
serve as one store that never moved would: same answers, same versions, writes once, no time to live cut short.

The reference of a slot is a store that has only this slot, and its own time: it stands still while the slot is frozen.
So all answers are known exactly. The meta group is the one boolean that it decides for each move.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from raftkv import limits
from raftkv.commands.base import Command, Write
from raftkv.commands.group import Genesis
from raftkv.commands.moving import (
    Activate,
    Freeze,
    ImportBegin,
    ImportChunk,
    ImportDrop,
    Release,
    Track,
    Untrack,
)
from raftkv.commands.records import Cas, Delete, Put
from raftkv.commands.results import ExportPage, MoveReport, Result
from raftkv.commands.transactions import Check, DeleteStep, GetStep, IncrementStep, PutStep, Transact
from raftkv.commands.updates import Append, CompareAndDelete, GetAndDelete, Increment, Touch
from raftkv.errors import Code
from raftkv.store import history as history_module
from raftkv.store.records import Store
from raftkv.store.slot import SlotState
from tests.store_helpers import GROUP, again, events_in, final, in_order, logged, restored, scan_of, state

SLOTS = 3
IDLE = limits.SESSION_IDLE * 1000
KEYS = [b"a", b"b", b"c", b"d"]
VALUES = [b"", b"1", b"x" * 30]
KINDS = [Put, Put, Put, Delete, Cas, Increment, Append, Touch, GetAndDelete, CompareAndDelete, Transact, Transact]
NOT_HERE = (Code.MOVED, Code.SLOT_MOVING)


@pytest.fixture(scope="module", autouse=True)
def _small_blocks() -> Iterator[None]:
    """Entries of two puts are blocks of the history."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(history_module, "_BLOCK_EVENTS", 2)
        yield


@dataclass
class Move:
    id: int
    slots: list[int]
    source: int
    target: int
    committed: bool | None = None


@dataclass
class Group:
    """A store, a replica that is restored at other times, and one that lags."""

    store: Store
    replica: Store
    lagging: Store

    def apply(self, now: int, ops: list[Command]) -> list[Result]:
        results = self.store.apply(*logged(now, ops))
        assert self.replica.apply(*logged(now, again(ops))) == results
        assert self.store.digest() == self.replica.digest()
        return results


@dataclass
class World:
    exact: bool = True
    offsets: tuple[int, int] = (1_000, 5_000_000)
    wall: int = 0
    last_id: int = 0
    groups: list[Group] = field(default_factory=list)
    references: list[Store] = field(default_factory=list)
    # Reference time less the serving group's time; of a frozen slot, its time at the freeze.
    shifts: list[int] = field(default_factory=list)
    stopped: dict[int, int] = field(default_factory=dict)
    moves: list[Move] = field(default_factory=list)
    finished: int = 0
    sent: list[tuple[int, Command]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for number, slots in enumerate((list(range(SLOTS)), [])):
            stores = [Store(), Store(), Store()]
            for store in stores:
                store.apply(self.offsets[number], [Genesis(tuple(slots))])
            self.groups.append(Group(*stores))
        for slot in range(SLOTS):
            store = Store()
            store.apply(0, [Genesis((slot,))])
            self.references.append(store)
            self.shifts.append(-self.offsets[0])

    # Entries

    def entry(self, number: int, ops: list[Command]) -> list[Result]:
        """Apply an entry to a group and check everything."""
        group = self.groups[number]
        before = [group.store.slot_state(slot) for slot in range(SLOTS)]
        results = group.apply(self.wall + self.offsets[number], ops)
        now = group.store.time
        for slot in range(SLOTS):
            self.follow(number, slot, before[slot], group.store.slot_state(slot), now)
            if group.store.slot_state(slot) is SlotState.OWNED:
                asked = [(op, result) for op, result in zip(ops, results, strict=True) if self.is_write(op, slot)]
                time = now + self.shifts[slot]
                assert time <= self.wall, "time runs no faster for having moved"
                wanted = self.references[slot].apply(time, [op for op, _ in asked])
                if self.exact:
                    assert wanted == [result for _, result in asked]
            else:
                assert all(
                    one.code in NOT_HERE for op, one in zip(ops, results, strict=True) if self.is_write(op, slot)
                )
        self.check()
        return results

    @staticmethod
    def is_write(op: Command, slot: int) -> bool:
        return isinstance(op, Write) and op.slot == slot

    def follow(self, number: int, slot: int, old: SlotState | None, new: SlotState | None, now: int) -> None:
        """A slot's state may have changed: only as the meta group allows, and then its time runs differently."""
        if old is new:
            return
        if new is SlotState.FROZEN:
            assert old is SlotState.OWNED
            self.stopped[slot] = now + self.shifts[slot]
        elif new is SlotState.OWNED:
            (move,) = [one for one in self.moves if slot in one.slots]
            if old is SlotState.FROZEN:
                assert (move.committed, move.source) == (False, number)
            else:
                assert (old, move.committed, move.target) == (SlotState.IMPORTING, True, number)
                self.shifts[slot] = self.stopped[slot] - now
        elif old in (SlotState.OWNED, SlotState.FROZEN):
            (move,) = [one for one in self.moves if slot in one.slots]
            assert (old, new, move.committed, move.source) == (SlotState.FROZEN, None, True, number)

    def check(self) -> None:
        assert all(in_order(group.store) for group in self.groups)
        for slot in range(SLOTS):
            serving = [one.store for one in self.groups if one.store.slot_state(slot) is SlotState.OWNED]
            assert len(serving) <= 1
            for group in self.groups:
                store = group.store
                if store not in serving:
                    assert store.read(slot, b"a").code in NOT_HERE
                    assert store.scan(scan_of(slot)).code in NOT_HERE
                elif self.exact:
                    reference = self.references[slot]
                    for key in KEYS:
                        assert store.read(slot, key) == reference.read(slot, key)
                    # Each of them may have let older ones go.
                    events, wanted = events_in(store, slot), events_in(reference, slot)
                    most = min(len(events), len(wanted))
                    assert events[len(events) - most :] == wanted[len(wanted) - most :]
                    assert store.slot(slot).counter == reference.slot(slot).counter  # type: ignore[union-attr]

    # Moves

    def start(self, first: int, slots: list[int]) -> None:
        busy = {slot for move in self.moves for slot in move.slots}
        source = first if any(self.serves(first, slot) for slot in slots) else 1 - first
        slots = [slot for slot in slots if slot not in busy and self.serves(source, slot)]
        if slots:
            self.last_id += 1
            self.moves.append(Move(self.last_id, slots, source, 1 - source))

    def serves(self, number: int, slot: int) -> bool:
        return self.groups[number].store.slot_state(slot) is SlotState.OWNED

    def state(self, number: int, move: Move) -> MoveReport:
        return state(self.groups[number].store, move.id)

    def drive(self, move: Move, limit: int, fate: str, hasty: bool) -> None:
        """What any driver does next, knowing what the groups and the meta group say."""
        source = self.state(move.source, move).source
        target = self.state(move.target, move).target
        assert self.state(move.source, move).target == "none"
        assert self.state(move.target, move).source == "none"
        if move.committed is None:
            self.copy(move, source, target, limit, fate, hasty)
        elif move.committed:
            if target != "active" and (hasty or source == "released"):
                self.send(move.target, Activate(GROUP, move.id), fate)
            elif source != "released":
                self.send(move.source, Release(GROUP, move.id), fate)
            else:
                self.finish(move)
        elif source != "cancelled" and (hasty or target == "cancelled"):
            self.send(move.source, Untrack(GROUP, move.id, tuple(move.slots)), fate)
        elif target != "cancelled":
            self.send(move.target, ImportDrop(GROUP, move.id, tuple(move.slots)), fate)
        else:
            self.finish(move)

    def copy(self, move: Move, source: str, target: str, limit: int, fate: str, hasty: bool) -> None:
        if target == "none":
            self.send(move.target, ImportBegin(GROUP, move.id, tuple(move.slots)), fate)
        elif source == "none":
            self.send(move.source, Track(GROUP, move.id, tuple(move.slots)), fate)
        elif target == "staged":
            move.committed = True
        else:
            self.page(move, source, limit, fate, hasty)

    def page(self, move: Move, source: str, limit: int, fate: str, hasty: bool) -> None:
        state, store = self.state(move.target, move), self.groups[move.source].store
        exporter = self.groups[move.source].lagging if fate == "lag" else store
        page = exporter.export(move.id, state.cursor, limit)
        if page.code != Code.OK:
            assert (fate, page.code) == ("lag", Code.CONDITION_FAILED)
            return
        found = page.answer
        assert isinstance(found, ExportPage)
        cursor, blob, done = found.cursor, found.chunk, found.done
        assert found.records >= 0 <= found.record_bytes
        if done and source == "frozen" and cursor == state.cursor and exporter is store:
            self.send(move.target, final(store, move.id), fate)
        elif done and source == "tracked" and (hasty or cursor == state.cursor):
            self.send(move.source, Freeze(GROUP, move.id), fate)
        else:
            self.send(move.target, ImportChunk(GROUP, move.id, state.seq + 1, cursor, blob), fate)

    def send(self, number: int, op: Command, fate: str) -> None:
        self.sent.append((number, op))
        for _ in range({"delay": 0, "twice": 2}.get(fate, 1)):
            (result,) = self.entry(number, [op])
            assert result.code in (Code.OK, Code.CONDITION_FAILED)
            assert result.detail != "digest differs"

    def cancel(self, move: Move) -> None:
        """The meta group decides, unless it has decided before."""
        if move.committed is None:
            move.committed = False

    def restore(self, number: int, which: str) -> None:
        """Replace a store, or bring the one that lags up to date."""
        group = self.groups[number]
        setattr(group, which, restored(group.store.snapshot().chunks()))
        assert group.store.digest() == group.replica.digest()
        self.check()

    def late(self, place: int) -> None:
        """Some former command arrives, perhaps again. ``place``: how many commands ago it was sent."""
        self.send(*self.sent[-(1 + place % len(self.sent))], "once")

    def finish(self, move: Move) -> None:
        self.moves.remove(move)
        self.finished += bool(move.committed)

    def settle(self) -> None:
        """Let all moves end."""
        for _ in range(1000):
            if not self.moves:
                break
            self.drive(self.moves[0], 100, "once", True)
        assert not self.moves
        for slot in range(SLOTS):
            assert sum(self.serves(number, slot) for number in (0, 1)) == 1
        for group in self.groups:
            assert all(found[3] >= 0 for found in group.store.slot_stats())


Action = tuple[Any, ...]
Pick = Callable[[Sequence[Any]], Any]
"""Makes one choice: Hypothesis, or a random number generator for many more and longer histories."""


def write(pick: Pick) -> Command:
    who, seq = pick([0, 1, 2, 3]), pick([1, 2, 3, 4, 5, 6, 7, 8])
    slot, key = pick(range(SLOTS)), pick(KEYS)
    name = {"client": who.to_bytes(16, "big"), "seq": seq, "first": pick(range(seq + 1))} if who else {}
    kind, expect, expected = pick(KINDS), pick([-1, -1, -1, 0, 1, 2, 3]), pick([None, *VALUES])
    value, ttl = pick(VALUES), pick([0, 0, 1, 5, 1000])
    if kind is Put:
        return Put(slot, key, value, expect, ttl, **name)
    if kind is Delete:
        return Delete(slot, key, expect, **name)
    if kind is Cas:
        return Cas(slot, key, value, expected, ttl, **name)
    if kind is Increment:
        return Increment(slot, key, pick([1, -3]), ttl, **name)
    if kind is Append:
        return Append(slot, key, value, ttl, **name)
    if kind is Touch:
        return Touch(slot, key, ttl, expect, **name)
    if kind is GetAndDelete:
        return GetAndDelete(slot, key, **name)
    if kind is CompareAndDelete:
        return CompareAndDelete(slot, key, value, **name)
    checks = (Check(pick(KEYS), pick([0, 1, 2])),) if pick([False, True]) else ()
    steps = (PutStep(b"a", value, ttl), GetStep(b"a"), IncrementStep(b"b", 1, ttl), DeleteStep(b"c"))
    return Transact(slot, checks, steps[: pick([2, 4])], steps[3:], **name)


def action(pick: Pick) -> Action:
    name = pick(["write"] * 4 + ["start"] + ["drive"] * 6 + ["late", "late", "cancel", "restore"])
    if name == "write":
        passed = pick([0, 0, 0, 1, 1, 4, 900, IDLE // 2, IDLE])
        return name, passed, pick([0, 1]), [write(pick) for _ in range(pick([0, 1, 2, 5]))]
    if name == "start":
        return name, pick([0, 1]), pick([[0], [1], [2, 0], [1, 2], [0, 1, 2]])
    if name == "drive":
        fate = pick(["once", "once", "once", "once", "twice", "delay", "lag"])
        return name, pick([0, 0, 1]), pick([1, 60, 1000]), fate, pick([False, True]), pick([1, 2, 4])
    if name == "late":
        return name, pick([1, 1, 2, 3, 5, 8, 20, 100])
    if name == "cancel":
        return name, pick([0, 1, 9, 9])
    return name, pick([0, 1]), pick(["store", "replica", "lagging"])


@st.composite
def histories(draw: st.DrawFn) -> list[Action]:
    length = draw(st.integers(0, 80))
    return [action(lambda options: draw(st.sampled_from(options))) for _ in range(length)]


def run(world: World, history: list[Action]) -> None:
    for name, *details in history:
        if name == "write":
            passed, number, ops = details
            world.wall += passed
            world.entry(number, ops)
        elif name == "start":
            world.start(*details)
        elif name == "drive":
            which, limit, fate, hasty, times = details
            for _ in range(times):
                if which < len(world.moves):
                    world.drive(world.moves[which], limit, fate, hasty)
        elif name == "late" and world.sent:
            world.late(*details)
        elif name == "cancel" and details[0] < len(world.moves):
            world.cancel(world.moves[details[0]])
        elif name == "restore":
            world.restore(*details)
    world.settle()


# Group times: far apart, so that times change with a move; or equal, so that what is stale looks like what is not.
OFFSETS = [(1_000, 5_000_000), (5_000_000, 1_000), (0, 0)]
SETTINGS = settings(
    derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@settings(SETTINGS, max_examples=150)
@given(histories(), st.sampled_from(OFFSETS))
def test_moving_slots_serve_as_one_store_would(history: list[Action], offsets: tuple[int, int]) -> None:
    world = World(offsets=offsets)
    run(world, history)
    event(f"moves finished: {min(world.finished, 5)}")


@pytest.mark.parametrize("offsets", OFFSETS)
def test_long_histories_too(offsets: tuple[int, int]) -> None:
    finished = 0
    for seed in range(60):
        rng, world = Random(seed), World(offsets=offsets)
        run(world, [action(rng.choice) for _ in range(150)])
        finished += world.finished
    assert finished > 60


@pytest.mark.parametrize("seed", range(4))
def test_replicas_agree_when_each_entry_may_remove_only_one(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is due and waits differs between the queues of replicas: what is removed must not."""
    monkeypatch.setattr(limits, "MAX_EXPIRED_PER_ENTRY", 1)
    monkeypatch.setattr(limits, "MAX_FREED_PER_ENTRY", 1)
    for each in range(20):
        rng = Random(100 * seed + each)
        run(World(exact=False), [action(rng.choice) for _ in range(150)])
