"""What watches told, compared with the history of writes and with each other. Pure.

A watch is told the numbers of a slot. So it is known what it must have seen: of each slot all that lies between the
number where it began and the one that it has reached, once and in order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from faults.check.history import History, Kind, Outcome
from faults.check.problem import Breach, CheckProblem


@dataclass(slots=True)
class Seen:
    """Of one watch. ``began``, ``reached``: numbers by slot. ``events``: (slot, number, key, kind, value, more)."""

    began: dict[int, int] = field(default_factory=dict)
    reached: dict[int, int] = field(default_factory=dict)
    events: list[tuple[int, int, str, str, str | None, bool]] = field(default_factory=list)

    def covers(self, slot: int, number: int) -> bool:
        """Whether it must have told what happened at that number."""
        return self.began.get(slot, number) < number <= self.reached.get(slot, 0)


def problems(watches: Mapping[str, Seen], history: History, slots: Mapping[str, int]) -> Iterator[CheckProblem]:
    """What is wrong. ``slots``: of the keys that were watched."""
    for name, seen in sorted(watches.items()):
        yield from _order(name, seen)
        yield from _written(name, seen, history, slots)
    for name, seen in sorted(watches.items()):
        for other, their in sorted(watches.items()):
            if name != other:
                yield from _agreement(name, seen, other, their)


def _order(name: str, seen: Seen) -> Iterator[CheckProblem]:
    last: dict[int, tuple[int, bool]] = {}
    for slot, number, key, kind, _, more in seen.events:
        before, going_on = last.get(slot, (seen.began.get(slot, 0), False))
        if number <= before:
            text = f"{name} was told of {kind} {key} at number {number} of slot {slot}, after number {before}"
            yield CheckProblem(Breach.DUPLICATE, text, key)
        elif going_on and number != before + 1:
            yield CheckProblem(Breach.OTHER, f"{name} was told a part of the transaction before {key} {number}", key)
        last[slot] = (number, more)


def _written(name: str, seen: Seen, history: History, slots: Mapping[str, int]) -> Iterator[CheckProblem]:
    told = {(key, number): value for _, number, key, kind, value, _ in seen.events if kind == "put"}
    asked = {(one.key, one.value) for one in history.operations if one.write}
    for one in history.operations:
        slot = slots.get(one.key)
        if slot is None or one.kind not in (Kind.PUT, Kind.CAS) or one.outcome is not Outcome.OK or not one.done:
            continue
        if seen.covers(slot, one.version or 0) and told.get((one.key, one.version or 0)) != one.value:
            yield CheckProblem(Breach.LOST, f"{name} was not told of {one.describe()}", one.key)
    for (key, number), value in told.items():
        if key in slots and (key, value) not in asked:
            yield CheckProblem(Breach.OTHER, f"{name} was told of {key} {number}, which nobody wrote", key)


def _agreement(name: str, seen: Seen, other: str, their: Seen) -> Iterator[CheckProblem]:
    """What one was told, the other was told too, if it covers it."""
    theirs = {event[:2]: event for event in their.events}
    for event in seen.events:
        if their.covers(*event[:2]) and theirs.get(event[:2]) != event:
            text = f"{name} was told {event}, {other} {theirs.get(event[:2])}"
            yield CheckProblem(Breach.LOST, text, event[2])


def whole(pairs: Sequence[tuple[str, str]], seen: Seen) -> Iterator[CheckProblem]:
    """Of transactions that put one value under both keys of a pair: both are told, one right behind the other."""
    for first, second in pairs:
        puts = [(slot, number, key, value) for slot, number, key, kind, value, _ in seen.events if kind == "put"]
        both = {(key, value): (slot, number) for slot, number, key, value in puts if key in (first, second)}
        for (key, value), (slot, number) in both.items():
            wanted = (second, number + 1) if key == first else (first, number - 1)
            if seen.covers(slot, wanted[1]) and both.get((wanted[0], value)) != (slot, wanted[1]):
                yield CheckProblem(Breach.LOST, f"a transaction was told in part: {key} {number}, not {wanted}", key)
