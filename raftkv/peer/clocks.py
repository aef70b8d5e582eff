"""What the answers to pings tell of a peer's clocks.

A pong carries what both clocks of the peer showed when it was written: at a moment between the sending of the ping and
the arrival of the pong. That bounds how far its wall clock is off, and, by two pongs some time apart, at what rate its
monotonic clock runs. However slow a link is and however long a node stands still, the bounds hold; they are only wider.
"""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple

WINDOW: Final = 10.0
"""Seconds for which pongs are compared with later ones."""

_GRANULARITY: Final = 0.001
"""Seconds that two readings of a clock may be off by for reasons of its own."""


class Reading(NamedTuple):
    """One pong. ``sent``, ``answered``: own monotonic time of ping and pong. ``now``, ``wall``: the peer's clocks."""

    sent: float
    answered: float
    now: float
    wall: float


class PeerClock:
    """The clocks of a peer as seen by this node, over one connection. Times in seconds."""

    def __init__(self) -> None:
        self._readings: deque[Reading] = deque()
        self.slowest = 0.0
        self.fastest = float("inf")

    def add(self, reading: Reading) -> None:
        """Take the next pong. ``slowest`` and ``fastest`` bound the peer's rate of late, 1 being this node's own."""
        readings = self._readings
        while readings and readings[0].answered < reading.answered - WINDOW:
            readings.popleft()
        self.slowest, self.fastest = 0.0, float("inf")
        for before in readings:
            passed = reading.now - before.now
            self.slowest = max(self.slowest, (passed - _GRANULARITY) / (reading.answered - before.sent + _GRANULARITY))
            least = reading.sent - before.answered
            if least > 0:
                self.fastest = min(self.fastest, (passed + _GRANULARITY) / least)
        readings.append(reading)

    def wall(self, now: float) -> float | None:
        """What its wall clock shows at ``now``, to half a round trip; None before the first pong."""
        if not self._readings:
            return None
        last = self._readings[-1]
        return last.wall + now - (last.sent + last.answered) / 2
