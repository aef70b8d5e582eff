"""Whether the operations on one key could have happened one after the other, each between its begin and its end.

The search of Wing and Gong (Testing and verifying concurrent objects, 1993) with Lowe's memory of configurations that
failed (Testing for linearizability, 2017), as in Porcupine. Pure, and the same for the same history.

An operation whose outcome nobody learned may take effect at any time after it began, or never. One that was surely not
applied takes no part, so a value that only it wrote and that somebody read is a violation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from typing import Any, Final, NamedTuple

from faults.check.history import OPEN_END, Kind, Operation, Outcome
from faults.check.register import EMPTY, Register, RegisterState

BUDGET: Final = 1_500_000
"""Steps of the model after which the search of one key gives up. Histories in order take about one per operation."""

_TELLING: Final = 100_000
"""Steps, a few seconds, to find where a history that has no order gets stuck: the verdict is known by then."""

_LOOK_AHEAD: Final = 4
"""Operations of the lowest versions that are looked at before a choice: one choice places two of them at the most."""


class Verdict(StrEnum):
    """What the search came to. OUT_OF_BUDGET is no pass: nobody knows."""

    LINEARIZABLE = "linearizable"
    VIOLATION = "violation"
    OUT_OF_BUDGET = "out of budget"


@dataclass(frozen=True, slots=True)
class Finding:
    """``order``: numbers of the operations in an order that explains the history, or the longest that was found.
    ``state``: the key's state behind it. ``stuck``: the operation that had to come next and could not."""

    verdict: Verdict
    steps: int
    order: tuple[int, ...] = ()
    state: Any = EMPTY
    stuck: Operation | None = None


def check(operations: Sequence[Operation], model: Register, budget: int = BUDGET) -> Finding:
    """Search an order for the operations on one key. Reads that may be stale take no part (see :func:`check_stale`)."""
    found = _Search(operations, model, budget, _LOOK_AHEAD).run()
    if found.verdict is Verdict.VIOLATION:
        # Looking ahead turns back early; without it the search gets as far as anybody can, which tells more.
        farther = _Search(operations, model, min(budget, _TELLING), 0).run()
        return farther if farther.verdict is Verdict.VIOLATION else found
    return found


def check_stale(operations: Sequence[Operation]) -> list[Operation]:
    """Stale reads that returned a value which nobody can have written by then, or with another write's version."""
    writers: dict[str | None, list[Operation]] = {}
    for one in operations:
        if one.write and _may_have_written(one):
            writers.setdefault(one.value, []).append(one)
    return [
        read
        for read in operations
        if read.stale and read.outcome is Outcome.OK and read.found is not None
        if not any(
            one.began <= read.ended and one.version in (None, read.version) for one in writers.get(read.found, ())
        )
    ]


def _may_have_written(write: Operation) -> bool:
    return write.outcome is not Outcome.REFUSED and not (write.outcome is Outcome.OK and write.only_looks)


class _Choice(NamedTuple):
    """What may come next: an operation whose answer is known, with open writes before it if it needs them."""

    indexes: tuple[int, ...]
    mask: int
    after: RegisterState


class _Taken(NamedTuple):
    """A choice that was taken, the state before it, what else might have been taken, and the position in ``_told`` of
    the first that had no place."""

    choice: _Choice
    before: RegisterState
    others: list[_Choice]
    told: int


def _too_high(choice: _Choice, waiting: Sequence[tuple[int, int, bool]]) -> bool:
    """Whether some operation that has no place yet was told a version that cannot come any more: versions only rise."""
    floor = choice.after.floor
    return any(version < floor + above for version, bit, above in waiting if not choice.mask & bit)


class _Search:
    """Known operations must all find a place. Open ones find one only where that makes a difference.

    Whatever order explains a history, there is one in which open writes stand only directly before a known operation
    that their effect makes possible, each of several needing the one before it: an open write has no end, so it can be
    moved behind an operation that does not need it, and it can be left out where the next write hides it, since what
    it did to the version only narrows what may follow. An operation that only looks does not need it if it leaves the
    state as it was; one that tells an untold version, or that the record has expired, may need it all the same, and so
    may a write that is possible only if the record has expired, as that makes it late. Without this, each wrong turn
    would try all sets of open writes.
    """

    def __init__(self, operations: Sequence[Operation], model: Register, budget: int, ahead: int) -> None:
        known = [one for one in operations if one.outcome is Outcome.OK and not one.stale]
        maybe = [one for one in operations if one.outcome in (Outcome.UNKNOWN, Outcome.OPEN) and one.write]
        self._known = sorted(known, key=lambda one: (one.began, one.number))
        self._maybe = sorted(maybe, key=lambda one: (one.began, one.number))
        self._all = [*self._known, *self._maybe]
        # Versions that known operations were told, ascending: (version, bit, whether it must be above the floor).
        self._told = sorted(
            (one.version, 1 << index, one.kind in (Kind.PUT, Kind.CAS) and one.done)
            for index, one in enumerate(self._known)
            if one.version
        )
        self._ahead = ahead
        self._model = model
        self._budget = budget
        self._steps = 0
        self._failed: set[tuple[int, RegisterState]] = set()

    def run(self) -> Finding:
        done, state, told = 0, EMPTY, 0
        path: list[_Taken] = []
        best: tuple[int, tuple[int, ...], RegisterState, int] = (-1, (), EMPTY, 0)
        while len(path) < len(self._known):
            told = self._first_waiting(done, told)
            choices = self._choices(done, state, told)
            exhausted = self._steps > self._budget
            if (exhausted or not choices) and len(path) > best[0]:
                best = (len(path), self._order(path), state, done)
            # Before they are used: choices on which the budget ran out are not all that there are.
            if exhausted:
                return Finding(Verdict.OUT_OF_BUDGET, self._steps, best[1], best[2])
            while not choices:
                self._failed.add((done, state))
                if not path:
                    stuck = self._first_to_end(best[3])
                    return Finding(Verdict.VIOLATION, self._steps, best[1], best[2], stuck)
                choice, state, choices, told = path.pop()
                done &= ~choice.mask
            choice = choices.pop(0)
            path.append(_Taken(choice, state, choices, told))
            done |= choice.mask
            state = choice.after
        return Finding(Verdict.LINEARIZABLE, self._steps, self._order(path), state)

    def _order(self, path: Sequence[_Taken]) -> tuple[int, ...]:
        return tuple(self._all[index].number for taken in path for index in taken.choice.indexes)

    def _first_waiting(self, done: int, told: int) -> int:
        """The position in ``_told``, from ``told`` on, of the first that has no place."""
        while told < len(self._told) and done & self._told[told][1]:
            told += 1
        return told

    def _first_to_end(self, done: int) -> Operation:
        """Of the known operations without a place, the one that ended first: none may come behind it."""
        left = [one for index, one in enumerate(self._known) if not done >> index & 1]
        return min(left, key=lambda one: one.ended)

    def _choices(self, done: int, state: RegisterState, told: int) -> list[_Choice]:
        """What may come next: whatever began before the first of the known ones without a place ended."""
        known, until = self._known, OPEN_END
        candidates: list[int] = []
        # From the lowest zero bit of ``done`` on: before it everything has its place.
        for index in range((~done & (done + 1)).bit_length() - 1, len(known)):
            if not done >> index & 1:
                if known[index].began > until:
                    break
                until = min(until, known[index].ended)
                candidates.append(index)
        plain: list[_Choice] = []
        needing: list[int] = []
        for index in candidates:
            after = self._step(state, index)
            plain += [_Choice((index,), 1 << index, one) for one in after]
            if state not in after if known[index].only_looks else not _free(state, after):
                needing.append(index)
        found = plain
        if needing:
            open_ones = [
                index
                for index, one in enumerate(self._maybe, len(known))
                if one.began <= until and not done >> index & 1
            ]
            found = plain + self._helped(state, needing, open_ones, (), 0)
        lowest = islice(self._told, told, None)
        waiting = list(islice((one for one in lowest if not done & one[1]), self._ahead))
        return [
            choice
            for choice in found
            if not _too_high(choice, waiting) and (done | choice.mask, choice.after) not in self._failed
        ]

    def _helped(
        self, state: RegisterState, needing: list[int], open_ones: list[int], before: tuple[int, ...], mask: int
    ) -> list[_Choice]:
        """Known operations that are possible behind some open writes, the last of which nothing hides."""
        found: list[_Choice] = []
        effects = {index: self._step(state, index) for index in open_ones}
        dependent = [index for index, after in effects.items() if not _free(state, after)]
        for index, after in effects.items():
            others = [one for one in dependent if one != index]
            now = (*before, index), mask | 1 << index
            for changed in after:
                if self._steps > self._budget:
                    return found
                for wanted in needing:
                    found += [
                        _Choice((*now[0], wanted), now[1] | 1 << wanted, last) for last in self._step(changed, wanted)
                    ]
                if others:
                    found += self._helped(changed, needing, others, *now)
        return found

    def _step(self, state: RegisterState, index: int) -> list[RegisterState]:
        self._steps += 1
        return self._model.step(state, self._all[index])


def _free(state: RegisterState, after: Sequence[RegisterState]) -> bool:
    """Whether a write is possible in ``state`` without supposing that its record has expired."""
    return any(one.since == state.since for one in after)
