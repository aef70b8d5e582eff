"""Watches of a group that want the same keys: where they stand alike, what is told is taken once. Pure.

A watch still reads the history at its own pace. What lately was told to others is kept, up to a bound: a watch that
comes by where they stood is told the same and stands where they do now, and one that is further behind takes for
itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from raftkv import limits
from raftkv.store.watching import Part, Stand, Watch

_OVERHEAD: Final = 256
"""Bytes that a step counts for besides what it tells and where it ends, and as many for each of its spans."""


class _Step(NamedTuple):
    """From ``begun`` to ``ended``. Both stay as they are: nobody changes what others may stand on."""

    begun: Stand
    part: Part
    ended: Stand

    @property
    def size(self) -> int:
        """Bytes that it takes, about: what it tells is there a second time as a message."""
        numbers = self.ended.after
        return 2 * self.part.size + numbers.itemsize * len(numbers) + _OVERHEAD * (1 + len(self.part.spans))


_At = tuple[int, int, int, bool]
"""Where a step began, and whether it only told how far slots were looked at."""


class Recent:
    """The steps that a node keeps, of all its watches; the oldest go first."""

    def __init__(self) -> None:
        self._steps: deque[tuple[dict[_At, _Step], _At]] = deque()
        self.bytes = 0

    def add(self, steps: dict[_At, _Step], at: _At, step: _Step) -> None:
        """It is one of ``steps``, until it goes."""
        steps[at] = step
        self._steps.append((steps, at))
        self.bytes += step.size
        while self.bytes > limits.MAX_TOLD_BYTES:
            steps, at = self._steps.popleft()
            self.bytes -= steps.pop(at).size


class Steps:
    """What the watches of a group were lately told that want the same keys."""

    def __init__(self, recent: Recent) -> None:
        self._recent = recent
        self._steps: dict[_At, _Step] = {}
        self._latest: Stand | None = None

    def take(self, watch: Watch) -> Part:
        """As ``watch.take()``."""
        if watch.plain and not watch.behind:
            return Part()
        return self._tell(watch, watch.take, False)

    def heartbeat(self, watch: Watch) -> Part:
        """As ``watch.heartbeat()``."""
        return self._tell(watch, watch.heartbeat, True)

    def _tell(self, watch: Watch, tell: Callable[[], Part], heartbeat: bool) -> Part:
        plain, begun = watch.plain, watch.stand
        at = (begun.place, id(begun.after), id(begun.told), heartbeat)
        if plain and (known := self._steps.get(at)) is not None:
            watch.stand = known.ended
            return known.part
        watch.stand = Stand(begun.place, begun.after[:], dict(begun.told))
        part = tell()
        if plain:
            if watch.stand == self._latest:
                # It has come to where others are: from here on it goes with them.
                watch.stand = self._latest
            self._latest = watch.stand
            self._recent.add(self._steps, at, _Step(begun, part, watch.stand))
        return part
