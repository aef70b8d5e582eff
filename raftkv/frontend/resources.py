"""What all front ends of a node share, whatever protocols they speak: counters, turns of the loop, budgets of bytes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from raftkv.api.status import Problem
from raftkv.frontend.counters import Counters
from raftkv.frontend.shares import Shares
from raftkv.frontend.turns import Turns
from raftkv.limits import LEAST_HELD_BYTES, MAX_HELD_BYTES, MAX_WAITING_BYTES

if TYPE_CHECKING:
    from raftkv.clock import Clock

_REMEMBERED: Final = 10.0
"""Seconds for which a refusal counts as a problem."""


class Resources:
    """Of one node. ``held``: bytes of requests and answers under way; ``waiting``: of messages that wait for turns."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.counters = Counters()
        self.turns = Turns(clock)
        self.held = Shares(MAX_HELD_BYTES, clock, LEAST_HELD_BYTES)
        self.waiting = Shares(MAX_WAITING_BYTES, clock)
        self._refused = 0
        self._refused_at = float("-inf")

    def problems(self) -> Iterator[Problem]:
        """What the node's clients suffer from, as of this look: it compares with the one before."""
        now, refused = self.clock.now(), self.counters.refused()
        if refused > self._refused:
            self._refused_at = now
        self._refused = refused
        if now < self._refused_at + _REMEMBERED:
            yield Problem(
                "overloaded", f"operations of clients are refused with OVERLOADED, {refused:,} since its start"
            )
