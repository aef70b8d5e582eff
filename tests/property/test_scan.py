"""Guarantee: a scan gives in order and once each what stood throughout, whatever is written and moved meanwhile, and
whenever its pages are read and arrive."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import reduce
from itertools import count
from operator import or_
from typing import Final

from hypothesis import given, settings
from hypothesis import strategies as st

from raftkv.client.arguments import BEYOND, key_range
from raftkv.client.scan import Ask, Merge
from raftkv.client.types import Record
from raftkv.commands.moving import Activate, Freeze, Release
from raftkv.commands.ranges import Content, Scan
from raftkv.commands.records import Delete, Put
from raftkv.commands.results import ScanPage
from raftkv.errors import Code
from raftkv.store.records import Store
from raftkv.store.slot import SlotState
from shards.slots import slot_of
from tests.store_helpers import GROUP, SLOTS, begin, copy, final, in_order, make, one, scanned

TAGS: Final = [next(tag for tag in map(str, count()) if slot_of(tag.encode(), SLOTS) == slot) for slot in (3, 4, 200)]
KEYS: Final = sorted(f"{name}{{{tag}}}".encode() for name in "abcdef" for tag in TAGS)
ALL: Final = (1 << SLOTS) - 1


@dataclass
class World:
    """Two groups, and what a client has under way. ``there``: what each key had and has been since the scan began."""

    groups: list[Store] = field(default_factory=lambda: [make(*range(128)), make(*range(128, SLOTS), now=9_000_000)])
    owners: list[int] = field(default_factory=lambda: [int(slot >= 128) for slot in range(SLOTS)])
    """By slot, as the map has it."""
    moving: tuple[int, int, int] | None = None
    moves: int = 0
    versions: dict[bytes, int] = field(default_factory=dict)
    there: dict[bytes, set[int]] = field(default_factory=dict)

    def home(self, slot: int) -> Store | None:
        return next((store for store in self.groups if store.slot_state(slot) is SlotState.OWNED), None)

    def write(self, key: bytes, *, there: bool) -> None:
        slot = slot_of(key, SLOTS)
        store = self.home(slot)
        if store is None:
            return
        done = one(store, Put(slot, key, b"v") if there else Delete(slot, key))
        assert done.code == Code.OK
        self.versions[key] = done.version if there else 0
        self.there.setdefault(key, {0}).add(self.versions[key])

    def move(self, slot: int) -> None:
        """Begin a move up to the freeze, or end the one that is under way."""
        if self.moving is None:
            self.moves += 1
            source = 0 if self.groups[0].slot_state(slot) is SlotState.OWNED else 1
            self.moving = (slot, source, self.moves)
            there, here = self.groups[source], self.groups[1 - source]
            begin(there, here, (slot,), self.moves)
            copy(there, here, move=self.moves)
            one(there, Freeze(GROUP, self.moves))
            return
        (slot, source, number), self.moving = self.moving, None
        there, here = self.groups[source], self.groups[1 - source]
        copy(there, here, move=number)
        one(here, final(there, number))
        self.owners = [*self.owners[:slot], 1 - source, *self.owners[slot + 1 :]]
        one(here, Activate(GROUP, number))
        one(there, Release(GROUP, number))

    def read(self, ask: Ask, *, reverse: bool, content: Content) -> ScanPage | None:
        """None: its first slot is on its way."""
        slot = (ask.slots & -ask.slots).bit_length() - 1
        store = self.home(slot)
        slots, end = ask.slots.to_bytes(SLOTS // 8, "little"), b"" if ask.end == BEYOND else ask.end
        op = Scan(slot, ask.start, end, slots, 0, 30, reverse=reverse, content=content)
        return None if store is None else scanned(store, op)


ACTIONS: Final = st.one_of(
    st.tuples(st.sampled_from(["put", "delete"]), st.integers(0, len(KEYS) - 1)),
    st.tuples(st.just("move"), st.sampled_from([3, 4, 200])),
    st.tuples(st.sampled_from(["ask", "read", "take"]), st.integers(0, 3)),
)


@settings(derandomize=True, max_examples=150, deadline=None)
@given(
    st.sets(st.sampled_from(KEYS)),
    st.lists(ACTIONS, max_size=60),
    st.booleans(),
    st.sampled_from([None, "c", "b{"]),
    st.sampled_from([None, "b"]),
    st.booleans(),
)
def test_what_stood_throughout_comes_once_and_in_order(
    first: set[bytes],
    actions: list[tuple[str, int]],
    reverse: bool,
    prefix: str | None,
    start: str | None,
    counts: bool,
) -> None:
    world = World()
    for key in sorted(first):
        world.write(key, there=True)
    world.there = {key: {world.versions.get(key, 0)} for key in KEYS}
    keys = key_range(prefix, start, None)
    merge = Merge(ALL, keys.start, keys.end, reverse=reverse)
    content = Content.COUNT if counts else Content.RECORDS
    asked: list[Ask] = []
    pages: list[tuple[Ask, ScanPage]] = []
    seen: list[Record] = []
    counted = 0

    def act(action: str, number: int) -> None:
        nonlocal counted
        if action in ("put", "delete"):
            world.write(KEYS[number], there=action == "put")
        elif action == "move":
            world.move(number)
        elif action == "ask":
            asked.extend(merge.asks(world.owners if number else world.owners[::-1]))
            assert len({ask.group for ask in asked}) == len(asked)
            busy = [*asked, *(ask for ask, _ in pages)]
            assert sum(ask.slots.bit_count() for ask in busy) == reduce(or_, (ask.slots for ask in busy), 0).bit_count()
        elif action == "read" and number < len(asked):
            page = world.read(asked[number], reverse=reverse, content=content)
            if page is not None:
                pages.append((asked.pop(number), page))
        elif action == "take" and number < len(pages):
            ask, page = pages.pop(number)
            records = [Record(key, value, version) for key, value, version, _ in page.records]
            merge.take(ask, int.from_bytes(page.slots, "little"), page.next, records)
            counted += page.count
            seen.extend(merge.ready())

    for action in actions:
        act(*action)
    if world.moving is not None:
        world.move(0)
    for _ in range(1000):
        act("ask", 1)
        if not asked and not pages:
            break
        act("read", 0)
        act("take", 0)
    assert not asked
    assert all(map(in_order, world.groups))
    wanted = [key for key in KEYS if keys.start <= key < keys.end]
    stood = {key for key in wanted if 0 not in world.there[key]}
    if counts:
        assert len(stood) <= counted <= sum(world.there[key] != {0} for key in wanted)
        return
    found = [record.key for record in seen]
    assert found == sorted(set(found), reverse=reverse)
    assert stood <= set(found) <= set(wanted)
    assert all(record.version in world.there[record.key] for record in seen)
