"""How small messages of a busy stream are avoided.

A message costs as much as a dozen operations, whether it carries one or fifty. While less has gathered than is worth
a message, the next one waits until its predecessor left about as long ago as answers take at present; what comes
meanwhile shares it. What is worth a message is for the caller to say, from what it has under way: so waits grow with
the load and vanish without it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from raftkv.clock import Clock, Timer

LONGEST: Final = 0.005
"""Seconds; bounds what a single slow answer can do to the others."""

_WEIGHT: Final = 0.125
"""Weight of the newest sample in the moving average."""


class Batcher:
    """The decision for one direction of one stream.

    ``share``: part of the time between an operation and its answer that lies between two messages at least, unless
    enough has gathered. ``resume`` is called when a wait is over. One operation at a time is followed from its message
    to its answer, by its number.
    """

    def __init__(self, clock: Clock, share: float, resume: Callable[[], None]) -> None:
        self._clock = clock
        self._share = share
        self._resume = resume
        self._last = float("-inf")
        self._answer_time = 0.0
        self.enough = 1
        """Number of operations for which a message is worth sending; over 1 while they are waited for."""
        self._until = 0.0
        self._timer: Timer | None = None
        self.followed = 0
        """Number of the operation whose answer is timed, 0 = none."""
        self._since = 0.0

    def waits(self, gathered: int, enough: int, longest: float = LONGEST) -> bool:
        """Whether ``gathered`` operations, fewer than ``enough``, wait: until ``resume`` or :attr:`enough`.

        At most ``longest`` seconds after the latest message.
        """
        if gathered < enough:
            now = self._clock.now()
            until = self._last + min(self._share * self._answer_time, longest)
            if now < until:
                self.enough, self._until = enough, until
                # One timer at a time, and none is cancelled: it is set anew when it comes too early.
                if self._timer is None:
                    self._timer = self._clock.call_later(until - now, self._ring)
                return True
        self.enough = 1
        return False

    def _ring(self) -> None:
        self._timer = None
        if self.enough > 1:
            left = self._until - self._clock.now()
            if left > 0.0:
                self._timer = self._clock.call_later(left, self._ring)
            else:
                self._resume()

    def sent(self) -> None:
        """A message left."""
        self._last = self._clock.now()

    def follow(self, number: int) -> None:
        """Operation ``number`` is on its way; it is timed unless another one is (and did not get lost)."""
        now = self._clock.now()
        if not self.followed or now > self._since + 1.0:
            self.followed = number
            self._since = now

    def answered(self) -> float:
        """The followed operation has its answer. Returns what it took, in seconds."""
        self.followed = 0
        took = self._clock.now() - self._since
        self._answer_time += _WEIGHT * (took - self._answer_time)
        return took

    def close(self) -> None:
        """The stream is over: nothing rings any more."""
        self.enough = 1
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
