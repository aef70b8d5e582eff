"""What a node concludes from its peers' clocks: the cluster's time, wrong wall clocks, and rates that break leases.

A lease is safe while no voter's clock runs faster than the leader's by more than the allowance: the voter would forget
the leader, and elect another one, before the lease has ended. Rates are compared all the time, and a leader trusts no
lease while a voter is faster by half of the allowance. That notices a clock that is wrong for a while; what is read in
the first moments may be stale.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, Protocol

from raftkv.api.status import Problem
from raftkv.clock import Clock
from raftkv.peer.clocks import PeerClock

MAX_SKEW: Final = 10.0
"""Seconds by which a node's wall clock may differ from the cluster's time."""

_HOLD: Final = 30.0
"""Seconds for which a rate that was wrong is not trusted."""


class PeerClocks(Protocol):
    """What the links know of the peers' clocks."""

    def clocks(self) -> Mapping[int, PeerClock]: ...


class Clocks:
    """``lease_share``: a leader's lease as a share of the shortest election time-out; the rest is the allowance."""

    def __init__(self, links: PeerClocks, clock: Clock, lease_share: float) -> None:
        self._links = links
        self._clock = clock
        self._allowed = (1.0 - lease_share) / 2
        # Peer -> until when it counts, and its rate as a multiple of this node's.
        self._wrong: dict[int, tuple[float, float]] = {}

    def time(self) -> float:
        """The cluster's time, in seconds of Unix time: the median of the wall clocks of this node and its peers."""
        skews = sorted([0.0, *self.skews().values()])
        return self._clock.wall() + skews[len(skews) // 2]

    def skews(self) -> dict[int, float]:
        """By how many seconds each peer's wall clock is ahead of this node's."""
        now, wall = self._clock.now(), self._clock.wall()
        shown = {peer: clock.wall(now) for peer, clock in self._links.clocks().items()}
        return {peer: time - wall for peer, time in shown.items() if time is not None}

    def look(self) -> None:
        """Compare rates. Called several times a second."""
        now = self._clock.now()
        for peer, clock in self._links.clocks().items():
            if clock.slowest > 1.0 + self._allowed:
                self._wrong[peer] = now + _HOLD, clock.slowest
            elif clock.fastest < 1.0 - self._allowed:
                self._wrong[peer] = now + _HOLD, clock.fastest
        self._wrong = {peer: found for peer, found in self._wrong.items() if found[0] > now}

    def fast_peers(self) -> frozenset[int]:
        """Peers whose clocks run, or lately ran, faster than this node's by more than leases are trusted for."""
        return frozenset(peer for peer, (_, rate) in self._wrong.items() if rate > 1.0)

    def problems(self) -> Iterator[Problem]:
        """Clocks that are wrong."""
        ahead = self._clock.wall() - self.time()
        if abs(ahead) > MAX_SKEW:
            direction = "ahead of" if ahead > 0 else "behind"
            yield Problem("clock_skew", f"its wall clock is {abs(ahead):,.0f} s {direction} the cluster's time")
        for peer, (_, rate) in sorted(self._wrong.items()):
            text = f"the clock of node {peer} runs at {rate:.2f} times the rate of its own"
            if rate > 1.0:
                text += "; no lease is trusted in groups with that node"
            yield Problem("clock_skew", text, node=peer)
