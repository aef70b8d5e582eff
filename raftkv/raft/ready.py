"""The result of a replica's step as one value: :class:`Ready`.

It states the order on which all guarantees of the store rest. ``records`` are persisted first, in their order.
``messages`` may leave at once; ``after`` only when these records and all before them are on stable storage, since they
speak of entries, terms or votes of this node. Which messages have to wait is a property of their type
(``messages.WAITS``). Then the ``committed`` entries are applied, and only then ``reads`` are served.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct

from raftkv.commands.results import Result
from raftkv.raft.messages import WAITS
from raftkv.raft.ports import LogWriter
from raftkv.raft.proposals import OpenEntry, Proposal
from raftkv.raft.reads import ReadDone

Entry = tuple[bytes, int, int]
"""(command, index, term): the library's own shape of a log entry."""


class HardState(Struct, frozen=True, gc=False):
    """The term, and for whom this replica has voted in it; 0 = nobody."""

    term: int
    vote: int

    def write(self, wal: LogWriter, group: int) -> None:
        wal.hard_state(group, self.term, self.vote)


class Appended(Struct, frozen=True, gc=False):
    """An entry at the end of the log."""

    index: int
    term: int
    command: bytes

    def write(self, wal: LogWriter, group: int) -> None:
        wal.entry(group, self.index, self.term, self.command)


class Truncated(Struct, frozen=True, gc=False):
    """The entries from ``first`` on are gone."""

    first: int

    def write(self, wal: LogWriter, group: int) -> None:
        wal.truncate(group, self.first)


class Covered(Struct, frozen=True, gc=False):
    """A durable snapshot holds everything up to this entry."""

    index: int
    term: int

    def write(self, wal: LogWriter, group: int) -> None:
        wal.snapshot(group, self.index, self.term)


class Barred(Struct, frozen=True, gc=False):
    """This replica has lost entries up to this one, which it had acknowledged."""

    index: int
    term: int

    def write(self, wal: LogWriter, group: int) -> None:
        wal.lost(group, self.term, self.index)


Record = HardState | Appended | Truncated | Covered | Barred


class Committed(Struct, frozen=True, gc=False):
    """An entry to apply. ``opened``: the proposals in it that are to be answered, if they are this leader's."""

    index: int
    command: bytes
    opened: OpenEntry | None


class Offer(Struct, frozen=True, gc=False):
    """A leader's snapshot that this replica needs: of entry (``index``, ``term``), ``size`` bytes, at node ``peer``."""

    peer: int
    index: int
    term: int
    size: int


class Ready(Struct, frozen=True, gc=False):
    """What the executor has to do, in the order of the fields.

    ``answers``: whom to call with what. ``fetch``: a snapshot to get. ``notes``: what an operator may want to read:
    level of logging, text. ``more``: there is more to do than fits into one step.
    """

    records: Sequence[Record]
    messages: Sequence[tuple[int, list[Any]]]
    after: Sequence[tuple[int, list[Any]]]
    committed: Sequence[Committed]
    reads: Sequence[ReadDone]
    answers: Sequence[tuple[Callable[[Any], None], Any]]
    fetch: Offer | None
    notes: Sequence[tuple[int, str]]
    more: bool


class Outputs:
    """Collects the results of inputs until a step takes them.

    ``recorded``: how many records there have been; ``synced``: how many of them are on stable storage.
    """

    def __init__(self) -> None:
        self.recorded = 0
        self.synced = 0
        self.fetch: Offer | None = None
        self._records: list[Record] = []
        self._messages: list[tuple[int, list[Any]]] = []
        self._after: list[tuple[int, list[Any]]] = []
        self._answers: list[tuple[Callable[[Any], None], Any]] = []
        self._notes: list[tuple[int, str]] = []

    def record(self, record: Record) -> None:
        self.recorded += 1
        self._records.append(record)

    def send(self, node: int, message: list[Any]) -> None:
        (self._after if WAITS[message[1]] else self._messages).append((node, message))

    def answer(self, to: Callable[[Any], None], what: Any) -> None:
        self._answers.append((to, what))

    def refuse(self, proposals: Sequence[Proposal], refusal: Result) -> None:
        for proposal in proposals:
            proposal.waiting = False
            self.answer(proposal.answer, [refusal] * len(proposal.ops))

    def note(self, level: int, text: str) -> None:
        self._notes.append((level, text))

    @property
    def empty(self) -> bool:
        """Whether there is nothing for a step to take."""
        return self.fetch is None and not (
            self._records or self._messages or self._after or self._answers or self._notes
        )

    def take(self, committed: Sequence[Committed], reads: Sequence[ReadDone], more: bool) -> Ready:
        ready = Ready(
            self._records, self._messages, self._after, committed, reads, self._answers, self.fetch, self._notes, more
        )
        self._records, self._messages, self._after, self._answers, self._notes = [], [], [], [], []
        self.fetch = None
        return ready
