"""The state machine of the meta group: the shard map, and what is under way to change it.

Slots change owner by moves (``shards/moves.py``), which a job holds ready and a driver starts one by one. Groups change
members towards the voters that are wanted. Everything is decided here, when a command is applied: whoever proposes one
may be a leader no more, or repeat what it said before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Any, Final

from raftkv.commands.base import Command
from raftkv.commands.bounds import MAX_GROUP_TIME
from raftkv.commands.meta import ChangeCluster
from raftkv.commands.results import DONE, ClusterReport, MapReport, Result, UsersReport
from raftkv.commands.users import UserCommand
from raftkv.errors import Code, ConditionFailed, StorageError
from raftkv.store.codec import binary, pack, text, unpack, whole
from raftkv.store.meta_commands import check, execute
from raftkv.store.meta_state import MetaState, Refused, map_digest
from raftkv.store.users import encode
from shards.map import MapError, ShardMap

_NAME: Final = "raftkv meta"
_MAX_TOKENS: Final = 256


class MetaStore:
    """The authoritative shard map, once it was made. Not thread-safe.

    ``time``: group time of the last entry, in milliseconds; only :meth:`apply` and a restore change it. ``state``:
    all but the time; it is replaced as a whole by every change. ``on_change``: called after an entry changed the map.
    ``entry``: tells the index of the entry that is applied.
    """

    def __init__(self, on_change: Callable[[], None] | None = None) -> None:
        self.time = 0
        self.state = MetaState()
        self.on_change = on_change
        self.entry: Callable[[], int] = int
        self._tokens: dict[bytes, tuple[int, str]] = {}
        self._described: tuple[MetaState | None, bytes] = (None, b"")
        self._digest: tuple[ShardMap | None, bytes] = (None, b"")

    @property
    def map(self) -> ShardMap | None:
        """The shard map; None until the first FormCluster is applied."""
        return self.state.map

    def check(self, command: ChangeCluster, now: int | None) -> Result | None:
        """Why ``command`` must not be proposed now; None if it may, and then :meth:`apply` decides.

        ``now``: group time in ms; None if the leader has not applied yet what was committed before it led.
        """
        try:
            check(self.state, now, command.verb, _arguments(command))
        except Refused as refusal:
            return Result(Code.CONDITION_FAILED, detail=str(refusal))
        except (TypeError, ValueError) as problem:
            return Result(Code.INVALID_ARGUMENT, detail=str(problem)[:400])
        return None

    def check_users(self, command: UserCommand) -> Result | None:
        """Why ``command`` must not be proposed; None if it may, and then :meth:`apply` decides."""
        if command.token not in self._tokens:
            try:
                command.change(self.state.users)
            except ConditionFailed as refusal:
                return Result(Code.CONDITION_FAILED, detail=str(refusal))
        return None

    def next_expiry(self) -> None:
        """Nothing expires here."""
        return

    prepares: Final = False

    def prepare(self, commands: Sequence[Command]) -> bool:
        """No entry takes long."""
        return True

    def apply(self, now: int, commands: Sequence[Command], _entry: memoryview | None = None) -> list[Result]:
        """Apply one log entry: its time in ms and its commands. Never raises.

        A malformed command gives INVALID_ARGUMENT and changes nothing.
        """
        if self.time < now <= MAX_GROUP_TIME:
            self.time = now
        before = self.state.map
        results = [command.apply_meta(self) for command in commands]
        if self.state.map is not None and self.state.map is not before:
            self.state = replace(self.state, map=replace(self.state.map, index=self.entry()))
            if self.on_change is not None:
                self.on_change()
        return results

    def form(self, encoded: bytes) -> Result:
        """The first shard map."""
        try:
            new = ShardMap.from_wire(unpack(encoded))
        except ValueError as problem:
            return Result(Code.INVALID_ARGUMENT, detail=f"invalid shard map: {problem}")
        if self.state.map is None:
            self.state = MetaState(
                map=new,
                last_group=max(group.id for group in new.groups),
                last_node=max((node.id for node in new.nodes), default=0),
            )
        return DONE

    def change(self, command: ChangeCluster) -> Result:
        """A repeated token gets the first answer again."""
        token = command.token
        if token in self._tokens:
            return self._first_answer(token)
        try:
            self.state, number = execute(self.state, self.time, command.verb, _arguments(command))
        except Refused as refusal:
            self._remember(token, 0, str(refusal))
            return Result(Code.CONDITION_FAILED, detail=str(refusal))
        except (TypeError, ValueError, KeyError, IndexError, OverflowError, MapError) as problem:
            return Result(Code.INVALID_ARGUMENT, detail=f"{command.verb}: {problem}"[:400])
        self._remember(token, number, "")
        return Result(Code.OK, number=number)

    def change_users(self, command: UserCommand) -> Result:
        """A repeated token gets the first answer again."""
        if command.token in self._tokens:
            return self._first_answer(command.token)
        try:
            self.state = replace(self.state, users=command.change(self.state.users))
        except ConditionFailed as refusal:
            self._remember(command.token, 0, str(refusal))
            return Result(Code.CONDITION_FAILED, detail=str(refusal))
        self._remember(command.token, 0, "")
        return DONE

    def read_users(self, known: int) -> Result:
        """All users and roles, unless those of revision ``known`` are the latest: a UsersReport."""
        users = self.state.users
        return Result(Code.OK, answer=UsersReport(users.revision, b"" if users.revision == known else encode(users)))

    def _first_answer(self, token: bytes) -> Result:
        number, reason = self._tokens[token]
        return Result(Code.CONDITION_FAILED, detail=reason) if reason else Result(Code.OK, number=number)

    def _remember(self, token: bytes, number: int, reason: str) -> None:
        self._tokens[token] = (number, reason)
        if len(self._tokens) > _MAX_TOKENS:
            del self._tokens[next(iter(self._tokens))]

    def describe(self) -> Result:
        """The whole state, for operators: a ClusterReport."""
        if self._described[0] is not self.state:
            self._described = (self.state, pack(self.state.to_wire()))
        return Result(Code.OK, answer=ClusterReport(self.time, self._described[1]))

    def confirm(self, digest: bytes) -> Result:
        """A MapReport for a node that has the map with this digest."""
        known = self.state.map
        if known is None:
            return Result(Code.UNAVAILABLE, detail="the cluster is not formed yet")
        if self._digest[0] is not known:
            self._digest = (known, map_digest(known))
        return Result(Code.OK, answer=MapReport(b"" if self._digest[1] == digest else pack(known.to_wire())))

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
        return pack([_NAME, self.time, self.state.to_wire(), tokens])

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
            if name != _NAME or not 0 <= whole(time) <= MAX_GROUP_TIME:
                raise ValueError("it is something else")
            state = MetaState.from_wire(wire)
            answers = {binary(token): (whole(number), text(reason)) for token, number, reason in tokens}
        except (ValueError, TypeError, KeyError, IndexError) as problem:
            raise StorageError(f"not a snapshot of the meta group: {problem}") from problem
        self._install(time, state, answers)


def _arguments(command: ChangeCluster) -> list[Any]:
    return list(unpack(command.arguments))
