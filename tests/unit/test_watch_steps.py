"""Guarantee: watches that are told together are told what each would be told alone, whenever each of them looks."""

from __future__ import annotations

from random import Random

import pytest

from raftkv import limits
from raftkv.commands.base import Command
from raftkv.commands.moving import Activate, Release
from raftkv.commands.records import Delete, Put
from raftkv.commands.transactions import PutStep, Transact
from raftkv.store.history import Event
from raftkv.store.records import Store
from raftkv.store.steps import Recent, Steps
from raftkv.store.watching import Part, Watch, WatchAsk
from tests.store_helpers import DONE, GROUP, make, one, stage

SLOTS = (0, 1, 2)
OLD = 50
"""Steps after which a watch has fallen far behind."""


class Reader:
    """A watch that takes by itself or with others, and what it has been told: by slot, up to where, and events."""

    def __init__(self, store: Store, steps: Steps | None, prefix: bytes) -> None:
        numbers = {slot: store.slot(slot).counter for slot in SLOTS}  # type: ignore[union-attr]  # it has them
        self.steps = steps
        self.watch = Watch(store, WatchAsk(dict.fromkeys(SLOTS), None, prefix, False), numbers)
        opened = self.watch.open().opened
        self.upto = {slot: after for slot, after, _ in opened if after is not None}
        self.events: dict[int, list[Event]] = {slot: [] for slot in SLOTS}

    def take(self) -> Part:
        return self._hear(self.watch.take() if self.steps is None else self.steps.take(self.watch))

    def heartbeat(self) -> Part:
        return self._hear(self.watch.heartbeat() if self.steps is None else self.steps.heartbeat(self.watch))

    def _hear(self, part: Part) -> Part:
        assert not part.compacted
        for slot, after, upto, events in part.spans:
            assert self.upto[slot] == after, "a span begins where the last one ended"
            self.upto[slot] = upto
            self.events[slot] += events
        return part

    def catch_up(self) -> None:
        while self.take() or self.watch.behind:
            pass


def something(rng: Random) -> Command:
    slot, key = rng.choice(SLOTS), rng.choice((b"a1", b"a2", b"b"))
    match rng.randrange(4):
        case 0:
            return Delete(slot, key)
        case 1:
            return Transact(slot, (), (PutStep(b"a1", b"x"), PutStep(b"b", b"y")))
    return Put(slot, key, rng.randbytes(rng.randrange(40)))


@pytest.mark.parametrize("seed", range(20))
def test_all_are_told_the_same_as_alone(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "WATCH_BYTES", 1000)
    monkeypatch.setattr(limits, "MAX_TOLD_BYTES", 5000)
    rng = Random(seed)
    store, prefix = make(*SLOTS, now=0), rng.choice((b"", b"a"))
    recent = Recent()
    steps = Steps(recent)
    readers: list[tuple[Reader, Reader]] = []
    for now in range(300):
        store.apply(now, [something(rng) for _ in range(rng.randrange(4))])
        if rng.random() < 0.05:
            readers.append((Reader(store, steps, prefix), Reader(store, None, prefix)))
        # The first one hardly ever looks.
        for at, (together, _) in enumerate(readers):
            if rng.random() < (0.7 if at else 1 / OLD):
                together.take()
            if rng.random() < 0.1:
                together.heartbeat()
        assert recent.bytes <= limits.MAX_TOLD_BYTES
    assert len(readers) > 3
    for together, alone in readers:
        together.catch_up()
        together.heartbeat()
        alone.catch_up()
        alone.heartbeat()
        assert together.events == alone.events
        assert together.upto == alone.upto


def test_what_several_are_told_is_taken_once_also_by_one_that_came_later() -> None:
    store, steps = make(*SLOTS, now=0), Steps(Recent())
    readers = [Reader(store, steps, b"a") for _ in range(3)]
    store.apply(1, [Put(0, b"a", b"1"), Put(1, b"b", b"2")])
    readers.append(Reader(store, steps, b"a"))
    for reader in readers:
        reader.catch_up()
    for reader in readers:
        reader.heartbeat()
    store.apply(2, [Put(0, b"a", b"3")])
    parts = [reader.take() for reader in readers]
    assert [event.value for event in parts[0].spans[0].events] == [b"3"]
    assert all(part is parts[0] for part in parts)


def test_a_slot_that_goes_is_told_to_each() -> None:
    store, steps = make(*SLOTS, now=0), Steps(Recent())
    readers = [Reader(store, steps, b"") for _ in range(2)]
    for number in range(3):
        store.apply(1, [Put(0, b"a", b"%d" % number)])
        readers[0].catch_up()
    target = make(9, now=0)
    stage(store, target, (0,))
    assert one(target, Activate(GROUP, 7)) == DONE
    assert one(store, Release(GROUP, 7)) == DONE
    assert [reader.take().released for reader in readers] == [[0], [0]]
    assert [len(reader.events[0]) for reader in readers] == [3, 0]
