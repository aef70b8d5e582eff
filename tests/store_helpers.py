"""What tests of the store share: commands of moves, whole moves, copies by way of a snapshot."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgpack

from raftkv.errors import Code
from raftkv.store import Kind, Op, Result, Store

DONE = Result(Code.OK)
SOURCE_TIME, TARGET_TIME = 1_000, 5_000_000


def step(kind: Kind, *arguments: object) -> Op:
    """A command whose value is a list of arguments."""
    return Op(kind, 0, b"", msgpack.packb(arguments))


def one(store: Store, op: Op, now: int = 0) -> Result:
    """Apply an entry with one command."""
    (result,) = store.apply(now, [op])
    return result


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
    store.apply(now, [Op(Kind.GENESIS, 0, b"", msgpack.packb(slots))])
    return store


def pair() -> tuple[Store, Store]:
    """Source of slots 0 and 1 with some content, and a target that has slot 9."""
    source, target = make(0, 1, 2), make(9, now=TARGET_TIME)
    for i in range(60):
        who = (i % 4 + 1).to_bytes(16, "big")
        source.apply(
            SOURCE_TIME + i,
            [Op(Kind.PUT, i % 3, b"key%d" % i, b"v" * i, ttl=500 if i % 5 == 0 else 0, client=who, seq=i + 1)],
        )
    return source, target


def state(store: Store, move: int = 7) -> dict[str, Any]:
    value = store.move_state(move).value
    assert value is not None
    found: dict[str, Any] = msgpack.unpackb(value)
    return found


def roles(store: Store, move: int = 7) -> tuple[str, str]:
    found = state(store, move)
    return found["source"], found["target"]


def refused(store: Store, op: Op) -> str:
    """The step is refused and changes nothing; returns why."""
    before = store.digest()
    result = one(store, op)
    assert result.code == Code.CONDITION_FAILED
    assert store.digest() == before
    return result.detail


def no_change(store: Store, op: Op) -> None:
    """The step is answered as done and changes nothing."""
    before = store.digest()
    assert one(store, op).code == Code.OK
    assert store.digest() == before


def page(source: Store, target: Store, limit: int = 300, move: int = 7) -> tuple[Op, bool]:
    """The command that brings the next page to the target, and whether nothing is left after it."""
    at = state(target, move)
    value = source.export(move, at["cursor"], limit).value
    assert value is not None
    cursor, blob, _, _, done = msgpack.unpackb(value)
    return step(Kind.IMPORT_CHUNK, move, at["seq"] + 1, cursor, blob), done


def copy(source: Store, target: Store, limit: int = 300, move: int = 7) -> int:
    """Copy until nothing is left; returns the number of pages."""
    pages, done = 0, False
    while not done:
        chunk, done = page(source, target, limit, move)
        pages += 1
        assert one(target, chunk).code == Code.OK
    return pages


def begin(source: Store, target: Store, slots: tuple[int, ...] = (0, 1), move: int = 7) -> None:
    assert one(target, step(Kind.IMPORT_BEGIN, move, slots)) == DONE
    assert one(source, step(Kind.TRACK, move, slots)) == DONE


def summary_of(source: Store, move: int) -> Result:
    """All of it, however many calls it takes."""
    while (result := source.summary(move)) is None:
        pass
    return result


def final(source: Store, move: int = 7) -> Op:
    summary = summary_of(source, move)
    assert summary.code == Code.OK
    return step(Kind.IMPORT_FINAL, move, summary.value)


def stage(source: Store, target: Store, slots: tuple[int, ...] = (0, 1), move: int = 7) -> None:
    begin(source, target, slots, move)
    copy(source, target, move=move)
    assert one(source, step(Kind.FREEZE, move)) == DONE
    copy(source, target, move=move)
    assert one(target, final(source, move)) == DONE
