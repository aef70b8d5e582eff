"""How small messages of a busy stream are avoided.

A message costs about the same whether it carries one operation or fifty. While much is outstanding and only little
has gathered, a message waits for a fraction of the time that answers take at present; what comes meanwhile shares it.
So the wait grows with the load and vanishes without it: an idle stream never waits, nor does one whose operations
travel together.
"""

from __future__ import annotations

from typing import Final

SHARE: Final = 0.5
"""Part of the time between an operation and its answer for which a message may wait."""

LONGEST: Final = 0.005
"""Seconds; bounds what a single slow answer can do to the others."""

_WEIGHT: Final = 0.125
"""Weight of the newest sample in the moving average."""


class Pace:
    """The decision for one direction of one stream. Times in seconds on one monotonic clock.

    One operation at a time is followed from its message to its answer, by its number.
    """

    def __init__(self) -> None:
        self._last = float("-inf")
        self._answer_time = 0.0
        self.followed = 0
        """Number of the operation whose answer is timed, 0 = none."""
        self._since = 0.0

    def delay(self, now: float, gathered: int, outstanding: int) -> float:
        """Seconds to wait before ``gathered`` of ``outstanding`` operations are sent; 0 = send now."""
        if 2 * gathered >= outstanding:
            return 0.0
        return max(0.0, self._last + min(SHARE * self._answer_time, LONGEST) - now)

    def sent(self, now: float) -> None:
        """A message left."""
        self._last = now

    def follow(self, number: int, now: float) -> None:
        """Operation ``number`` is on its way; it is timed unless another one is (and did not get lost)."""
        if not self.followed or now > self._since + 1.0:
            self.followed = number
            self._since = now

    def answered(self, now: float) -> float:
        """The followed operation has its answer. Returns what it took, in seconds."""
        self.followed = 0
        took = now - self._since
        self._answer_time += _WEIGHT * (took - self._answer_time)
        return took
