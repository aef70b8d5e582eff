"""The ports through which a Raft group uses the rest of the node."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from raftkv.commands.base import Command
from raftkv.commands.results import Result


class Snapshot(Protocol):
    """A state as of one moment; later applies do not change it."""

    def chunks(self) -> Iterator[bytes]: ...

    def close(self) -> None: ...


class Restore(Protocol):
    """A state being built from a snapshot's chunks; nothing is visible before ``finish``."""

    def feed(self, chunk: bytes) -> None: ...

    def finish(self) -> None: ...


class StateMachine(Protocol):
    """What a group replicates. Deterministic and total: ``apply`` never raises for anything that was proposed."""

    time: int
    """Group time of the last entry, in milliseconds."""

    @property
    def prepares(self) -> bool:
        """Whether ``prepare`` is to be asked before the next entry is applied."""

    def prepare(self, commands: Sequence[Command]) -> bool:
        """Do a part of the work that applying these takes; True when the rest is done at once. Changes nothing."""

    def apply(self, now: int, commands: Sequence[Command], entry: memoryview, /) -> list[Result]:
        """Apply an entry of the log. ``entry``: the same, encoded."""

    def snapshot(self) -> Snapshot: ...

    def begin_restore(self) -> Restore: ...


class LogWriter(Protocol):
    """The node's WAL as one group sees it: memory only, never raises; durability is announced later by lsn."""

    @property
    def appended(self) -> int:
        """Number of the last record appended."""

    @property
    def durable(self) -> int:
        """Number of the last record on stable storage."""

    def hard_state(self, group: int, term: int, vote: int) -> None: ...

    def entry(self, group: int, index: int, term: int, command: bytes) -> None: ...

    def truncate(self, group: int, from_index: int) -> None: ...

    def snapshot(self, group: int, index: int, term: int) -> None: ...

    def lost(self, group: int, term: int, index: int) -> None: ...


class Outbox(Protocol):
    """Messages to other nodes. Which of them has to wait is said by :class:`raftkv.raft.ready.Ready`."""

    def send(self, node: int, message: list[Any]) -> None: ...

    def send_when_durable(self, node: int, message: list[Any]) -> None:
        """It leaves only after everything appended to the WAL so far is on stable storage."""

    def link_number(self, node: int) -> int:
        """Number of the link to ``node``, 0 while it is down; another number means that messages may have been lost in
        between."""
