"""Whether transactions on the keys of a slot, or increments of a counter, could have happened one after the other.

Their answers number them: a transaction is told its slot's count of mutations, an increment its counter. So the order
of all that were answered is known, and the search only has to find what became of those that were not: they can stand
where numbers are missing, and must explain what was seen behind them. As that order also has to agree with the times
at which calls began and ended, a history that passes is strictly serializable: over all keys of the slot. Pure.

Another key of the same slot may have taken missing numbers, so not all of them need be explained.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from math import inf
from typing import Any, Final, NamedTuple, TypeAlias

from faults.check.history import Kind, Operation, Outcome
from faults.check.linearizability import BUDGET, Finding, Verdict, check
from faults.check.register import Register

NUMBERED: Final = (Kind.TXN, Kind.INCR)

Records: TypeAlias = Mapping[str, str]
_Met: TypeAlias = set[tuple[int, frozenset[tuple[str, str]], frozenset[int]]]


def check_key(operations: Sequence[Operation], model: Register, budget: int = BUDGET) -> Finding:
    """The verdict on the operations of one key, or of one slot's transactions, by whatever fits them."""
    if any(one.kind in NUMBERED for one in operations):
        return check_numbered(operations, budget)
    return check(operations, model, budget)


class Asked(NamedTuple):
    """A transaction. A check: [key, value or None]. A step: [verb, key, argument]."""

    checks: list[Any]
    steps: list[Any]
    otherwise: list[Any]

    @classmethod
    def of(cls, operation: Operation) -> Asked:
        return cls(**json.loads(operation.steps or "{}"))

    def text(self) -> str:
        return json.dumps(self._asdict(), separators=(",", ":"))

    def keys(self) -> set[str]:
        return {key for key, _ in self.checks} | {step[1] for step in (*self.steps, *self.otherwise)}


class Effect(NamedTuple):
    """What a transaction does to records. ``told``: for each step the value of a get, the number of an incr, whether
    there was something to delete, None of a put. ``writes``: mutations."""

    succeeded: bool
    records: Records
    told: list[Any]
    writes: int


def effect(asked: Asked, before: Records) -> Effect:
    """What it does to a slot with these records."""
    succeeded = all(before.get(key) == value for key, value in asked.checks)
    records, told, writes = dict(before), list[Any](), 0
    for verb, key, argument in asked.steps if succeeded else asked.otherwise:
        match verb:
            case "get":
                told.append(records.get(key))
            case "put":
                records[key] = argument
                told.append(None)
                writes += 1
            case "incr":
                records[key] = str(int(records.get(key, "0")) + argument)
                told.append(int(records[key]))
                writes += 1
            case _:
                told.append(records.pop(key, None) is not None)
                writes += told[-1]
    return Effect(succeeded, records, told, writes)


class _Placed(NamedTuple):
    """An operation that was answered: it found the count ``before`` and left ``after``. ``asked``, ``told``: of a
    transaction; ``asked`` is None of others."""

    operation: Operation
    before: int
    after: int
    asked: Asked | None = None
    told: Sequence[Any] = ()

    @property
    def writes(self) -> int:
        return self.after - self.before


def check_numbered(operations: Sequence[Operation], budget: int = BUDGET) -> Finding:
    """Search what became of the operations without an answer."""
    placed = [_place(one) for one in operations if one.outcome is Outcome.OK and not one.stale]
    placed.sort(key=lambda one: (one.after, not one.writes, one.operation.began))
    unanswered = [one for one in operations if one.write and one.outcome in (Outcome.UNKNOWN, Outcome.OPEN)]
    late = _out_of_time(placed)
    if late is not None:
        text = f"a lower number than that of operation {late[1].number}, which had ended before"
        return Finding(Verdict.VIOLATION, 0, (), text, late[0])
    # Mostly it is an operation that was in flight then; only if none will do, one that had been given up before.
    near = _Search(placed, unanswered, budget // 2, near=True).run()
    return near if near.verdict is Verdict.LINEARIZABLE else _Search(placed, unanswered, budget).run()


def _place(one: Operation) -> _Placed:
    if one.kind is not Kind.TXN:
        count = int(one.found or "0")
        return _Placed(one, count - (one.kind is Kind.INCR), count)
    asked, after = Asked.of(one), one.version or 0
    steps, told = asked.steps if one.done else asked.otherwise, json.loads(one.found or "[]")
    writes = sum(
        step[0] in ("put", "incr") or (step[0] == "delete" and there) for step, there in zip(steps, told, strict=True)
    )
    return _Placed(one, after - writes, after, asked, told)


def _out_of_time(placed: Sequence[_Placed]) -> tuple[Operation, Operation] | None:
    """Two operations in the order of their numbers of which the second had ended before the first began."""
    latest: Operation | None = None
    for one in placed:
        if latest is not None and one.operation.ended < latest.began:
            return latest, one.operation
        if latest is None or one.operation.began > latest.began:
            latest = one.operation
    return None


_Counters: TypeAlias = tuple[int, ...]

_COUNTED_GAP: Final = 60
_COUNTED_STEPS: Final = 500_000
"""More would take longer than it saves."""


class _Counting:
    """Whether counters can come to what was told of them, by operations without an answer.

    That is asked of a gap before its operations are chosen one by one, which takes long where many will not do. Here
    each may count any number of times, and checks of other records may have been met or not: so what is left out is
    surely impossible. ``asked``: by those that may stand in the gap. ``told``: what each of ``counters`` was behind it,
    None if nobody says.
    """

    def __init__(self, counters: Sequence[str], asked: Sequence[Asked], told: Sequence[int | None]) -> None:
        self._counters = counters
        self._asked = asked
        self._told = told
        self._known: dict[tuple[int, _Counters], bool] = {}

    def allows(self, gap: int, records: Records) -> bool:
        """Whether up to ``gap`` mutations may lead from ``records`` to what was told."""
        return self._reaches(gap, tuple(int(records.get(key, "0")) for key in self._counters))

    def _reaches(self, gap: int, at: _Counters) -> bool:
        if gap > _COUNTED_GAP or len(self._known) * len(self._asked) > _COUNTED_STEPS:
            return True
        if all(value is None or value == found for found, value in zip(at, self._told, strict=True)):
            return True
        known = self._known.get((gap, at))
        if known is None:
            after = {(gap - writes, counters) for writes, counters in self._after(at) if writes <= gap}
            known = self._known[gap, at] = any(self._reaches(left, counters) for left, counters in after)
        return known

    def _after(self, at: _Counters) -> Iterator[tuple[int, _Counters]]:
        """(mutations, counters) behind each operation that changes something."""
        values = dict(zip(self._counters, at, strict=True))
        for one in self._asked:
            met = all(str(values[key]) == (value or "0") for key, value in one.checks if key in values)
            for steps in (one.steps, one.otherwise) if met else (one.otherwise,):
                counted = dict(values)
                for verb, key, argument in steps:
                    if verb == "incr":
                        counted[key] += argument
                writes = sum(verb in ("put", "incr") for verb, _, _ in steps)
                for deleted in range(sum(verb == "delete" for verb, _, _ in steps) + 1):
                    if writes + deleted:
                        yield writes + deleted, tuple(counted.values())


def _counters_of(asked: Sequence[Asked]) -> list[str]:
    """Keys that are counted and never written otherwise."""
    steps = [step for one in asked for step in (*one.steps, *one.otherwise)]
    others = {key for verb, key, _ in steps if verb not in ("incr", "get")}
    return sorted({key for verb, key, _ in steps if verb == "incr"} - others)


def _told_of(counters: Sequence[str], placed: Sequence[_Placed]) -> tuple[int | None, ...]:
    """What each counter must be before the first of these, up to the next missing number; None if nobody says."""
    found: dict[str, int] = {}
    counted: set[str] = set()
    floor = placed[0].before
    for one in placed:
        if one.before > floor or one.asked is None:
            break
        floor = one.after
        steps = one.asked.steps if one.operation.done else one.asked.otherwise
        for (verb, key, argument), told in zip(steps, one.told, strict=True):
            if key in counters and key not in counted and str(told or "0").removeprefix("-").isdecimal():
                found.setdefault(key, int(told or "0") - (argument if verb == "incr" else 0))
            if verb == "incr":
                counted.add(key)
    return tuple(found.get(key) for key in counters)


class _Step(NamedTuple):
    """Where the search is: ``floor``: the slot's count. ``used``: unanswered operations that have a place."""

    records: Records
    floor: int
    used: frozenset[int]
    order: tuple[int, ...]


class _Search:
    """``near``: an operation without an answer did nothing after its client had given it up."""

    def __init__(
        self, placed: Sequence[_Placed], unanswered: Sequence[Operation], budget: int, *, near: bool = False
    ) -> None:
        self._placed = placed
        self._unanswered = sorted(unanswered, key=lambda one: one.began)
        self._asked = [None if one.kind is Kind.INCR else Asked.of(one) for one in self._unanswered]
        self._budget = budget
        self._near = near
        self._steps = 0
        self._failed: _Met = set()
        # What stands before an operation began before it and all behind it ended.
        self._until = [*accumulate((one.operation.ended for one in reversed(placed)), min)][::-1]
        # It was done after all before it began.
        self._since = [-inf, *accumulate((one.operation.began for one in placed), max)]
        known = [one for one in (*self._asked, *(one.asked for one in placed)) if one is not None]
        self._counters = _counters_of(known)
        self._counting: dict[int, _Counting] = {}

    def run(self) -> Finding:
        best = (0, _Step({}, 0, frozenset(), ()))
        path: list[Iterator[_Step]] = []
        at = _Step({}, 0, frozenset(), ())
        while len(path) < len(self._placed):
            choices = self._next(len(path), at)
            while (found := next(choices, None)) is None:
                if self._steps > self._budget:
                    return Finding(Verdict.OUT_OF_BUDGET, self._steps, best[1].order, best[1].records)
                if not path:
                    stuck = self._placed[best[0]].operation
                    return Finding(Verdict.VIOLATION, self._steps, best[1].order, best[1].records, stuck)
                choices = path.pop()
            path.append(choices)
            at = found
            if len(path) > best[0]:
                best = (len(path), at)
        return Finding(Verdict.LINEARIZABLE, self._steps, at.order, at.records)

    def _next(self, index: int, at: _Step) -> Iterator[_Step]:
        """The states behind the operation of that index, one for each way to explain it."""
        one = self._placed[index]
        seen = (index, frozenset(at.records.items()), at.used)
        if seen in self._failed:
            return
        since = self._since[index] if self._near else -inf
        candidates = [
            number
            for number, other in enumerate(self._unanswered)
            if other.began <= self._until[index] and other.answered >= since
        ]
        for filled, left in self._filled(index, at, one.before - at.floor, candidates, set()):
            if self._steps > self._budget:
                return
            # A counter counts nothing else.
            if left and one.asked is None:
                continue
            records = self._explained(one, filled.records)
            if records is not None:
                yield _Step(records, one.after, filled.used, (*filled.order, one.operation.number))
        self._failed.add(seen)

    def _counting_before(self, index: int, candidates: list[int]) -> _Counting:
        counting = self._counting.get(index)
        if counting is None:
            asked = [asked for number in candidates if (asked := self._asked[number]) is not None]
            counting = _Counting(self._counters, asked, _told_of(self._counters, self._placed[index:]))
            self._counting[index] = counting
        return counting

    def _filled(self, index: int, at: _Step, gap: int, candidates: list[int], met: _Met) -> Iterator[tuple[_Step, int]]:
        """Unanswered operations take the numbers that are missing before the one of that index, as many as possible
        first; and how many are left.

        ``met``: what another order of the same operations has come to, with the same records.
        """
        this = (gap, frozenset(at.records.items()), at.used)
        if gap < 0 or this in met:
            return
        if gap and not self._counting_before(index, candidates).allows(gap, at.records):
            return
        met.add(this)
        self._steps += 1
        if gap:
            for number in candidates:
                if number in at.used:
                    continue
                self._steps += 1
                records, writes = self._done(number, at.records)
                if 0 < writes <= gap:
                    order = (*at.order, self._unanswered[number].number)
                    after = _Step(records, at.floor, at.used | {number}, order)
                    yield from self._filled(index, after, gap - writes, candidates, met)
                if self._steps > self._budget:
                    return
        yield at, gap

    def _done(self, number: int, records: Records) -> tuple[Records, int]:
        """The records behind an unanswered operation, and its mutations."""
        asked = self._asked[number]
        if asked is None:
            return records, 1
        done = effect(asked, records)
        return done.records, done.writes

    @staticmethod
    def _explained(one: _Placed, records: Records) -> Records | None:
        """The records behind an operation that was answered; None if its answer cannot be."""
        if one.asked is None:
            return records
        done = effect(one.asked, records)
        same = done.succeeded == one.operation.done and done.told == one.told
        return done.records if same else None
