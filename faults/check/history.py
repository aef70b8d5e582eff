"""Histories: what clients asked for and were told, with the moments between which each operation took effect.

Pure. Times are seconds of one true clock that all clients of a run share.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

OPEN_END = math.inf
"""``ended`` of an operation whose outcome nobody learned: it may take effect at any later time, or never."""


class Kind(StrEnum):
    """What was asked for."""

    GET = "get"
    PUT = "put"
    DELETE = "delete"
    CAS = "cas"
    INCR = "incr"
    TXN = "txn"


class Outcome(StrEnum):
    """What the client knows."""

    OPEN = "open"  # no answer yet
    OK = "ok"  # it took effect; a condition that failed is an answer too
    REFUSED = "refused"  # definite: it surely did not take effect
    UNKNOWN = "unknown"  # indefinite: it may have taken effect, or may still do so


@dataclass(slots=True)
class Operation:
    """One operation of one client. The ``key`` of a transaction is the hash tag that its keys begin with.

    ``value``: what it writes. ``expect``: the version that a put or delete asks for, 0 = no record, None = any.
    ``expected``: the value that a compare-and-swap asks for, None = no record. ``ttl``: in seconds, None = for ever.
    ``steps``: what a transaction asks for, as of :class:`faults.check.numbered.Asked`.

    Of the answer: ``done``: the condition held (put, cas, txn), or there was a record (delete). ``found``: the value
    that a get or incr returned, or the results of a transaction, in JSON. ``version``: that of the record read or
    written, or in the way of a condition; 0 = no record, None = not told; of a transaction its slot's count of
    mutations. ``ended``: when it had surely taken effect or not; ``answered``: when the call returned.
    """

    number: int
    client: str
    kind: Kind
    key: str
    began: float
    value: str | None = None
    expect: int | None = None
    expected: str | None = None
    ttl: float | None = None
    stale: bool = False
    ended: float = OPEN_END
    answered: float = OPEN_END
    outcome: Outcome = Outcome.OPEN
    done: bool = False
    found: str | None = None
    version: int | None = None
    steps: str | None = None
    error: str = ""

    @property
    def write(self) -> bool:
        return self.kind is not Kind.GET

    @property
    def only_looks(self) -> bool:
        """Whether its answer says that it changed nothing."""
        return self.kind is Kind.GET or (self.kind is not Kind.TXN and not self.done)

    def describe(self) -> str:
        """A line for people."""
        return f"{self._times()} {self.client:>4} {self._asked()} -> {self._answer()}"

    def _times(self) -> str:
        ended = "?" if self.ended == OPEN_END else f"{self.ended:.6f}"
        return f"[{self.began:11.6f} .. {ended:>11}]"

    def _asked(self) -> str:
        text = f"{'stale ' if self.stale else ''}{self.kind} {self.key}"
        if self.kind is Kind.CAS:
            text += f" {self.expected!r} to {self.value!r}"
        elif self.kind is Kind.PUT:
            text += f" {self.value!r}"
        elif self.kind is Kind.TXN:
            text += f" {self.steps}"
        if self.expect is not None:
            text += f" if version {self.expect}"
        return text if self.ttl is None else f"{text} for {self.ttl:.3f} s"

    def _answer(self) -> str:
        if self.outcome is not Outcome.OK:
            return f"{self.outcome} {self.error}".rstrip()
        if self.kind is Kind.TXN:
            return f"{'done' if self.done else 'otherwise'}: {self.found} number {self.version}"
        if self.kind is Kind.INCR:
            return f"{self.found}"
        if self.kind is Kind.GET:
            return "nothing" if self.found is None else f"{self.found!r} version {self.version}"
        if self.kind is Kind.DELETE and self.expect is None:
            return "deleted" if self.done else "nothing to delete"
        if self.done:
            return "done" if self.version is None else f"version {self.version}"
        return "condition failed" if self.version is None else f"condition failed at version {self.version}"


@dataclass(slots=True)
class History:
    """The operations of one run, in the order in which they began."""

    operations: list[Operation] = field(default_factory=list)

    def begin(self, client: str, kind: Kind, key: str, began: float) -> Operation:
        """A new operation, open until somebody sets its outcome."""
        operation = Operation(len(self.operations), client, kind, key, began)
        self.operations.append(operation)
        return operation

    def all_keys(self) -> list[str]:
        """All keys, sorted."""
        return sorted({operation.key for operation in self.operations})

    def of(self, key: str) -> list[Operation]:
        """The operations on one key."""
        return [operation for operation in self.operations if operation.key == key]

    def by_key(self) -> Iterator[tuple[str, list[Operation]]]:
        """Each key with its operations, keys sorted."""
        found: dict[str, list[Operation]] = {}
        for operation in self.operations:
            found.setdefault(operation.key, []).append(operation)
        yield from sorted(found.items())

    def count(self, outcome: Outcome) -> int:
        """Operations with that outcome."""
        return sum(operation.outcome is outcome for operation in self.operations)
