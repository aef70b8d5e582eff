"""Sessions: how a write that is sent several times takes effect once.

A write names itself (client, seq) and says ``first``, the lowest number that its client still waits for. For each slot,
the state machine keeps a :class:`Session` per client: the outcomes of executed writes, and ``first``, the highest one
heard. A write meets exactly one of these cases, and all replicas decide alike since all of it is replicated state:

1. There is no session, and the client's id is not above the slot's ``floor``: refused, SESSION_EXPIRED.
2. It is below the session's ``first``: refused, SESSION_EXPIRED.
3. Its outcome is recorded: it is answered again and not executed.
4. Otherwise it is executed, and its outcome is recorded by the same entry.

Why nothing executes twice: an execution records its outcome (4), so a second one needs that record to be gone. A record
goes either with ``first`` raised above it, and then 2 holds for ever, as ``first`` never falls in a living session; or
with its whole session, and then ``floor`` is raised to the client's id, so 1 holds for ever, as ``floor`` never falls.
Other outcomes than executions (MOVED, malformed commands) are not recorded: they changed nothing and may be retried.

Why nobody is refused for long: a client raises ``first`` past a number only when it no longer waits for it. Client ids
begin with the time when they were drawn, so new clients are above the ids of sessions that went idle long ago. A
refusal says from which time on an id is above the floor; a client that was refused at its first attempt surely had no
effect, and draws a new id at that time. So that a floor does not run ahead of the time, leaders propose no write of a
client that would be new to the slot and has an id far ahead (``node/client_ids.py``). A clock that is wrong costs
refusals, never a second execution.

Sessions are per slot, not per group, because they move with the slot. Most hold one outcome, so the latest one is kept
inline and a dict is made only for clients with several writes in flight to one slot.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from raftkv import limits
from raftkv.commands.results import Result
from raftkv.errors import Code
from raftkv.store.codec import binary, whole

IDLE_MS: Final = limits.SESSION_IDLE * 1000


def result_of(outcome: int) -> Result:
    """The result of an execution and of each of its retries.

    Outcomes from 0 on are versions of what was written or removed; -1 - version is a write whose condition failed.
    """
    return Result(0, outcome) if outcome >= 0 else Result(Code.CONDITION_FAILED, -1 - outcome)


class Session:
    """What a slot remembers of one client. Times are group time in ms.

    ``first``: numbers below it are answered for good. ``last``: when it was last used. ``queued``: the time under which
    it stands in the queue of sessions that may be idle, at most ``last``. ``seq`` and ``outcome``: the latest write
    executed (0 = none). ``more``: outcomes of others, in the order of execution.
    """

    __slots__ = ("first", "last", "more", "outcome", "queued", "seq")

    def __init__(self, first: int, now: int) -> None:
        self.first = first
        self.last = now
        self.queued = now
        self.seq = 0
        self.outcome = 0
        self.more: dict[int, int] | None = None

    def copy(self) -> Session:
        other = Session(self.first, self.last)
        other.queued = self.queued
        other.seq = self.seq
        other.outcome = self.outcome
        other.more = None if self.more is None else dict(self.more)
        return other

    def find(self, seq: int) -> int | None:
        """Recorded outcome of ``seq``, which must not be below ``first``."""
        if seq == self.seq:
            return self.outcome
        return None if self.more is None else self.more.get(seq)

    def record(self, seq: int, outcome: int) -> None:
        """Remember an execution."""
        if self.seq and self.seq >= self.first:
            if self.more is None:
                self.more = {}
            self.more[self.seq] = self.outcome
            if len(self.more) >= limits.MAX_RESULTS_PER_SESSION:
                self.raise_first(next(iter(self.more)) + 1)
        self.seq = seq
        self.outcome = outcome

    def load(self, results: list[tuple[int, int]]) -> None:
        """Take over what :meth:`results` gave, as it was, into a fresh session."""
        if results:
            *more, (self.seq, self.outcome) = results
            self.more = dict(more) or None

    def raise_first(self, first: int) -> None:
        """Forget outcomes below ``first``, if it is higher than before."""
        self.first = max(self.first, first)
        more = self.more
        if more is None:
            return
        # Executions come nearly in the order of their numbers, so what can go stands in front. One that a higher
        # number hides stays until that goes: nobody sees it, and no write costs more than what it removes.
        while more:
            oldest = next(iter(more))
            if oldest >= self.first:
                return
            del more[oldest]
        self.more = None

    def results(self) -> Iterator[tuple[int, int]]:
        """(seq, outcome) in the order of execution."""
        if self.more is not None:
            yield from self.more.items()
        if self.seq:
            yield self.seq, self.outcome


def session_row(client: bytes, session: Session) -> list[Any]:
    """A session as plain values: client, first, last, queued, then seq and outcome of each result."""
    row: list[Any] = [client, session.first, session.last, session.queued]
    for result in session.results():
        row += result
    return row


def session_from_row(row: list[Any]) -> tuple[bytes, Session]:
    """Raises TypeError or ValueError for what :func:`session_row` does not make."""
    client, first, last, queued, *results = row
    session = Session(whole(first), whole(last))
    session.queued = whole(queued)
    pairs = [(whole(seq), whole(outcome)) for seq, outcome in zip(results[::2], results[1::2], strict=True)]
    if any(seq < 1 for seq, _ in pairs):
        raise ValueError("request numbers begin at 1")
    session.load(pairs)
    return binary(client), session
