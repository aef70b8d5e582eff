"""What holders of locks believed, and when: at most one holds a lock at a time, and fencing tokens rise. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from faults.check.problem import Breach, CheckProblem


@dataclass(slots=True)
class Holding:
    """``since``, ``until``: true time in seconds at which the holder looked first and last and was sure to hold it."""

    lock: str
    holder: str
    token: int
    since: float
    until: float

    def __str__(self) -> str:
        return f"{self.holder} from {self.since:.3f} to {self.until:.3f} with token {self.token}"


def problems(holdings: Iterable[Holding]) -> Iterator[CheckProblem]:
    """What is wrong with them."""
    last: dict[str, Holding] = {}
    longest: dict[str, Holding] = {}
    for one in sorted(holdings, key=lambda holding: holding.since):
        before, other = last.get(one.lock), longest.get(one.lock)
        if other is not None and one.since < other.until:
            yield CheckProblem(Breach.OTHER, f"lock {one.lock} has two holders: {other}, and {one}", one.lock)
        if before is not None and one.token <= before.token:
            yield CheckProblem(Breach.OTHER, f"lock {one.lock}: a token does not rise: {before}, then {one}", one.lock)
        last[one.lock] = one
        if other is None or one.until > other.until:
            longest[one.lock] = one
