"""What a leader was asked to replicate: waiting for an entry, then open until the entry is applied."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from raftkv import limits
from raftkv.commands.base import Command, Write
from raftkv.commands.results import Result
from raftkv.errors import Code
from raftkv.raft.entries import is_readable, pack_batch
from raftkv.raft.fair_queue import FairQueue

log = logging.getLogger(__name__)

_TOO_LARGE: Final = Result(Code.TOO_LARGE, detail="the operations do not fit into an entry of the log")

Done = Callable[[list[Result]], None]
"""Takes the results of one proposal, in the order of its operations. Called exactly once."""

_BULK: Final = 64 * 1024
"""Bytes of payload from which on writes let smaller proposals go first."""

_BULK_PER_ENTRY: Final = 1024 * 1024
"""Bytes of such writes gathered into one entry: whoever comes later waits until it is committed."""


@dataclass(slots=True, eq=False)
class Proposal:
    """Operations that were proposed together and share an entry. ``size``: their payload in bytes.

    ``source``: on whose behalf; sources take turns. ``waiting``: they have not reached the log and have no results yet.
    """

    ops: Sequence[Command]
    size: int
    done: Done
    source: int = 0
    waiting: bool = True

    def withdraw(self) -> bool:
        """Withdraw them. Returns whether they had not reached the log, and so never will.

        Then ``done`` is not called.
        """
        if not self.waiting:
            return False
        self.waiting = False
        # The item stays in the queue, without its content.
        self.ops, self.size, self.done = [], 0, _nobody
        return True

    def answer(self, results: list[Result]) -> None:
        # Who waits for results keeps the proposal, to withdraw it: no circle is left for the garbage collector.
        done, self.done = self.done, _nobody
        try:
            done(results)
        except Exception:
            # An exception in one caller's callback must not keep the others from their answers.
            log.exception("the receiver of results failed")

    def refuse(self, refusal: Result) -> None:
        self.waiting = False
        self.answer([refusal] * len(self.ops))


def _nobody(_: list[Result]) -> None:
    """Takes the results of what was withdrawn."""


@dataclass(frozen=True, slots=True)
class OpenEntry:
    """An entry of this leader that is not yet applied. ``time``: group time in ms; ``size``: of the entry in bytes."""

    index: int
    time: int
    size: int
    ops: list[Command]
    proposals: list[Proposal]

    def answer(self, results: list[Result]) -> None:
        if len(self.proposals) == 1:
            self.proposals[0].answer(results)
            return
        start = 0
        for proposal in self.proposals:
            stop = start + len(proposal.ops)
            proposal.answer(results[start:stop])
            start = stop


class Proposals:
    """The proposals of one replica while it leads.

    Clients' large writes queue by themselves, and each entry takes some of both: a small write waits for one entry, not
    for all the megabytes that were proposed before it. Within each queue the sources take turns. What is asked of the
    group as a whole keeps its order: it has one source, 0.
    """

    def __init__(self) -> None:
        self._waiting: FairQueue[Proposal] = FairQueue()
        self._bulk: FairQueue[Proposal] = FairQueue()
        self._open: deque[OpenEntry] = deque()
        self.open_bytes = 0
        self.bulk_held = False
        """Large writes wait: the node's log is near the bound that would stop all of them."""

    @property
    def waiting(self) -> bool:
        """Whether a proposal waits, held or not."""
        return self._waiting.head() is not None or self._bulk.head() is not None

    @property
    def due(self) -> bool:
        """Whether a proposal may go into the next entry."""
        return self._waiting.head() is not None or (not self.bulk_held and self._bulk.head() is not None)

    @property
    def open_entries(self) -> int:
        return len(self._open)

    def add(self, proposal: Proposal) -> Result | None:
        """Queue ``proposal``. Returns why not if it does not fit into an entry."""
        if proposal.size > limits.MAX_PROPOSAL_BYTES:
            return _TOO_LARGE
        bulk = proposal.size >= _BULK and isinstance(proposal.ops[0], Write)
        (self._bulk if bulk else self._waiting).add(proposal)
        return None

    def take(self) -> tuple[list[Command], list[Proposal]]:
        """What goes into the next entry: of each queue that is not held at least one proposal, if both fit into
        MAX_ENTRY_BYTES."""
        taken: list[Proposal] = []
        size = count = 0
        for queue, most in ((self._bulk, _BULK_PER_ENTRY), (self._waiting, limits.MAX_ENTRY_BYTES)):
            while (head := queue.head()) is not None and not (self.bulk_held and queue is self._bulk):
                if taken and (size + head.size > most or count + len(head.ops) > limits.MAX_ENTRY_OPS):
                    break
                queue.pop()
                head.waiting = False
                taken.append(head)
                size += head.size
                count += len(head.ops)
        return [op for proposal in taken for op in proposal.ops], taken

    def next_entry(self, time: int) -> tuple[bytes, list[Command], list[Proposal], list[Proposal]]:
        """The next entry, its operations and their proposals: what :meth:`take` gives, but for what is malformed, the
        last item. ``time``: the group's, in ms."""
        ops, taken = self.take()
        entry = pack_batch(time, ops)
        if all(proposal.source for proposal in taken) or is_readable(entry):
            # Others' operations were checked when they arrived (tests/property/test_commands.py).
            return entry, ops, taken, []
        # A mistake of this node: in the log it would stop every replica for good.
        malformed = [proposal for proposal in taken if not is_readable(pack_batch(time, proposal.ops))]
        taken = [proposal for proposal in taken if proposal not in malformed]
        ops = [op for proposal in taken for op in proposal.ops]
        return pack_batch(time, ops), ops, taken, malformed

    def opened(self, entry: OpenEntry) -> None:
        self._open.append(entry)
        self.open_bytes += entry.size

    def close(self, index: int) -> OpenEntry | None:
        """The open entry ``index``, which is committed; None if it is not this leader's."""
        if not self._open or self._open[0].index != index:
            return None
        self.open_bytes -= self._open[0].size
        return self._open.popleft()

    def drop_open(self) -> list[Proposal]:
        """The leadership is lost. Returns the proposals of the open entries, whose outcome is unknown here."""
        entries, self._open, self.open_bytes = self._open, deque(), 0
        return [proposal for entry in entries for proposal in entry.proposals]

    def drop_waiting(self) -> list[Proposal]:
        """Returns the proposals that wait: they will never reach the log."""
        return [proposal for proposal in [*self._waiting.clear(), *self._bulk.clear()] if proposal.waiting]
