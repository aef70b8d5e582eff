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

Most outcomes are versions. Those of other commands are kept as whole results, so that a retry meets all of it. They are
bounded for each slot in bytes and in time (:mod:`raftkv.store.ageing`): one that has to go takes ``first`` with it.

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
from typing import Any, Final, NamedTuple, TypeAlias

from msgspec.msgpack import Decoder, Encoder

from raftkv import limits
from raftkv.commands.results import Result
from raftkv.errors import Code
from raftkv.store.codec import binary, whole
from raftkv.store.expiry import ExpiryQueue

IDLE_MS: Final = limits.SESSION_IDLE * 1000
_FIELD_BYTES: Final = 9

_encode: Final = Encoder().encode
_decode: Final = Decoder(Result).decode


class Kept(NamedTuple):
    """A result that is more than a version, encoded. ``time``: group time in ms at which it was recorded."""

    time: int
    result: bytes

    @classmethod
    def of(cls, time: int, result: Result) -> Kept:
        return cls(time, _encode(result))

    @property
    def size(self) -> int:
        """Bytes that it counts for."""
        return len(self.result) + limits.KEPT_OVERHEAD


Outcome: TypeAlias = int | Kept
"""Of an execution. From 0 on: the version of what was written or removed; -1 - version: a condition failed."""


def result_of(outcome: Outcome) -> Result:
    """The result of an execution and of each of its retries."""
    return plain_result(outcome) if isinstance(outcome, int) else _decode(outcome.result)


def plain_result(outcome: int) -> Result:
    """The same of an outcome that is a number."""
    return Result(0, outcome) if outcome >= 0 else Result(Code.CONDITION_FAILED, -1 - outcome)


class Keeps:
    """The results that a slot keeps: how many, and their bytes. ``queue``: says when they go."""

    __slots__ = ("bytes", "count", "queue")

    def __init__(self, queue: ExpiryQueue) -> None:
        self.queue = queue
        self.count = 0
        self.bytes = 0

    def add(self, kept: Kept) -> None:
        self.count += 1
        self.bytes += kept.size

    def drop(self, kept: Kept) -> None:
        self.count -= 1
        self.bytes -= kept.size
        self.queue.live -= 1


class Session:
    """What a slot remembers of one client. Times are group time in ms.

    ``first``: numbers below it are answered for good. ``last``: when it was last used. ``queued``: the time under which
    it stands in the queue of sessions that may be idle, at most ``last``. ``seq`` and ``outcome``: the latest write
    executed (0 = none). ``more``: outcomes of others, in the order of execution. ``keeps``: of its slot, once one of
    its outcomes was :class:`Kept`; not replicated.
    """

    __slots__ = ("first", "keeps", "last", "more", "outcome", "queued", "seq")

    def __init__(self, first: int, now: int) -> None:
        self.first = first
        self.last = now
        self.queued = now
        self.seq = 0
        self.outcome: Outcome = 0
        self.more: dict[int, Outcome] | None = None
        self.keeps: Keeps | None = None

    def copy(self) -> Session:
        other = Session(self.first, self.last)
        other.queued = self.queued
        other.seq = self.seq
        other.outcome = self.outcome
        other.more = None if self.more is None else dict(self.more)
        other.keeps = self.keeps
        return other

    def find(self, seq: int) -> Outcome | None:
        """Recorded outcome of ``seq``, which must not be below ``first``."""
        if seq == self.seq:
            return self.outcome
        return None if self.more is None else self.more.get(seq)

    def record(self, seq: int, outcome: Outcome) -> None:
        """Remember an execution."""
        if self.seq and self.seq >= self.first:
            if self.more is None:
                self.more = {}
            self.more[self.seq] = self.outcome
            if len(self.more) >= limits.MAX_RESULTS_PER_SESSION:
                self.raise_first(next(iter(self.more)) + 1)
        elif self.keeps is not None and not isinstance(self.outcome, int):
            self.keeps.drop(self.outcome)
        self.seq = seq
        self.outcome = outcome

    def load(self, results: list[tuple[int, Outcome]]) -> None:
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
            gone = more.pop(oldest)
            if self.keeps is not None and not isinstance(gone, int):
                self.keeps.drop(gone)
        self.more = None

    def forget(self, seq: int) -> None:
        """Let go of the kept result of ``seq``, which is refused from now on."""
        gone = self.find(seq)
        if self.keeps is not None and gone is not None and not isinstance(gone, int):
            self.keeps.drop(gone)
        if seq == self.seq:
            self.outcome = 0
        elif self.more is not None:
            self.more[seq] = 0
        self.raise_first(seq + 1)

    def kept(self) -> Iterator[tuple[int, Kept]]:
        """The results that are kept, in the order of execution."""
        for seq, outcome in self.results():
            if not isinstance(outcome, int):
                yield seq, outcome

    def shift(self, by: int) -> None:
        """All times are later by so many ms: those of another group."""
        self.last += by
        self.queued += by
        if not isinstance(self.outcome, int):
            self.outcome = self.outcome._replace(time=self.outcome.time + by)
        for seq, outcome in (self.more or {}).items():
            if not isinstance(outcome, int):
                self.more[seq] = outcome._replace(time=outcome.time + by)  # type: ignore[index]

    def results(self) -> Iterator[tuple[int, Outcome]]:
        """(seq, outcome) in the order of execution."""
        if self.more is not None:
            yield from self.more.items()
        if self.seq:
            yield self.seq, self.outcome


def session_row(client: bytes, session: Session) -> list[Any]:
    """A session as plain values: client, first, last, queued, then seq and outcome of each result.

    An outcome is a number, or [time, encoded result].
    """
    row: list[Any] = [client, session.first, session.last, session.queued]
    for result in session.results():
        row += result
    return row


def session_from_row(row: list[Any]) -> tuple[bytes, Session]:
    """Raises TypeError or ValueError for what :func:`session_row` does not make."""
    client, first, last, queued, *results = row
    session = Session(whole(first), whole(last))
    session.queued = whole(queued)
    pairs = [(whole(seq), _outcome(outcome)) for seq, outcome in zip(results[::2], results[1::2], strict=True)]
    if any(seq < 1 for seq, _ in pairs):
        raise ValueError("request numbers begin at 1")
    session.load(pairs)
    return binary(client), session


def row_bytes(row: list[Any]) -> int:
    """About how many bytes a :func:`session_row` takes, encoded."""
    return _FIELD_BYTES * len(row) + sum(len(field.result) for field in row if isinstance(field, Kept))


def _outcome(field: Any) -> Outcome:
    if type(field) is int:
        return field
    time, result = field
    _decode(binary(result))
    return Kept(whole(time), result)
