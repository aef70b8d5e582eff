"""What a leader was asked to replicate: waiting for an entry, then open until the entry is applied."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from raftkv import limits
from raftkv.store.operations import Op, Result

log = logging.getLogger(__name__)

Done = Callable[[list[Result]], None]
"""Takes the results of one proposal, in the order of its operations. Called exactly once."""


@dataclass(slots=True, eq=False)
class Proposal:
    """Operations that were proposed together and share an entry. ``size``: their payload in bytes.

    ``waiting``: they have not reached the log, and have no results yet.
    """

    ops: list[Op]
    size: int
    done: Done
    waiting: bool = True

    def withdraw(self) -> bool:
        """Nobody wants them done any more. Returns whether they have not reached the log, and so never will.

        Then ``done`` is not called.
        """
        if not self.waiting:
            return False
        self.waiting = False
        # What stays in the queue is empty.
        self.ops, self.size, self.done = [], 0, _nobody
        return True

    def answer(self, results: list[Result]) -> None:
        try:
            self.done(results)
        except Exception:
            # One caller's mistake must not keep the answers of the others.
            log.exception("the receiver of results failed")

    def refuse(self, refusal: Result) -> None:
        self.waiting = False
        self.answer([refusal] * len(self.ops))


def _nobody(_: list[Result]) -> None:
    """Takes the results of what was withdrawn."""


@dataclass(frozen=True, slots=True)
class OpenEntry:
    """An entry of this leader that is not yet applied. ``time``: group time in ms."""

    index: int
    time: int
    ops: list[Op]
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
    """The proposals of one replica while it leads."""

    def __init__(self) -> None:
        self._waiting: deque[Proposal] = deque()
        self._open: deque[OpenEntry] = deque()

    @property
    def waiting(self) -> bool:
        while self._waiting and not self._waiting[0].waiting:
            self._waiting.popleft()
        return bool(self._waiting)

    @property
    def open_entries(self) -> int:
        return len(self._open)

    def add(self, proposal: Proposal) -> None:
        self._waiting.append(proposal)

    def take(self) -> tuple[list[Op], list[Proposal]]:
        """What goes into the next entry: at least one proposal, further ones up to MAX_ENTRY_BYTES.

        To be called only while there is one.
        """
        taken = [self._waiting.popleft()]
        size = taken[0].size
        while self._waiting and size + self._waiting[0].size <= limits.MAX_ENTRY_BYTES:
            taken.append(self._waiting.popleft())
            size += taken[-1].size
        for proposal in taken:
            proposal.waiting = False
        return [op for proposal in taken for op in proposal.ops], taken

    def opened(self, entry: OpenEntry) -> None:
        self._open.append(entry)

    def close(self, index: int) -> OpenEntry | None:
        """The open entry ``index``, which is being applied; None if it is not this leader's."""
        return self._open.popleft() if self._open and self._open[0].index == index else None

    def fail_open(self, outcome: Result) -> None:
        """This replica will not see what becomes of its open entries."""
        entries, self._open = self._open, deque()
        for entry in entries:
            for proposal in entry.proposals:
                proposal.refuse(outcome)

    def refuse_waiting(self, refusal: Result) -> None:
        """What waits never reached the log."""
        proposals, self._waiting = self._waiting, deque()
        for proposal in proposals:
            proposal.refuse(refusal)
