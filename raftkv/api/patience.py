"""How long an attempt at a group may take before it is made anew: what the group has lately needed says it."""

from __future__ import annotations

import math
from typing import Final

from raftkv.errors import Code

LEAST: Final = 1.0
"""Seconds that an attempt gets of a group that answers as usual."""
MOST: Final = 8.0
_TIMES: Final = 2.0
"""An attempt gets so many times what the group needed."""
SLOW: Final = LEAST / _TIMES
"""Seconds within which an answer says nothing that LEAST does not cover."""
_HALF_LIFE: Final = 10.0
"""Seconds after which half of what a group needed is forgotten."""

TELLING: Final = frozenset((Code.OK, Code.CONDITION_FAILED, Code.DEADLINE_EXCEEDED))
"""Answers of a group that was at work. How long others took says nothing about what it needs: a node without a leader
to ask waits for one as long as it may, and would make each attempt twice as long as the one before."""


class Patience:
    """Of attempts at groups. All times are in seconds, ``now`` is of one monotonic clock."""

    def __init__(self) -> None:
        self.needed: dict[int, tuple[float, float]] = {}
        """Groups that have lately needed longer than SLOW: how long, and when that was seen."""

    def saw(self, group: int, seconds: float, now: float) -> None:
        """An attempt at ``group`` got one of the TELLING answers after ``seconds``."""
        if seconds > SLOW and seconds >= self._lately(group, now):
            self.needed[group] = (min(seconds, MOST / _TIMES), now)

    def of(self, group: int, now: float) -> float:
        """Seconds that an attempt at ``group`` gets at least; 0 if LEAST will do."""
        needed = self._lately(group, now)
        if needed <= SLOW:
            self.needed.pop(group, None)
            return 0.0
        return _TIMES * needed

    def _lately(self, group: int, now: float) -> float:
        seconds, at = self.needed.get(group, (0.0, now))
        return seconds * math.pow(2.0, (at - now) / _HALF_LIFE)
