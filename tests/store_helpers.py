"""What tests of the store share: commands of moves, copies by way of a snapshot."""

from __future__ import annotations

from collections.abc import Iterable

import msgpack

from raftkv.store import Kind, Op, Result, Store


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
