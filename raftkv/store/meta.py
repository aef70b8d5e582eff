"""The state machine of the meta group: the shard map, and what is under way to change it.

Slots change owner by moves (``shards/moves.py``), which a job holds ready and a driver starts one by one. Groups change
members towards the voters that are wanted. Everything is decided here, when a command is applied: whoever proposes one
may be a leader no more, or repeat what it said before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from typing import Any, Final

from raftkv.errors import Code, StorageError
from raftkv.store.codec import array_header, binary, pack, split_pair, text, unpack, whole
from raftkv.store.meta_commands import check, execute
from raftkv.store.meta_state import MetaState, Refused
from raftkv.store.operations import MAX_GROUP_TIME, Kind, Result
from shards.map import MapError, ShardMap

_FORMAT: Final = "raftkv meta 2"
_MAX_TOKENS: Final = 256
_TOKEN_BYTES: Final = 16
_DONE: Final = Result(Code.OK)
_MALFORMED: Final = Result(Code.INVALID_ARGUMENT, detail="malformed command")


class MetaStore:
    """The authoritative shard map, once it was made. Not thread-safe.

    ``time``: group time of the last entry, in milliseconds; only :meth:`apply` and a restore change it. ``state``:
    all but the time; it is replaced as a whole by every change. ``on_change``: called after an entry changed the map.
    """

    def __init__(self, on_change: Callable[[], None] | None = None) -> None:
        self.time = 0
        self.state = MetaState()
        self.on_change = on_change
        self._tokens: dict[bytes, tuple[int, str]] = {}
        self._described: tuple[MetaState | None, bytes] = (None, b"")

    @property
    def map(self) -> ShardMap | None:
        """The shard map; None until the first MAP_INIT is applied."""
        return self.state.map

    def check(self, value: bytes | None) -> Result | None:
        """Why a META of this ``value`` must not be proposed now; None if it may, and then :meth:`apply` decides."""
        try:
            _, verb, *arguments = unpack(value or b"")
            check(self.state, verb, arguments)
        except Refused as refusal:
            return Result(Code.CONDITION_FAILED, detail=str(refusal))
        except (TypeError, ValueError) as problem:
            return Result(Code.INVALID_ARGUMENT, detail=str(problem)[:400])
        return None

    def next_expiry(self) -> None:
        """Nothing expires here."""
        return

    prepares: Final = False

    def prepare(self, commands: Sequence[Sequence[Any]]) -> bool:
        """No entry takes long."""
        return True

    def apply(self, now: int, commands: Sequence[Sequence[Any]]) -> list[Result]:
        """Apply one log entry: its time in ms and its commands.

        Total: never raises for what msgpack can decode. A malformed command gives INVALID_ARGUMENT and changes nothing.
        """
        if type(now) is int and self.time < now <= MAX_GROUP_TIME:
            self.time = now
        before = self.state.map
        results = [self._execute(command) for command in commands] if isinstance(commands, list | tuple) else []
        if self.state.map is not before and self.on_change is not None:
            self.on_change()
        return results

    def _execute(self, command: object) -> Result:
        if not isinstance(command, list | tuple) or not command:
            return _MALFORMED
        kind = command[0]
        if kind == Kind.TICK:
            return _DONE
        if len(command) < 4 or type(command[3]) is not bytes or not isinstance(kind, int):
            return _MALFORMED
        try:
            value = unpack(command[3])
        except ValueError:
            return _MALFORMED
        if kind == Kind.MAP_INIT:
            return self._form(value)
        return self._change(value) if kind == Kind.META else _MALFORMED

    def _form(self, wire: object) -> Result:
        try:
            new = ShardMap.from_wire(wire)
        except ValueError as problem:
            return Result(Code.INVALID_ARGUMENT, detail=f"no shard map: {problem}")
        if self.state.map is None:
            self.state = MetaState(
                map=new,
                last_group=max(group.id for group in new.groups),
                last_node=max((node.id for node in new.nodes), default=0),
            )
        return _DONE

    def _change(self, value: object) -> Result:
        """``[token, verb, argument, ...]``: a repeated token gets the first answer again."""
        if not isinstance(value, list) or len(value) < 2 or type(value[0]) is not bytes or type(value[1]) is not str:
            return _MALFORMED
        token = value[0]
        if len(token) != _TOKEN_BYTES:
            return _MALFORMED
        if token in self._tokens:
            number, reason = self._tokens[token]
            return Result(Code.CONDITION_FAILED, detail=reason) if reason else Result(Code.OK, number)
        try:
            self.state, number = execute(self.state, self.time, value[1], value[2:])
        except Refused as refusal:
            self._remember(token, 0, str(refusal))
            return Result(Code.CONDITION_FAILED, detail=str(refusal))
        except (TypeError, ValueError, KeyError, IndexError, OverflowError, MapError) as problem:
            return Result(Code.INVALID_ARGUMENT, detail=f"{value[1][:40]}: {problem}"[:400])
        self._remember(token, number, "")
        return Result(Code.OK, number)

    def _remember(self, token: bytes, number: int, reason: str) -> None:
        self._tokens[token] = (number, reason)
        if len(self._tokens) > _MAX_TOKENS:
            del self._tokens[next(iter(self._tokens))]

    def describe(self) -> Result:
        """The whole state as msgpack, for operators: ``value`` is what :meth:`MetaState.from_wire` reads, in a pair
        with the group's time."""
        if self._described[0] is not self.state:
            self._described = (self.state, pack(self.state.to_wire()))
        return Result(Code.OK, 1, array_header(2) + pack(self.time) + self._described[1])

    @staticmethod
    def described(value: bytes) -> tuple[int, bytes]:
        """The group's time and the state, still encoded, of :meth:`describe`'s ``value``. Raises ValueError."""
        time, rest = split_pair(value)
        return whole(time), rest

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
        tokens = [[token, *answer] for token, answer in self._tokens.items()]
        return pack([_FORMAT, self.time, self.state.to_wire(), tokens])

    def _install(self, time: int, state: MetaState, tokens: dict[bytes, tuple[int, str]]) -> None:
        self.time = time
        self.state = state
        self._tokens = tokens
        if self.on_change is not None:
            self.on_change()


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

    def __init__(self, install: Callable[[int, MetaState, dict[bytes, tuple[int, str]]], None]) -> None:
        self._install = install
        self._encoded = bytearray()

    def feed(self, chunk: bytes) -> None:
        """Take the next chunk."""
        self._encoded += chunk

    def finish(self) -> None:
        """Replace the state. Raises StorageError, and changes nothing, if the chunks are not a snapshot."""
        try:
            name, time, wire, tokens = unpack(bytes(self._encoded))
            if name != _FORMAT or not 0 <= whole(time) <= MAX_GROUP_TIME:
                raise ValueError("unknown format")
            state = MetaState.from_wire(wire)
            answers = {binary(token): (whole(number), text(reason)) for token, number, reason in tokens}
        except (ValueError, TypeError, KeyError, IndexError) as problem:
            raise StorageError(f"not a snapshot of the meta group: {problem}") from problem
        self._install(time, state, answers)
