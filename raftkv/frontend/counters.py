"""Counters of what a node does, cheap enough for the hot path: plain numbers, read when somebody asks."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from typing import Final

from raftkv.commands.registry import CLIENT_COMMANDS
from raftkv.errors import Code

MALFORMED: Final = -1
"""Stands for the number of a command that could not be read."""

KINDS: Final = {number: kind.name for number, kind in CLIENT_COMMANDS.items()} | {MALFORMED: "malformed"}
"""Commands that clients ask for: number to name."""

_LATENCIES: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Durations:
    """How often something took how long: a histogram. ``bounds``: upper ends of its buckets in seconds, ascending.

    ``counts`` has one number per bucket, and a last one for what took longer; ``total`` is the sum in seconds.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """Count one more."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds


class Counters:
    """Operations that clients have asked of this node.

    ``taken[number]``: how many. ``failed[number, code]``: those whose answer was not OK; counting all answers would
    cost a read one percent of its time. ``latency``: from message to answer, of unary calls and of a sample of those in
    pipelines.
    """

    __slots__ = ("failed", "latency", "taken")

    def __init__(self) -> None:
        self.taken = dict.fromkeys(KINDS, 0)
        self.failed: defaultdict[tuple[int, int], int] = defaultdict(int)
        self.latency = Durations(_LATENCIES)

    def take(self, kinds: Sequence[int]) -> None:
        """Count operations that have arrived together."""
        for kind in set(kinds):
            self.taken[kind] += kinds.count(kind)

    def malformed(self, code: int) -> None:
        """Count one that could not be read."""
        self.taken[MALFORMED] += 1
        self.failed[MALFORMED, code] += 1

    def refused(self) -> int:
        """How many were refused because the node, or their connection's share of it, was overloaded."""
        return sum(count for (_, code), count in self.failed.items() if code == Code.OVERLOADED)
