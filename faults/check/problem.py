"""One thing that is wrong with a run, for people and for counting."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Breach(StrEnum):
    """Which promise was broken."""

    VIOLATION = "violation"  # no order explains the history of a key
    UNDECIDED = "undecided"  # the checker gave up: nobody knows, which is no pass
    STALE = "stale read of what never was"  # not even a read from the past may return it
    LATE = "late"  # a call outlasted its time-out
    LOST = "lost"  # acknowledged, and gone
    DUPLICATE = "duplicate"  # executed more than once
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class CheckProblem:
    """``text``: a line for people. ``key``: where, if it is one key's. ``count``: how many writes it is about."""

    breach: Breach
    text: str
    key: str = ""
    count: int = 1
