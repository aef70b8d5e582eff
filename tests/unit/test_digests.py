"""Guarantee: a digest is what it always was, of the state of one moment, and no piece of its work is long."""

from __future__ import annotations

import random
from typing import Any

import pytest

from raftkv.clock import SystemClock
from raftkv.commands.base import Command
from raftkv.commands.group import Check, Genesis
from raftkv.commands.moving import Activate, Freeze, ImportBegin, ImportChunk, ImportFinal, Release, Track, Untrack
from raftkv.commands.records import Put
from raftkv.commands.results import MoveSummary
from raftkv.errors import Code
from raftkv.node.control import GroupOperations
from raftkv.store.copying import Summary
from raftkv.store.digest import CheckDigest, ContentDigest, content_digest, slot_digest
from raftkv.store.history import History
from raftkv.store.packed import packed
from raftkv.store.records import Store
from raftkv.store.sessions import Session
from raftkv.store.slot import Slot
from raftkv.store.snapshot import Rest
from tests.store_helpers import GROUP, exported, one

NOTHING = Rest(0, True, [], [], {})


class Counted(dict[bytes, bytes]):
    """Records that count how often one is looked at."""

    looks = 0

    def __getitem__(self, key: bytes) -> bytes:
        Counted.looks += 1
        return super().__getitem__(key)


def filled(records: int, longest: int = 0, sessions: int = 0) -> Slot:
    rng = random.Random(records)
    slot = Slot(7)
    for number in range(records):
        value = rng.randbytes(rng.randrange(longest + 1))
        slot.store(b"key:%016x" % rng.getrandbits(64), packed(value, number + 1, rng.choice([0, 0, 5, 50])))
    for number in range(sessions):
        session = slot.sessions[rng.randbytes(16)] = Session(1, 5)
        for seq in range(number % 20):
            session.record(seq + 1, seq)
    return slot


@pytest.mark.parametrize(
    ("records", "longest", "sessions", "dirty", "digest"),
    [
        (0, 0, 0, False, "d3aac934ccce73539fa915f39a6695ea"),
        (1, 9, 1, True, "00633a17ba26aa47bc49b100dad01af8"),
        (33, 100, 0, False, "dc9f29c26d8db2403a9730d68f2f6aff"),
        (64, 40_000, 3, False, "c31b3f287ac329ca37e0fdf4c210d077"),
        (5000, 9, 50, True, "b7e37369ff0d7c13d15e25d72b2e45ee"),
    ],
)
def test_digests_are_those_of_all_versions(records: int, longest: int, sessions: int, dirty: bool, digest: str) -> None:
    """Replicas and groups of other versions compare theirs: made in one go, these were the digests."""
    slot = filled(records, longest, sessions)
    slot.dirty = {key: at for at, key in enumerate(slot.records, start=1)} if dirty else None
    assert slot_digest(slot).hex() == digest


def test_no_piece_is_long() -> None:
    """Counted in records: half a second for 200,000 of them stopped all that a node does."""
    slot = filled(10_000, 20, 30)
    expected = slot_digest(slot)
    slot.records = Counted(slot.records)
    check = CheckDigest(NOTHING, [slot.image()], History().image())
    most = steps = 0
    done = False
    while not done:
        Counted.looks = 0
        done = check.step()
        most = max(most, Counted.looks)
        steps += 1
    assert most <= 100
    assert steps > 10_000 / 32
    assert check.result() is not None
    assert check.result()[0] == {7: expected}  # type: ignore[index]
    assert slot.pins == 0


def test_large_values_are_pieces_of_their_own() -> None:
    slot = Slot(7)
    for number in range(40):
        slot.store(b"%02d" % number, packed(b"x" * 100_000, number + 1, 0))
    digest = ContentDigest([slot], [], [0], 7)
    pieces = 1
    while digest.advance(1) is None:
        pieces += 1
    assert pieces >= 40
    assert digest.advance(1) == content_digest([slot], [], [0], 7)
    digest.close()
    assert slot.pins == 0


def test_a_digest_in_pieces_is_of_the_moment_it_began() -> None:
    slot = filled(3000, 9, 9)
    before = content_digest([slot], [], [0], 7)
    digest = ContentDigest([slot], [], [0], 7)
    assert digest.is_of([slot], [0], 7)
    assert not digest.is_of([slot], [1], 7)
    digest.advance(2)
    slot.detach()
    slot.store(b"new", packed(b"x", 9, 0))
    assert not digest.is_of([slot], [0], 7)
    while digest.advance(9) is None:
        pass
    assert digest.result == before != content_digest([slot], [], [0], 7)
    digest.close()
    digest.close()
    assert slot.pins == 0


# Moves


def _state(store: Store, records: int) -> Store:
    store.apply(1, [Genesis((0,))])
    ops = [Put(0, b"%05d" % number, b"v" * 10, ttl=number % 3 * 9) for number in range(records)]
    store.apply(2, ops)
    return store


def _moved(records: int) -> tuple[Store, Store, bytes]:
    """A source with a frozen slot, the target that has all of it, and what proves it."""
    source, target = _state(Store(), records), Store()
    target.apply(1, [Genesis(())])
    assert one(target, ImportBegin(GROUP, 4, (0,))).code == Code.OK
    one(source, Track(GROUP, 4, (0,)))
    one(source, Freeze(GROUP, 4))
    cursor, seq, done = b"", 0, False
    while not done:
        found = exported(source, 4, cursor, 2**20)
        cursor, page, done = found.cursor, found.chunk, found.done
        seq += 1
        assert one(target, ImportChunk(GROUP, 4, seq, cursor, page)).code == Code.OK
    calls = 0
    while (summary := source.summary(4)) is None:
        calls += 1
    assert calls > 1 or records < 1000
    assert isinstance(summary.answer, MoveSummary)
    return source, target, summary.answer.summary


def _pins(store: Store) -> int:
    return sum(slot.pins for slot in store._slots.values())


def test_a_summary_is_made_in_several_calls_and_kept() -> None:
    source, _, summary = _moved(5000)
    assert Summary.decode(summary).records == 5000
    again = source.summary(4)
    assert again is not None
    assert isinstance(again.answer, MoveSummary)
    assert again.answer.summary == summary
    assert again.answer.records == 5000
    one(source, Release(GROUP, 4))
    assert all(slot.pins == 0 for slot in source.moves.trash)
    assert source.summary(4).code == Code.CONDITION_FAILED  # type: ignore[union-attr]


def test_a_summary_begun_is_forgotten_with_the_move() -> None:
    source = _state(Store(), 5000)
    one(source, Track(GROUP, 4, (0,)))
    one(source, Freeze(GROUP, 4))
    assert source.summary(4) is None
    assert _pins(source) == 1
    one(source, Untrack(GROUP, 4, (0,)))
    assert _pins(source) == 0


@pytest.mark.parametrize("prepared", [True, False, None])
def test_the_proof_is_the_same_prepared_or_not(prepared: bool | None) -> None:
    """Replicas of several versions, or after a restart in between, apply the same entry."""
    _, target, summary = _moved(5000)
    assert target.prepares
    final = ImportFinal(GROUP, 4, summary)
    calls = 0
    while prepared is not False and not target.prepare([final]):
        calls += 1
        if prepared is None:
            break
    assert prepared is False or calls > 0
    before = target.digest()
    assert target.prepare([]) is True
    assert target.digest() == before, "preparing changes nothing"
    assert one(target, final).code == Code.OK
    assert _pins(target) == 0
    assert one(target, Activate(GROUP, 4)).code == Code.OK
    assert not target.prepares


def test_a_proof_that_differs_is_refused_however_it_was_prepared() -> None:
    _, target, summary = _moved(3000)
    changed = Summary.decode(summary)._replace(digest=b"\0" * 16).encode()
    final = ImportFinal(GROUP, 4, changed)
    while not target.prepare([final]):
        pass
    assert one(target, final).detail == "digest differs"
    assert _pins(target) == 0


def test_what_was_prepared_before_a_change_does_not_count() -> None:
    """A step before it in the same entry may change what would be digested."""
    _, target, summary = _moved(3000)
    final = ImportFinal(GROUP, 4, summary)
    assert target.prepare([ImportChunk(GROUP, 4, 9, b"", b""), final]), "not begun"
    while not target.prepare([final]):
        pass
    slot = target._slots[0]
    slot.detach()
    slot.discard(b"00000")
    assert one(target, final).detail == "digest differs"


@pytest.mark.parametrize("summary", [b"", b"\xc1", b"\x90"])
def test_summaries_that_mean_nothing_need_no_preparation(summary: bytes) -> None:
    _, target, _ = _moved(10)
    assert target.prepare([ImportFinal(GROUP, 4, summary)]) is True
    assert target.prepare([ImportFinal(GROUP, 5, summary)]) is True
    assert target.prepare([]) is True


# Checks


class _Group:
    group = 1

    def __init__(self) -> None:
        self.proposed: list[Command] = []

    def propose(self, ops: list[Command], size: int, done: Any) -> None:
        self.proposed += ops


class _Replica:
    def __init__(self) -> None:
        self.store = _state(Store(), 5000)


class _Replicas:
    def __init__(self) -> None:
        self.data = {1: _Replica()}


class _Clock(SystemClock):
    time = 100.0

    def now(self) -> float:
        return self.time


def test_one_check_of_a_group_at_a_time() -> None:
    replicas, clock, group = _Replicas(), _Clock(), _Group()
    operations = GroupOperations(replicas, clock, lambda *_: None)  # type: ignore[arg-type]
    store = replicas.data[1].store

    def ask(number: int) -> list[int]:
        answers: list[int] = []
        operations.execute(group, Check(GROUP, number), 1, lambda result: answers.append(result.code))  # type: ignore[arg-type]
        return answers

    assert ask(1) == []
    assert ask(2) == [Code.OVERLOADED], "even before the first is in the log"
    one(store, group.proposed[0])
    clock.time += 60
    assert ask(3) == [Code.OVERLOADED], "it is under way"
    assert ask(1) == [Code.OK], "asked again, it has begun"
    while not store.checks[1].step():
        pass
    assert ask(4) == []
    one(store, group.proposed[1])
    while not store.checks[4].step():
        pass
    assert ask(5) == [Code.OVERLOADED], "it has just ended"
    assert len(group.proposed) == 2
