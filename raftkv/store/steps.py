"""Watches of a group that want the same keys: where they stand alike, what is told is taken once. Pure.

A watch still reads the history at its own pace. What lately was told to others is kept, up to a bound: a watch that
comes by where they stood is told the same and stands where they do now, and one that is further behind takes for
itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from raftkv import limits
from raftkv.store.watching import Part, Stand, Watch

_OVERHEAD: Final = 512
"""Bytes that a step counts for besides what it tells and where it ends."""


class _Step(NamedTuple):
    """From ``begun`` to ``ended``. Both stay as they are: nobody changes what others may stand on."""

    begun: Stand
    part: Part
    ended: Stand

    @property
    def size(self) -> int:
        """Bytes that it takes, about: what it tells is there a second time as a message."""
        return 2 * self.part.size + self.ended.after.itemsize * len(self.ended.after) + _OVERHEAD


class Steps:
    """What such watches were told last."""

    def __init__(self) -> None:
        # By where they began, and whether they only told how far slots were looked at.
        self._steps: dict[tuple[int, int, int, bool], _Step] = {}
        self._bytes = 0
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
            self._keep(at, _Step(begun, part, watch.stand))
        return part

    def _keep(self, at: tuple[int, int, int, bool], step: _Step) -> None:
        self._steps[at] = step
        self._bytes += step.size
        while self._bytes > limits.WATCH_BYTES and len(self._steps) > 1:
            self._bytes -= self._steps.pop(next(iter(self._steps))).size
