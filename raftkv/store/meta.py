"""The state machine of the meta group: the shard map."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from typing import Any, Final

from raftkv.errors import Code, StorageError
from raftkv.store.codec import pack, unpack
from raftkv.store.operations import MAX_GROUP_TIME, Kind, Result
from shards.map import ShardMap

_FORMAT: Final = "raftkv meta 1"
_DONE: Final = Result(Code.OK)


class MetaStore:
    """The authoritative shard map, once it was made. Not thread-safe.

    ``time``: group time of the last entry, in milliseconds; only :meth:`apply` and a restore change it.
    """

    def __init__(self) -> None:
        self.time = 0
        self._map: ShardMap | None = None

    @property
    def map(self) -> ShardMap | None:
        """The shard map; None until the first MAP_INIT is applied."""
        return self._map

    def next_expiry(self) -> None:
        """Nothing expires here."""
        return

    def apply(self, now: int, commands: Sequence[Sequence[Any]]) -> list[Result]:
        """Apply one log entry: its time in ms and its commands.

        Total: never raises for what msgpack can decode. A malformed command gives INVALID_ARGUMENT and changes nothing.
        """
        if type(now) is int and self.time < now <= MAX_GROUP_TIME:
            self.time = now
        return [self._execute(command) for command in commands] if isinstance(commands, list | tuple) else []

    def _execute(self, command: object) -> Result:
        if not isinstance(command, list | tuple) or not command:
            return Result(Code.INVALID_ARGUMENT, detail="malformed command")
        if command[0] == Kind.TICK:
            return _DONE
        if command[0] != Kind.MAP_INIT or len(command) < 4 or type(command[3]) is not bytes:
            return Result(Code.INVALID_ARGUMENT, detail="malformed command")
        try:
            new = ShardMap.from_wire(unpack(command[3]))
        except ValueError as problem:
            return Result(Code.INVALID_ARGUMENT, detail=f"no shard map: {problem}")
        if self._map is None:
            self._map = new
        return _DONE

    def snapshot(self) -> MetaSnapshot:
        """The state as of this call."""
        return MetaSnapshot(self._encoded())

    def begin_restore(self) -> MetaRestore:
        """Collects a snapshot's chunks; ``finish`` replaces the whole state by it."""
        return MetaRestore(self._install)

    def digest(self) -> bytes:
        """16 bytes; equal for equal states."""
        return blake2b(self._encoded(), digest_size=16).digest()

    def _encoded(self) -> bytes:
        return pack([_FORMAT, self.time, None if self._map is None else self._map.to_wire()])

    def _install(self, time: int, shard_map: ShardMap | None) -> None:
        self.time = time
        self._map = shard_map


class MetaSnapshot:
    """The meta group's state of one moment."""

    def __init__(self, encoded: bytes) -> None:
        self._encoded = encoded

    def chunks(self) -> Iterator[bytes]:
        """One chunk."""
        yield self._encoded

    def close(self) -> None:
        """Nothing to let go of."""


class MetaRestore:
    """Collects the chunks of a meta group's snapshot."""

    def __init__(self, install: Callable[[int, ShardMap | None], None]) -> None:
        self._install = install
        self._encoded = bytearray()

    def feed(self, chunk: bytes) -> None:
        """Take the next chunk."""
        self._encoded += chunk

    def finish(self) -> None:
        """Replace the state. Raises StorageError, and changes nothing, if the chunks are not a snapshot."""
        try:
            name, time, wire = unpack(bytes(self._encoded))
            if name != _FORMAT or type(time) is not int:
                raise ValueError("unknown format")
            shard_map = None if wire is None else ShardMap.from_wire(wire)
        except (ValueError, TypeError) as problem:
            raise StorageError(f"not a snapshot of the meta group: {problem}") from problem
        self._install(time, shard_map)
